"""A real worker on SaladCloud's metadata service: what it asks there, in which order, and how it leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.support.fakes import document
from tests.support.metadata import GROUP, MACHINE, MetadataService, token
from tests.support.scheduling import FullServer
from tests.support.supervised import supervised
from worker.clock import SystemClock
from worker.supervisor import ExitCode

TOKEN, COST = ("GET", "/v1/token"), ("PUT", "/v1/deletion-cost")


async def test_a_node_lives_by_its_identity_and_says_what_it_is_worth(tmp_path: Path) -> None:
    """Its token opens the queue, another one when that is refused; the cost rises with a job, and ends at zero."""
    async with (
        supervised("sdnext", tmp_path) as around,
        MetadataService() as platform,
        FullServer(SystemClock(), node_token=token(2)) as queue,
    ):
        variables = {
            **platform.variables(),
            "WORKER_NODE_ID": "",
            "WORKER_QUEUE": "availability",
            "WORKER_AVAILABILITY_URL": queue.url(""),
            "WORKER_STORAGE": "directory",
        }
        async with around.worker(**variables) as life:
            await life.ready()
            status = (await life.get("/v1/status")).json()
            assert (status["node"]["id"], status["node"]["instance"]) == (MACHINE, "instance-1")
            assert status["platform"]["container_group_id"] == GROUP
            await around.turn(step_seconds=1.0)
            await queue.queue.submit("a", document("a", params={"prompt": "a", "steps": 20}))
            await life.until(lambda: platform.deletion_cost > 0)
            await around.turn(step_seconds=0.001)
            await life.drained()
            assert {one["machine"] for one in life.events("stopped")} == {MACHINE}
            assert {one["container_group"] for one in life.events("stopped")} == {GROUP}
            log = life.log.read_text()
        assert {request.headers["metadata"] for request in platform.requests} == {"true"}
        assert {call.status for call in platform.calls} == {200, 204}
        assert platform.asked.keys() == {TOKEN, COST}
        assert (platform.costs[0], platform.costs[-1], platform.tokens) == (0, 0, 2)
        assert not any(token(number) in log for number in (1, 2))
        sent = [request.headers["authorization"] for request in queue.requests]
        assert sent[:2] == [f"Bearer {token(1)}", f"Bearer {token(2)}"]
        assert set(sent[1:]) == {f"Bearer {token(2)}"}


async def test_a_node_whose_server_never_works_asks_to_be_moved_and_is_ended(tmp_path: Path) -> None:
    """With figures in the reason; the platform's signal is a clean end, so that no code bans the machine as well."""
    async with supervised("sdnext", tmp_path) as around, MetadataService() as platform:
        variables = {**platform.variables(), "WORKER_ENGINE_RESTARTS": "1/10m"}
        async with around.worker("sh", "-c", "echo out of order; exit 3", **variables) as life:
            platform.on_reallocate = lambda: os.kill(life.process.pid, signal.SIGTERM)
            assert await life.died() == ExitCode.CLEAN, life.tail()
            given_up = life.events("node_given_up")
        assert len(platform.reasons) == len(given_up) == 1
        assert platform.reasons[0].endswith(given_up[0]["error"])
        assert "failed 1 times, at last: engine_lost: " in platform.reasons[0]
        assert [call.path for call in platform.calls][-1] == "/v1/reallocate"
        assert platform.deletion_cost == 0
