"""ComfyUI at its worst, seen from the queue: the right code, the right fault, and the worker goes on."""

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
from tests.support.waiting import wait_until
from worker import recovery, warmup
from worker.clock import SystemClock
from worker.errors import Fault
from worker.queues.sqlite import SqliteQueue
from worker.simulators.comfyui import ComfyUI, Knobs
from worker.simulators.comfyui.knobs import FaultKind
from worker.supervisor import ExitCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

Worker = RunningWorker[ComfyUI]

BAD = "poison"
"""Faults are armed for prompts with this word alone, so that they never strike the canary."""

OLD, NEW = "0.3.64", "newest"
BOTH = (OLD, NEW)
LENIENT: dict[str, Any] = {"WORKER_ENGINE_RESTARTS": "1000/10m", "WORKER_WEBHOOK_EVENTS": "succeeded,failed,cancelled"}
STUCK: dict[str, Any] = {**LENIENT, "WORKER_LOAD_TIMEOUT": "1s", "WORKER_STALL_TIMEOUT": "1s"}
_only = pytest.mark.parametrize


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Worker]]:
    """One worker for each version."""
    async with AsyncExitStack() as stack:
        started: dict[str, Worker] = {}
        for version in BOTH:
            root: Path = tmp_path_factory.mktemp("comfyui")
            started[version] = await stack.enter_async_context(
                running_worker(root, "comfyui", Knobs(version=version), **LENIENT)
            )
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def worker(fleet: dict[str, Worker], version: str) -> AsyncIterator[Worker]:
    worker = fleet[version]
    await worker.ready()
    yield worker
    worker.sim.knobs.disarm()
    assert left_behind(worker.sim) == []


def bad(**fields: Any) -> dict[str, Any]:
    return {"params": params(BAD, **fields), "checkpoint": "dreamshaper_8"}


def left_behind(sim: ComfyUI) -> list[str]:
    """What the server still has of the jobs that have ended: files and entries of its history."""
    files = [f"{kind}/{name}" for kind in ("input", "output", "temp") for name in sim.files(kind)]
    return files + list(sim.machine.queue.history)


def sampled(worker: Worker) -> int:
    """How often a sampler has run for a poisoned prompt."""
    return sum(BAD in one.positive for one in worker.sim.stats.samplings)


HARMLESS: list[tuple[str, FaultKind, dict[str, Any], int]] = [
    *((version, "lost_answer", {}, 1) for version in BOTH),
    *((version, "deaf_socket", {}, 1) for version in BOTH),
    (OLD, "drop_socket", {}, 1),
    (OLD, "big_frame", {}, 1),
    (NEW, "duplicate_events", {}, 1),
    (NEW, "late_history", {"seconds": 0.1}, 1),
    (OLD, "null_status", {}, 1),
    (NEW, "stale_status_str", {}, 1),
    (OLD, "missing_file", {}, 2),
    (OLD, "slow", {"seconds": 0.2}, 1),
]


@_only(("version", "kind", "fault", "runs"), HARMLESS, ids=[f"{v}-{k}" for v, k, *_ in HARMLESS])
async def test_a_fault_of_the_wire_costs_a_job_nothing(
    worker: Worker, version: str, kind: FaultKind, fault: dict[str, Any], runs: int
) -> None:
    """The history is the truth: one turn, one run of the graph but where its file is missing, and no warning."""
    name, before, prompts = f"harmless-{kind}", sampled(worker), len(worker.sim.stats.prompts)
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ()
    assert len(state.result.images) == 1
    assert (sampled(worker) - before, len(worker.sim.stats.prompts) - prompts) == (runs, runs)
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


FLEETING: list[tuple[str, FaultKind, dict[str, Any], str]] = [
    *((version, "oom", {}, "engine_oom") for version in BOTH),
    (OLD, "exception", {"error": "SafetensorError", "text": "invalid header"}, "output_empty"),
    (NEW, "exception", {"error": "RuntimeError", "text": "something else"}, "output_empty"),
    (OLD, "wrong_size", {}, "output_mismatch"),
    (NEW, "truncated_image", {}, "output_mismatch"),
    (OLD, "success_without_outputs", {}, "output_empty"),
    *((version, "interrupted_by_other", {}, "output_mismatch") for version in BOTH),
]


