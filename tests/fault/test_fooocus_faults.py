"""Fooocus-API at its worst, seen from the queue: the right code, the right fault, and the worker goes on.

The API hides every cause. They are told by the server's log where that can be read, else by the canary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.bench import RunningWorker, ends, params, running_worker
from tests.support.queues import taken
from tests.support.waiting import wait_until
from worker import warmup
from worker.clock import SystemClock
from worker.engines.base import NoLog
from worker.errors import Fault
from worker.queues.sqlite import SqliteQueue
from worker.simulators.fooocus import Fooocus, Knobs
from worker.simulators.fooocus.knobs import FaultKind
from worker.supervisor import ExitCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

Worker = RunningWorker[Fooocus]

BAD = "poison"
"""Faults are armed for prompts with this word alone, so that they never strike the canary."""

OLD, NEW, DEAF = "fooocus-0.4.1.1", "fooocus", "deaf"
BOTH = (OLD, NEW)
LENIENT: dict[str, Any] = {
    "WORKER_ENGINE_RESTARTS": "1000/10m",
    "WORKER_WEBHOOK_EVENTS": "succeeded,failed,cancelled",
}
STUCK: dict[str, Any] = {**LENIENT, "WORKER_LOAD_TIMEOUT": "1s", "WORKER_STALL_TIMEOUT": "1s"}
_only = pytest.mark.parametrize


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Worker]]:
    """A worker for each version, and one for a server whose log cannot be read."""
    async with AsyncExitStack() as stack:
        started: dict[str, Worker] = {}
        for name in (*BOTH, DEAF):
            root: Path = tmp_path_factory.mktemp("fooocus")
            log = NoLog() if name == DEAF else None
            server = running_worker(root, NEW if name == DEAF else name, Knobs(), server_log=log, **LENIENT)
            started[name] = await stack.enter_async_context(server)
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def worker(fleet: dict[str, Worker], server: str) -> AsyncIterator[Worker]:
    worker = fleet[server]
    await worker.ready()
    yield worker
    worker.sim.knobs.disarm()
    assert worker.sim.machine.queue == []


def bad(**fields: Any) -> dict[str, Any]:
    return {"params": params(BAD, **fields), "checkpoint": "sd_xl_base_1.0"}


def turns(worker: Worker) -> int:
    """How often a poisoned job was worked on."""
    return sum(one.prompt == BAD for one in worker.sim.stats.generations)


HARMLESS: list[tuple[str, FaultKind, dict[str, Any]]] = [
    *((server, "lost_answer", {}) for server in BOTH),
    *((server, "lost_request", {}) for server in BOTH),
    (OLD, "queue_full", {}),
    (NEW, "queue_full", {}),
    (OLD, "query_500", {}),
    (NEW, "slow", {"seconds": 0.2}),
]


@_only(("server", "kind", "fault"), HARMLESS, ids=[f"{s}-{k}" for s, k, _ in HARMLESS])
async def test_a_fault_of_the_wire_costs_a_job_nothing(
    worker: Worker, server: str, kind: FaultKind, fault: dict[str, Any]
) -> None:
    """Whatever happens to an answer: the job runs exactly once."""
    name, before = f"harmless-{kind}", turns(worker)
    worker.sim.knobs.arm(kind, prompt="" if kind == "query_500" else BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ()
    assert turns(worker) - before == 1
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


FLEETING: list[tuple[str, FaultKind, str, str]] = [
    *((server, "oom", "", "engine_oom") for server in BOTH),
    (DEAF, "oom", "", "output_empty"),
    *((server, "error", "Error while deserializing header", "output_empty") for server in (OLD, DEAF)),
    *((server, "user_cancel_by_other", "", "output_empty") for server in (*BOTH, DEAF)),
    *((server, "wrong_model", "", "wrong_model") for server in BOTH),
    (OLD, "empty", "", "output_empty"),
    *((server, "short_count", "", "output_empty") for server in BOTH),
    (NEW, "missing_file", "", "output_empty"),
    (OLD, "wrong_size", "", "output_mismatch"),
    (NEW, "truncated_image", "", "output_mismatch"),
    (NEW, "not_an_image", "", "output_mismatch"),
]


@_only(("server", "kind", "text", "code"), FLEETING, ids=[f"{s}-{k}" for s, k, *_ in FLEETING])
async def test_a_doubtful_answer_is_repeated(
    worker: Worker, server: str, kind: FaultKind, text: str, code: str
) -> None:
    """One turn more, the good pictures and a warning; the job is neither given back nor charged."""
    name, before = f"once-{kind}", turns(worker)
    worker.sim.knobs.arm(kind, prompt=BAD, text=text)
    state = await worker.done(name, **bad(batch_size=2))
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == (f"repeated_{code}",)
    assert (len(state.result.images), turns(worker) - before) == (2, 2)
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


LASTING: list[tuple[str, FaultKind, str, str, str]] = [
    (OLD, "oom", "", "engine_oom", "out of memory"),
    (DEAF, "oom", "", "output_empty", "log cannot be read"),
    (NEW, "error", "Error while deserializing header", "output_empty", "deserializing"),
    (OLD, "user_cancel_by_other", "", "output_empty", "somebody else"),
    (NEW, "wrong_model", "", "wrong_model", "instead of"),
    (OLD, "missing_file", "", "output_empty", "404"),
    (NEW, "wrong_size", "", "output_mismatch", "pixels instead of"),
]


@_only(("server", "kind", "text", "code", "said"), LASTING, ids=[f"{s}-{k}" for s, k, *_ in LASTING])
async def test_a_job_that_fails_while_the_canary_passes_is_at_fault_itself(
    worker: Worker, server: str, kind: FaultKind, text: str, code: str, said: str
) -> None:
    """Three charged attempts of two turns each, then a rejection that its owner hears of once."""
    name, before = f"lasting-{kind}", turns(worker)
    worker.sim.knobs.arm(kind, times=None, prompt=BAD, text=text)
    state = await worker.done(name, **bad())
    assert (state.status, state.code, ends(state)) == ("dead", code, [(code, True)] * 3)
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.code, state.result.error.fault) == (code, Fault.JOB)
    assert said in state.result.error.message
    assert turns(worker) - before == 6
    assert worker.told(name) == ["job.failed"]
    assert not any(file.endswith(".png") for file in worker.files() if file.startswith(f"{name}/"))
    await worker.goes_on(name)


REFUSED: list[tuple[str, FaultKind, str, str]] = [
    *((server, "error", "invalid literal for int() with base 10: 'x'", "invalid literal") for server in BOTH),
    (OLD, "error_500", "", "the server answered 500"),
]


@_only(("server", "kind", "text", "said"), REFUSED, ids=[f"{s}-{k}" for s, k, *_ in REFUSED])
async def test_what_comes_again_is_rejected_at_once(
    worker: Worker, server: str, kind: FaultKind, text: str, said: str
) -> None:
    """The log names a cause that lies in the request: one attempt."""
    name = f"refused-{kind}"
    worker.sim.knobs.arm(kind, times=None, prompt=BAD, text=text)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("dead", [("generation_rejected", True)])
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.fault, said in state.result.error.message) == (Fault.JOB, True)
    assert worker.told(name) == ["job.failed"]
    await worker.goes_on(name)


@_only("server", BOTH)
@_only("kind", ["black", "flat"])
async def test_a_flat_picture_that_was_asked_for_goes_out_with_a_warning(
    worker: Worker, server: str, kind: FaultKind
) -> None:
    """The canary is fine: the server is not at fault, and nobody knows that the job is."""
    worker.sim.knobs.arm(kind, times=None, prompt=BAD)
    state = await worker.done(f"one-colour-{kind}", **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ("output_flat",)
    await worker.goes_on(f"one-colour-{kind}")


@_only("server", [NEW])
async def test_black_pictures_of_a_broken_gpu_are_never_published(worker: Worker, server: str) -> None:
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
    await worker.goes_on("broken-gpu")


BREAKING: list[tuple[str, FaultKind, dict[str, Any], str]] = [
    *((server, "restart", {"seconds": 0.2}, "engine_lost") for server in BOTH),
    *((server, "vanish", {}, "engine_lost") for server in BOTH),
]


@_only(("server", "kind", "fault", "code"), BREAKING, ids=[f"{s}-{k}" for s, k, *_ in BREAKING])
async def test_a_server_that_forgot_the_job_is_the_nodes_fault(
    worker: Worker, server: str, kind: FaultKind, fault: dict[str, Any], code: str
) -> None:
    """The job goes back uncharged, the server is warmed up again, and the job is done here after all."""
    name = f"breaking-{kind}"
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("done", [(code, False), ("succeeded", False)])
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


@_only(("server", "code"), [(OLD, "gpu_fault"), (NEW, "gpu_fault"), (DEAF, "output_empty")])
async def test_a_gpu_fault_closes_the_gate_until_the_server_was_restarted(
    worker: Worker, server: str, code: str
) -> None:
    """Every job fails from then on; without a log the canary shows it. No job is charged or taken meanwhile."""
    worker.sim.knobs.arm("cuda", prompt=BAD)
    await worker.submit("cuda", **bad())
    await worker.attempted("cuda", code)
    await worker.unready(code)
    assert (await worker.status())["gate"] == {"open": False, "reasons": ["engine"]}
    await worker.submit("meanwhile")
    worker.sim.restart()
    for job_id, before in (("cuda", [(code, False)]), ("meanwhile", [])):
        state = await worker.ended(job_id)
        assert (state.status, ends(state)) == ("done", [*before, ("succeeded", False)])
        assert worker.told(job_id) == ["job.succeeded"]
    await worker.goes_on("cuda")


@_only("server", [NEW])
@_only("kind", ["crash", "exit"])
async def test_a_server_that_died_is_waited_for(worker: Worker, server: str, kind: FaultKind) -> None:
    """While the port is closed the probes say so; when it is back it is warmed up before the job runs again."""
    name = f"last-words-{kind}"
    worker.sim.knobs.arm(kind, prompt=BAD)
    await worker.submit(name, **bad())
    await worker.attempted(name, "engine_lost")
    await worker.unready("engine_port_closed")
    worker.sim.restart()
    state = await worker.ended(name)
    assert (state.status, ends(state)) == ("done", [("engine_lost", False), ("succeeded", False)])
    assert [one.prompt for one in worker.sim.stats.generations[-2:]] == [warmup.DEFAULT["params"]["prompt"], BAD]
    await worker.goes_on(name)


STALLING: list[tuple[str, FaultKind, bool]] = [
    (OLD, "hang", False),
    (NEW, "dead_worker", False),
    (NEW, "dead_worker", True),
]


@_only(("server", "kind", "deaf"), STALLING, ids=[f"{s}-{k}-{d}" for s, k, d in STALLING])
async def test_a_server_that_is_stuck_is_given_up_and_taken_back(
    tmp_path: Path, server: str, kind: FaultKind, deaf: bool
) -> None:
    """It answers and does nothing: the gate stays closed, the job waits uncharged, and all is well after a restart."""
    log = NoLog() if deaf else None
    async with running_worker(tmp_path, server, Knobs(step_seconds=0.01), server_log=log, **STUCK) as worker:
        worker.sim.knobs.arm(kind, prompt=BAD)
        await worker.submit("stuck", **bad())
        await worker.attempted("stuck", "engine_stalled")
        assert (await worker.probe("ready"))[0] == 503
        assert (await worker.probe("startup"), await worker.probe("live")) == ((200, []), (200, []))
        assert (await worker.status())["gate"]["open"] is False
        worker.sim.restart()
        state = await worker.ended("stuck")
        assert (state.status, ends(state)) == ("done", [("engine_stalled", False), ("succeeded", False)])
        await worker.goes_on("stuck")


@_only("server", BOTH)
async def test_a_generation_that_takes_too_long_is_interrupted(tmp_path: Path, server: str) -> None:
    """Its time counts from the first step; the attempt is charged, and the server is free for the next job."""
    async with running_worker(tmp_path, server, Knobs(step_seconds=0.02)) as worker:
        state = await worker.done("slow", timeout=0.2, **bad(steps=150))
        assert (state.status, state.code, ends(state)) == ("dead", "job_timeout", [("job_timeout", True)] * 3)
        assert [one.interrupted for one in worker.sim.stats.generations[-3:]] == [True] * 3
        assert worker.sim.machine.queue == []
        assert worker.told("slow") == ["job.failed"]
        await worker.goes_on("slow")


@_only("server", BOTH)
async def test_a_cancelled_job_leaves_the_server_idle(tmp_path: Path, server: str) -> None:
    """Stopped in the middle of its steps: cancelled, told so to who asked to hear it, and nothing runs on."""
    hurried: dict[str, Any] = {**LENIENT, "WORKER_QUEUE_VISIBILITY": "2s"}
    async with running_worker(tmp_path, server, Knobs(step_seconds=0.05), **hurried) as worker:
        await worker.submit("unwanted", **bad(steps=150))
        await wait_until(lambda: any(job.progress > 15 for job in worker.sim.machine.queue))
        assert await worker.queue.cancel("unwanted")
        state = await worker.ended("unwanted")
        assert state.result is not None
        assert (state.status, state.result.status, worker.told("unwanted")) == ("done", "cancelled", ["job.cancelled"])
        assert worker.sim.stats.generations[-1].interrupted
        assert worker.sim.machine.queue == []
        await worker.goes_on("unwanted")


@_only("server", BOTH)
async def test_a_drain_stops_the_server_and_gives_the_job_back(tmp_path: Path, server: str) -> None:
    """A clean exit: nothing runs on, and the job waits uncharged for another node."""
    async with running_worker(tmp_path, server, Knobs(step_seconds=0.02)) as worker:
        await worker.submit("handed-back", **bad(steps=150))
        await wait_until(lambda: any(job.progress > 15 for job in worker.sim.machine.queue))
        worker.supervisor.stop()
        assert await worker.process is ExitCode.CLEAN
        assert worker.sim.stats.generations[-1].interrupted
        assert worker.sim.machine.queue == []
        assert worker.told("handed-back") == []
        other = SqliteQueue(worker.settings.queue.sqlite_path, SystemClock(), worker="w2")
        delivery = await taken(other)
        assert (delivery.id, [a.charged for a in delivery.attempts]) == ("handed-back", [False])
        await other.aclose()
