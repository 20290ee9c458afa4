"""Transfers that several wait for."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import elapse, virtual
from worker.errors import DownloadFailed, Draining
from worker.mentions import Place
from worker.models.base import Priority, Wanted
from worker.models.flight import Flight, Flights, GaveWay
from worker.models.match import wish_of

A, B = (Place("lora", f"{name}.safetensors") for name in "ab")
WISH = wish_of(Wanted("lora", "a.safetensors", url="https://models.example/a"))


class Airport:
    """Transfers that end when a test says so."""

    def __init__(self) -> None:
        self.ends: dict[Place, asyncio.Future[Place]] = {}
        self.pauses: list[bool] = []
        self.changes = 0
        self.flights = Flights(self.fly, self.changed, self.pauses.append)

    def changed(self) -> None:
        self.changes += 1

    async def fly(self, flight: Flight) -> Place:
        end = self.ends[flight.place] = asyncio.get_running_loop().create_future()
        place: Place = await end
        return place

    async def begun(self, place: Place = A) -> Flight:
        flight = self.flights.begin(place, WISH, 10)
        await elapse(0)
        return flight


@virtual
async def test_all_who_wait_get_the_place() -> None:
    """A file comes once for everybody, and the flight is gone when it has landed."""
    airport = Airport()
    flight = await airport.begun()
    waits = [asyncio.create_task(flight.landed()) for _ in range(3)]
    airport.ends[A].set_result(B)
    assert await asyncio.gather(*waits) == [B, B, B]
    assert dict(airport.flights.by_place) == {}
    assert airport.changes == 1


@virtual
async def test_each_gets_its_own_error() -> None:
    """A failure reaches all, each with an object that it may change."""
    airport = Airport()
    flight = await airport.begun()
    waits = [asyncio.create_task(flight.landed()) for _ in range(2)]
    airport.ends[A].set_exception(DownloadFailed("the host is away"))
    errors = await asyncio.gather(*waits, return_exceptions=True)
    assert [str(error) for error in errors] == ["the host is away"] * 2
    assert errors[0] is not errors[1]


@virtual
async def test_a_bug_reaches_who_waits() -> None:
    """What nobody foresaw comes out at the waiter instead of being asked for again and again."""
    airport = Airport()
    flight = await airport.begun()
    airport.ends[A].set_exception(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        await flight.landed()


@virtual
async def test_who_gives_up_stops_nobody() -> None:
    """Cancelling one waiter leaves the transfer and the others alone."""
    airport = Airport()
    flight = await airport.begun()
    stays, goes = (asyncio.create_task(flight.landed()) for _ in range(2))
    await elapse(0)
    goes.cancel()
    await asyncio.wait({goes})
    airport.ends[A].set_result(A)
    assert await stays == A


@virtual
async def test_the_most_urgent_decides() -> None:
    """A transfer has the priority of the most urgent waiter, and falls back when that one leaves."""
    flight = await (airport := Airport()).begun()
    seen = [flight.priority]
    for who, priority in (("hint", Priority.BACKGROUND), ("start", Priority.START), ("job", Priority.JOB)):
        flight.join(who, priority)
        seen.append(flight.priority)
    flight.leave("job")
    flight.leave("start")
    assert [*seen, flight.priority] == ["background", "background", "start", "job", "background"]
    assert flight.waiting == ("hint",)
    await airport.flights.aclose()


@virtual
async def test_prefetches_stand_still_for_a_job() -> None:
    """Transfers that nobody waits for pause while one is awaited, and go on afterwards."""
    airport = Airport()
    first, second = await airport.begun(A), await airport.begun(B)
    second.join("job", Priority.JOB)
    second.join("other", Priority.START)
    assert airport.pauses == [True]
    airport.ends[B].set_result(B)
    await second.landed()
    assert airport.pauses == [True, False]
    assert first.priority is Priority.BACKGROUND
    await airport.flights.aclose()


@virtual
async def test_one_that_is_dropped_gives_way() -> None:
    """Who waited for a transfer that made room for another one is told to ask anew."""
    airport = Airport()
    flight = await airport.begun()
    waits = asyncio.create_task(flight.landed())
    await elapse(0)
    await airport.flights.drop(flight)
    with pytest.raises(GaveWay):
        await waits
    assert flight.leaving
    assert not airport.flights.by_place
    await airport.flights.drop(flight)


@virtual
async def test_closing_tells_that_we_drain() -> None:
    """Who waits when the worker closes hears that it drains, and every transfer has ended."""
    airport = Airport()
    flight = await airport.begun()
    waits = asyncio.create_task(flight.landed())
    await airport.flights.aclose()
    with pytest.raises(Draining):
        await waits
    assert not airport.flights.by_place


@virtual
async def test_draining_keeps_only_what_is_awaited() -> None:
    """From a drain on, a transfer ends as soon as nobody waits for it."""
    airport = Airport()
    idle, awaited = await airport.begun(A), await airport.begun(B)
    awaited.join("job", Priority.JOB)
    airport.flights.halt()
    with pytest.raises(GaveWay):
        await idle.landed()
    assert set(airport.flights.by_place) == {B}
    awaited.leave("job")
    with pytest.raises(GaveWay):
        await awaited.landed()


@virtual
async def test_a_transfer_is_described() -> None:
    """What it has and may take is shown while it runs."""
    airport = Airport()
    flight = await airport.begun()
    flight.report(4, 10)
    shown = flight.described()
    assert (shown.place, shown.done, shown.reserved, shown.priority) == (A, 4, 10, Priority.BACKGROUND)
    await airport.flights.aclose()
