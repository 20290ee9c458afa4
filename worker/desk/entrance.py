"""Whether one more job may come in at the desk, and when one that may not is to come again."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from worker.desk.refusals import NotReady, TooManyPending
from worker.desk.room import UNMEASURED_S, Line, Load, Room, Usual
from worker.desk.tickets import Tickets
from worker.drain import remaining
from worker.errors import Draining
from worker.live import Hop
from worker.status import Phase, Status
from worker.tools import Tools

RETRY_AFTER = timedelta(seconds=5)


class Entrance:
    """Measures what stands before the next job: ``tickets`` that wait, and what is at work by ``tools``."""

    def __init__(self, tools: Tools, status: Status, tickets: Tickets, room: Room) -> None:
        self._tools = tools
        self._status = status
        self._tickets = tickets
        self._room = room
        self._line, self._usual = Line(), Usual()

    @property
    def load(self) -> Load:
        """What stands before a job that comes now."""
        now, pace = asyncio.get_running_loop().time(), self._tools.pace
        each_s = UNMEASURED_S if pace.generate_s is None else pace.generate_s
        held = list(self._tools.live)
        ours = {job.id for job in held}
        waiting = [ticket for ticket in self._tickets if ticket.id not in ours]
        ready = [job for job in held if not job.hop.is_past_engine and job.hop is not Hop.GENERATE]
        running = next((job for job in held if job.hop is Hop.GENERATE), None)
        left_s = remaining(running, now=now, pace=pace) if running is not None else 0.0
        left_s = each_s if left_s is None else left_s
        sizes = [ticket.size for ticket in waiting] + [self._size_of(job.id) for job in ready]
        ahead_s = left_s + sum(self._usual.estimate_s(size, each_s) for size in sizes)
        return Load(len(waiting), ahead_s, left_s, each_s)

    def _size_of(self, job_id: str) -> float | None:
        ticket = self._tickets.find(job_id)
        return None if ticket is None else ticket.size

    def full(self) -> tuple[str, ...]:
        """Why no further job may come in now, though the worker is ready; empty when one may."""
        return ("too_many_pending",) if self._room.retry_after_s(self.load) is not None else ()

    def check(self, size: float | None) -> bool:
        """Whether other jobs come before one of this size.

        Raises `Draining`, `NotReady`, and `TooManyPending` where it would have to wait too long.
        """
        if self._tools.drain.begun:
            raise Draining("this worker is being stopped", retry_after=RETRY_AFTER)
        if not self.is_open:
            raise self.not_ready()
        load = self.load
        soonest_s = self._room.retry_after_s(load, self._usual.estimate_s(size, load.each_s))
        if soonest_s is None:
            if load.ahead_s <= 0:
                self._line.forget()
            return load.ahead_s > 0
        usual, now = self._usual, asyncio.get_running_loop().time()
        wait_s = self._line.place_s(
            soonest_s, each_s=usual.pace_s(load.each_s), now=now, longest_s=usual.longest_line_s
        )
        raise TooManyPending(retry_after=timedelta(seconds=wait_s))

    @property
    def is_open(self) -> bool:
        """Whether the worker takes jobs at all."""
        return self._status.phase is Phase.READY

    def not_ready(self) -> NotReady:
        """Why it does not."""
        reasons = ", ".join(self._status.reasons) or str(self._status.phase)
        return NotReady(f"this worker takes no jobs now: {reasons}", retry_after=RETRY_AFTER)

    def note(self, size: float | None, seconds: float | None) -> None:
        """A job of this size was done: that tells how long the next ones take."""
        self._usual.observe(size, seconds)
