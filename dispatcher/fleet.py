"""The nodes: what each last said of itself, what it was given since, and who has which model.

In memory. What was heard here is saved in batches for the other processes, and theirs is read every few seconds, off
the way of decisions. A node that was not heard of for the node timeout is away: its copies do not count.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from dispatcher import matching
from dispatcher.documents import read_orders
from dispatcher.needs import Catalogue
from dispatcher.steps import Steps
from dispatcher.stock import MEMORY, File, Labels, Stock, files_of, measured, merged
from dispatcher.store.base import NodeRow
from dispatcher.words import Key, Measured, NodeOrders, NodeView, Waiting
from worker.clock import Clock
from worker.wire import Availability, Heartbeat

FORGOTTEN = timedelta(days=1)
PAUSED = timedelta(seconds=60)
"""A node that asks again later than this was doing something else: it has not been idle all the time."""

_STEP = 8
"""Nodes of one step."""

_NONE: frozenset[Key] = frozenset()
Standing = tuple[frozenset[Key], frozenset[Key], frozenset[Key]]
"""What a node counts for: keys in memory, on disk, on their way."""


@dataclass(slots=True)
class Seat:
    """One node as it is known here. Times are of the loop, in seconds, but for ``seen``.

    ``latest``: the job that it was given last of those for which it has all files. ``parked``: jobs that it was given
    and that wait there for files, by id; others overtake them.
    """

    id: str
    asked: Availability
    seen: datetime
    heard: float
    files: tuple[File, ...] = ()
    stock: Stock = field(default_factory=Stock)
    measured: Measured = field(default_factory=Measured)
    loaded: frozenset[Key] = _NONE
    held: frozenset[Key] = _NONE
    main: frozenset[Key] = _NONE
    resident_since: float = 0.0
    idle_since: float | None = None
    used: dict[Key, None] = field(default_factory=dict)
    latest: Waiting | None = None
    parked: dict[str, Waiting] = field(default_factory=dict)
    orders: NodeOrders = field(default_factory=NodeOrders)
    stored: Mapping[str, Any] = field(default_factory=dict)
    told: NodeOrders | None = None
    counted: Standing = (_NONE, _NONE, _NONE)
    saved: bool = False

    @property
    def coming(self) -> frozenset[Key]:
        """What it was ordered to fetch and has not, and what jobs there wait for."""
        if not (self.orders.download or self.parked):
            return _NONE
        wanted = [need.key for need in self.orders.download]
        wanted += [need.key for job in self.parked.values() for need in job.needs]
        return frozenset(wanted) - self.held

    @property
    def due(self) -> NodeOrders:
        """Orders that are not carried out yet."""
        if not (self.orders.download or self.orders.evict):
            return self.orders
        fetch = tuple(need for need in self.orders.download if need.key not in self.held)
        return NodeOrders(fetch, tuple(need for need in self.orders.evict if need.key in self.held))

    def use(self, keys: Iterable[Key]) -> None:
        """Note that these were used now."""
        for key in keys:
            first = self.stock.first(key)
            self.used.pop(first, None)
            self.used[first] = None

    def settle(self, now: float) -> None:
        """Work out what is in memory when its next job begins: the latest that it was given counts too."""
        stock, latest = self.stock, self.latest
        self.loaded, self.held, main = stock.loaded, stock.held, stock.main
        if latest is not None and latest.needs and latest.key not in stock.loaded:
            self.loaded = frozenset(need.key for need in latest.needs)
            main = frozenset(stock.first(n.key) for n in latest.needs[:1] if n.kind in MEMORY) or main
        if main != self.main:
            self.main, self.resident_since = main, now


class Fleet:
    """All nodes, with who has which model."""

    def __init__(self, clock: Clock, node_timeout: timedelta, catalogue: Catalogue | None = None) -> None:
        self._clock = clock
        self._timeout_s = node_timeout.total_seconds()
        self._labels = Labels(catalogue or Catalogue())
        self._moved: Callable[[Iterable[Key]], None] = lambda _: None
        self._seats: dict[str, Seat] = {}
        self._warm: Counter[Key] = Counter()
        self._copies: Counter[Key] = Counter()
        self._coming: Counter[Key] = Counter()
        self._sizes: dict[Key, int] = {}
        self._given: dict[str, str] = {}

    def on_moved(self, moved: Callable[[Iterable[Key]], None]) -> None:
        """Have this told the models of which more or fewer nodes have a copy now."""
        self._moved = moved

    def __contains__(self, node: str) -> bool:
        return node in self._seats

    def __getitem__(self, node: str) -> Seat:
        return self._seats[node]

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def warm(self, key: Key) -> int:
        return self._warm[key]

    def copies(self, key: Key) -> int:
        return self._copies[key]

    def coming(self, key: Key) -> int:
        return self._coming[key]

    def size(self, key: Key) -> int | None:
        """As some node reported it."""
        return self._sizes.get(key)

    def is_alive(self, seat: Seat) -> bool:
        return seat.heard > _now() - self._timeout_s

    def alive(self) -> list[Seat]:
        return [seat for seat in self._seats.values() if self.is_alive(seat)]

    def asked(self, asked: Availability) -> Seat:
        """A node asks for work, and says what it has."""
        now = _now()
        seat = self._seats.get(asked.node.id)
        if seat is None:
            seat = self._seats[asked.node.id] = Seat(asked.node.id, asked, self._clock.now(), now)
        running = {one.id for one in asked.running}
        for job_id in [one for one in _given(seat) if one not in running]:
            self._left(seat, job_id)
        if seat.idle_since is not None and now > seat.heard + PAUSED.total_seconds():
            seat.idle_since = None
        self._take(seat, asked, self._clock.now(), now)
        seat.saved = False
        return seat

    def beat(self, beat: Heartbeat) -> Seat | None:
        """A node that works says that it lives, and maybe what it has; None for one that never asked."""
        seat = self._seats.get(beat.node.id)
        if seat is None:
            return None
        told = {name: value for name in ("models", "disk", "stats") if (value := getattr(beat, name)) is not None}
        node = merged(seat.asked.node, beat.node)
        asked = seat.asked.model_copy(update={**told, "running": beat.running, "node": node})
        self._take(seat, asked, self._clock.now(), _now())
        seat.saved = False
        return seat

    def gave(self, node: str, job: Waiting) -> None:
        """The node got this job: from now on it counts as having its models in memory, or as fetching them."""
        seat = self._seats[node]
        seat.idle_since = None
        self._given[job.id] = node
        if _is_here(job, seat):
            self._next(seat, job)
        else:
            seat.parked[job.id] = job
        seat.use(need.key for need in job.needs)
        seat.settle(_now())
        self._count(seat)

    def over(self, job_id: str) -> None:
        """The job left its node: what that says of itself is true again."""
        node = self._given.pop(job_id, None)
        if node is not None and (seat := self._seats.get(node)) is not None:
            self._left(seat, job_id)
            seat.settle(_now())
            self._count(seat)

    def _left(self, seat: Seat, job_id: str) -> None:
        self._given.pop(job_id, None)
        seat.parked.pop(job_id, None)
        if seat.latest is not None and seat.latest.id == job_id:
            seat.latest = None

    def _next(self, seat: Seat, job: Waiting) -> None:
        """The job will be in the server's turn next, as far as is known."""
        if seat.latest is not None:
            self._given.pop(seat.latest.id, None)
        seat.latest = job

    def idle(self, node: str) -> None:
        """The node has room for a job and got none."""
        seat = self._seats[node]
        if seat.idle_since is None:
            seat.idle_since = _now()

    def order(self, node: str, orders: NodeOrders, stored: Mapping[str, Any]) -> None:
        """What the node is to fetch and to drop from now on; ``stored`` is the same as its row has it."""
        seat = self._seats.get(node)
        if seat is not None:
            seat.orders, seat.stored = orders, stored
            self._count(seat)

    def could(self, job: Waiting) -> bool:
        """Whether the job fits some node that is there, or none is there to tell."""
        is_empty = True
        for seat in self._seats.values():
            if self.is_alive(seat):
                is_empty = False
                if matching.fits(self.view(seat), job):
                    return True
        return is_empty

    def view(self, seat: Seat) -> NodeView:
        """The node as decisions see it."""
        now, disk = _now(), seat.asked.disk
        return NodeView(
            id=seat.id,
            loaded=seat.loaded,
            held=seat.held,
            measured=seat.measured,
            free=disk.free if disk is not None else None,
            cap=disk.cap if disk is not None else None,
            resident_s=now - seat.resident_since,
            used=tuple(seat.used),
            sizes=seat.stock.sizes,
            coming=seat.coming,
            running=len(seat.asked.running),
            vram_gb=seat.asked.node.vram_gb,
            same=seat.stock.same,
            idle_s=now - seat.idle_since if seat.idle_since is not None else 0.0,
        )

    def relabel(self, catalogue: Catalogue) -> None:
        """The catalogue changed, and with it the keys of files."""
        self._labels = Labels(catalogue)
        for seat in self._seats.values():
            seat.stock = self._labels.stock(seat.files)
            seat.settle(_now())
            self._count(seat)

    def expire(self) -> None:
        """Count nodes that are away no more, and forget those that are gone for a day."""
        for seat in list(self._seats.values()):
            if not self.is_alive(seat):
                self._count(seat)
            if seat.heard < _now() - FORGOTTEN.total_seconds():
                del self._seats[seat.id]

    def unsaved(self) -> Steps[list[NodeRow]]:
        """What was heard here and is not saved; counts as saved afterwards, but for what was heard meanwhile."""
        rows: list[NodeRow] = []
        for seat in [seat for seat in self._seats.values() if not seat.saved]:
            rows.append(NodeRow(seat.id, seat.seen, seat.asked.to_json().decode()))
            if len(rows) % _STEP == 0:
                yield
        for row in rows:
            if row.id in self._seats and self._seats[row.id].seen == row.seen:
                self._seats[row.id].saved = True
        return rows

    def not_saved(self, rows: Iterable[NodeRow]) -> None:
        """They could not be saved after all."""
        for row in rows:
            if row.id in self._seats:
                self._seats[row.id].saved = False

    def read(self, rows: Iterable[NodeRow]) -> Steps[None]:
        """What all processes heard: of each node the latest counts. In steps."""
        news = 0
        for row in rows:
            seat = self._seats.get(row.id)
            if seat is None or row.seen > seat.seen:
                self._read(row, seat)
                news += 1
                if news % _STEP == 0:
                    yield
            seat = self._seats.get(row.id)
            if seat is not None and row.orders != seat.stored:
                self.order(row.id, read_orders(row.orders), row.orders)

    def _read(self, row: NodeRow, seat: Seat | None) -> None:
        now, wall = _now(), self._clock.now()
        asked = Availability.model_validate_json(row.report)
        if seat is None:
            seat = self._seats[row.id] = Seat(row.id, asked, row.seen, now, saved=True)
        self._take(seat, asked, row.seen, now - max(0.0, (wall - row.seen).total_seconds()))

    def _take(self, seat: Seat, asked: Availability, seen: datetime, heard: float) -> None:
        seat.asked, seat.seen, seat.heard = asked, seen, heard
        seat.measured = measured(asked.node.rates)
        files = files_of(asked.held)
        if files != seat.files:
            seat.files, seat.stock = files, self._labels.stock(files)
            self._sizes.update(seat.stock.sizes)
            for key in [key for key in seat.used if key not in seat.stock.held]:
                del seat.used[key]
            for job in [job for job in seat.parked.values() if _is_here(job, seat)]:
                del seat.parked[job.id]
                self._next(seat, job)
        seat.use(seat.stock.main)
        seat.settle(_now())
        self._count(seat)

    def _count(self, seat: Seat) -> None:
        """Bring the counts of copies up to what this node has now."""
        now: Standing = (seat.loaded, seat.held, seat.coming) if self.is_alive(seat) else (_NONE, _NONE, _NONE)
        before, seat.counted = seat.counted, now
        changed: set[Key] = set()
        for counter, old, new in zip((self._warm, self._copies, self._coming), before, now, strict=True):
            if old == new:
                continue
            for key in old - new:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
            for key in new - old:
                counter[key] += 1
            changed |= old ^ new
        if changed:
            self._moved(changed)


def _is_here(job: Waiting, seat: Seat) -> bool:
    return all(need.key in seat.stock.held for need in job.needs)


def _given(seat: Seat) -> list[str]:
    """The jobs that it is known to have been given, as far as they count for what it has."""
    return [*seat.parked, *([seat.latest.id] if seat.latest is not None else [])]


def _now() -> float:
    return asyncio.get_running_loop().time()
