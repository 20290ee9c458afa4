"""The daemon as a process: how it starts, what its probes say meanwhile, and how it ends on signals."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.bench import SECRET, document, ends
from tests.support.receiver import Receiver
from tests.support.waiting import wait_until
from tests.support.workshop import ROOT, Life, living
from worker import http
from worker.clock import SystemClock
from worker.queues.base import JobState
from worker.queues.sqlite import SqliteProducer
from worker.simulators import Knobs, Simulator, running

PATIENCE_S = 40.0
LONG = {"prompt": "a long one", "width": 64, "height": 64, "steps": 150}
NEVER = 3600.0
PROBES = ("startup", "live", "ready")


@dataclass
class Stand:
    """What stands around the processes."""

    folder: Path
    sim: Simulator
    receiver: Receiver
    producer: SqliteProducer

    def environment(self, **changes: str) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **inherited,
            "WORKER_ENGINE_URL": self.sim.url,
            "WORKER_HTTP_PORT": "0",
            "WORKER_QUEUE_VISIBILITY": "2s",
            "WORKER_QUEUE": "sqlite",
            "WORKER_SQLITE_PATH": str(self.folder / "queue.db"),
            "WORKER_STORAGE_DIRECTORY": str(self.folder / "outputs"),
            "WORKER_WEBHOOK_URL": self.receiver.url("/hook"),
            "WORKER_WEBHOOK_SECRET": SECRET,
            "WORKER_NODE_ID": "w1",
            "WORKER_LOG_FORMAT": "json",
            "WORKER_STRICT": "true",
            **changes,
        }

    @asynccontextmanager
    async def worker(self, *command: str, **changes: str) -> AsyncIterator[Life]:
        """`sd-worker run`; what is left of it at the end of the block is killed."""
        log = self.folder / f"{changes.get('WORKER_NODE_ID', 'w1')}.log"
        async with living("worker", "run", *command, environment=self.environment(**changes), log=log) as life:
            yield life

    async def ended_by_itself(self, *command: str, **changes: str) -> tuple[int, str]:
        """Exit code and output of a worker that cannot run."""
        async with self.worker(*command, **changes) as life, asyncio.timeout(PATIENCE_S):
            return await life.died(), life.log.read_text()

    async def state(self, job_id: str) -> JobState:
        found = await self.producer.state(job_id)
        assert found is not None
        return found

    async def done(self, job_id: str) -> None:
        async def is_done() -> bool:
            return (await self.state(job_id)).status == "done"

        await wait_until(is_done, PATIENCE_S)

    async def sampling(self) -> None:
        """Wait until the server is some steps into the long job."""

        def is_sampling() -> bool:
            made = self.sim.stats.generations
            return bool(made) and made[-1].prompt == LONG["prompt"] and self.sim.machine.state.sampling_step >= 3

        await wait_until(is_sampling, PATIENCE_S)


@asynccontextmanager
async def stand(folder: Path, knobs: Knobs | None = None, *, auth: str | None = None) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        sim = await stack.enter_async_context(running("sdnext", knobs, auth=auth))
        receiver = await stack.enter_async_context(Receiver(secret=SECRET))
        producer = SqliteProducer(folder / "queue.db", SystemClock())
        stack.push_async_callback(producer.aclose)
        yield Stand(folder, sim, receiver, producer)


async def port_of(life: Life) -> int:
    """Where it answers, as it says itself."""
    await until(life, lambda: bool(life.events("listening")))
    return int(life.events("listening")[0]["port"])


async def until(life: Life, check: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for the check as long as the process lives."""

    def holds() -> bool | Awaitable[bool]:
        assert not life.over, f"it ended with {life.process.returncode}\n{life.tail()}"
        return check()

    await wait_until(holds, PATIENCE_S)


async def told(port: int, which: str) -> tuple[int, list[str]]:
    """A probe by HTTP: status and reasons."""
    async with http.client(loopback=True) as client:
        response = await client.get(f"http://[::1]:{port}/{which}")
    return response.status_code, response.json()["reasons"]


async def ready(life: Life) -> int:
    """Wait until it takes jobs; its port."""
    port = await port_of(life)

    async def is_ready() -> bool:
        return (await told(port, "ready"))[0] == 200

    await until(life, is_ready)
    return port


