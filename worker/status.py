"""The phase of the process, why it is not ready, and what holds intake back: what the probes say."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

log = structlog.get_logger()


class Phase(StrEnum):
    PROVISIONING = "provisioning"
    STARTING = "starting"
    WAITING_FOR_ENGINE = "waiting_for_engine"
    WARMING_UP = "warming_up"
    READY = "ready"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    BLOCKED = "blocked"


_ANY = frozenset(Phase) - {Phase.DRAINING, Phase.STOPPED}
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PROVISIONING: frozenset({Phase.STARTING, Phase.BLOCKED}),
    Phase.STARTING: frozenset({Phase.PROVISIONING, Phase.BLOCKED}),
    Phase.WAITING_FOR_ENGINE: frozenset({Phase.STARTING, Phase.WARMING_UP, Phase.READY, Phase.PAUSED}),
    Phase.WARMING_UP: frozenset({Phase.WAITING_FOR_ENGINE}),
    Phase.READY: frozenset({Phase.WARMING_UP, Phase.PAUSED}),
    Phase.PAUSED: frozenset({Phase.WARMING_UP, Phase.READY}),
    Phase.DRAINING: _ANY,
    Phase.STOPPED: frozenset(Phase) - {Phase.STOPPED},
    Phase.BLOCKED: frozenset({Phase.PROVISIONING, Phase.STARTING, Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP}),
}
"""From which phases each may be entered."""


class IllegalTransition(RuntimeError):
    """The phase was asked to move where the table does not lead; carries the story so far."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe is told."""

    ok: bool
    status: str
    reasons: tuple[str, ...] = ()


class Status:
    """The one place that knows the phase; `move` is its only mutator."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING
        self.story: list[Phase] = [Phase.STARTING]
        self.was_ready = False
        self._reasons: tuple[str, ...] = ("starting",)
        self._alive: tuple[str, ...] = ()
        self._changed = asyncio.Event()

    def move(self, phase: Phase, *reasons: str) -> None:
        """Enter a phase for the reasons given; entering the present one only renews the reasons."""
        if phase is not self.phase:
            if self.phase not in TRANSITIONS[phase]:
                raise IllegalTransition(f"{self.phase} to {phase} after {' '.join(self.story)}")
            log.info("phase_changed", phase=str(phase), before=str(self.phase), reasons=list(reasons))
            self.story = [*self.story[-19:], phase]
        self.phase = phase
        self.was_ready |= phase is Phase.READY
        self._reasons = reasons
        self._changed.set()
        self._changed = asyncio.Event()

    def stuck(self, *reasons: str) -> None:
        """Say why the process itself is no longer alive; none: it is."""
        self._alive = reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        return self._reasons

    def changed(self) -> Coroutine[Any, Any, bool]:
        """Until the next move, from this call on."""
        return self._changed.wait()

    async def reached(self, *phases: Phase) -> Phase:
        while self.phase not in phases:
            await self.changed()
        return self.phase

    def startup(self) -> Answer:
        """Latches: once ready, for ever started."""
        return Answer(self.was_ready, str(self.phase), () if self.was_ready else self._reasons or (str(self.phase),))

    def live(self) -> Answer:
        return Answer(not self._alive, str(self.phase), self._alive)

    def ready(self) -> Answer:
        ok = self.phase is Phase.READY
        return Answer(ok, str(self.phase), () if ok else self._reasons or (str(self.phase),))
