"""What the node can say of itself."""

from __future__ import annotations

import sys

from worker.node import gpu_name


def saying(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_the_first_gpu_is_named() -> None:
    """nvidia-smi prints one name a line."""
    assert await gpu_name(saying("print('NVIDIA GeForce RTX 3060'); print('other')")) == "NVIDIA GeForce RTX 3060"


async def test_no_gpu_is_no_failure() -> None:
    """No command, a failing one and one without an answer all mean that no GPU is known."""
    assert await gpu_name(("no-such-command-here",)) is None
    assert await gpu_name(saying("import sys; print('x'); sys.exit(9)")) is None
    assert await gpu_name(saying("pass")) is None


async def test_a_hanging_driver_holds_nothing_up() -> None:
    """A driver that hangs is left alone after a few seconds, and its process is gone."""
    from worker import node

    limit, node._NVIDIA_MOST_S = node._NVIDIA_MOST_S, 0.05
    try:
        assert await gpu_name(saying("import time; time.sleep(60)")) is None
    finally:
        node._NVIDIA_MOST_S = limit
