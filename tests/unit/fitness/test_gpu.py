"""The memory of the GPU before the server takes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.fitness.gpu import FreeVram, reading_of
from worker.fitness.verdict import Reading

MIB = 1 << 20


def saying(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("told", "is_taken", "reading"),
    [
        (
            "NVIDIA GeForce RTX 4090, 24564, 23028\nother, 1, 1\n",
            False,
            Reading(23028 * MIB, "free of 25.8 GB, NVIDIA GeForce RTX 4090"),
        ),
        ("NVIDIA GH200, 480GB, 97871, 97000", False, Reading(97000 * MIB, "free of 103 GB, NVIDIA GH200, 480GB")),
        ("RTX 3060, 12288, 100", True, Reading(12288 * MIB, "in all, RTX 3060", lasting=True)),
        ("", False, Reading(None, "nvidia-smi finds no GPU")),
    ],
)
def test_the_first_card_is_read(told: str, is_taken: bool, reading: Reading) -> None:
    """What is free of it; all of it where the server holds some already, since that is no fault of the node."""
    assert reading_of(told, is_taken=is_taken) == reading


@pytest.mark.parametrize("told", ["NVIDIA GB10, [N/A], [N/A]", "lonely"])
def test_memory_that_the_driver_does_not_tell_cannot_be_asked_for(told: str) -> None:
    """A card that shares the machine's memory: the demand has to go, not the node."""
    with pytest.raises(ConfigError, match="WORKER_FITNESS_VRAM: cannot be measured"):
        reading_of(told, is_taken=False)


async def test_nvidia_smi_is_asked() -> None:
    found = await FreeVram(1, command=saying("print('RTX 3060, 12288, 12000')")).measure()
    assert found.value == 12000 * MIB


async def test_a_driver_that_does_not_answer_may_do_so_at_the_next_try() -> None:
    """It is no GPU for now."""
    found = await FreeVram(1, command=saying("raise SystemExit(9)")).measure()
    assert found == Reading(None, "nvidia-smi finds no GPU")


async def test_a_machine_without_a_gpu_is_unfit_for_good() -> None:
    found = await FreeVram(1, command=("no-such-command-here",), devices=()).measure()
    assert (found.value, found.lasting, "no GPU" in found.detail) == (None, True, True)


async def test_a_gpu_without_nvidia_smi_is_the_images_fault(tmp_path: Path) -> None:
    """Node after node would be given up for it."""
    with pytest.raises(ConfigError, match="no nvidia-smi in the image"):
        await FreeVram(1, command=("no-such-command-here",), devices=(tmp_path,)).measure()
