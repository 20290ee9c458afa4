"""Image servers that fail or lie, seen from the queue: the right code, the right fault, and the worker goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.bench import RunningWorker, ends, params, running_worker
from tests.support.queues import taken
from worker import recovery, warmup
from worker.clock import SystemClock
from worker.errors import Fault
from worker.queues.sqlite import SqliteQueue
from worker.simulators import Knobs, ModelFile, Simulator
from worker.simulators.knobs import FaultKind
from worker.supervisor import ExitCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = "poison"
"""Faults are armed for prompts with this word alone, so that they never strike the canary."""

SDNEXT, A1111 = ("sdnext", "sdnext-2023"), ("a1111", "forge")
ALL = SDNEXT + A1111
TWO = ("sdnext", "a1111")
_only = pytest.mark.parametrize


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, RunningWorker]]:
    """One worker for each dialect."""
    async with AsyncExitStack() as stack:
        started: dict[str, RunningWorker] = {}
        for dialect in ALL:
            root: Path = tmp_path_factory.mktemp(dialect)
            started[dialect] = await stack.enter_async_context(
                running_worker(root, dialect, ready=False, WORKER_ENGINE_RESTARTS="1000/10m")
            )
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def worker(fleet: dict[str, RunningWorker], dialect: str) -> AsyncIterator[RunningWorker]:
    worker = fleet[dialect]
    await worker.ready()
    yield worker
    worker.sim.knobs.disarm()


def bad(**fields: Any) -> dict[str, Any]:
    return {"params": params(BAD, **fields)}


FLEETING: list[tuple[str, FaultKind, dict[str, Any], str]] = [
    *((dialect, "oom", {}, "engine_oom") for dialect in ALL),
    *((dialect, "error_500", {"error": "TypeError", "text": "unhashable type"}, "output_empty") for dialect in ALL),
    *((dialect, "wrong_model", {}, "wrong_model") for dialect in ALL),
    *((dialect, "preview", {}, "output_mismatch") for dialect in TWO),
    *((dialect, "short_count", {}, "output_empty") for dialect in TWO),
    *((dialect, "truncated_image", {}, "output_mismatch") for dialect in TWO),
    ("sdnext", "empty", {}, "output_empty"),
    ("sdnext", "wrong_seed", {}, "output_mismatch"),
    ("a1111", "wrong_size", {}, "output_mismatch"),
    ("a1111", "not_an_image", {}, "output_mismatch"),
]


@_only(("dialect", "kind", "fault", "code"), FLEETING, ids=[f"{d}-{k}" for d, k, *_ in FLEETING])
async def test_a_doubtful_answer_is_repeated(
    worker: RunningWorker, dialect: str, kind: FaultKind, fault: dict[str, Any], code: str
) -> None:
    """One fresh turn, the good picture and a warning; the job is neither given back nor charged."""
    name = f"once-{kind}"
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    count = 1 if kind == "preview" else 2
    state = await worker.done(name, **bad(batch_size=count))
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == (f"repeated_{code}",)
    assert len(state.result.images) == count
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


LASTING: list[tuple[str, FaultKind, dict[str, Any], str, str]] = [
    *((dialect, "oom", {}, "engine_oom", "memory") for dialect in ALL),
    *((dialect, "wrong_model", {}, "wrong_model", "instead of") for dialect in TWO),
    ("sdnext", "empty", {}, "output_empty", "0 images instead of 2"),
    ("sdnext", "short_count", {}, "output_empty", "1 images instead of 2"),
    ("a1111", "wrong_size", {}, "output_mismatch", "pixels instead of"),
    ("sdnext", "truncated_image", {}, "output_mismatch", ""),
    ("a1111", "nan", {}, "output_empty", "NansException"),
]


@_only(("dialect", "kind", "fault", "code", "said"), LASTING, ids=[f"{d}-{k}" for d, k, *_ in LASTING])
async def test_a_job_that_fails_while_the_canary_passes_is_at_fault_itself(
    worker: RunningWorker, dialect: str, kind: FaultKind, fault: dict[str, Any], code: str, said: str
) -> None:
    """Three charged attempts of two turns each, then a rejection that its owner hears of once."""
    name = f"lasting-{kind}"
    turns = len(worker.sim.stats.generations)
    worker.sim.knobs.arm(kind, times=None, prompt=BAD, **fault)
    state = await worker.done(name, **bad(batch_size=2))
    assert (state.status, state.code, ends(state)) == ("dead", code, [(code, True)] * 3)
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.code, state.result.error.fault) == (code, Fault.JOB)
    assert said in state.result.error.message
    assert worker.told(name) == ["job.failed"]
    assert sum(BAD in one.prompt for one in worker.sim.stats.generations[turns:]) == 6
    assert {file for file in worker.files() if file.startswith(f"{name}/")} == {
        f"{name}/failure-{n}.json" for n in (1, 2, 3)
    }
    await worker.goes_on(name)


@_only("dialect", ALL)
async def test_a_black_picture_that_was_asked_for_goes_out_with_a_warning(worker: RunningWorker, dialect: str) -> None:
    """The canary is fine: the server is not at fault, and nobody knows that the job is."""
    worker.sim.knobs.arm("black", times=None, prompt=BAD)
    state = await worker.done("black", **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ("output_flat",)
    await worker.goes_on("black")


@_only("dialect", ALL)
async def test_black_pictures_of_a_broken_gpu_are_never_published(worker: RunningWorker, dialect: str) -> None:
    """The canary is black too: the job goes back uncharged, and no job is taken until the server is fit."""
    worker.sim.knobs.arm("black", times=None)
    await worker.submit("broken-gpu")
    await worker.attempted("broken-gpu", "output_flat")
    await worker.unready("output_flat")
    assert (await worker.status())["gate"] == {"open": False, "reasons": ["engine"]}
    assert not any(name.startswith("broken-gpu/") for name in worker.files())
    worker.sim.knobs.disarm()
    state = await worker.ended("broken-gpu")
    assert (state.status, ends(state)) == ("done", [("output_flat", False), ("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ()
    await worker.goes_on("broken-gpu")


BREAKING: list[tuple[str, FaultKind, dict[str, Any], str]] = [
    *((dialect, "error_500", {}, "gpu_fault") for dialect in ALL),
    *((dialect, "crash_mid_body", {}, "engine_lost") for dialect in TWO),
    *((dialect, "restart", {"seconds": 0.2}, "engine_lost") for dialect in ALL),
]


@_only(("dialect", "kind", "fault", "code"), BREAKING, ids=[f"{d}-{k}" for d, k, *_ in BREAKING])
async def test_a_server_that_breaks_is_the_nodes_fault(
    worker: RunningWorker, dialect: str, kind: FaultKind, fault: dict[str, Any], code: str
) -> None:
    """The job goes back uncharged, the server is warmed up again, and the job is done here after all."""
    name = f"breaking-{code}-{kind}"
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("done", [(code, False), ("succeeded", False)])
    assert worker.told(name) == ["job.succeeded"]
    assert state.result is not None
    assert [attempt.code for attempt in state.result.attempts] == [code]
    await worker.goes_on(name)


@_only("dialect", TWO)
async def test_a_job_that_breaks_servers_of_several_nodes_is_charged(worker: RunningWorker, dialect: str) -> None:
    """The first node takes the blame; from the second on it is the job."""
    worker.sim.knobs.arm("black", times=None)
    await worker.submit("occupied")
    await worker.unready("output_flat")
    await worker.submit("killer", priority=1, **bad())
    other = SqliteQueue(worker.settings.queue.sqlite_path, SystemClock(), worker="w0")
    delivery = await taken(other)
    assert delivery.id == "killer"
    await other.nack(delivery, timedelta(0), "engine_lost", charged=False)
    await other.aclose()
    worker.sim.knobs.disarm()
    worker.sim.knobs.arm("crash_mid_body", times=None, prompt=BAD)
    state = await worker.ended("killer")
    assert (state.status, state.code) == ("dead", "engine_lost")
    assert ends(state) == [("engine_lost", False), *[("engine_lost", True)] * 3]
    assert state.result is not None
    assert state.result.error is not None
    assert state.result.error.fault is Fault.JOB
    assert worker.told("killer") == ["job.failed"]
    await worker.ended("occupied")
    await worker.goes_on("killer")


@_only("dialect", ["sdnext"])
async def test_a_rate_limit_costs_nothing_but_time(worker: RunningWorker, dialect: str) -> None:
    """SD.Next counts after the work: the limit is lifted and the job done again; if it stays, the job goes back."""
    worker.sim.knobs.arm("rate_limited", prompt=BAD)
    state = await worker.done("limited", **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    worker.sim.knobs.arm("rate_limited", times=2, prompt=BAD)
    state = await worker.done("limited-again", **bad())
    assert (state.status, ends(state)) == ("done", [("engine_fault", False), ("succeeded", False)])
    await worker.goes_on("limited-again")


@_only("dialect", TWO)
async def test_a_server_that_hangs_is_given_up_and_taken_back(tmp_path: Path, dialect: str) -> None:
    """It ignores interrupts: the gate stays closed, the job waits uncharged, and all is well once it recovers."""
    async with running_worker(
        tmp_path,
        dialect,
        Knobs(step_seconds=0.01),
        WORKER_STALL_TIMEOUT="1s",
        WORKER_LOAD_TIMEOUT="3s",
        WORKER_ENGINE_RESTARTS="1000/10m",
    ) as worker:
        worker.sim.knobs.arm("hang", prompt=BAD)
        await worker.submit("hung", **bad())
        await worker.attempted("hung", "engine_stalled")
        assert (await worker.probe("ready"))[0] == 503
        assert (await worker.probe("startup"), await worker.probe("live")) == ((200, []), (200, []))
        assert (await worker.status())["gate"]["open"] is False
        worker.sim.release()
        state = await worker.ended("hung")
        assert (state.status, ends(state)) == ("done", [("engine_stalled", False), ("succeeded", False)])
        await worker.goes_on("hung")


@_only("dialect", ["sdnext", "forge"])
async def test_a_server_that_died_is_waited_for(tmp_path: Path, dialect: str) -> None:
    """While the port is closed the probes say so; when it is back it is warmed up before the job runs again."""
    async with running_worker(tmp_path, dialect) as worker:
        worker.sim.knobs.arm("exit", prompt=BAD)
        await worker.submit("last-words", **bad())
        await worker.attempted("last-words", "engine_lost")
        await worker.unready("engine_port_closed")
        worker.sim.restart()
        state = await worker.ended("last-words")
        assert (state.status, ends(state)) == ("done", [("engine_lost", False), ("succeeded", False)])
        assert worker.sim.stats.generations[-2].prompt == warmup.DEFAULT["params"]["prompt"]
        await worker.goes_on("last-words")


async def test_a_server_that_goes_away_while_idle_is_noticed(tmp_path: Path) -> None:
    """Not the next job finds out, but the worker, and it takes none meanwhile."""
    async with running_worker(tmp_path, changed=lambda patch: patch.setattr(recovery, "IDLE_LOOK_S", 0.05)) as worker:
        worker.sim.restart(3600)
        await worker.unready("engine_port_closed")
        await worker.submit("patient")
        worker.sim.restart()
        state = await worker.ended("patient")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])
        await worker.goes_on("patient")


async def test_a_node_whose_canary_never_passes_is_given_up(tmp_path: Path) -> None:
    """After so many failed recoveries the process ends with 75, and its job waits for another node, uncharged."""
    async with running_worker(tmp_path, WORKER_ENGINE_RESTARTS="3/10m") as worker:
        worker.sim.knobs.arm("black", times=None)
        await worker.submit("orphan")
        assert await worker.process is ExitCode.GIVEN_UP
        other = SqliteQueue(worker.settings.queue.sqlite_path, SystemClock(), worker="w2")
        delivery = await taken(other)
        assert [(a.code, a.charged) for a in delivery.attempts] == [("output_flat", False)]
        await other.aclose()


async def test_a_server_that_is_away_at_admission_closes_the_gate(tmp_path: Path) -> None:
    """A job that makes the worker look for new models finds the server gone: it is given back once, not again and
    again until nobody takes it any more."""
    async with running_worker(tmp_path) as worker:
        worker.sim.restart(3600)
        await worker.submit("curious", checkpoint="no-such-model")
        await worker.unready("engine_port_closed")
        worker.sim.restart()
        state = await worker.ended("curious")
        assert (state.status, ends(state)) == ("dead", [("engine_lost", False), ("model_not_found", True)])
        await worker.goes_on("curious")


def restart_behind(sim: Simulator, auth: str) -> None:
    """The server comes back with another login."""
    sim._auth = auth
    sim.restart()


async def test_a_server_that_refuses_us_from_now_on_closes_the_gate(tmp_path: Path) -> None:
    """Its operator changed the password: no job is handed around for it, and one change back resumes."""
    async with running_worker(
        tmp_path, auth="user:right", WORKER_ENGINE_USERNAME="user", WORKER_ENGINE_PASSWORD="right"
    ) as worker:
        restart_behind(worker.sim, "user:changed")
        await worker.submit("locked-out")
        await worker.unready("auth_failed")
        restart_behind(worker.sim, "user:right")
        state = await worker.ended("locked-out")
        assert (state.status, ends(state)) == ("done", [("auth_failed", False), ("succeeded", False)])
        await worker.goes_on("locked-out")


@_only("dialect", ALL)
async def test_a_model_that_cannot_be_loaded_is_the_jobs_trouble_alone(tmp_path: Path, dialect: str) -> None:
    """Loading it anew leaves it selected: the server goes back to what worked before the canary judges it."""
    async with running_worker(tmp_path, dialect) as worker:
        worker.sim.disk.add(ModelFile("broken.safetensors", unreadable=True))
        state = await worker.done("unloadable", checkpoint="broken")
        assert state.status == "dead"
        assert state.result is not None
        assert state.result.error is not None
        assert state.result.error.fault is Fault.JOB
        assert {charged for _, charged in ends(state)} == {True}
        assert worker.told("unloadable") == ["job.failed"]
        await worker.goes_on("unloadable")


async def test_a_model_that_does_not_fit_into_memory_is_the_jobs_trouble_alone(tmp_path: Path) -> None:
    """The canary is run with a model that does fit."""
    async with running_worker(tmp_path) as worker:
        worker.sim.disk.add("huge.safetensors")
        worker.sim.knobs.memory_pixels = 1000 * 1000
        state = await worker.done("huge", checkpoint="huge", params=params(width=1024, height=1024))
        assert (state.status, state.code, ends(state)) == ("dead", "engine_oom", [("engine_oom", True)] * 3)
        assert worker.sim.machine.loaded is not None
        assert worker.sim.machine.loaded.stem != "huge"
        await worker.goes_on("huge")