async def probed(port: int) -> tuple[int, ...]:
    """Exit codes of `sd-worker probe startup|live|ready`."""

    async def one(which: str) -> int:
        environment = {"PATH": os.environ["PATH"], "WORKER_HTTP_PORT": str(port)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "worker", "probe", which), env=environment, cwd=ROOT, stdout=PIPE, stderr=PIPE
        )
        await process.communicate()
        return process.returncode or 0

    return tuple([await one(which) for which in PROBES])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_it_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """A drain with nothing to drain: exit 0, long before its deadline."""
    async with stand(tmp_path) as around, around.worker(WORKER_DRAIN_TIMEOUT="10m") as life:
        await ready(life)
        life.process.send_signal(number)
        async with asyncio.timeout(PATIENCE_S):
            assert await life.died() == 0
        assert [line["exit_code"] for line in life.events("stopped")] == [0]


async def test_what_fits_the_drain_is_finished(tmp_path: Path) -> None:
    """The running job ends well, the next one is not begun, and the probes tell of it to the end."""
    async with stand(tmp_path, Knobs(step_seconds=0.01)) as around:
        async with around.worker(WORKER_DRAIN_TIMEOUT="30s", WORKER_QUEUE_WINDOW="1") as life:
            port = await ready(life)
            await around.producer.submit("a", document("a", params=LONG))
            await around.producer.submit("b", document("b"))
            await around.sampling()
            life.process.terminate()
            await until(life, lambda: bool(life.events("stop_asked")))
            assert await told(port, "ready") == (503, ["draining"])
            assert (await told(port, "startup"), await told(port, "live")) == ((200, []), (200, []))
            async with asyncio.timeout(PATIENCE_S):
                assert await life.died() == 0
        state = await around.state("a")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])
        assert [one["data"]["id"] for one in around.receiver.documents] == ["a"]
        later = await around.state("b")
        assert (later.status, later.deliveries) == ("waiting", 0)
        assert around.sim.stats.interrupts == 0


async def test_what_does_not_fit_is_given_back_for_another_worker(tmp_path: Path) -> None:
    """The server is interrupted, the job is handed over at once and uncharged, and the next worker does it."""
    async with stand(tmp_path, Knobs(step_seconds=0.5)) as around:
        async with around.worker(WORKER_DRAIN_TIMEOUT="3s", WORKER_WARMUP="none") as life:
            await around.producer.submit("a", document("a", params=LONG))
            await around.sampling()
            life.process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                assert await life.died() == 0
        state = await around.state("a")
        assert (state.status, ends(state), state.deliveries) == ("waiting", [("draining", False)], 0)
        assert around.sim.stats.generations[-1].interrupted
        assert around.sim.stats.in_flight == 0
        assert around.receiver.requests == []
        around.sim.knobs.step_seconds = 0.001
        async with around.worker(WORKER_NODE_ID="w2") as other:
            await around.done("a")
            assert await other.stop() == 0
        attempts = (await around.state("a")).attempts
        assert [(one.worker, one.code) for one in attempts] == [("w1", "draining"), ("w2", "succeeded")]
        assert [one["type"] for one in around.receiver.documents] == ["job.succeeded"]


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Nothing is waited for; the job is handed over again when its lease has run out."""
    async with stand(tmp_path, Knobs(step_seconds=0.5)) as around:
        async with around.worker(WORKER_DRAIN_TIMEOUT="10m", WORKER_WARMUP="none") as life:
            await around.producer.submit("a", document("a", params=LONG))
            await around.sampling()
            life.process.terminate()
            await until(life, lambda: bool(life.events("stop_asked")))
            assert (await around.state("a")).status == "leased"
            life.process.terminate()
            async with asyncio.timeout(PATIENCE_S):
                assert await life.died() == 0
        assert not (await around.state("a")).attempts
        around.sim.knobs.step_seconds = 0.001
        async with around.worker(WORKER_NODE_ID="w2") as other:
            await around.done("a")
            assert await other.stop() == 0
        attempts = (await around.state("a")).attempts
        assert [(one.worker, one.code, one.charged) for one in attempts] == [
            ("w1", None, False),
            ("w2", "succeeded", False),
        ]


async def test_another_server_than_configured_is_64(tmp_path: Path) -> None:
    """The wrong engine never becomes right by waiting."""
    async with stand(tmp_path) as around:
        code, said = await around.ended_by_itself(WORKER_ENGINE="a1111")
    assert code == 64
    assert "WORKER_ENGINE: is a1111, but SD.Next answers" in said


async def test_refused_engine_credentials_are_64(tmp_path: Path) -> None:
    """The operator's mistake, told without the password."""
    async with stand(tmp_path, auth="user:right") as around:
        code, said = await around.ended_by_itself(
            WORKER_ENGINE_USERNAME="user", WORKER_ENGINE_PASSWORD="hunter2-hunter2"
        )
    assert code == 64
    assert '"auth_failed"' in said
    assert "hunter2" not in said


