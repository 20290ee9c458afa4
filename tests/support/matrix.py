"""The crash matrix: each attempt of a job killed at each hop, and what must have become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.support.crashes import one_life
from tests.support.failing_worker import Failure
from tests.support.ledger import Ledger
from tests.support.workshop import Workshop
from worker.failpoints import POINTS

ATTEMPTS = (1, 2, 3)
"""`WORKER_QUEUE_MAX_ATTEMPTS` of them are the last."""

DOOMED = "doomed"
SPOILT = 2
"""Answers without a picture that make a charged attempt: the first one is given a second chance."""

Way = Literal["succeeds", "fails", "used_up", "released", "refused"]
"""How the attempt in which a job is killed ends without that.

fails     charged, and another one follows
used_up   charged, and it was the last one
released  not charged: the server has broken
refused   for good, however many are left
"""


@dataclass(frozen=True)
class Cell:
    """A job that is killed at a point in this attempt, those before it being charged."""

    point: str
    attempt: int

    @property
    def job(self) -> str:
        return f"job-{self.attempt}"

    @property
    def worker(self) -> str:
        """Who is killed at it."""
        return f"w{self.attempt}"

    @property
    def way(self) -> Way:
        is_last = self.attempt == ATTEMPTS[-1]
        match self.point.partition("_")[2]:
            case "failure":
                return "used_up" if is_last else "fails"
            case "webhook":
                return "used_up" if is_last else "succeeds"
            case "nack":
                return "released" if is_last else "fails"
            case "reject":
                return "used_up" if is_last else "refused"
            case _:
                return "succeeds"

    @property
    def code(self) -> str | None:
        """How the job must end; None: well."""
        return {"used_up": "output_empty", "refused": "generation_rejected"}.get(self.way)

    @property
    def told(self) -> bool:
        """Whether the queue knows how the attempt ended before the kill."""
        return self.point in ("after_ack", "after_nack", "after_reject")

    def charged(self, *, keeps_causes: bool) -> int:
        """How many attempts the job has been charged for in the end.

        The kill itself is none of them. An attempt that failed before it counts once that is known: to a queue that
        keeps causes when it was told, else when its document is stored.
        """
        if self.way in ("used_up", "refused"):
            return self.attempt
        known = self.told if keeps_causes else self.point != "before_failure"
        return self.attempt - 1 + (self.way == "fails" and known)


def cells(point: str) -> list[Cell]:
    return [Cell(point, attempt) for attempt in ATTEMPTS]


async def crash_matrix(shop: Workshop, point: str, attempts: tuple[int, ...] = ATTEMPTS) -> list[str]:
    """Kill a job in each of these attempts at the point, have another worker do the rest, and judge all of it.

    What breaches a promise comes back, in words. Each has two pictures. Beside all attempts there is a job that fails
    whatever is tried.
    """
    assert point in POINTS
    shop.pictures = 2
    killed = [Cell(point, attempt) for attempt in attempts]
    for cell in killed:
        _spoil(shop, cell)
        await shop.submit(cell.job, code=cell.code)
        if cell is killed[0] and attempts == ATTEMPTS:
            shop.simulators[0].knobs.arm("empty", times=None, prompt=DOOMED)
            await shop.submit(DOOMED, code="output_empty")
        await one_life(shop, Failure(point, cell.attempt, job=cell.job), cell.worker, hasty=True)
    await shop.finished("heir", hasty=True)
    ledger = await shop.ledger()
    return [*ledger.breaches(), *_miscounted(ledger, killed, keeps_causes=shop.line.keeps_causes)]


def _spoil(shop: Workshop, cell: Cell) -> None:
    """Have the server do what makes the attempts end as they must."""
    knobs, earlier = shop.simulators[0].knobs, SPOILT * (cell.attempt - 1)
    match cell.way:
        case "succeeds":
            knobs.arm("empty", times=earlier, prompt=cell.job)
        case "fails":
            knobs.arm("empty", times=earlier + SPOILT, prompt=cell.job)
        case "used_up":
            knobs.arm("empty", times=None, prompt=cell.job)
        case "released":
            knobs.arm("empty", times=earlier, prompt=cell.job)
            knobs.arm("crash_mid_body", prompt=cell.job)
        case "refused":
            knobs.arm("empty", times=earlier, prompt=cell.job)
            knobs.arm("error_500", times=None, prompt=cell.job, error="KeyError", text="no such option")


def _miscounted(ledger: Ledger, killed: list[Cell], *, keeps_causes: bool) -> list[str]:
    """Jobs whose attempts are not counted truthfully, in words."""
    found = []
    wanted = {cell.job: cell.charged(keeps_causes=keeps_causes) for cell in killed}
    wanted |= {DOOMED: ATTEMPTS[-1]} if DOOMED in ledger.wanted else {}
    attempts = {state.id: [(one.worker, one.code, one.charged) for one in state.attempts] for state in ledger.states}
    for job, count in wanted.items():
        charged = sum(one[2] for one in attempts.get(job, []))
        if charged != count:
            found.append(f"{job} was charged for {charged} attempts, not {count}: {attempts.get(job)}")
    return [
        *found,
        *(
            f"nothing tells that {cell.job} lost its worker: {attempts.get(cell.job)}"
            for cell in killed
            if keeps_causes and not cell.told and (cell.worker, None, False) not in attempts.get(cell.job, [])
        ),
    ]
