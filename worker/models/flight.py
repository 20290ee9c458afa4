"""Single flight: each file comes once, however many wait for it, and with the priority of the most urgent of them."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from worker.errors import Draining, WorkerError
from worker.mentions import Place
from worker.models.base import InFlight, Priority
from worker.models.match import Wish
from worker.models.speed import Speed, time_for
from worker.tasks import cancel_all

_URGENCY = (Priority.JOB, Priority.START, Priority.BACKGROUND)


class GaveWay(WorkerError):
    """The transfer gave its room to another one: whoever waited for it asks anew, holding nothing."""


class Flight:
    """A transfer under way and those who wait for it, by any object that stands for them.

    ``reserved`` bytes are set aside for it, ``done`` are written, of ``total`` where that is known; ``source`` is where
    it comes from just now, in words.
    ``landing`` while its file gets its name, ``leaving`` when it is given up. Ends with the place that its file got.
    """

    def __init__(self, place: Place, wish: Wish, reserved: int, changed: Callable[[], None]) -> None:
        self.place = place
        self.wish = wish
        self.reserved = reserved
        self.done = 0
        self.total: int | None = wish.wanted.size
        self.speed = Speed()
        self.source = ""
        self.landing = False
        self.leaving = False
        self._waiting: dict[object, Priority] = {}
        self._changed = changed
        self._outcome: asyncio.Future[Place] = asyncio.get_running_loop().create_future()

    @property
    def priority(self) -> Priority:
        """That of the most urgent who waits; nobody does: `Priority.BACKGROUND`."""
        return min(self._waiting.values(), key=_URGENCY.index, default=Priority.BACKGROUND)

    @property
    def waiting(self) -> tuple[object, ...]:
        return tuple(self._waiting)

    def join(self, who: object, priority: Priority) -> None:
        self._waiting[who] = priority
        self._changed()

    def leave(self, who: object) -> None:
        """Wait no longer: the transfer goes on."""
        if self._waiting.pop(who, None) is not None:
            self._changed()

    async def landed(self) -> Place:
        """Until the file is there. Raises what ended the transfer, an error object of one's own."""
        await asyncio.wait({self._outcome})
        error = self._outcome.exception()
        if error is None:
            return self._outcome.result()
        raise copy.copy(error)

    def report(self, done: int, total: int | None) -> None:
        """So many bytes are there; for a `Fetcher`."""
        self.speed.saw(asyncio.get_running_loop().time(), max(0, done - self.done))
        self.done = done
        self.total = self.total if total is None else total

    def time_left(self, otherwise: float | None) -> float | None:
        """Seconds that it takes yet, at its own speed or, until that was measured, at this one; None: nobody knows."""
        if self.total is None:
            return None
        rate = self.speed.rate(asyncio.get_running_loop().time())
        return time_for(max(0, self.total - self.done), otherwise if rate is None else rate)

    def end(self, place: Place) -> None:
        if not self._outcome.done():
            self._outcome.set_result(place)

    def fail(self, error: BaseException) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()

    def described(self) -> InFlight:
        return InFlight(self.place, self.reserved, self.done, self.source, self.priority)


Fly = Callable[[Flight], Coroutine[Any, Any, Place]]


class Flights:
    """All transfers under way, by the place that each fills; owns their tasks.

    ``fly`` brings the file of one and takes it out by `remove` in the instant in which its bytes are booked otherwise.
    ``changed`` is called after anything that others may wait for, ``pause`` with whether transfers that nobody waits
    for have to stand still.
    """

    def __init__(self, fly: Fly, changed: Callable[[], None], pause: Callable[[bool], None]) -> None:
        self._fly = fly
        self._changed = changed
        self._pause = pause
        self._paused = False
        self._halted = False
        self._by_place: dict[Place, Flight] = {}
        self._tasks: dict[Flight, asyncio.Task[Place]] = {}

    @property
    def by_place(self) -> Mapping[Place, Flight]:
        return self._by_place

    @property
    def awaited(self) -> int:
        """How many somebody waits for: they share what the node can bring, and the others stand still."""
        return sum(flight.priority is not Priority.BACKGROUND for flight in self._by_place.values())

    def begin(self, place: Place, wish: Wish, reserved: int) -> Flight:
        """A new one, to a place that no other fills."""
        flight = self._by_place[place] = Flight(place, wish, reserved, self._prioritized)
        task = asyncio.create_task(self._fly(flight), name=f"model-{place}")
        self._tasks[flight] = task
        task.add_done_callback(functools.partial(self._ended, flight))
        return flight

    def remove(self, flight: Flight) -> None:
        if self._by_place.get(flight.place) is flight:
            del self._by_place[flight.place]
            self._prioritized()

    async def drop(self, flight: Flight) -> None:
        """Cancel it and wait for its end; who waits for it is told that it gave way."""
        flight.leaving = True
        task = self._tasks.get(flight)
        if task is not None:
            await cancel_all({task})

    def halt(self) -> None:
        """Cancel those that nobody waits for, and from now on each as soon as nobody does."""
        self._halted = True
        self._prioritized()

    async def aclose(self) -> None:
        """Cancel all; what they brought can be resumed."""
        for flight in list(self._tasks):
            flight.fail(Draining())
        await cancel_all(set(self._tasks.values()))

    def _ended(self, flight: Flight, task: asyncio.Task[Place]) -> None:
        """Tell everybody: the place, the error, or that it gave way when it was cancelled."""
        error = None if task.cancelled() else task.exception()
        if error is not None or task.cancelled():
            flight.fail(error or GaveWay())
        else:
            flight.end(task.result())
        del self._tasks[flight]
        self.remove(flight)
        self._changed()

    def _prioritized(self) -> None:
        """Somebody came to wait for one, or waits no more."""
        for flight, task in self._tasks.items() if self._halted else ():
            if flight.priority is Priority.BACKGROUND:
                task.cancel()
        paused = self.awaited > 0
        if paused != self._paused:
            self._paused = paused
            self._pause(paused)
