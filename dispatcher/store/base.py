"""The seam to the jobs: what the dispatcher asks of its database. Each verb is one short transaction.

Every verb raises `StoreUnavailable` while the database does not answer. Several processes may use one database: all
that is promised here holds for them together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol

from dispatcher.words import Key, Need, Source, Waiting
from worker.queues.base import Attempt
from worker.result import Result


class StoreUnavailable(Exception):
    """The database does not answer; nothing was changed, or the caller may ask again."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted. ``document`` is what the user sent, its id included; ``fingerprint`` tells sameness."""

    id: str
    document: Mapping[str, Any] = field(repr=False)
    fingerprint: str
    needs: tuple[Need, ...] = ()
    priority: int = 0
    work_s: float = 6.0
    user: str = ""
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A job that was leased. ``token`` grows with each leasing of any job; ``deliveries`` counts this one.

    ``redelivered``: whether it was ever leased before, in a run before it was requeued too, so that a success of it may
    stand already.
    """

    job: Waiting
    document: Mapping[str, Any] = field(repr=False)
    token: int
    deliveries: int
    attempts: tuple[Attempt, ...]
    lease: timedelta
    queued_at: datetime
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class JobRow:
    """All that is known of a job. ``status``: ``waiting``, ``delayed``, ``leased``, ``done`` or ``dead``."""

    id: str
    status: str
    user: str
    priority: int
    needs: tuple[Need, ...]
    queued_at: datetime
    deliveries: int
    attempts: tuple[Attempt, ...]
    rank: float
    node: str | None = None
    token: int | None = None
    lease_until: datetime | None = None
    visible_at: datetime | None = None
    cancelling: bool = False
    ended: datetime | None = None
    code: str | None = None
    result: Result | None = None
    progress: float | None = None
    hop: str | None = None


class Backlog(NamedTuple):
    """What waits of one model: there are thousands of these every second."""

    key: Key
    waiting: int
    work_s: float


@dataclass(frozen=True, slots=True)
class Pick:
    """A job that a node is to get: this one, else the first that waits of ``key``."""

    node: str
    key: Key
    job_id: str | None
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """A job that a node lost with a run of it, and the code by which that hand-over ended."""

    job_id: str
    token: int
    code: str


@dataclass(frozen=True, slots=True)
class NodeRow:
    """What a node last told of itself: the body of its request in JSON, as `worker.wire` has it.

    ``orders`` is what it is to fetch and drop, as `Store.save_orders` was given it; `Store.save_nodes` leaves it alone.
    """

    id: str
    seen: datetime
    report: str
    orders: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Letter:
    """A webhook that the dispatcher owes: for a job that ended in its own hands. ``tries`` so far."""

    id: int
    job_id: str
    event: str
    document: Mapping[str, Any] = field(repr=False)
    result: Result = field(repr=False)
    tries: int = 0


class Store(Protocol):
    """Jobs, leases, nodes, the catalogue and owed webhooks."""

    async def open(self) -> None:
        """Connect, and bring the schema up to date. Raises `ConfigError` for a database that cannot be used."""
        ...

    async def aclose(self) -> None: ...

    async def check(self) -> str: ...

    # users

    async def submit(self, jobs: Sequence[NewJob]) -> list[bool]:
        """All or none. True for each that is new, False for the very same document that stands there already.

        Raises `IdConflict`, naming the id, when another document is known under it, and `InvalidJob` for a name that
        no index can hold.
        """
        ...

    async def job(self, job_id: str) -> JobRow | None: ...

    async def jobs(
        self, *, status: str | None = None, user: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[JobRow]:
        """Open ones in the order of their turn, then those that are over, the latest end first; without results."""
        ...

    async def cancel(self, job_id: str) -> bool:
        """Withdraw a waiting job (it is done, ``cancelled``, and its webhook owed), or mark a leased one.

        False when there is none, or it is over.
        """
        ...

    async def requeue(self, job_id: str) -> bool:
        """Have a dead job run again, its counts begun anew; False when it is not dead."""
        ...

    # dispatch

    async def board(
        self, wanted: Mapping[Key, int], *, but: Collection[str] = ()
    ) -> tuple[dict[Key, list[Waiting]], Waiting | None, int]:
        """Of each key the first waiting jobs, as many as is said there; the first of all in line, and how often it was
        passed over. The jobs of ``but`` are nobody's first in line.
        """
        ...

    async def grant(self, picks: Sequence[Pick], lease: timedelta, *, passed: str | None) -> list[Grant | None]:
        """Lease what can be had of these, in their order; None where another was quicker.

        ``passed``: the first of all in line as `board` told; each grant of another job counts as passing it over.
        """
        ...

    async def extend(self, held: Sequence[tuple[str, int, float | None, str | None]], lease: timedelta) -> Extended:
        """Renew (job id, token, progress, hop)."""
        ...

    async def end(self, job_id: str, token: int, result: Result, *, dead: bool) -> bool:
        """Over, by its holder. False, and nothing changed, when the token is stale. The same end twice is one.

        Calls that come while the database is busy with others are gathered into one transaction.
        """
        ...

    async def release(
        self, job_id: str, token: int, *, code: str, delay: timedelta, charged: bool, worker: str
    ) -> JobRow | None:
        """Given back by its holder; None when the token is stale. A job marked as cancelled is done then."""
        ...

    async def lose(self, node: str, losses: Sequence[Loss], *, max_attempts: int) -> list[JobRow]:
        """What the node lost with its last run comes back at once, or a little later where it may be to blame.

        Gives back what was leased to it until now. How a hand-over ended is noted too where its lease has run out; it
        is charged as engine faults are, and a job that was charged as often as that is dead. The same twice is one.
        """
        ...

    async def sweep(self, *, max_deliveries: int) -> Swept:
        """Take back leases that ran out, let delayed jobs wait again, end what is past its deadline or its limits.

        A job that was ever handed over may have succeeded unnoticed: past its deadline it is handed over all the same,
        for a worker to judge, and past its limit three times more.
        """
        ...

    async def backlog(self) -> list[Backlog]:
        """What waits, by key; exact when it was read."""
        ...

    def ticket(self) -> int:
        """Taken before looking at the board, so that `changed` misses nothing that comes in between."""
        ...

    async def changed(self, timeout: float, ticket: int | None = None) -> bool:
        """Until jobs may have come to wait since the ticket, in whatever process; False when the time is up (seconds).

        Without a ticket: from now on.
        """
        ...

    # nodes, catalogue, owed webhooks

    async def save_nodes(self, rows: Sequence[NodeRow]) -> None:
        """Keep what these nodes told, unless something later is known; their orders stay as they are."""
        ...

    async def save_orders(self, orders: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace the orders of these nodes; nodes that are not known are passed over."""
        ...

    async def nodes(self) -> list[NodeRow]:
        """All that were heard of within the last day."""
        ...

    async def lead(self, role: str, holder: str, lease: timedelta) -> bool:
        """Whether this process has the role, or takes it now for the time of the lease: one at a time has it."""
        ...

    async def put_models(self, sources: Sequence[Source]) -> None:
        """Add to the catalogue, replacing entries of the same kind and name."""
        ...

    async def models(self) -> list[Source]: ...

    async def remove_model(self, kind: str, name: str) -> bool: ...

    async def letters(self, limit: int, lease: timedelta) -> list[Letter]:
        """Webhooks that are due, for this process alone until the lease ends."""
        ...

    async def posted(self, letter_id: int, *, again: timedelta | None) -> None:
        """Done with it; ``again``: it is owed still, and due after that."""
        ...


@dataclass(frozen=True, slots=True)
class Extended:
    """Of those that were to be renewed: no longer the holder's, and marked as cancelled."""

    lost: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did, in numbers."""

    vanished: int = 0
    woken: int = 0
    expired: int = 0
    limited: int = 0
