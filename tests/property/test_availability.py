"""Whatever is cancelled, late or broken: no job is leased to nobody, and none is lost. In virtual time."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.queues import result_of
from tests.support.receiver import Answer
from tests.support.scheduled import BODY, InProcess, a_server, facing
from tests.support.scheduling import FullServer
from tests.support.virtual import elapse, run
from worker.errors import LeaseLost, QueueUnavailable
from worker.queues.availability import AvailabilityQueue
from worker.queues.base import Delivery, Received

NOW = timedelta(0)
OUTAGE = Answer(503)
HELD_MOST_S = 5.0
"""An answer that never comes is another matter: what it leased comes back when the lease ends."""

steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["receive", "receive", "cancel", "hold", "let go", "extend", "end", "release", "outage", "lose", "submit"]
        ),
        st.sampled_from([0.0, 0.004, 0.011, 0.5, 3.0]),
    ),
    max_size=30,
)


class Holder:
    """A worker that receives, keeps and ends at random, and forgets nothing that it was given."""

    def __init__(self, server: FullServer, queue: AvailabilityQueue, way: InProcess) -> None:
        self.server, self.queue, self.way = server, queue, way
        self.held: list[Delivery] = []
        self.given = 0
        self._receiving: asyncio.Task[Received] | None = None
        self._submitted = 0
        self._rng = random.Random(1)

    async def does(self, step: str) -> None:
        match step:
            case "receive":
                if self._receiving is None:
                    self._receiving = asyncio.create_task(self.queue.receive(), name="receiving")
            case "cancel":
                if self._receiving is not None:
                    self._receiving.cancel()
            case "hold":
                self.server.let_go.clear()
                asyncio.get_running_loop().call_later(HELD_MOST_S, self.server.let_go.set)
            case "let go":
                self.server.let_go.set()
            case "outage" | "lose":
                faults = self.server.faults if step == "outage" else self.server.lost
                faults[self._rng.choice(["heartbeat", "release", "result"])].append(OUTAGE)
            case "submit":
                self._submitted += 1
                await self.server.queue.submit(f"j{self._submitted}", BODY)
            case _:
                await self._with_one(step)

    async def _with_one(self, step: str) -> None:
        if not self.held:
            return
        delivery = self.held[0]
        try:
            if step == "extend":
                await self.queue.extend(delivery)
                return
            if step == "end":
                await self.queue.ack(delivery, result_of(delivery.id))
            else:
                await self.queue.nack(delivery, NOW, "disk_full", charged=False)
        except QueueUnavailable:
            return
        except LeaseLost:
            pass
        self.held.remove(delivery)

    async def looks(self) -> None:
        if self._receiving is None or not self._receiving.done():
            return
        receiving, self._receiving = self._receiving, None
        if not receiving.cancelled() and (delivery := receiving.result().delivery) is not None:
            self.held.append(delivery)
            self.given += 1

    async def stops(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait({self._receiving})
        await self.looks()
        self.server.let_go.set()
        for _ in range(20):
            for step in ("release", "end"):
                await self._with_one(step)


async def lived(plan: list[tuple[str, float]], jobs: int) -> None:
    server = a_server()
    async with facing(server, wait=timedelta(seconds=2)) as (queue, way):
        holder = Holder(server, queue, way)
        for number in range(jobs):
            await server.queue.submit(f"a{number}", BODY)
        for step, pause_s in plan:
            await holder.does(step)
            await elapse(pause_s)
            await holder.looks()
        await holder.stops()
        assert holder.held == []
        server.faults.clear()
        server.lost.clear()
    states = await server.queue.jobs()
    assert {state.status for state in states} <= {"waiting", "done"}
    counted = sum(state.deliveries for state in states)
    assert counted == holder.given


@given(steps, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_job_is_leased_to_nobody(plan: list[tuple[str, float]], jobs: int) -> None:
    """After any interleaving of cancelled receives, late answers and outages every job waits or is done.

    Each hand-over that counts is one that a receive brought.
    """
    run(lived(plan, jobs))
