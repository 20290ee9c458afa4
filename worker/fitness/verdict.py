"""What was measured of a node, beside what it must have. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

Name = Literal["vram", "disk", "upload", "download", "step"]

UNITS: dict[Name, str] = {
    "vram": "bytes",
    "disk": "bytes",
    "upload": "bytes/s",
    "download": "bytes/s",
    "step": "s",
}
LESS_IS_BETTER: frozenset[Name] = frozenset({"step"})

TRIES = 3
"""Measurements before a node is found unfit: one that is good enough ends them."""

PAUSES_S = (10.0, 30.0)
"""Between the tries: a line or a card may have been busy just then."""


class Verdict(StrEnum):
    """``waiting``: what it is measured against is away, which says nothing of the node."""

    NOT_ASKED = "not_asked"
    MEASURING = "measuring"
    WAITING = "waiting"
    FIT = "fit"
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class Reading:
    """One measurement, None where there is nothing to measure; ``lasting``: another try would find the same."""

    value: float | None
    detail: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """The best of so many tries; ``wanted`` is None where the figure is only told."""

    name: Name
    wanted: float | None
    reading: Reading
    tries: int = 1

    @property
    def fit(self) -> bool | None:
        """Whether it is enough; None where nobody asks."""
        return None if self.wanted is None else suffices(self.name, self.reading.value, self.wanted)

    def described(self) -> dict[str, Any]:
        """For `/v1/status` and the log."""
        value = self.reading.value
        return {
            "fit": self.fit,
            "measured": None if value is None else _rounded(value),
            "wanted": self.wanted,
            "unit": UNITS[self.name],
            "tries": self.tries,
            "detail": self.reading.detail,
        }

    def __str__(self) -> str:
        parts = [f"{self.name} {amount(self.name, self.reading.value)}"]
        if self.wanted is not None:
            parts.append(f"{amount(self.name, self.wanted)} wanted")
        if self.tries > 1:
            parts.append(f"the best of {self.tries} tries")
        if self.reading.detail:
            parts.append(self.reading.detail)
        return ", ".join(parts)


def _rounded(value: float) -> float:
    """Four digits, and no fraction of a byte."""
    short = float(f"{value:.4g}")
    return int(short) if short >= 1000 else short


def suffices(name: Name, value: float | None, wanted: float) -> bool:
    """Whether a node with this value is fit."""
    if value is None:
        return False
    return value <= wanted if name in LESS_IS_BETTER else value >= wanted


def better(name: Name, one: Reading, other: Reading | None) -> Reading:
    """The one that speaks more for the node; the first where both say the same."""
    if other is None or other.value is None:
        return one
    if one.value is None:
        return other
    is_better = one.value <= other.value if name in LESS_IS_BETTER else one.value >= other.value
    return one if is_better else other


def pause_s(tries: int) -> float:
    """How long to wait after so many tries."""
    return PAUSES_S[min(tries, len(PAUSES_S)) - 1]


def amount(name: Name, value: float | None) -> str:
    """``23.6 GB``, ``9.87 MB/s``, ``0.25 s``."""
    if value is None:
        return "none"
    if name == "step":
        return f"{value:.3g} s"
    text = _bytes(value)
    return f"{text}/s" if UNITS[name] == "bytes/s" else text


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} bytes"


def unfit_of(figures: Iterable[Figure]) -> str:
    """Why the node is unfit, in words; empty where it is not."""
    return "; ".join(str(figure) for figure in figures if figure.fit is False)
