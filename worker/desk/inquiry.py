"""What becomes of a job, for those who ask: by the desk, by what is held here, by the queue, by the stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from worker.desk import states
from worker.desk.desk import Desk
from worker.desk.refusals import JobOver, UnknownHere
from worker.desk.states import State
from worker.desk.tickets import Ended, Ticket
from worker.drain import remaining
from worker.errors import WorkerError
from worker.live import Hop
from worker.result import FileResult, ImageResult, Result
from worker.tasks import first_of

log = structlog.get_logger()

PACE_S = 0.2
"""Between two states that are told of a job."""

POLL_S = 2.0
"""Between two looks at a job that is not here."""

INSTANT_S = 0.001
"""By which a timer of the loop may go off early, and more."""

SILENCE_S = 15.0
"""After which a word is said to those who listen, though nothing happened."""


class Inquiry:
    """Answers for every job that this worker can know of. Ids are those that `Desk.accept` and the results tell."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def here(self, job_id: str) -> State | None:
        """The job as it is known to this process alone; None where it waits, or ended, elsewhere."""
        desk = self._desk
        ticket = desk.tickets.find(job_id)
        if ticket is not None and ticket.ended is not None:
            return states.ended(ticket.ended.result)
        live = desk.held(job_id)
        if live is not None:
            pace, now = desk.tools.pace, asyncio.get_running_loop().time()
            eta_s = remaining(live, now=now, pace=pace) if live.hop is Hop.GENERATE else None
            return states.running(live, client_id=ticket.client_id if ticket else None, eta_s=eta_s)
        if ticket is None:
            return None
        return State(id=ticket.id, client_id=ticket.client_id, status="waiting", ahead=self._ahead(ticket))

    async def state(self, job_id: str) -> State:
        """The job wherever it is.

        Raises `UnknownHere`, and `QueueUnavailable`, `UploadFailed` or `AuthFailed` when those that may know it do
        not answer.
        """
        found = self.here(job_id)
        if found is not None:
            return await self._completed(found)
        found = await self._elsewhere(job_id)
        if found is None:
            raise UnknownHere
        return found

    async def cancel(self, job_id: str) -> State:
        """Cancel a job that waits or runs, and give back its state, which may be that it is being cancelled.

        Raises `JobOver`, and as `state`.
        """
        desk = self._desk
        withdrawn = await desk.cancel(job_id)
        if not withdrawn:
            ticket = desk.tickets.find(job_id)
            if ticket is not None:
                raise JobOver(f"the job has {ticket.ended.result.status if ticket.ended else 'ended'} already")
            withdrawn = await desk.elsewhere.cancel(job_id)
            withdrawn = desk.tools.live.cancel(job_id) or withdrawn
        found = (await self.state(job_id)).without_images()
        if not withdrawn:
            raise JobOver(f"the job has {found.status} already")
        log.info("job_cancelled", job=job_id, status=found.status)
        return found

    async def follow(self, job_id: str, state: State) -> AsyncIterator[State | None]:
        """The state, then each that differs from the one before, a few a second; None where nothing happens for long.

        Ends with the job, or when this worker stops and the job is nobody's here any more.
        """
        loop, silent_at = asyncio.get_running_loop(), 0.0
        last: State | None = None
        while True:
            if last is None or not state.says_the_same_as(last):
                silent_at, last = loop.time() + SILENCE_S, state
                yield state
                if state.is_over:
                    return
                await asyncio.sleep(PACE_S)
            elif loop.time() + INSTANT_S >= silent_at:
                silent_at = loop.time() + SILENCE_S
                yield None
            elif self._desk.tools.drain.begun and not self._is_held(job_id):
                return
            else:
                await self._change(job_id, silent_at)
            found = await self._looked(job_id, last)
            if found is None:
                return
            state = found

    def _is_held(self, job_id: str) -> bool:
        """Whether what becomes of it is decided here: it waits at the desk, or is at work."""
        ticket = self._desk.tickets.find(job_id)
        return self._desk.held(job_id) is not None or (ticket is not None and ticket.ended is None)

    async def _looked(self, job_id: str, last: State | None) -> State | None:
        """The state without what was made; the last where those who know do not answer, None where nobody knows."""
        try:
            return self.here(job_id) or await self.state(job_id)
        except UnknownHere:
            return None
        except WorkerError:
            return last

    async def _change(self, job_id: str, until: float) -> None:
        """Until something may have changed for the job, or it is time."""
        tools, ticket = self._desk.tools, self._desk.tickets.find(job_id)
        held = self._is_held(job_id)
        try:
            async with asyncio.timeout_at(until if held else min(until, asyncio.get_running_loop().time() + POLL_S)):
                if held:
                    await first_of(tools.live.changed(), *(() if ticket is None else (ticket.over(),)))
                else:
                    await tools.drain.beginning()
        except TimeoutError:
            return

    def _ahead(self, ticket: Ticket) -> int:
        held = sum(not job.hop.is_past_engine for job in self._desk.tools.live)
        return held + (self._desk.queue.ahead_of(ticket.id) or 0)

    async def _elsewhere(self, job_id: str) -> State | None:
        """As the queue tells, else as the stores do; one that does not answer matters where the other knows nothing."""
        elsewhere, failure = self._desk.elsewhere, None
        try:
            queued = await elsewhere.queued(job_id)
            if queued is not None:
                return await self._linked(states.queued(queued))
        except WorkerError as error:
            failure = error
        stored = await elsewhere.stored(job_id)
        if stored is not None:
            return states.stored(job_id, stored, self._desk.tools.bench.clock.now())
        if failure is not None:
            raise failure
        return None

    async def _linked(self, found: State) -> State:
        """With links that are signed anew, where the store answers."""
        if found.status != "succeeded":
            return found
        try:
            stored = await self._desk.elsewhere.stored(found.id)
        except WorkerError as error:
            log.warning("result_not_found", job=found.id, code=error.code, error=error.message)
            return found
        return states.ended(stored) if stored is not None and stored.status == "succeeded" else found

    async def _completed(self, found: State) -> State:
        """With what was made for a caller who has not fetched it from us, or with links that still lead there."""
        ticket = self._desk.tickets.find(found.id)
        if ticket is None or ticket.ended is None:
            return found
        if ticket.ended.made is None:
            now = self._desk.tools.bench.clock.now()
            dated = not ticket.is_stored_apart and states.is_dated(ticket.ended.result, now)
            return await self._linked(found) if dated else found
        result = await asyncio.to_thread(_filled, ticket.ended)
        return found.model_copy(update={"result": result})


def _filled(ended: Ended) -> Result:
    """The result with what was made standing in it."""
    import pybase64

    if ended.made is None:
        return ended.result
    held = {one.index: pybase64.b64encode_as_string(one.data) for one in ended.made.artifacts}

    def image(one: ImageResult) -> ImageResult:
        return one if one.url is not None else one.model_copy(update={"base64": held.get(one.index)})

    def file(one: FileResult) -> FileResult:
        return one if one.url is not None else one.model_copy(update={"base64": held.get(one.index)})

    update = {"images": tuple(map(image, ended.result.images)), "files": tuple(map(file, ended.result.files))}
    return ended.result.model_copy(update=update)
