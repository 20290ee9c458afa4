"""When a prompt counts as lost, as stuck, or as waiting for a worker thread that is dead."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from worker.engines.comfyui.api import Queued
from worker.engines.comfyui.events import Plan, Track
from worker.engines.comfyui.follow import Watch, Whereabouts
from worker.engines.comfyui.pace import Pace
from worker.engines.watchdog import Shown, Watchdog
from worker.errors import EngineCrashed, EngineStalled

PACE = Pace(poll_s=1.0, dead_s=10.0)
NOWHERE, RUNS, WAITS = Queued((), ()), Queued(("p",), ()), Queued((), ("p",))
BEHIND = Queued(("other",), ("p",))


def test_a_prompt_is_lost_after_two_looks_apart() -> None:
    """Neither in the queue nor in the history, twice with some time between."""
    where = Whereabouts("p", PACE)
    where.see(NOWHERE, 0.0)
    where.see(NOWHERE, 0.1)
    with pytest.raises(EngineCrashed, match="lost"):
        where.see(NOWHERE, 1.0)


def test_a_look_that_finds_it_begins_anew() -> None:
    """Between the queue and the history a prompt may be in neither for a moment."""
    where = Whereabouts("p", PACE)
    for at, queue in enumerate((NOWHERE, RUNS, NOWHERE, BEHIND, NOWHERE)):
        where.see(queue, float(at))
    with pytest.raises(EngineCrashed):
        where.see(NOWHERE, 5.0)


def test_a_worker_thread_is_dead_when_nothing_runs_though_ours_waits() -> None:
    """For longer than it takes to be taken; whoever runs before us is no sign of that."""
    where = Whereabouts("p", PACE)
    for at in range(100):
        where.see(BEHIND, float(at))
    for at in range(100, 111):
        where.see(WAITS, float(at))
    with pytest.raises(EngineStalled, match="nothing runs"):
        where.see(WAITS, 111.0)


def watch(load: float = 60, stall: float = 10) -> Watch:
    shown = Shown()
    return Watch(
        Watchdog(0.0, timedelta(seconds=load), timedelta(seconds=stall), shown), shown, timedelta(seconds=load), 30
    )


def heard(track: Track, kind: str, **data: object) -> Track:
    track.hear(json.dumps({"type": kind, "data": {"prompt_id": "p", **data}}))
    return track


def test_a_prompt_that_starts_and_says_no_more_is_stuck() -> None:
    """The worker thread died with it: found long before the time of a load."""
    w, track = watch(), heard(Track("p"), "execution_start", timestamp=1)
    w.see(track, 0.0)
    w.see(track, 30.0)
    with pytest.raises(EngineStalled, match="nothing followed"):
        w.see(track, 31.0)


def test_reading_a_model_in_mid_graph_has_the_time_of_a_load() -> None:
    """And no more than that."""
    w, track = watch(), Track("p", Plan(samplers=frozenset("3"), loaders=frozenset("4")))
    heard(track, "execution_cached", nodes=[])
    for at, step in enumerate((1, 2)):
        w.see(heard(track, "progress", node="3", value=step, max=4), float(at))
    assert w.step_s == 1.0
    heard(track, "executing", node="4")
    w.see(track, 2.0)
    w.see(track, 62.0)
    with pytest.raises(EngineStalled, match="node 4 reads a model"):
        w.see(track, 62.5)


def test_steps_that_stop_are_a_stall() -> None:
    """No progress for the time that this node's steps allow."""
    w, track = watch(), heard(Track("p"), "progress", node="3", value=1, max=4)
    w.see(track, 0.0)
    w.see(track, 10.0)
    with pytest.raises(EngineStalled, match="no progress"):
        w.see(track, 11.0)


def test_a_queue_knows_what_is_in_it() -> None:
    """Whether it runs or waits."""
    queue = Queued(("a",), ("b",))
    assert ["a" in queue, "b" in queue, "c" in queue, queue.empty] == [True, True, False, False]
    assert NOWHERE.empty
