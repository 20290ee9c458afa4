"""What the queues that are ours (memory, sqlite) agree on: counting, limits, sameness, retention. Pure.

A job is handed over, and every hand-over ends: answered with a code, or vanished, when its lease ran out and
the job was handed over again (code None). Requeueing begins a new run: what an earlier run did stays readable
in `JobState.attempts`, but no longer counts and is not among a delivery's attempts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.errors import ENGINE_FAULT_CODES, UNCOUNTED_CODES, UNRECEIVED, Fault, InvalidJob
from worker.job import digest, document_of
from worker.queues.base import Attempt, Delivery
from worker.result import Result

CANCELLED = "cancelled"
UNDELIVERED = "webhook_undelivered"


@dataclass(frozen=True, slots=True)
class HandOver:
    """One handing-over of a job; ``token`` grows with each, over all jobs. ``ended`` None while it is out."""

    token: int
    run: int
    worker: str
    ended: datetime | None = None
    code: str | None = None
    charged: bool = False

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.worker, self.ended, self.code, self.charged)


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of a queue.

    Jobs that are done are forgotten after ``keep_for``, or earlier when more than ``keep_done`` of them are
    there, the oldest first; until then their ids are known and their results readable, the images within
    results (inline storage) only of the latest ``keep_inline``. Dead letters stay until somebody requeues them.
    """

    visibility: timedelta = timedelta(seconds=120)
    max_attempts: int = 3
    max_deliveries: int = 10
    keep_for: timedelta = timedelta(days=7)
    keep_done: int = 10_000
    keep_inline: int = 100

    def delivery(
        self, job_id: str, body: bytes, queued_at: datetime, current: HandOver, earlier: Sequence[HandOver]
    ) -> Delivery:
        """The delivery that ``current`` is, ``earlier`` being every hand-over before it, of all runs.

        One that came when nobody waited for it was none: it leaves no trace in a delivery.
        """
        earlier = [one for one in earlier if one.code != UNRECEIVED]
        run = [one for one in earlier if one.run == current.run]
        count = deliveries_of([*run, current])
        charged = sum(one.charged for one in run)
        return Delivery(
            id=job_id,
            body=body,
            visibility=self.visibility,
            receipt=current.token,
            queued_at=queued_at,
            attempts=tuple(one.attempt for one in run),
            deliveries=count,
            redelivered=bool(earlier),
            last_attempt=charged + 1 >= self.max_attempts,
            last_delivery=count >= self.max_deliveries,
            over_limit=count > self.max_deliveries,
        )


def is_charged_loss(code: str, worker: str, earlier: Iterable[Attempt]) -> bool:
    """Whether a job is charged for an end with this code there: only where it broke another worker, too."""
    if code not in ENGINE_FAULT_CODES:
        return False
    return any(one.code in ENGINE_FAULT_CODES and one.worker != worker for one in earlier)


def rest_of(ends: int) -> timedelta:
    """How long a job rests that may have brought its node down, after so many ends: others get through meanwhile."""
    return min(timedelta(seconds=2 << min(ends, 10)), timedelta(minutes=2))


def deliveries_of(handed: Sequence[HandOver]) -> int:
    """How many hand-overs count against the limit."""
    return sum(one.code not in UNCOUNTED_CODES for one in handed)


def attempts_of(handed: Sequence[HandOver]) -> tuple[Attempt, ...]:
    """Every end, oldest first."""
    return tuple(one.attempt for one in handed if one.ended is not None)


def open_status(token: int | None, visible_at: datetime, now: datetime) -> str:
    """The `JobState.status` of a job that is not over; a lease that ran out makes it ``waiting`` again."""
    if visible_at <= now:
        return "waiting"
    return "delayed" if token is None else "leased"


def end_code(result: Result) -> str:
    """How a hand-over that brought this result ended: its error's code, else its status."""
    return result.error.code if result.error is not None else result.status


def has_images(result: Result) -> bool:
    """Whether the images or files themselves stand in it."""
    return any(output.base64 is not None for output in result.outputs)


def without_images(result: Result) -> Result:
    """The same result without the images and files that stand in it; all else about them stays."""
    images = tuple(image.model_copy(update={"base64": None}) for image in result.images)
    files = tuple(file.model_copy(update={"base64": None}) for file in result.files)
    return result.model_copy(update={"images": images, "files": files})


def is_charged(result: Result) -> bool:
    """Whether an end with this result is the job's own doing."""
    return result.error is not None and result.error.fault in (Fault.JOB, Fault.BUG)


def job_code(result: Result, *, dead: bool = False) -> str | None:
    """`JobState.code` of a job that is over with this result; a success is a dead letter for its webhook alone."""
    if result.status == "succeeded":
        return UNDELIVERED if dead else None
    return end_code(result)


def fingerprint(job_id: str, body: bytes) -> str:
    """The same for bodies that ask for the same: the document's digest, or the bytes' where it is no document."""
    try:
        document = document_of(body, max_body=len(body))
        return digest({**document, "id": document.get("id", job_id)})
    except (InvalidJob, ValueError, RecursionError):
        return "bytes:" + hashlib.sha256(body).hexdigest()
