"""How a run is said to have ended, by what its last records show."""

from __future__ import annotations

from typing import Any

import pytest

from worker.blackbox.record import End, Held, Record, Server
from worker.blackbox.verdict import Cause, Scene, cause_of, previous_of, told
from worker.node import Use
from worker.wire import PreviousRun

SCENE = Scene(boot="b1", cgroup="c1", oom_kills=0)
FULL, HALF = Use(97, 100), Use(50, 100)


def record(at: float = 100.0, **more: Any) -> Record:
    """A second of a run in which all is well."""
    usual = {"boot": "b1", "cgroup": "c1", "memory": HALF, "oom_kills": 0, "server": Server(owned=True)}
    return Record(run="r1", worker="w1", at=at, **{**usual, **more})


ENDS = {
    "an orderly drain": ([record(end=End(exit_code=0, drained=True))], Cause.CLEAN),
    "jobs were left": ([record(end=End(exit_code=0))], Cause.STOPPED),
    "given up": ([record(end=End(exit_code=75, drained=True))], Cause.EXITED),
    "misconfigured": ([record(end=End(exit_code=64, drained=True))], Cause.EXITED),
    "a bug": ([record(end=End(exit_code=70, drained=True))], Cause.CRASHED),
    "its own word counts": ([record(memory=FULL, end=End(exit_code=0, drained=True))], Cause.CLEAN),
    "nothing to be seen": ([record()], Cause.KILLED),
    "nothing known": ([Record(run="r1", worker="w1", at=1.0)], Cause.KILLED),
    "memory was full": ([record(memory=FULL)], Cause.OUT_OF_MEMORY),
    "memory was full a moment before": ([record(95.0, memory=FULL), record()], Cause.OUT_OF_MEMORY),
    "memory was full long ago": ([record(85.0, memory=FULL), record()], Cause.KILLED),
    "the kernel killed in the end": ([record(95.0), record(oom_kills=1)], Cause.OUT_OF_MEMORY),
    "the kernel killed long ago": ([record(50.0), record(60.0, oom_kills=1), record(oom_kills=1)], Cause.KILLED),
    "its server had died": ([record(server=Server(owned=True, end="killed by SIGKILL"))], Cause.SERVER_DIED),
    "memory before server": ([record(memory=FULL, server=Server(end="killed"))], Cause.OUT_OF_MEMORY),
    "another start of the machine": ([record(boot="b0")], Cause.MACHINE_RESTARTED),
    "memory before machine": ([record(boot="b0", memory=FULL)], Cause.OUT_OF_MEMORY),
}


@pytest.mark.parametrize("why", ENDS)
def test_causes(why: str) -> None:
    """What the run says of itself, then memory, then its server, then the machine; else somebody took the node away."""
    records, cause = ENDS[why]
    assert cause_of(records, SCENE) is cause


@pytest.mark.parametrize(
    ("scene", "cause"),
    [
        (Scene("b1", "c1", 1), Cause.OUT_OF_MEMORY),
        (Scene("b1", "c2", 1), Cause.KILLED),
        (Scene("b1", "", 1), Cause.KILLED),
        (Scene("b1", "c1", None), Cause.KILLED),
        (Scene("", "c1", 0), Cause.KILLED),
    ],
)
def test_a_kill_that_nobody_was_there_to_note(scene: Scene, cause: Cause) -> None:
    """The kernel's count tells of it where it is still the same container's."""
    assert cause_of([record()], scene) is cause


JOBS = (Held(id="a", hop="generate", hop_s=7.5, held_s=9.0, progress=0.5, token=3), Held(id="b", hop="waiting"))


def test_the_event_says_what_was_being_done() -> None:
    """With the last lines, unless all went well: they may hold prompts."""
    killed = told([record(jobs=JOBS, phase="ready", lines=("Traceback",), disk_free=5, up_s=60.04)], Cause.KILLED)
    assert killed == {
        "cause": "killed",
        "at": "1970-01-01T00:01:40.000Z",
        "ran_s": 60.0,
        "previous_worker": "w1",
        "previous_run": "r1",
        "phase": "ready",
        "jobs": [
            {"id": "a", "hop": "generate", "hop_s": 7.5, "held_s": 9.0, "progress": 0.5},
            {"id": "b", "hop": "waiting", "hop_s": 0.0, "held_s": 0.0},
        ],
        "at_work": ["a"],
        "memory": {"used": 50, "total": 100},
        "disk_free": 5,
        "oom_kills": 0,
        "server": {"owned": True, "restarts": 0},
        "lines": ["Traceback"],
    }
    ended = told([record(lines=("a cat",), end=End(exit_code=0, drained=True))], Cause.CLEAN)
    assert (ended["exit_code"], ended["drained"]) == (0, True)
    assert not ended.keys() & {"lines", "memory", "server"}
    bare = told([Record(run="r1", worker="w1", at=1.0, vram=HALF)], Cause.KILLED)
    assert bare["vram"] == {"used": 50, "total": 100}
    assert not bare.keys() & {"memory", "server"}


@pytest.mark.parametrize(
    ("cause", "codes"),
    [
        (Cause.OUT_OF_MEMORY, ["node_killed_oom", "node_restarted"]),
        (Cause.CRASHED, ["node_crashed", "node_restarted"]),
        (Cause.SERVER_DIED, ["engine_lost", "node_restarted"]),
        (Cause.KILLED, ["node_restarted", "node_restarted"]),
        (Cause.STOPPED, ["node_restarted", "node_restarted"]),
    ],
)
def test_what_a_queue_is_told(cause: Cause, codes: list[str]) -> None:
    """Only the job at work may have brought the node down, and only by what a job can do."""
    run = previous_of([record(jobs=JOBS)], cause)
    assert [(job.id, job.token) for job in run.jobs] == [("a", 3), ("b", None)]
    assert [run.code_of(job) for job in run.jobs] == codes
    assert PreviousRun.model_validate_json(run.to_json()) == run
