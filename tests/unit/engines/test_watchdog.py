"""When a generation counts as stuck: loading, sampling and decoding told apart, scaled to what the node has shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from worker.engines.watchdog import REMEMBERED, Experience, Kind, Shown, Stage, Watchdog
from worker.errors import EngineStalled


@dataclass(frozen=True)
class Reading:
    step: int
    steps: int = 20
    busy: bool = True
    note: str = ""

    @property
    def signature(self) -> tuple[Any, ...]:
        return (self.step, self.note)


def watchdog(load: float = 100, stall: float = 10, shown: Shown | None = None) -> Watchdog:
    return Watchdog(0.0, timedelta(seconds=load), timedelta(seconds=stall), shown)


def test_no_first_step_in_time_is_a_stall() -> None:
    """Loading has its own, longer limit."""
    dog = watchdog()
    dog.see(Reading(0), 99)
    assert dog.stage is Stage.LOADING
    with pytest.raises(EngineStalled, match="first step"):
        dog.see(None, 101)


def test_no_movement_is_a_stall() -> None:
    """Once sampling began, the same reading for too long is a stall, also when there is no reading at all."""
    dog = watchdog()
    dog.see(Reading(1), 50)
    assert (dog.first_step, dog.stage) == (50, Stage.SAMPLING)
    dog.see(Reading(1), 60)
    with pytest.raises(EngineStalled, match="at step 1"):
        dog.see(None, 60.5)


def test_what_is_not_busy_is_no_movement() -> None:
    """A reading of an idle server says nothing of ours."""
    dog = watchdog()
    dog.see(Reading(1), 50)
    dog.see(Reading(2, busy=False), 59)
    with pytest.raises(EngineStalled):
        dog.see(None, 61)


def test_slow_steps_stretch_the_limit() -> None:
    """A GPU that takes 30 s a step is slow, not stuck."""
    dog = watchdog(stall=60)
    dog.see(Reading(2), 8)
    dog.see(Reading(4), 68)
    dog.see(Reading(4), 68 + 299)
    with pytest.raises(EngineStalled):
        dog.see(Reading(4), 68 + 301)


def test_what_earlier_jobs_took_stretches_the_first_step_too() -> None:
    """The node has shown that this model and size takes 30 s a step: nothing of this job has been measured yet."""
    shown = Shown(step_s=30)
    dog = watchdog(stall=60, shown=shown)
    dog.see(Reading(1), 10)
    dog.see(Reading(1), 10 + 299)
    with pytest.raises(EngineStalled):
        dog.see(Reading(1), 10 + 301)


def test_decoding_has_a_limit_of_its_own() -> None:
    """After the last step the decoder may take long; what it took before, and no step's time alone, counts."""
    shown = Shown(step_s=0.1, decode_s=9)
    dog = watchdog(stall=10, shown=shown)
    dog.see(Reading(19), 5)
    dog.see(Reading(20), 6)
    assert dog.stage is Stage.DECODING
    dog.see(Reading(20), 6 + 89)
    with pytest.raises(EngineStalled, match="after the last step"):
        dog.see(Reading(20), 6 + 91)


def test_a_success_is_remembered() -> None:
    """Steps as they pass, the decoding at the end."""
    shown = Shown()
    dog = watchdog(shown=shown)
    dog.see(Reading(18), 1)
    dog.see(Reading(20), 4)
    dog.ended(11)
    assert shown == Shown(step_s=1.5, decode_s=7)


def test_a_second_pass_samples_again() -> None:
    """Steps that begin anew are no decoding."""
    dog = watchdog()
    dog.see(Reading(20), 1)
    dog.see(Reading(1, note="hires"), 3)
    assert dog.stage is Stage.SAMPLING
    dog.ended(9)
    assert dog.patience_s == 10


def test_experience_is_told_apart_by_model_and_size_and_bounded() -> None:
    """A large picture's steps do not excuse a small one's."""
    experience = Experience()
    experience.of(Kind("xl", 1024 * 1024)).step_s = 9
    assert experience.of(Kind("xl", 1024 * 1024)).step_s == 9
    assert experience.of(Kind("xl", 512 * 512)).step_s == 0
    assert experience.of(Kind("sd", 1024 * 1024)).step_s == 0
    for n in range(REMEMBERED):
        experience.of(Kind("other", n))
    assert experience.of(Kind("xl", 1024 * 1024)).step_s == 0
