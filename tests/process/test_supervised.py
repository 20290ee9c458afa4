"""The worker that owns its server, with real processes: whatever befalls the server, the jobs end well."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.supervised import KINDS, STEPS, Kind, as_first_process, kill_at_work, supervised
from tests.support.waiting import wait_until

ENVIRON = "import json, os; print('environ', json.dumps(sorted(os.environ)), flush=True); os._exit(3)"

LITTER = """
import os, signal, sys
for number in range(6):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            if number == 5:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True: signal.pause()
            os._exit(3)
        os._exit(0)
    os.wait()
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Leaves five orphans that end at once, and one that stays and ignores SIGTERM, before it becomes the server."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_is_started_driven_and_ended_with_its_worker(kind: Kind, tmp_path: Path) -> None:
    """`sd-worker run -- COMMAND`: the jobs succeed; after SIGTERM there is no process left and no open port."""
    async with supervised(kind, tmp_path) as around, around.worker() as life:
        await around.submit_many(3)
        await life.jobs_ended()
        assert await life.restarts() == {}
        assert around.left() == life.servers
        await life.drained()
        assert (await around.ledger()).breaches() == []


async def test_jobs_survive_a_server_that_is_killed_at_work(tmp_path: Path) -> None:
    """SIGKILL in the middle of three generations: each restart is counted once, and every job succeeds."""
    async with supervised("sdnext", tmp_path, step_seconds=0.03) as around, around.worker() as life:
        await around.submit_many(4, steps=STEPS)
        killed = await kill_at_work(life, random.Random(3), kills=3, within_s=0.7)
        await life.jobs_ended()
        assert set(killed.values()) == {1}
        assert await life.restarts() == {"engine_lost": 3}
        assert life.events("node_given_up") == []
        await life.drained()
        ledger = await around.ledger()
        assert ledger.breaches() == []
        lost = [one for state in ledger.states for one in state.attempts if one.code == "engine_lost"]
        assert [one.charged for one in lost] == [False] * 3


async def test_how_a_server_ended_stands_beside_what_it_printed(tmp_path: Path) -> None:
    """A segfault, an exit code and an end by itself are told apart in the event of the fault."""
    async with supervised("sdnext", tmp_path, step_seconds=0.03) as around, around.worker() as life:
        await around.submit("a", steps=STEPS)
        for number in (signal.SIGSEGV, signal.SIGTERM):
            await life.sampling()
            server = life.servers[-1]
            os.kill(server, number)
            await life.until(partial(life.has_other_server, server))
        await life.sampling()
        await around.turn(step_seconds=0.001, arm={"kind": "exit", "prompt": "b"})
        await around.submit("b")
        await life.jobs_ended()
        found = life.events("engine_fault_found")
        assert [re.sub(r"\W+$", "", one["end"].partition("(")[0]) for one in found] == [
            "crashed with SIGSEGV",
            "ended by itself with exit code 0",
            "ended with exit code 1",
        ]
        said = f"sdnext simulator listening on {around.url}"
        assert [one["lines"][-1] for one in found] == [said] * 3
        assert await life.restarts() == {"engine_lost": 3}
        await life.drained()


async def test_the_server_is_told_no_secret(tmp_path: Path) -> None:
    """Neither ours nor the clouds': only what the operator names; and its last words are kept."""
    given = {
        "WORKER_ENGINE_ENV": "WORKER_API_KEY,HF_TOKEN",
        "WORKER_ENGINE_RESTARTS": "1/10m",
        "WORKER_API_KEY": "a-key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "secret",
        "CIVITAI_TOKEN": "secret",
        "PLAIN": "1",
    }
    async with supervised("sdnext", tmp_path) as around:
        code, life = await around.ended_by_itself(sys.executable, "-c", ENVIRON, **given)
    assert code == 69
    (found,) = life.events("engine_fault_found")
    assert found["end"] == "ended with exit code 3"
    (line,) = found["lines"]
    names = set(re.findall(r'"(\w+)"', line))
    assert {name for name in names if re.match("WORKER_|AWS_|HF_|CIVITAI_", name)} == {"WORKER_API_KEY", "HF_TOKEN"}
    assert {"PATH", "PLAIN"} <= names


