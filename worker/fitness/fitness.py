"""Whether this node is good enough, found out before it is ready: by its own measurements and its own canary alone.

Before the server starts come the GPU's memory, the disk, and the lines to the operator's own bucket and model source,
one after the other, and nothing else uses the lines meanwhile. The seconds a step are those of the warm-up job once
it is warm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from worker.engines.base import Output, Work
from worker.errors import ConfigError, FieldError
from worker.fitness.tries import Check, best_of
from worker.fitness.verdict import Figure, Name, Reading, Verdict, unfit_of
from worker.node import NodeUnfit
from worker.status import Phase, Status

log = structlog.get_logger()

AGAIN_S = 300.0
"""After which a node that is unfit and never given up is measured anew."""

Step = Callable[[], Awaitable[None]]


class WarmStep:
    """Seconds a step of the warm-up job, by a run of its own: the one before it has loaded the model."""

    name: Name = "step"

    def __init__(self, wanted: float | None) -> None:
        self.wanted = wanted
        self.run: Step | None = None
        self._seen: list[tuple[float, int | None]] = []

    def saw(self, work: Work, output: Output) -> None:
        """A canary has come out well."""
        steps = None if work.steps is None else work.steps * max(1, len(output.images))
        self._seen.append((output.generate_s, steps))

    async def measure(self) -> Reading:
        """Raises `ConfigError` for a warm-up job whose steps nobody knows, and what the canary raises."""
        self._seen.clear()
        if self.run is not None:
            await self.run()
        seconds, steps = self._seen[-1] if self._seen else (0.0, None)
        if not steps:
            message = "cannot be measured: nobody can tell how many steps the job of WORKER_WARMUP takes"
            raise ConfigError((FieldError("WORKER_FITNESS_STEP", message),))
        return Reading(seconds / steps, f"{seconds:.3g} s for {steps} steps")


class Fitness:
    """The node's verdict. With ``never`` (to give up) an unfit node stays, not ready, and is measured again and again.

    ``checks`` are made in their order, and the first that the node fails ends them.
    """

    def __init__(self, checks: Sequence[Check], step: WarmStep, status: Status, *, never: bool) -> None:
        self._checks = tuple(checks)
        self._step = step
        self._status = status
        self._never = never
        self._figures: dict[Name, Figure] = {}
        self._open = {check.name for check in (*self._checks, step) if check.wanted is not None}
        self._verdict = Verdict.MEASURING if self._open else Verdict.NOT_ASKED
        self._passed = asyncio.Event()

    async def before_start(self, then: Step) -> None:
        """Measure what can be measured without the server, then go on. Raises `NodeUnfit`."""
        await self._until_fit(self._checks)
        self._passed.set()
        await then()

    async def passed(self, then: Step) -> None:
        """Go on once the lines are measured: for whoever would use them meanwhile."""
        await self._passed.wait()
        await then()

    async def after_warm_up(self, canary: Step) -> None:
        """Time the server, which has made its first picture, by further ones of the same job. Raises `NodeUnfit`."""
        if self._step.wanted is not None and self._step.name in self._open:
            self._step.run = canary
            await self._until_fit((self._step,))

    def saw(self, work: Work, output: Output) -> None:
        """The node's own canary has come out well."""
        self._step.saw(work, output)

    def described(self) -> dict[str, Any]:
        """For `/v1/status`: the verdict, why, and each figure by its name."""
        return {
            "verdict": str(self._verdict),
            "reason": unfit_of(self._figures.values()) or None,
            "figures": {name: figure.described() for name, figure in self._figures.items()},
        }

    async def _until_fit(self, checks: Sequence[Check]) -> None:
        while not await self._fit(checks):
            reason = unfit_of(self._figures.values())
            log.error("node_unfit", reason=reason, **self.described()["figures"])
            if not self._never:
                raise NodeUnfit(f"unfit: {reason}")
            self._say("node_unfit", reason)
            await asyncio.sleep(AGAIN_S)

    async def _fit(self, checks: Sequence[Check]) -> bool:
        """Whether the node passes all of these."""
        for check in checks:
            figure = await self._measured(check)
            self._figures[check.name] = figure
            log.info("fitness_measured", check=check.name, **figure.described())
            if figure.fit is False:
                self._verdict = Verdict.UNFIT
                return False
            self._open.discard(check.name)
        if not self._open and self._verdict is not Verdict.NOT_ASKED:
            self._verdict = Verdict.FIT
        return True

    async def _measured(self, check: Check) -> Figure:
        def told(code: str, words: str) -> None:
            self._verdict = Verdict.MEASURING if code == "measuring_fitness" else Verdict.WAITING
            self._say(code, words)

        if check.wanted is not None:
            told("measuring_fitness", check.name)
        return await best_of(check, told)

    def _say(self, *reasons: str) -> None:
        """Why the node is not ready, in the phase that it is in."""
        if self._status.phase not in (Phase.DRAINING, Phase.STOPPED):
            self._status.move(self._status.phase, *reasons)
