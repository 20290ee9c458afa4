"""What transfers share, what one is for, and how its bytes are cut into pieces. No I/O."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from worker.clock import Clock
from worker.models.bandwidth import Bandwidth
from worker.models.base import OnBytes, Priority, Room, Tempo, Wanted

MIB = 1024 * 1024
ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Sizes:
    """In bytes: a range, what a connection receives before it asks what to do next, and the steps in which room is
    asked for where the size is unknown."""

    piece_least: int = 4 * MIB
    piece_most: int = 32 * MIB
    turn: int = 2 * MIB
    step: int = 64 * MIB

    def piece(self, size: int | None, connections: int) -> int:
        """So long that asking costs little, and so short that every connection gets several."""
        if size is None:
            return self.piece_least
        return min(max(size // (connections * 4), self.piece_least), self.piece_most)


@dataclass(frozen=True, slots=True)
class Terms:
    """What all transfers share."""

    bandwidth: Bandwidth
    threads: ThreadPoolExecutor
    rng: random.Random
    clock: Clock
    tempo: Tempo
    connections: int = 8
    sizes: Sizes = Sizes()
    checkpoint: timedelta = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Errand:
    """What one transfer is for: ``url`` canonical, ``sha256`` and ``size`` as somebody promised them."""

    wanted: Wanted
    url: str
    sha256: str | None
    size: int | None
    room: Room
    on_bytes: OnBytes
    priority: Callable[[], Priority]


@dataclass(eq=False, slots=True)
class Piece:
    """Bytes yet to come; ``start`` moves on with them, ``end`` back when another connection takes the rest."""

    start: int
    end: int

    @property
    def left(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class Work:
    """The pieces of one go: those that wait, and those under way. ``splits``: the source gives any range."""

    waiting: deque[Piece]
    splits: bool
    least: int
    active: set[Piece] = field(default_factory=set)

    def take(self) -> Piece | None:
        """The first that waits, else half of the longest under way; None when nothing is worth a connection."""
        if self.waiting:
            piece = self.waiting.popleft()
        else:
            longest = max(self.active, key=lambda one: one.left, default=None)
            if longest is None or not self.splits or longest.left < 2 * self.least:
                return None
            piece = Piece(longest.end - longest.left // 2, longest.end)
            longest.end = piece.start
        self.active.add(piece)
        return piece

    def give_back(self, piece: Piece) -> None:
        """What is left of it goes first to the next who asks."""
        self.active.discard(piece)
        if piece.left > 0:
            self.waiting.appendleft(piece)