async def test_a_job_that_never_fits_is_charged_and_the_others_go_on(tmp_path: Path) -> None:
    """Freed, tried again, restarted, canary: the node is fit, so it is the job that is too large."""
    async with supervised("sdnext", tmp_path) as around:
        around.at_start(faults=[{"kind": "oom", "times": None, "prompt": "huge"}])
        async with around.worker(WORKER_QUEUE_MAX_ATTEMPTS="1") as life:
            await around.submit("huge", code="engine_oom")
            await around.submit_many(2)
            await life.jobs_ended()
            assert await around.codes("huge") == [("engine_oom", True)]
            (told,) = [one.data for one in around.receiver.told if one.data["id"] == "huge"]
            assert (told["error"]["fault"], told["error"]["code"]) == ("job", "engine_oom")
            assert "repeated_engine_oom" in told["warnings"]
            assert await life.restarts() == {"engine_oom": 1}
            assert {one.code for one in (await around.ledger()).states} == {None, "engine_oom"}
            await life.drained()


async def test_a_node_whose_canary_fails_after_restarts_too_is_given_up(tmp_path: Path) -> None:
    """So often as WORKER_ENGINE_RESTARTS says: exit 75 with the reason, the job uncharged, no process left."""
    async with supervised("sdnext", tmp_path) as around:
        async with around.worker(WORKER_ENGINE_RESTARTS="2/10m") as life:
            await life.ready()
            around.at_start(faults=[{"kind": "oom", "times": None}])
            await around.turn(arm={"kind": "oom", "times": None})
            await around.submit("a")
            assert await life.died() == 75
        assert [code for code, charged in await around.codes("a") if charged] == []
        assert (await around.state("a")).status in ("waiting", "delayed")
        assert len(life.events("warm_up_failed")) == 2
        assert "engine_oom" in life.events("node_given_up")[0]["error"]
        assert around.left() == []


async def test_a_server_that_needs_long_is_waited_for_while_it_lives(tmp_path: Path) -> None:
    """It is neither killed nor started again before its time."""
    async with supervised("sdnext", tmp_path, start_port_seconds=2.0) as around, around.worker() as life:
        await life.until(lambda: life.events("waiting_for_engine"))
        assert (await life.get("/startup")).json()["reasons"] == ["engine_port_closed"]
        await life.ready()
        assert len(life.servers) == 1
        await life.drained()


async def test_a_server_that_ends_at_its_start_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    """Exit 69; each end is told with its exit code."""
    async with supervised("sdnext", tmp_path) as around:
        code, life = await around.ended_by_itself("false", WORKER_ENGINE_RESTARTS="2/10m")
        assert code == 69
        assert [one["end"] for one in life.events("engine_fault_found")] == ["ended with exit code 1"] * 2
        assert len(life.servers) == 2
        assert "ended while starting" in life.events("node_given_up")[0]["error"]


async def test_a_server_that_moved_to_the_next_port_is_64(tmp_path: Path) -> None:
    """As gradio does: the message names both ports, and the server is ended."""
    async with supervised("sdnext", tmp_path) as around:
        moved = around.port + 1
        code, life = await around.ended_by_itself(
            *(sys.executable, "-m", "worker.simulators", "sdnext", "--port", str(moved))
        )
        assert code == 64
        assert f"nothing listens on port {around.port}; the server listens on {moved}" in life.tail()
        assert around.left() == []


