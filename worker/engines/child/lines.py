"""Bytes that a process prints, cut into lines that can be shown. No I/O."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from worker.log import redact

LINE_MOST = 4000
"""Bytes of a line that are kept."""

FLOOD, KEPT_OF_FLOOD = 2000, 400
"""Of more lines than that at once, only so many of the last are looked at."""

_BREAK = re.compile(rb"(\r\n|\n|\r(?!\Z))")
_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^_`-~])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A line; ``passing`` when a carriage return says that another will be written over it, as progress bars do."""

    text: str
    passing: bool = False


def plain(data: bytes) -> str:
    """As text: what is not UTF-8 replaced, colours and other orders to a terminal left out."""
    return _ESCAPE.sub("", data.decode("utf-8", "replace")).rstrip()


class Splitter:
    """Cuts one stream into pieces, holding back what has no end yet, of which it keeps a bounded part.

    ``skipped`` counts the lines that were left out of floods.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._rest = b""
        self._lost = 0
        self._over = False

    def feed(self, data: bytes) -> list[Piece]:
        """The pieces that these bytes bring to an end; `\\r` at their very end waits for what follows."""
        for end in (b"\n", b"\r"):
            if data.count(end) > FLOOD:
                head, *tail = data.rsplit(end, KEPT_OF_FLOOD)
                self.skipped += head.count(end)
                data = end.join((b"", *tail))
        *parts, rest = _BREAK.split(self._rest + data)
        pieces = []
        for text, end in zip(parts[::2], parts[1::2], strict=True):
            pieces.append(self._piece(text, passing=end == b"\r"))
            self._over = end == b"\r"
        self._keep(rest)
        return pieces

    def passing(self) -> Piece | None:
        """What stands there now where it is a progress bar; it stays."""
        if not (self._over or self._rest.endswith(b"\r")):
            return None
        text = plain(self._rest)
        return Piece(text, passing=True) if text else None

    def end(self) -> Piece | None:
        """The last line, which nobody ended."""
        if not self._rest and not self._lost:
            return None
        piece = self._piece(self._rest, passing=False)
        self._rest, self._over = b"", False
        return piece

    def _piece(self, data: bytes, *, passing: bool) -> Piece:
        lost, self._lost = self._lost + max(0, len(data) - LINE_MOST), 0
        text = plain(data[:LINE_MOST])
        return Piece(f"{text} ...{lost} more bytes" if lost else text, passing)

    def _keep(self, rest: bytes) -> None:
        """At most `LINE_MOST` of it, and the carriage return at its end."""
        end = b"\r" if rest.endswith(b"\r") else b""
        text = rest.removesuffix(end)
        self._lost += max(0, len(text) - LINE_MOST)
        self._rest = text[:LINE_MOST] + end


@dataclass(slots=True)
class _Line:
    number: int
    source: str
    text: str
    passing: bool


class Tail:
    """The last lines of all streams together, so many as are worth keeping: a `ServerLog`, its secrets hidden."""

    def __init__(self, lines: int = 400, characters: int = 200_000) -> None:
        self._most_lines = lines
        self._most_characters = characters
        self._lines: deque[_Line] = deque()
        self._characters = 0
        self._next = 0

    def add(self, source: str, piece: Piece) -> None:
        """One more; it takes the place of a progress bar's earlier state."""
        if self._lines and self._lines[-1].passing and self._lines[-1].source == source:
            self._characters -= len(self._lines.pop().text)
        self._lines.append(_Line(self._next, source, piece.text, piece.passing))
        self._next += 1
        self._characters += len(piece.text)
        while len(self._lines) > self._most_lines or self._characters > self._most_characters:
            self._characters -= len(self._lines.popleft().text)

    def mark(self) -> int:
        return self._next

    def since(self, mark: int) -> tuple[str, ...]:
        return tuple(redact(line.text) for line in self._lines if line.number >= mark)


class Allowance:
    """So many at once, then so many a second: a flood may not cost more than that."""

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._left = float(burst)
        self._at: float | None = None

    def take(self, now: float) -> bool:
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
