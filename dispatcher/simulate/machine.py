"""A simulated node: its disk, its server's memory, its GPU and its one network link, as they truly are.

It does what the worker does: one job renders at a time; a job whose models are missing is held aside while they come
and others overtake it, up to ``parked`` of them; the disk is never over its cap, and what was used the longest ago goes
first; transfers that jobs wait for come before those that were ordered, which go on later where they stopped.
The server keeps one checkpoint in memory; what else its job names stays beside it until the next checkpoint.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dispatcher.simulate.account import Spent, Tally
from dispatcher.simulate.load import Speeds
from dispatcher.words import Key, Measured, Need, NodeOrders, NodeView, Rules, Waiting

USUAL = Rules().size
"""Bytes of the checkpoint of which the seconds of a load are reported."""


@dataclass(slots=True)
class Transfer:
    """A file on its way: bytes that are still missing, and since when it moves. ``ordered``: no job waits for it."""

    need: Need
    left: float
    since: float
    ordered: bool


class Machine:
    """Times are absolute seconds of the simulation, given with each call in growing order."""

    def __init__(self, id: str, speeds: Speeds, stock: tuple[Need, ...], parked: int, now: float = 0.0) -> None:
        self.id, self.speeds, self.born = id, speeds, now
        self.disk: dict[Key, int] = {each.key: each.size or 0 for each in stock}
        self.loaded: dict[Key, None] = {}
        self.running: Waiting | None = None
        self.ready: deque[Waiting] = deque()
        self.parked: deque[Waiting] = deque()
        self.spent, self.tally = Spent(), Tally()
        self.transfer: Transfer | None = None
        self._most_parked = parked
        self._paused: dict[Key, Transfer] = {}
        self._orders: dict[Key, Need] = {}
        self._since, self._load_left = now, 0.0
        self._resident_since = now
        self._used = sum(self.disk.values())
        self._seen: tuple[frozenset[Key], dict[Key, int]] | None = None

    @property
    def held(self) -> list[Waiting]:
        """The jobs that it has."""
        return [*([self.running] if self.running else []), *self.ready, *self.parked]

    @property
    def calls(self) -> bool:
        """Whether it asks for a job: nothing renders or could, and not too many wait for their models."""
        return self.running is None and not self.ready and len(self.parked) <= self._most_parked

    def fits(self, job: Waiting) -> bool:
        return sum(each.size or 0 for each in job.needs) <= self.speeds.cap

    def missing(self, job: Waiting) -> list[Need]:
        return [each for each in job.needs if each.key not in self.disk]

    def view(self, now: float, idle_s: float = 0.0) -> NodeView:
        """What it reports of itself."""
        held, sizes = self._seen = self._seen or (frozenset(self.disk), dict(self.disk))
        speeds = self.speeds
        return NodeView(
            id=self.id,
            loaded=frozenset(self.loaded),
            held=held,
            measured=Measured(disk=speeds.disk, network=speeds.network, load=USUAL / speeds.disk),
            free=speeds.cap - self._used,
            cap=speeds.cap,
            resident_s=now - self._resident_since,
            used=tuple(self.disk),
            sizes=sizes,
            coming=frozenset(self._coming()),
            running=len(self.held),
            vram_gb=24.0,
            idle_s=idle_s,
        )

    def _coming(self) -> list[Key]:
        wanted = [each.key for job in self.parked for each in self.missing(job)]
        moving = [self.transfer.need.key] if self.transfer else []
        return [*wanted, *moving, *self._paused, *self._orders]

    # time

    def account(self, now: float) -> None:
        """Book what the GPU did since it was last called."""
        gone, self._since = now - self._since, now
        if self.running is not None:
            loading = min(gone, self._load_left)
            self._load_left -= loading
            self.spent.load += loading
            self.spent.render += gone - loading
        elif self.parked:
            self.spent.download += gone
        else:
            self.spent.idle += gone

    # jobs

    def take(self, job: Waiting, now: float) -> None:
        """It was given to this node: it is ready, or its models come first."""
        self.account(now)
        if self.missing(job):
            self.parked.append(job)
        else:
            self._touch(job)
            self.ready.append(job)

    def start(self, now: float) -> tuple[Waiting, float, float] | None:
        """Begin what is ready, if nothing runs: the job, seconds until its first step, seconds of rendering."""
        if self.running is not None or not self.ready:
            return None
        self.account(now)
        self.running = job = self.ready.popleft()
        self._touch(job)
        load = self._load_left = self._load(job, now)
        return job, load, job.work_s / self.speeds.render

    def _load(self, job: Waiting, now: float) -> float:
        new = [each for each in job.needs if each.key not in self.loaded]
        if new and new[0] is job.needs[0]:
            self.loaded.clear()
            new = list(job.needs)
            self._resident_since = now
            self.tally.loads += 1
        self.loaded |= {each.key: None for each in new}
        return sum(self.disk[each.key] for each in new) / self.speeds.disk

    def finish(self, now: float) -> Waiting:
        """The one that runs is over."""
        self.account(now)
        job, self.running = self.running, None
        if job is None:
            raise RuntimeError(f"nothing runs on {self.id}")
        return job

    def _touch(self, job: Waiting) -> None:
        for each in reversed(job.needs):
            self.disk[each.key] = self.disk.pop(each.key)

    # transfers

    def accept(self, orders: NodeOrders) -> None:
        """Orders for the disk; a model that a job here needs stays."""
        pins = self._pins()
        for each in orders.evict:
            if each.key in self.disk and each.key not in pins and each.key not in self.loaded:
                self._drop(each.key)
        self._orders |= {each.key: each for each in orders.download if each.key not in self.disk}

    def pull(self, now: float) -> float | None:
        """See to the link: begin the next transfer if that is due. Seconds until it is over, or None for no change."""
        wanted = self._wanted(now)
        moving = self.transfer
        if wanted is not None and moving is not None and moving.ordered:
            if moving.need.key == wanted.key:
                moving.ordered = False
                return None
            self._pause(moving, now)
        elif moving is not None:
            return None
        if wanted is not None:
            return self._begin(wanted, now, ordered=False)
        while self._orders or self._paused:
            following = next((each.need for each in self._paused.values()), None) or next(iter(self._orders.values()))
            self._orders.pop(following.key, None)
            if following.key not in self.disk and (seconds := self._begin(following, now, ordered=True)) is not None:
                return seconds
        return None

    def arrived(self, now: float) -> None:
        """The transfer is over."""
        transfer, self.transfer = self.transfer, None
        if transfer is None:
            return
        self.account(now)
        size = transfer.need.size or 0
        self.disk[transfer.need.key] = size
        self._seen = None
        self.tally.bytes += size
        if transfer.ordered:
            self.tally.ordered += 1
        else:
            self.tally.fetched += 1

    def _wanted(self, now: float) -> Need | None:
        """The next file that a job waits for; jobs that have all of theirs become ready on the way."""
        self.account(now)
        held, self.parked = self.parked, deque()
        for job in held:
            self.take(job, now)
        return self.missing(self.parked[0])[0] if self.parked else None

    def _pause(self, moving: Transfer, now: float) -> None:
        moving.left -= (now - moving.since) * self.speeds.network
        self._paused[moving.need.key] = moving
        self.transfer = None

    def _begin(self, wanted: Need, now: float, *, ordered: bool) -> float | None:
        paused = self._paused.pop(wanted.key, None)
        size = wanted.size or 0
        if paused is None:
            if not self._room(size, spare=ordered):
                return None
            self._used += size
        self._orders.pop(wanted.key, None)
        self.transfer = Transfer(wanted, paused.left if paused else float(size), now, ordered)
        return self.transfer.left / self.speeds.network

    def _pins(self) -> set[Key]:
        jobs = [*([self.running] if self.running else []), *self.ready, *([self.parked[0]] if self.parked else [])]
        return {each.key for job in jobs for each in job.needs}

    def _room(self, size: int, *, spare: bool) -> bool:
        """Have this much free, by evicting what was used the longest ago; ``spare`` what is in the server's memory."""
        if self.speeds.cap - self._used >= size:
            return True
        kept = self._pins() | (set(self.loaded) if spare else set())
        gone, free = list[Key](), self.speeds.cap - self._used
        for key, each in self.disk.items():
            if free >= size:
                break
            if key not in kept:
                gone.append(key)
                free += each
        stopped = [] if spare or free >= size else list(self._paused)
        for key in stopped:
            free += self._paused[key].need.size or 0
        if free < size:
            return False
        for key in gone:
            self._drop(key)
        for key in stopped:
            self._used -= self._paused.pop(key).need.size or 0
        return True

    def _drop(self, key: Key) -> None:
        self._used -= self.disk.pop(key)
        self.loaded.pop(key, None)
        self._seen = None
