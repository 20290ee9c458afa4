"""The memory of the GPU, as nvidia-smi tells of it.

Cards of people's own machines drive displays, and drivers keep some memory for themselves: free is less than all that
is not used.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from worker.errors import ConfigError, FieldError
from worker.fitness.verdict import Name, Reading
from worker.node import nvidia_smi

VARIABLE = "WORKER_FITNESS_VRAM"
COMMAND = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""Of the drivers of NVIDIA, of WSL 2, and of AMD: one of them is there where a container has a GPU."""


class FreeVram:
    """Bytes of the first GPU that are free; all of its memory where the server runs already and holds some.

    A machine without a GPU is unfit. One that has a GPU, but an image without nvidia-smi, is the operator's mistake.
    """

    name: Name = "vram"

    def __init__(
        self,
        wanted: float,
        *,
        is_taken: bool = False,
        command: tuple[str, ...] = COMMAND,
        devices: Sequence[Path] = DEVICES,
    ) -> None:
        self.wanted = wanted
        self._is_taken = is_taken
        self._command = command
        self._devices = devices

    async def measure(self) -> Reading:
        """Raises `ConfigError` where nobody can ever tell."""
        if shutil.which(self._command[0]) is None:
            if any(device.exists() for device in self._devices):
                raise _mistake("cannot be measured: there is a GPU, but no nvidia-smi in the image")
            return Reading(None, "there is no GPU (no nvidia-smi, and no device of one)", lasting=True)
        told = await nvidia_smi(self._command)
        return Reading(None, "nvidia-smi finds no GPU") if told is None else reading_of(told, is_taken=self._is_taken)


def reading_of(told: str, *, is_taken: bool) -> Reading:
    """The first line of ``name, memory.total, memory.free`` in MiB; a name may hold commas.

    Raises `ConfigError` for a GPU without memory of its own.
    """
    first = told.split("\n", maxsplit=1)[0]
    name, *numbers = (word.strip() for word in first.rsplit(",", 2))
    if not name:
        return Reading(None, "nvidia-smi finds no GPU")
    if len(numbers) != 2 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise _mistake(f"cannot be measured: the driver does not tell the memory of {name}")
    total, free = (int(number) << 20 for number in numbers)
    if is_taken:
        return Reading(total, f"in all, {name}", lasting=True)
    return Reading(free, f"free of {total / 1e9:.3g} GB, {name}")


def _mistake(message: str) -> ConfigError:
    return ConfigError((FieldError(VARIABLE, message),))
