"""The rows of `sd-worker models list`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.models.acts import leftovers, survey
from worker.models.folders import Folders

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_SHORT = 12


@dataclass(frozen=True, slots=True)
class Row:
    """A model: ``size`` in bytes, ``used`` 1 for the last used, ``done`` bytes of what is on its way.

    ``state`` is ``on_disk``, ``loaded``, ``downloading``, or ``partial`` for what an interrupted transfer left.
    """

    kind: str
    name: str
    size: int
    used: int | None
    sha256: str | None
    baked: bool
    state: str
    done: int | None = None

    def cells(self) -> tuple[str, ...]:
        return (
            self.kind,
            self.name,
            size_shown(self.size),
            "" if self.used is None else str(self.used),
            (self.sha256 or "")[:_SHORT],
            "yes" if self.baked else "",
            self.state if self.done is None or not self.size else f"{self.state} {100 * self.done // self.size} %",
        )


def size_shown(size: int) -> str:
    """``6.9 GB``, ``144 MB``, ``12 bytes``: three digits are enough for people."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size} bytes"


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The rows of what a worker tells."""
    loaded = {(one["kind"], one["name"]) for one in document["loaded"] or ()}
    there = [
        Row(
            kind=one["kind"],
            name=one["name"],
            size=one["size"],
            used=number,
            sha256=one["sha256"],
            baked=one["baked"],
            state="loaded" if (one["kind"], one["name"]) in loaded else "on_disk",
        )
        for number, one in enumerate(document["on_disk"], 1)
    ]
    coming = [
        Row(one["kind"], one["name"], one["size"], None, None, baked=False, state="downloading", done=one["done"])
        for one in document["downloading"]
    ]
    return there + coming


def survey_rows(folders: Folders) -> list[Row]:
    """The rows of what lies in the folders. Changes nothing, and blocks."""
    there = [
        Row(*entry.place, entry.size, number, entry.sha256, entry.baked, "on_disk")
        for number, entry in enumerate(reversed(survey(folders).entries), 1)
    ]
    return there + [Row(*place, size, None, None, False, "partial") for place, size in leftovers(folders).items()]
