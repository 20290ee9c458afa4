"""The jobs that wait, in the order of their turn: all of them, and those of each model."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

from dispatcher.words import Key, Waiting

Entry = tuple[tuple[int, float, str], Waiting]


class Line:
    """Sorted lists with places found by halving: adding and removing cost a memory move, never a scan."""

    def __init__(self) -> None:
        self._all: list[Entry] = []
        self._by_key: dict[Key, list[Entry]] = {}
        self._ids: set[str] = set()

    def __contains__(self, job: Waiting) -> bool:
        return job.id in self._ids

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, place: int) -> Waiting:
        return self._all[place][1]

    @property
    def first(self) -> Waiting | None:
        return self._all[0][1] if self._all else None

    def heads(self, key: Key, most: int) -> Sequence[Waiting]:
        """The first of those that wait for this model."""
        return [job for _, job in self._by_key.get(key, ())[:most]]

    def ahead(self, most: int) -> Sequence[Waiting]:
        """The first of all."""
        return [job for _, job in self._all[:most]]

    def add(self, job: Waiting) -> None:
        entry = (job.order, job)
        self._ids.add(job.id)
        insort(self._all, entry)
        insort(self._by_key.setdefault(job.key, []), entry)

    def remove(self, job: Waiting) -> None:
        """Raises `KeyError` when it does not wait."""
        self._ids.remove(job.id)
        for entries in (self._all, self._by_key[job.key]):
            del entries[bisect_left(entries, (job.order,))]
        if not self._by_key[job.key]:
            del self._by_key[job.key]