async def test_a_killed_worker_takes_its_server_along(tmp_path: Path) -> None:
    """SIGKILL in the middle of a generation: the next worker removes what is left and does the job itself."""
    async with supervised("sdnext", tmp_path, step_seconds=0.03) as around:
        littering = (sys.executable, "-I", "-S", "-c", LITTER, *around.simulator())
        async with around.worker(*littering) as first:
            await around.submit("a", steps=STEPS)
            await first.sampling()
            (daemon,) = set(around.left()) - set(first.servers)
            await first.kill()
            await wait_until(lambda: set(around.left()) <= {daemon})
            async with around.worker(WORKER_NODE_ID="w2") as second:
                await second.jobs_ended()
                assert around.left() == second.servers
                await second.drained()
        attempts = (await around.state("a")).attempts
        assert [(one.worker, one.code, one.charged) for one in attempts] == [
            ("w1", None, False),
            ("w2", "succeeded", False),
        ]
        assert (await around.ledger()).breaches() == []


async def test_a_generation_that_hangs_costs_a_restart_and_no_job(tmp_path: Path) -> None:
    """It stops between two steps, deaf to interrupts: stalled, restarted, and done when it is handed over again."""
    async with supervised("sdnext", tmp_path) as around:
        around.module = "tests.support.hasty_worker"
        async with around.worker(WORKER_STALL_TIMEOUT="1s") as life:
            await life.ready()
            await around.turn(arm={"kind": "hang", "prompt": "stuck"})
            await around.submit("stuck")
            await life.jobs_ended()
            assert await around.codes("stuck") == [("engine_stalled", False), ("succeeded", False)]
            assert await life.restarts() == {"engine_stalled": 1}
            await life.drained()


async def test_an_idle_server_that_generates_no_more_is_found(tmp_path: Path) -> None:
    """It answers HTTP, but the thread that works is dead: its canary tells, and the next job finds it well."""
    async with supervised("comfyui", tmp_path) as around:
        around.module = "tests.support.hasty_worker"
        async with around.worker(WORKER_LOAD_TIMEOUT="3s") as life:
            await around.submit("before")
            await life.jobs_ended()
            await around.turn(arm={"kind": "dead_worker_idle"})
            await life.until(lambda: len(life.servers) == 2)
            await around.submit("after")
            await life.jobs_ended()
            assert await around.codes("after") == [("succeeded", False)]
            assert await life.restarts() == {"engine_stalled": 1}
            await life.drained()


async def test_a_server_that_leaks_is_restarted_between_jobs(tmp_path: Path) -> None:
    """Before it holds what it may; no job is lost, none is interrupted or handed over twice."""
    most, interrupts = 0, 0
    leaky = {"cache": "none", "leak_bytes_per_load": 40 << 20}
    async with supervised("comfyui", tmp_path, step_seconds=0.05, **leaky) as around:
        around.module = "tests.support.hasty_worker"
        async with around.worker(WORKER_ENGINE_MEMORY_MAX="300MB") as life:
            await around.submit_many(8)

            async def over() -> bool:
                nonlocal most, interrupts
                most = max(most, life.memory())
                interrupts = max(interrupts, (await around.stats()).get("interrupts", 0))
                return len(around.receiver.ended()) == len(around.wanted)

            await life.until(over)
            restarts = await life.restarts()
            assert restarts.keys() == {"engine_memory"}
            assert 1 <= restarts["engine_memory"] <= 3
            assert (most <= 300_000_000, interrupts) == (True, 0)
            await life.drained()
        ledger = await around.ledger()
        assert ledger.breaches() == []
        assert {len(state.attempts) for state in ledger.states} == {1}


async def test_as_a_containers_first_process_it_buries_orphans_and_heeds_signals(tmp_path: Path) -> None:
    """PID 1 where the kernel lets us, else the adopter of orphans: no zombie stays, and SIGTERM ends all of it."""
    async with supervised("sdnext", tmp_path) as around:
        around.within = await as_first_process()
        command = (sys.executable, "-I", "-S", "-c", LITTER, *around.simulator())
        async with around.worker(*command, WORKER_LOG_LEVEL="debug") as life:
            await around.submit_many(2)
            await life.jobs_ended()
            await life.until(lambda: len(life.events("orphan_reaped")) == 5)
            assert life.zombies() == []
            assert len(around.left()) == 2
            await life.drained()
        assert (await around.ledger()).breaches() == []
