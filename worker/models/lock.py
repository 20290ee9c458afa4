"""One worker at a time has a folder of models: two would evict what the other one uses."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from worker.errors import ConfigError

NAME = "lock"


class FolderInUse(ConfigError):
    """Another worker has the folder of models."""

    code = ConfigError.code


class FolderLock:
    """On a folder that is made where it does not exist. One that cannot be written, or whose file system knows no
    locks, is not locked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def acquire(self) -> None:
        """Held until `release`, or until the process ends in whatever way. Blocks, but does not wait.

        Raises `FolderInUse` while another one holds it.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            said = f"{self._folder.parent} is in use by another sd-worker: each needs its own folder of models"
            raise FolderInUse(said) from error
        except OSError:
            self.release()

    def release(self) -> None:
        """May be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)