@_only(("version", "kind", "fault", "code"), FLEETING, ids=[f"{v}-{k}-{c}" for v, k, _, c in FLEETING])
async def test_a_doubtful_answer_is_repeated(
    worker: Worker, version: str, kind: FaultKind, fault: dict[str, Any], code: str
) -> None:
    """One fresh turn, in which the model is read anew, the good pictures and a warning; nothing is charged."""
    name, loads, frees = f"once-{kind}-{code}", len(worker.sim.stats.loads), len(worker.sim.stats.frees)
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    state = await worker.done(name, **bad(batch_size=2))
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == (f"repeated_{code}",)
    assert len(state.result.images) == 2
    assert len(worker.sim.stats.loads) > loads
    assert {"unload_models": True, "free_memory": True} in worker.sim.stats.frees[frees:]
    assert worker.told(name) == ["job.succeeded"]
    await worker.goes_on(name)


LASTING: list[tuple[str, FaultKind, dict[str, Any], str, str]] = [
    (NEW, "oom", {}, "engine_oom", "node "),
    (OLD, "wrong_size", {}, "output_mismatch", "pixels instead of"),
    (NEW, "truncated_image", {}, "output_mismatch", ""),
    (NEW, "success_without_outputs", {}, "output_empty", "made nothing"),
    (OLD, "interrupted_by_other", {}, "output_mismatch", "interrupted"),
    (OLD, "missing_file", {}, "output_empty", "has no such file"),
    (NEW, "exception", {"error": "OSError", "text": "disk says no"}, "output_empty", "disk says no"),
]


@_only(("version", "kind", "fault", "code", "said"), LASTING, ids=[f"{v}-{k}" for v, k, *_ in LASTING])
async def test_a_job_that_fails_while_the_canary_passes_is_at_fault_itself(
    worker: Worker, version: str, kind: FaultKind, fault: dict[str, Any], code: str, said: str
) -> None:
    """Three charged attempts of two turns each, then a rejection that its owner hears of once."""
    name, runs = f"lasting-{kind}", len(worker.sim.stats.runs)
    worker.sim.knobs.arm(kind, times=None, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, state.code, ends(state)) == ("dead", code, [(code, True)] * 3)
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.code, state.result.error.fault) == (code, Fault.JOB)
    assert said in state.result.error.message
    assert worker.told(name) == ["job.failed"]
    turns = 2 if kind == "missing_file" else 1
    assert sum(run.fault == kind for run in worker.sim.stats.runs[runs:]) == 6 * turns
    assert not any(file.endswith(".png") for file in worker.files() if file.startswith(f"{name}/"))
    await worker.goes_on(name)


SAMPLER = 'node sampler (KSampler "Sampler"): '
REFUSED: list[tuple[str, FaultKind, dict[str, Any], str]] = [
    *((v, "exception", {"error": "ValueError", "text": "bad grid"}, SAMPLER + "ValueError: bad grid") for v in BOTH),
    (OLD, "exception", {"text": "mat1 and mat2 shapes cannot be multiplied"}, "shapes cannot be multiplied"),
    *((v, "node_errors_on_200", {}, "node 999 (SaveImage), images: Required input is missing") for v in BOTH),
]


@_only(("version", "kind", "fault", "said"), REFUSED, ids=[f"{v}-{k}-{s[-10:]}" for v, k, _, s in REFUSED])
async def test_what_comes_again_is_rejected_at_once(
    worker: Worker, version: str, kind: FaultKind, fault: dict[str, Any], said: str
) -> None:
    """An exception about values, or a node that is not valid: one attempt, and the message names the node."""
    name = f"refused-{kind}-{fault.get('error', '')}-{version}"
    worker.sim.knobs.arm(kind, times=None, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("dead", [("generation_rejected", True)])
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.fault, said in state.result.error.message) == (Fault.JOB, True)
    assert worker.told(name) == ["job.failed"]
    assert worker.sim.machine.queue.remaining == 0
    await worker.goes_on(name)


