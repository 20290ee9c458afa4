"""Which of the listed files are still there, as far as their folders are seen from here. It blocks: for a thread.

The servers list files until they are told to look again, for which the running generation must end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from worker.engines.sdapi.inventory import Inventory


class Presence:
    """A folder counts as seen once a listed file was found in it: one of that path may be another's here."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def present(self, inventory: Inventory) -> Inventory:
        """The inventory without files that are gone; the very same when none is."""
        lists = (inventory.checkpoints, inventory.loras or (), inventory.vaes or ())
        gone = self._gone(file.filename for files in lists for file in files)
        if not gone:
            return inventory
        checkpoints, loras, vaes = (tuple(f for f in files if f.filename not in gone) for files in lists)
        return replace(
            inventory,
            checkpoints=checkpoints,
            loras=loras if inventory.loras is not None else None,
            vaes=vaes if inventory.vaes is not None else None,
        )

    def _gone(self, paths: Iterable[str]) -> frozenset[str]:
        folders: dict[str, set[str]] = {}
        for path in paths:
            folder, _, name = path.rpartition("/")
            if folder.startswith("/"):
                folders.setdefault(folder, set()).add(name)
        gone: set[str] = set()
        for folder, names in folders.items():
            there = _names(folder)
            if there & names:
                self._seen.add(folder)
            if folder in self._seen:
                gone.update(f"{folder}/{name}" for name in names - there)
        return frozenset(gone)


def _names(folder: str) -> frozenset[str]:
    """What a folder holds; nothing where there is none that can be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except OSError:
        return frozenset()
