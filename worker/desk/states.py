"""What a caller is told of a job: how far it is, or how it ended. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict

from worker.errors import Draining
from worker.live import LiveJob
from worker.queues.base import JobState
from worker.queues.policy import CANCELLED, without_images
from worker.result import Result

JobStatus = Literal["waiting", "running", "succeeded", "failed", "cancelled"]
OVER = ("succeeded", "failed", "cancelled")

LINKS_LAST = timedelta(minutes=10)
"""How long the links of a result are handed out as they are; later they are signed anew, before any runs out."""

TRIED_AGAIN = timedelta(minutes=15)
"""How long after a failed attempt that may be repeated, and of which nothing more is known, it is taken to be."""


class State(BaseModel):
    """A job as its owner sees it.

    ``ahead`` is how many jobs come before one that waits, ``hop`` the stage that a running one is in, ``progress`` 0-1
    of its generation, ``eta_s`` the seconds which that is expected to take yet. ``result`` says how it ended.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    client_id: str | None = None
    status: JobStatus
    ahead: int | None = None
    hop: str | None = None
    progress: float | None = None
    eta_s: float | None = None
    result: Result | None = None

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def is_large(self) -> bool:
        """Whether it holds so much that it is better written beside the event loop."""
        outputs = () if self.result is None else self.result.outputs
        return sum(len(output.base64 or "") for output in outputs) > 1_000_000

    def says_the_same_as(self, other: State) -> bool:
        """Whether nothing is new but that time went by."""
        return self == other.model_copy(update={"eta_s": self.eta_s})

    def without_images(self) -> State:
        """The same, what was made named but not held."""
        return self if self.result is None else self.model_copy(update={"result": without_images(self.result)})

    def to_json(self) -> bytes:
        """Compact UTF-8, without what is not known."""
        return self.model_dump_json(exclude_none=True).encode()


def ended(result: Result) -> State:
    """A job that is over."""
    return State(id=result.id, client_id=result.client_id, status=result.status, result=result)


def is_dated(result: Result, now: datetime) -> bool:
    """Whether what it links to in a store is better linked to anew."""
    linked = result.status == "succeeded" and any(output.key is not None for output in result.outputs)
    return linked and now - result.finished_at > LINKS_LAST


def running(live: LiveJob, *, client_id: str | None = None, eta_s: float | None = None) -> State:
    """A job that is held here."""
    return State(
        id=live.id,
        client_id=client_id,
        status="running",
        hop=str(live.hop),
        progress=None if live.progress is None else round(live.progress, 4),
        eta_s=None if eta_s is None else round(eta_s, 1),
    )


def queued(found: JobState) -> State:
    """A job as its queue knows it; one that was withdrawn, or whose result was dropped, has none."""
    if found.result is not None and found.status in ("done", "dead"):
        return ended(found.result).model_copy(update={"id": found.id})
    match found.status:
        case "done":
            return State(id=found.id, status="cancelled" if found.code == CANCELLED else "succeeded")
        case "dead":
            return State(id=found.id, status="failed")
        case "leased":
            return State(id=found.id, status="running")
    return State(id=found.id, status="waiting")


def stored(job_id: str, result: Result, now: datetime) -> State:
    """A job of which there is nothing but a document in a store.

    A failure that may be repeated is none yet, while whoever held the job may be trying it again; one that was told
    because its node went away is.
    """
    error = result.error
    repeated = error is not None and error.retryable and error.code != Draining.code
    if repeated and now - result.finished_at < TRIED_AGAIN:
        return State(id=job_id, client_id=result.client_id, status="waiting")
    return ended(result).model_copy(update={"id": job_id})