async def test_a_server_that_never_comes_is_69(tmp_path: Path) -> None:
    """The node is given up after its patience, and the log says what was waited for."""
    async with stand(tmp_path, Knobs(start_port_seconds=NEVER)) as around:
        code, said = await around.ended_by_itself(WORKER_ENGINE_START_TIMEOUT="2s")
    assert code == 69
    assert re.search(r'"node_given_up".*engine_port_closed|engine_port_closed.*"node_given_up"', said)


async def test_a_taken_port_is_64(tmp_path: Path) -> None:
    """Nobody could ask such a worker how it is."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        async with stand(tmp_path) as around:
            code, said = await around.ended_by_itself(WORKER_HTTP_PORT=str(taken.getsockname()[1]))
    assert code == 64
    assert "WORKER_HTTP_PORT" in said


async def test_a_queue_file_that_is_none_is_64(tmp_path: Path) -> None:
    """It is told at the start, before the server is waited for."""
    other = tmp_path / "notes.txt"
    other.write_bytes(b"no database" * 500)
    async with stand(tmp_path, Knobs(start_port_seconds=NEVER)) as around:
        code, said = await around.ended_by_itself(WORKER_SQLITE_PATH=str(other))
    assert code == 64
    assert "is not an SQLite database" in said
    assert other.read_bytes() == b"no database" * 500


async def test_every_mistake_of_the_configuration_is_told_at_once_and_no_secret(tmp_path: Path) -> None:
    """One run, one list, 64."""
    mistakes = {
        "WORKER_QUEUE_WINDOW": "0",
        "WORKER_ENGINE_URL": "localhost",
        "WORKER_WEBHOOK_SECRET": "whsec_not-base64-but-secret",
        "WORKER_API_KEY": "an-api-key-that-is-right",
        "WORKER_STORAGE": "s3",
        "WORKER_HTTP_PROT": "8080",
        "WORKER_QUEUE": "redis",
        "WORKER_REDIS_URL": "http://user:hunter2@example.com",
    }
    async with stand(tmp_path) as around:
        code, said = await around.ended_by_itself(**mistakes)
    assert code == 64
    right = {"WORKER_STORAGE", "WORKER_API_KEY", "WORKER_QUEUE"}
    for name in {*mistakes, "WORKER_S3_BUCKET", "WORKER_HTTP_PORT"} - right:
        assert name in said
    for secret in ("not-base64-but-secret", "an-api-key", "hunter2"):
        assert secret not in said


async def test_a_server_of_ours_on_anothers_port_is_64(tmp_path: Path) -> None:
    """A stranger's answers are never taken for our server's; the message says who holds the port."""
    async with stand(tmp_path) as around:
        code, said = await around.ended_by_itself("--", sys.executable, "-c", "pass")
    assert code == 64
    assert "WORKER_ENGINE_URL" in said
    assert f"pid {os.getpid()}" in said


async def test_a_command_that_is_none_is_64(tmp_path: Path) -> None:
    """Told by name before anything is waited for."""
    async with stand(tmp_path) as around:
        code, said = await around.ended_by_itself("--", "no-such-server", "--api")
    assert code == 64
    assert "no-such-server" in said


async def test_the_probes_say_what_is_waited_for(tmp_path: Path) -> None:
    """Port, routes, model: three different waits; ready only after the warm-up, and during generations too."""
    knobs = Knobs(start_port_seconds=NEVER, start_routes_seconds=NEVER, start_model_seconds=NEVER, step_seconds=0.01)
    async with stand(tmp_path, knobs) as around, around.worker() as life:
        port = await port_of(life)
        for reason, knob in (
            ("engine_port_closed", "start_port_seconds"),
            ("engine_routes_missing", "start_routes_seconds"),
            ("engine_model_not_loaded", "start_model_seconds"),
        ):

            async def says(reason: str = reason) -> bool:
                return await told(port, "startup") == (503, [reason]) == await told(port, "ready")

            await until(life, says)
            assert await told(port, "live") == (200, [])
            assert await probed(port) == (1, 0, 1)
            assert around.sim.stats.generations == []
            setattr(knobs, knob, 0.0)
        assert await ready(life) == port
        assert len(around.sim.stats.generations) == 1
        assert await probed(port) == (0, 0, 0)
        knobs.step_seconds = 0.1
        await around.producer.submit("a", document("a", params=LONG))
        await around.sampling()
        assert await probed(port) == (0, 0, 0)
        assert around.sim.stats.in_flight == 1
