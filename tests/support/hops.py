"""A job in virtual time, brought to any hop of its life, where something happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.fakes import HOOK
from tests.support.world import World
from worker import failpoints
from worker.live import Hop
from worker.status import Phase

EVENTS = ["started", "succeeded", "failed", "cancelled"]

at_every_hop = pytest.mark.parametrize("hop", list(Hop))


def at_failpoint(point: str, act: Callable[[], None]) -> None:
    """Have something called when the point is reached for the first time."""

    def once(reached: str) -> None:
        if reached == point:
            failpoints.install(None)
            act()

    failpoints.install(once)


class Journey:
    """Brings job ``a`` to a hop, where it stays for ``seconds``, and has something happen there."""

    def __init__(self, world: World, hop: Hop, slow_images: dict[str, float], on_received: Any) -> None:
        self.world, self.hop = world, hop
        self._slow_images, self._on_received = slow_images, on_received

    async def bring(self, seconds: float, event: Callable[[], None]) -> None:
        world, fields = self.world, {"webhook": {"url": HOOK, "events": EVENTS}}
        match self.hop:
            case Hop.RECEIVED:
                self._on_received(event)
                world.engine.delays[Hop.ADMIT, "a"] = seconds
                await world.submit("a", **fields)
                return
            case Hop.ADMIT | Hop.GENERATE:
                world.engine.delays[self.hop, "a"] = seconds
            case Hop.MODELS:
                world.inputs.delays[self.hop, "a"] = seconds
                fields["params"] = {"prompt": "a", "image": "https://pictures.example/a"}
            case Hop.WAITING if world.link.capacity == 1:
                at_failpoint("admitted", lambda: self._hold_the_gate(seconds))
            case Hop.WAITING:
                world.engine.delays[Hop.GENERATE, "before"] = seconds
                await world.submit("before")
                await world.at(Hop.GENERATE, "before")
            case Hop.IMAGES:
                await world.status.reached(Phase.READY)
                self._slow_images["seconds"] = seconds
            case Hop.UPLOAD:
                world.storage.delays[self.hop, "a"] = seconds
            case Hop.SETTLE:
                world.receiver.delays[self.hop, "a"] = 0.0
        await world.submit("a", **fields)
        await world.at(self.hop, "a")
        event()

    def _hold_the_gate(self, seconds: float) -> None:
        """Where no other job can be in the way, the server is."""
        self.world.gate.close("held")
        asyncio.get_running_loop().call_later(seconds, self.world.gate.open, "held")


def held_up(world: World, hop: Hop, seconds: float) -> float:
    """At the last hop it is the receiver that takes its time."""
    if hop is Hop.SETTLE:
        world.receiver.seconds = seconds
    return seconds


def later(world: World, act: Callable[[], Any]) -> Callable[[], None]:
    """An act that has to be awaited, as an event."""

    def event() -> None:
        task = asyncio.create_task(act(), name="event")
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    tasks: set[asyncio.Task[Any]] = set()
    return event