@_only("version", BOTH)
@_only("kind", ["black", "flat"])
async def test_a_flat_picture_that_was_asked_for_goes_out_with_a_warning(
    worker: Worker, version: str, kind: FaultKind
) -> None:
    """The canary is fine: the server is not at fault, and nobody knows that the job is."""
    worker.sim.knobs.arm(kind, times=None, prompt=BAD)
    state = await worker.done(f"one-colour-{kind}", **bad())
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    assert state.result.warnings == ("output_flat",)
    await worker.goes_on(f"one-colour-{kind}")


@_only("version", [OLD])
async def test_black_pictures_of_a_broken_gpu_are_never_published(worker: Worker, version: str) -> None:
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
    *((version, "restart", {"seconds": 0.2}, "engine_lost") for version in BOTH),
    *((version, "delete_pending", {}, "engine_lost") for version in BOTH),
    *((version, "lost_history", {}, "engine_lost") for version in BOTH),
]


@_only(("version", "kind", "fault", "code"), BREAKING, ids=[f"{v}-{k}" for v, k, *_ in BREAKING])
async def test_a_prompt_that_the_server_lost_is_the_nodes_fault(
    worker: Worker, version: str, kind: FaultKind, fault: dict[str, Any], code: str
) -> None:
    """The job goes back uncharged, the server is warmed up again, and the job is done here after all."""
    name = f"breaking-{kind}"
    worker.sim.knobs.arm(kind, prompt=BAD, **fault)
    state = await worker.done(name, **bad())
    assert (state.status, ends(state)) == ("done", [(code, False), ("succeeded", False)])
    assert worker.told(name) == ["job.succeeded"]
    assert state.result is not None
    assert [attempt.code for attempt in state.result.attempts] == [code]
    await worker.goes_on(name)


@_only("version", [OLD])
async def test_a_gpu_fault_closes_the_gate_until_the_server_was_restarted(worker: Worker, version: str) -> None:
    """Every prompt fails from then on: the job is not charged for it, and no other is taken meanwhile."""
    worker.sim.knobs.arm("cuda", prompt=BAD)
    await worker.submit("cuda", **bad())
    await worker.attempted("cuda", "gpu_fault")
    await worker.unready("gpu_fault")
    assert (await worker.status())["gate"] == {"open": False, "reasons": ["engine"]}
    await worker.submit("meanwhile")
    worker.sim.restart()
    for job_id, before in (("cuda", [("gpu_fault", False)]), ("meanwhile", [])):
        state = await worker.ended(job_id)
        assert (state.status, ends(state)) == ("done", [*before, ("succeeded", False)])
        assert worker.told(job_id) == ["job.succeeded"]
    await worker.goes_on("cuda")


@_only("version", [NEW])
async def test_a_job_that_breaks_servers_of_several_nodes_is_charged(worker: Worker, version: str) -> None:
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
    worker.sim.knobs.arm("restart", times=None, prompt=BAD, seconds=0.05)
    state = await worker.ended("killer")
    assert (state.status, state.code) == ("dead", "engine_lost")
    assert ends(state) == [("engine_lost", False), *[("engine_lost", True)] * 3]
    assert state.result is not None
    assert state.result.error is not None
    assert state.result.error.fault is Fault.JOB
    assert worker.told("killer") == ["job.failed"]
    await worker.ended("occupied")
    await worker.goes_on("killer")


@_only("kind", ["hang", "dead_worker", "dead_worker_idle"])
async def test_a_server_that_is_stuck_is_given_up_and_taken_back(tmp_path: Path, kind: FaultKind) -> None:
    """It answers and does nothing: the gate stays closed, the job waits uncharged, and all is well after a restart."""
    async with running_worker(tmp_path, "comfyui", Knobs(step_seconds=0.01), **STUCK) as worker:
        worker.sim.knobs.arm(kind, prompt=BAD)
        await worker.submit("stuck", **bad())
        await worker.attempted("stuck", "engine_stalled")
        assert (await worker.probe("ready"))[0] == 503
        assert (await worker.probe("startup"), await worker.probe("live")) == ((200, []), (200, []))
        assert (await worker.status())["gate"]["open"] is False
        if kind == "hang":
            worker.sim.release()
        else:
            worker.sim.restart()
        state = await worker.ended("stuck")
        assert (state.status, ends(state)) == ("done", [("engine_stalled", False), ("succeeded", False)])
        await worker.goes_on("stuck")
        assert [file for file in left_behind(worker.sim) if "/" in file] == []


