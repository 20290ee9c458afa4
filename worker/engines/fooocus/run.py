"""One job on the wire: wait until nothing runs, submit, watch, and leave nothing running behind.

The server has one thread that generates and a queue before it. A waiting job cannot be taken out of it, and a stop
is a flag that the next step of whatever samples falls over: sent too late it hits the job after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from worker.engines.answer import Answer
from worker.engines.base import Progress, ServerLog
from worker.engines.fooocus.failure import checked, failed, has_died, tells, was_stopped
from worker.engines.fooocus.progress import Reading, reading_of
from worker.engines.fooocus.server import Queue, Server
from worker.engines.watchdog import Experience, Kind, Watchdog
from worker.errors import EngineCrashed, EngineFault, EngineStalled, OutputEmpty
from worker.settings.groups import EngineSettings
from worker.tasks import to_the_end

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the server is asked, and how long it may take, in seconds.

    ``quiet_s`` bounds its reaction to a stop. ``settle_s``: until a job whose submission was not answered shows in
    the queue, or until the log tells what the API does not. ``dead_s``: how long the next job may wait while
    nothing runs, which is what unloading another model takes, before the generating thread counts as dead.
    """

    poll_s: float = 0.5
    stop_s: float = 1.0
    quiet_s: float = 20.0
    settle_s: float = 3.0
    dead_s: float = 60.0
    full_s: float = 5.0


NORMAL = Pace()
UNREAD = 4
"""Polls in a row that may go without an answer before the server counts as gone."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is submitted: ``pictures`` of it run one after the other."""

    path: str
    body: Mapping[str, Any]
    kind: Kind
    pictures: int


@dataclass(frozen=True, slots=True)
class Done:
    """The finished job's document and the times."""

    job: str
    document: Any
    load_s: float
    generate_s: float


@dataclass
class _Submission:
    """``before``: the queue as it was; ``job``: the server's id, once it is known; ``over``: it has ended."""

    before: Queue
    mark: int
    job: str | None = None
    over: bool = False


