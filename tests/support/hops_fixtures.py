"""Fixtures that bring a job to a hop; a test module asks for them by ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.hops import Journey, at_failpoint
from tests.support.virtual import elapse
from tests.support.world import World
from worker import failpoints, images, made
from worker.live import Hop


@pytest.fixture
def slow_images(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by which the next verification of images is held up, under the key ``seconds``."""
    delay: dict[str, float] = {}
    real = images.verify_all

    async def slow(*args: Any, **named: Any) -> Any:
        await elapse(delay.pop("seconds", 0.0))
        return await real(*args, **named)

    monkeypatch.setattr(made, "verify_all", slow)
    return delay


@pytest.fixture
def on_received() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Have something called at the very instant in which a job begins to be held."""

    def install(act: Callable[[], None]) -> None:
        at_failpoint("received", act)

    yield install
    failpoints.install(None)


@pytest.fixture
def journey(slow_images: dict[str, float], on_received: Any) -> Callable[[World, Hop], Journey]:
    return lambda world, hop: Journey(world, hop, slow_images, on_received)
