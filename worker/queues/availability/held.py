"""What this process holds of a scheduling server: which lease is whose, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from worker.errors import LeaseLost
from worker.queues.base import Delivery
from worker.wire import HeartbeatAnswer, Running


@dataclass(eq=False, slots=True)
class Held:
    """One delivery that is out; ``wanted_at``, in loop time, is when its holder last asked to keep it.

    ``ending``: an answer to it is on its way, or was given, so that the server may well call it lost.
    """

    delivery: Delivery
    leased: bool
    wanted_at: float
    cancelled: bool = False
    lost: bool = False
    ending: bool = False

    @property
    def id(self) -> str:
        return self.delivery.id

    @property
    def token(self) -> Any:
        return self.delivery.receipt

    def is_wanted(self, now: float) -> bool:
        """Whether anybody still keeps it: a lease is never renewed for a holder that is gone."""
        return now - self.wanted_at < self.delivery.visibility.total_seconds()


class Holding:
    """All that is out, by job; a later lease of a job takes the place of the earlier one, which is lost."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._held.values()))

    def add(self, delivery: Delivery, *, leased: bool, now: float) -> None:
        earlier = self._held.get(delivery.id)
        if earlier is not None:
            earlier.lost = True
        self._held[delivery.id] = Held(delivery, leased, now)

    def of(self, delivery: Delivery) -> Held:
        """Raises `LeaseLost` for what ended, was lost, or was never handed out here."""
        held = self._held.get(delivery.id)
        if held is None or held.lost or held.token != delivery.receipt:
            raise LeaseLost
        return held

    @contextmanager
    def answering(self, held: Held) -> Iterator[None]:
        """While the server is told how it ends; that is its end, unless what is inside breaks."""
        held.ending, told = True, False
        try:
            yield
            told = True
        except LeaseLost:
            told = True
            raise
        finally:
            held.ending = told
            if told:
                self._end(held)

    def _end(self, held: Held) -> None:
        if self._held.get(held.id) is held:
            del self._held[held.id]

    def cancel(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            if (held := self._held.get(job_id)) is not None:
                held.cancelled = True

    def kept(self, now: float) -> list[Held]:
        """What is leased and still wanted."""
        return [held for held in self if held.leased and held.is_wanted(now)]

    def heard(self, sent: Iterable[Held], answer: HeartbeatAnswer) -> None:
        """Note what the server says of the leases that it was told of."""
        lost, cancelled = frozenset(answer.lost), frozenset(answer.cancel)
        for held in sent:
            if held.id in lost and not held.ending:
                held.lost = True
                self._end(held)
            held.cancelled |= held.id in cancelled


def running_of(held: Iterable[Held], jobs: Mapping[str, tuple[float | None, str]]) -> tuple[Running, ...]:
    """What is held, with how far each is."""
    far = ((one, *jobs.get(one.id, (None, None))) for one in held)
    return tuple(Running(id=one.id, token=one.token, progress=progress, hop=hop) for one, progress, hop in far)
