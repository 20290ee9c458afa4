"""What the node can say of itself."""

from __future__ import annotations

import sys

import pytest

from worker.node import Gpu, Use, Vitals, find_gpu, gpu_memory, gpu_of, gpu_use_of


def saying(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_the_first_gpu_is_named() -> None:
    """nvidia-smi prints one card a line: its name, and its memory in MiB."""
    found = await find_gpu(saying("print('NVIDIA GeForce RTX 4090, 24564'); print('other, 1')"))
    assert found == Gpu("NVIDIA GeForce RTX 4090", 24.0)


@pytest.mark.parametrize(
    ("told", "gpu"),
    [
        ("NVIDIA GeForce RTX 3060, 12288\n", Gpu("NVIDIA GeForce RTX 3060", 12.0)),
        ("NVIDIA GH200, 480GB, 97871", Gpu("NVIDIA GH200, 480GB", 95.6)),
        ("NVIDIA GB10, [N/A]", Gpu("NVIDIA GB10", None)),
        ("", Gpu()),
    ],
)
def test_a_card_is_read_from_one_line(told: str, gpu: Gpu) -> None:
    """A name may hold commas, and some drivers know no memory."""
    assert gpu_of(told) == gpu


async def test_no_gpu_is_no_failure() -> None:
    """No command, a failing one and one without an answer all mean that no GPU is known."""
    assert await find_gpu(("no-such-command-here",)) == Gpu()
    assert await find_gpu(saying("import sys; print('x, 1'); sys.exit(9)")) == Gpu()
    assert await find_gpu(saying("pass")) == Gpu()


async def test_a_hanging_driver_holds_nothing_up() -> None:
    """A driver that hangs is left alone after a few seconds, and its process is gone."""
    from worker import node

    limit, node._NVIDIA_MOST_S = node._NVIDIA_MOST_S, 0.05
    try:
        assert await find_gpu(saying("import time; time.sleep(60)")) == Gpu()
    finally:
        node._NVIDIA_MOST_S = limit


async def test_what_is_taken_of_the_gpus_memory_is_asked_for() -> None:
    """In MiB, of the first card; nothing where it cannot be told."""
    assert await gpu_memory(saying("print('20480, 24564')")) == Use(20480 << 20, 24564 << 20)
    assert await gpu_memory(("no-such-command-here",)) is None


@pytest.mark.parametrize("told", ["", "[N/A], [N/A]", "1", "1, 2, 3", "1, x", "No devices were found"])
def test_a_card_that_does_not_tell_its_memory(told: str) -> None:
    """Some drivers have words for it, some cards have none of their own."""
    assert gpu_use_of(told) is None
    assert gpu_use_of("512, 1024\n0, 1024") == Use(512 << 20, 1024 << 20)


def test_only_known_figures_are_gauges() -> None:
    """A series is missing until it was read."""
    assert Vitals().gauges() == {}
    assert Vitals(memory=Use(1, 2), disk_free=3).gauges() == {
        "memory_used_bytes": 1,
        "memory_total_bytes": 2,
        "disk_free_bytes": 3,
    }