async def test_a_worker_thread_that_died_in_an_idle_server_is_found(tmp_path: Path) -> None:
    """It answers every look: only a picture shows it, before a job is lost to it."""

    def soon(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(recovery, "IDLE_LOOK_S", 0.05)
        patch.setattr(recovery, "IDLE_CANARY_S", 0.3)

    async with running_worker(tmp_path, "comfyui", changed=soon, **STUCK) as worker:
        worker.sim.knobs.arm("dead_worker_idle")
        await worker.unready("engine_stalled")
        await worker.submit("patient")
        worker.sim.restart()
        state = await worker.ended("patient")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])


async def test_every_canary_is_sampled_anew(tmp_path: Path) -> None:
    """The server keeps results, and what it kept proves nothing; the model stays loaded meanwhile."""

    def often(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(recovery, "IDLE_LOOK_S", 0.01)
        patch.setattr(recovery, "IDLE_CANARY_S", 0.01)

    async with running_worker(tmp_path, "comfyui", Knobs(cache="lru"), changed=often) as worker:
        await wait_until(lambda: len(worker.sim.stats.samplings) >= 4)
        assert {one.positive for one in worker.sim.stats.samplings} == {warmup.DEFAULT["params"]["prompt"]}
        assert len(worker.sim.stats.samplings) >= len(worker.sim.stats.runs) - 1
        assert len(worker.sim.stats.loads) == 1


async def test_a_server_that_died_is_waited_for(tmp_path: Path) -> None:
    """While the port is closed the probes say so; when it is back it is warmed up before the job runs again."""
    async with running_worker(tmp_path, "comfyui", Knobs(step_seconds=0.01)) as worker:
        worker.sim.knobs.arm("exit", prompt=BAD)
        await worker.submit("last-words", **bad())
        await worker.attempted("last-words", "engine_lost")
        await worker.unready("engine_port_closed")
        worker.sim.restart()
        state = await worker.ended("last-words")
        assert (state.status, ends(state)) == ("done", [("engine_lost", False), ("succeeded", False)])
        assert [one.positive for one in worker.sim.stats.samplings[-2:]] == [warmup.DEFAULT["params"]["prompt"], BAD]
        await worker.goes_on("last-words")
        assert left_behind(worker.sim) == []


async def test_a_node_whose_canary_never_passes_is_given_up(tmp_path: Path) -> None:
    """After so many failed recoveries the process ends with 75, and its job waits for another node, uncharged."""
    async with running_worker(tmp_path, "comfyui", WORKER_ENGINE_RESTARTS="3/10m") as worker:
        worker.sim.knobs.arm("cuda", prompt=BAD)
        await worker.submit("orphan", **bad())
        assert await worker.process is ExitCode.GIVEN_UP
        other = SqliteQueue(worker.settings.queue.sqlite_path, SystemClock(), worker="w2")
        delivery = await taken(other)
        assert [(a.code, a.charged) for a in delivery.attempts] == [("gpu_fault", False)]
        await other.aclose()


async def test_a_generation_that_takes_too_long_is_interrupted(tmp_path: Path) -> None:
    """Its time counts from the first step; the attempt is charged, and the server is free for the next job."""
    async with running_worker(tmp_path, "comfyui", Knobs(step_seconds=0.02)) as worker:
        state = await worker.done("slow", timeout=0.2, **bad(steps=150))
        assert (state.status, state.code, ends(state)) == ("dead", "job_timeout", [("job_timeout", True)] * 3)
        assert [run.ended for run in worker.sim.stats.runs[-3:]] == ["interrupted"] * 3
        assert worker.told("slow") == ["job.failed"]
        await worker.goes_on("slow")
        assert left_behind(worker.sim) == []
