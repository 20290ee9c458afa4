"""How a job goes, as ``query-job`` tells it. No I/O.

Up to 13 of 100 it prepares: prompts, models, the images given. From 15 on it samples, all pictures of the job one
after the other. The current version says WAITING until the end, so a stage alone tells nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from worker.engines.base import ProgressReport

_STEP = re.compile(r"Step (\d{1,4})/(\d{1,4}) in the (\d{1,3})-th Sampling")


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer; ``step`` of ``steps`` over all pictures of the job, the one that runs included."""

    stage: str
    progress: int
    status: str
    step: int = 0
    steps: int = 0

    @property
    def begun(self) -> bool:
        """Whether somebody works on it."""
        return self.stage == "RUNNING" or self.progress > 0

    @property
    def busy(self) -> bool:
        return self.begun

    @property
    def signature(self) -> tuple[Any, ...]:
        return self.stage, self.progress, self.status

    @property
    def report(self) -> ProgressReport:
        return ProgressReport(
            fraction=min(max(self.progress / 100, 0.0), 1.0),
            step=self.step or None,
            steps=self.steps or None,
            sampling=self.step > 0,
        )


def reading_of(document: Any, pictures: int, before: Reading | None) -> Reading | None:
    """From the answer's document; None where it is none. Between two pictures the last step stands."""
    if not isinstance(document, dict) or not isinstance(document.get("job_stage"), str):
        return None
    number, status = document.get("job_progress"), document.get("job_status")
    progress = number if type(number) is int else 0
    text = status if isinstance(status, str) else ""
    found = _STEP.search(text)
    if found is None:
        step, steps = (before.step, before.steps) if before is not None else (0, 0)
    else:
        at, each, picture = int(found[1]), int(found[2]), int(found[3])
        step, steps = (picture - 1) * each + at + 1, each * max(pictures, picture)
    return Reading(document["job_stage"], progress, text, step, steps)