class Run:
    """What is submitted to one server, one at a time."""

    def __init__(self, settings: EngineSettings, server_log: ServerLog, pace: Pace) -> None:
        self._settings = settings
        self._log = server_log
        self._pace = pace
        self._experience = Experience()
        self._stop_left = False
        self._works = False
        self._born = 0

    def forget(self) -> None:
        """Another process: no stop is left in it, and its models are yet to be loaded."""
        self._stop_left = self._works = False
        self._born = self._log.mark()

    async def wait_for_idle(self, server: Server) -> None:
        """Stop what another left, one job after the other, until none waits. Raises `EngineStalled`."""
        loop = asyncio.get_running_loop()
        begun = since = loop.time()
        last: object = None
        stopped = -self._pace.stop_s
        while (await server.queue()).waiting:
            now = loop.time()
            head = await server.head()
            reading = reading_of(await server.query(head), 1, None) if head is not None else None
            if (seen := (head, reading.signature if reading is not None else None)) != last:
                last, since = seen, now
            if (dead := self._dead(reading, now - since)) is not None:
                raise EngineStalled(dead)
            if now - begun > self._settings.load_timeout.total_seconds():
                raise EngineStalled("other jobs go on in spite of stops")
            if reading is not None and reading.begun and now - stopped >= self._pace.stop_s:
                stopped = now
                await self._interrupt(server)
            await asyncio.sleep(self._pace.poll_s)

    async def generate(self, server: Server, request: Request, on_progress: Progress) -> Done:
        """One job to its end. Raises what its failure stands for, `EngineStalled` and `EngineCrashed`.

        One that a stop hit which was meant for an earlier job is submitted once more.
        """
        for left in (self._stop_left, False):
            mark = self._log.mark()
            done = await self._submitted(server, request, mark, on_progress)
            self._stop_left = False
            if _is_whole(done.document, request.pictures):
                return done
            lines = await self._told(mark)
            if not (left and (was_stopped(lines) or not tells(lines))):
                break
            log.info("engine_stop_hit_the_next_job", job=done.job)
        if _stage(done.document) == "SUCCESS" and not was_stopped(lines):
            return done
        raise failed(lines)

    async def _submitted(self, server: Server, request: Request, mark: int, on_progress: Progress) -> Done:
        """Submit and watch; when cancelled, the job is stopped before this returns."""
        submission = _Submission(await server.queue(), mark)
        try:
            await self._submit(server, request, submission)
            return await self._watched(server, request, submission, on_progress)
        finally:
            if not submission.over:
                await to_the_end(self._stop(server, submission))

    async def _submit(self, server: Server, request: Request, submission: _Submission) -> None:
        """Until the server has taken the job. A full queue is waited for within the time to load."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._settings.load_timeout.total_seconds()
        lost = 0
        while submission.job is None:
            submission.over = False
            try:
                answer = await server.submit(request.path, request.body)
            except EngineCrashed as error:
                lost += 1
                submission.job = await self._found(server, submission.before)
                if submission.job is None and lost > 1:
                    raise
                log.info("engine_answer_lost", found=submission.job is not None, error=error.message)
                if submission.job is None:
                    await self.wait_for_idle(server)
                    submission.before = await server.queue()
                continue
            submission.job = self._taken(answer, submission)
            if submission.job is None:
                if loop.time() > ends:
                    raise EngineFault("the server's queue is full")
                await asyncio.sleep(self._pace.full_s)

    def _taken(self, answer: Answer, submission: _Submission) -> str | None:
        """The job's id; None where the queue is full. Whatever else is said, nothing of ours is in the queue."""
        submission.over = True
        document = checked(answer, self._log.since(submission.mark)).json
        job = document.get("job_id") if isinstance(document, dict) else None
        if isinstance(job, str) and job:
            submission.over = False
            return job
        if "QUEUE_IS_FULL" in answer.body[:2000].decode("utf-8", "replace"):
            return None
        raise OutputEmpty("the server took the job without naming it")

    async def _found(self, server: Server, before: Queue) -> str | None:
        """Our job after an answer that was lost: the only new one. Raises `EngineCrashed` when the server is gone."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._pace.settle_s
        while True:
            now = await server.queue()
            if now.last is not None and now.last != before.last:
                fresh = now.waiting + now.finished - before.waiting - before.finished
                return now.last if fresh <= 1 else None
            if loop.time() > ends:
                return None
            await asyncio.sleep(self._pace.poll_s)

    async def _watched(self, server: Server, request: Request, submission: _Submission, on_progress: Progress) -> Done:
        loop = asyncio.get_running_loop()
        job, settings = str(submission.job), self._settings
        shown = self._experience.of(request.kind)
        watchdog = Watchdog(loop.time(), settings.load_timeout, settings.stall_timeout, shown)
        reading: Reading | None = None
        advanced = request.body.get("advanced_params") or {}
        look = partial(server.preview, job) if advanced.get("disable_preview") is False else None
        first_in_line = loop.time()
        while True:
            await asyncio.sleep(self._pace.poll_s)
            document = await self._queried(server, job, watchdog, submission)
            reading = reading_of(document, request.pictures, reading)
            now = loop.time()
            if _stage(document) in ("SUCCESS", "ERROR"):
                break
            if now - first_in_line > self._pace.dead_s and await server.head() != job:
                first_in_line = now
            if (dead := self._dead(reading, now - first_in_line)) is not None:
                submission.over = True
                raise EngineStalled(dead)
            watchdog.see(reading, now)
            if reading is not None:
                on_progress(replace(reading.report, preview=look if reading.step else None))
        submission.over = self._works = True
        if _stage(document) == "SUCCESS":
            watchdog.ended(now)
        first = watchdog.first_step if watchdog.first_step is not None else watchdog.submitted
        return Done(job, document, load_s=first - watchdog.submitted, generate_s=now - first)

    async def _queried(self, server: Server, job: str, watchdog: Watchdog, submission: _Submission) -> Any:
        """The job's document. An answer may be missing a few times; that the job is unknown ends it."""
        unread = 0
        while True:
            try:
                document = await server.query(job)
            except EngineCrashed:
                unread += 1
                if unread == UNREAD:
                    submission.over = True
                    raise
                watchdog.see(None, asyncio.get_running_loop().time())
                await asyncio.sleep(self._pace.poll_s)
                continue
            if document is None:
                submission.over = True
                raise EngineCrashed("the server no longer knows the job: it was started anew")
            return document

    def _dead(self, reading: Reading | None, waited_s: float) -> str | None:
        """Why nobody works on the first job that waits, in words; None while somebody may.

        While the server starts that is normal: it loads its default model before it takes a job.
        """
        if has_died(self._log.since(self._born)):
            return "the server's generating thread has died"
        if reading is not None and reading.begun:
            self._works = True
        elif self._works and waited_s > self._pace.dead_s:
            return f"nothing has worked on the next job for {waited_s:.0f} s: the generating thread must be dead"
        return None

    async def _told(self, mark: int) -> tuple[str, ...]:
        """The server's log since the mark, once it tells how the job ended: its lines may come after the answer."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._pace.settle_s
        lines = self._log.since(mark)
        while not tells(lines) and self._log.since(0) and loop.time() < ends:
            await asyncio.sleep(self._pace.poll_s)
            lines = self._log.since(mark)
        return lines

    async def _interrupt(self, server: Server) -> None:
        self._stop_left = True
        await server.stop()

    async def _stop(self, server: Server, submission: _Submission) -> None:
        """Stop our job, and what runs before it, until it has ended. Raises `EngineStalled` when it does not."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._pace.quiet_s
        stopped = -self._pace.stop_s
        try:
            job = submission.job or await self._found(server, submission.before)
            while job is not None and _stage(document := await server.query(job)) not in ("SUCCESS", "ERROR", None):
                now = loop.time()
                if now >= ends:
                    raise EngineStalled(f"the server did not react to stops for {self._pace.quiet_s:g} s")
                if now - stopped >= self._pace.stop_s and await self._can_be_stopped(server, job, document):
                    stopped = now
                    await self._interrupt(server)
                await asyncio.sleep(self._pace.poll_s)
        except EngineCrashed as error:
            log.info("engine_stopped", job=submission.job, error=error.message)

    async def _can_be_stopped(self, server: Server, job: str, document: Any) -> bool:
        """Whether something runs that a stop would hit: our job, or the one before it."""
        reading = reading_of(document, 1, None)
        if reading is not None and reading.begun:
            return True
        head = await server.head()
        return head is not None and head != job


def _stage(document: Any) -> str | None:
    stage = document.get("job_stage") if isinstance(document, dict) else None
    return stage if isinstance(stage, str) else None


def _is_whole(document: Any, pictures: int) -> bool:
    """Whether the job ended well with all its pictures; 0 where only the server knows how many: then with any."""
    listed = document.get("job_result") if isinstance(document, dict) else None
    good = [i for i in listed or () if isinstance(i, dict) and i.get("finish_reason") == "SUCCESS"]
    return _stage(document) == "SUCCESS" and len(good) >= max(pictures, 1)
