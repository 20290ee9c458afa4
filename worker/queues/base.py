"""The seam to a queue: what a delivery is, and the five verbs that every driver has."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol, runtime_checkable

from worker.node import Orders
from worker.result import Result
from worker.wire import Download, PreviousRun


@dataclass(frozen=True, slots=True)
class Attempt:
    """One earlier end of a delivery of the job; ``code`` None where the worker vanished."""

    worker: str
    ended: datetime | None
    code: str | None
    charged: bool = False


@dataclass(frozen=True, slots=True)
class Delivery:
    """One handing-over of a job.

    ``id`` is the queue's own stable id of the job, ``receipt`` whatever the driver needs to answer.
    ``deliveries`` counts hand-overs, this one included, without those that were released for a drain or an
    unsupported document. What the queue cannot tell is None. ``last_attempt``: a charged end now is the
    last one; ``last_delivery``: no further hand-over may follow; ``over_limit``: this one already is too many.
    ``sources``: where the queue's operator says that the job's models are to be had. ``client_id``: what the job is
    called by who brought it, where it runs under an id of ours. ``attempts_most``: where the queue keeps no causes, how
    many charged attempts end the job; whoever can find the earlier ones then sets ``attempts`` and ``last_attempt``.
    ``run``: what such a queue calls this submission of the job and no other, also of the same document.
    """

    id: str
    body: bytes
    visibility: timedelta
    receipt: Any = field(default=None, repr=False)
    queued_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    deliveries: int | None = None
    redelivered: bool | None = None
    last_attempt: bool | None = None
    last_delivery: bool | None = None
    over_limit: bool = False
    sources: tuple[Download, ...] = ()
    client_id: str | None = None
    attempts_most: int | None = None
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """What one bounded wait brought."""

    delivery: Delivery | None = None
    orders: Orders | None = None


class Queue(Protocol):
    """A source of deliveries.

    A driver leases nothing while no `receive` is pending, and a cancelled `receive` leaves nothing leased:
    a claim that arrives late is given back uncharged. ``capacity`` bounds the deliveries that may be out at once, and
    ``can_delay`` says whether the delay of a `nack` has an effect. Every verb raises `QueueUnavailable` when the queue
    does not answer, and `LeaseLost` (all but `receive`) when it says that the delivery is no longer ours.
    """

    capacity: int | None
    can_delay: bool

    async def receive(self) -> Received:
        """One bounded wait for a delivery."""
        ...

    async def extend(self, delivery: Delivery) -> Orders | None:
        """Renew the lease for another visibility; also raises `JobCancelled` when it was cancelled there."""
        ...

    async def ack(self, delivery: Delivery, result: Result) -> None:
        """Over: succeeded or cancelled."""
        ...

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        """Give it back, to be handed over again after the delay."""
        ...

    async def reject(self, delivery: Delivery, result: Result) -> None:
        """Over: failed; a dead letter where there is such a thing."""
        ...

    async def check(self) -> str:
        """Try the queue and say in a few words what was found; raises what is wrong with it."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Recalling(Protocol):
    """A queue that need not wait for the leases of a worker that is back."""

    async def recall(self, run: PreviousRun) -> None:
        """What this worker held when its last run ended waits again, and how that ended is noted.

        To be called before the first `receive`. Raises `QueueUnavailable`.
        """
        ...


@runtime_checkable
class Leaving(Protocol):
    """A queue that pushes the next job as soon as one is over."""

    def leave(self) -> None:
        """No `receive` will follow for now: what is pushed is pushed to others. Again and again does no harm."""
        ...


@dataclass(frozen=True, slots=True)
class JobState:
    """What a queue knows of a job: ``waiting``, ``delayed``, ``leased``, ``done`` or ``dead``."""

    id: str
    status: str
    deliveries: int
    attempts: tuple[Attempt, ...]
    code: str | None
    result: Result | None


class Producer(Protocol):
    """The submitting side; a driver may be both."""

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        """Put a job there once: False when the very same document stands there; raises `IdConflict` for another."""
        ...

    async def state(self, job_id: str) -> JobState | None: ...

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]: ...

    async def requeue(self, job_id: str) -> bool:
        """Have a dead job run again, its counts begun anew; False when it is not dead."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Withdraw a waiting job, or have the holder of a leased one told at its next `extend`."""
        ...

    async def aclose(self) -> None: ...
