"""Where the black box lies: on a disk that a restart leaves alone, beside what the worker keeps there anyway."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from worker.models.folders import find_folders
from worker.node import Identity
from worker.settings import Settings

NAME = "blackbox"


def place_of(settings: Settings, identity: Identity) -> Path | None:
    """In the models' folder of records, which is one worker's; else beside the embedded queue's file; else nowhere.

    Looks at the disk. Raises `ConfigError` as `find_folders`.
    """
    folders = find_folders(settings.engine.kind, settings.models.dir, settings.models.folders)
    if folders is not None:
        return folders.ours / NAME
    if settings.queue.kind == "sqlite":
        beside = settings.queue.sqlite_path
        return beside.with_name(f"{beside.name}.{quote(identity.id, safe='')}.{NAME}")
    return None
