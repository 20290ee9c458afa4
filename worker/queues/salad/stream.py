"""The one stream on which the service hands jobs over: open while it is wanted, and opened anew when it is dead."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any, NoReturn

import structlog

from worker.errors import QueueUnavailable
from worker.queues.salad.service import JobGone, QueueRefused, Said, Word
from worker.queues.salad.service_v1alpha_pb2 import Job
from worker.queues.salad.silence import Silence
from worker.queues.wakeup import Wakeup
from worker.retry import Policy
from worker.tasks import cancel_all

log = structlog.get_logger()

RETRIES = Policy(first=timedelta(seconds=0.5), most=timedelta(seconds=15))
SHORT_S = 5.0
"""A stream that ends sooner was none: the next one waits longer and longer."""

_WORDLESS = 3
"""Streams in a row that end without a word before the service counts as failing."""

_END: Any = object()


class Stream:
    """``open_`` opens a stream and gives its words; ``on_job`` is given each job.

    ``on_gone`` hears that the service knows nothing of the job that was named, and says whether one was. All times are
    the event loop's. `changed` wakes whoever waits for anything here.
    """

    def __init__(
        self,
        open_: Callable[[], AsyncGenerator[Word, None]],
        on_job: Callable[[Job], None],
        on_gone: Callable[[], bool],
        *,
        rng: random.Random,
        retries: Policy = RETRIES,
        silence: Silence | None = None,
    ) -> None:
        self._open = open_
        self._on_job = on_job
        self._on_gone = on_gone
        self._rng = rng
        self._retries = retries
        self._silence = silence or Silence()
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._short = self._wordless = 0
        self._has_spoken = False
        self._heard_at: float | None = None
        self.changed = Wakeup()
        self.failures = 0
        self.failure: QueueUnavailable | None = None
        """Why there is no stream that works; None once one has said a word."""

    @property
    def is_wanted(self) -> bool:
        return self._task is not None

    @property
    def is_alive(self) -> bool:
        """Whether the stream that is open now was taken or has said a word, and not too long ago."""
        now = asyncio.get_running_loop().time()
        return self._heard_at is not None and now - self._heard_at <= self._silence.limit_s

    def start(self) -> None:
        """Have a stream open from now on; nothing where that is so already."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(frozenset(self._ending)), name="salad-stream")

    def stop(self) -> None:
        """Have none; what the service sends meanwhile is lost to us."""
        task, self._task, self._heard_at = self._task, None, None
        if task is not None:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def stopped(self) -> None:
        """As `stop`, and wait until the stream is gone."""
        self.stop()
        if self._ending:
            await asyncio.wait(self._ending)

    async def aclose(self) -> None:
        self.stop()
        await cancel_all(set(self._ending))

    async def _run(self, before: frozenset[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            error = await self._followed()
            was_heard, self._heard_at = self._heard_at is not None, None
            self._short = 0 if was_heard and loop.time() - began >= SHORT_S else self._short + 1
            self._wordless = 0 if was_heard else self._wordless + 1
            if error is None and self._wordless >= _WORDLESS:
                error = QueueUnavailable("the service ends each stream without a word")
            if error is not None and not was_heard:
                self._failed(error)
            elif error is not None:
                log.info("queue_stream_broke", error=error.message)
            await asyncio.sleep(self._retries.wait(max(1, self._short), self._rng).total_seconds())

    async def _followed(self) -> QueueUnavailable | None:
        """One stream to its end; what broke it, if anything did."""
        try:
            await self._follow()
        except JobGone as error:
            known = self._on_gone()
            self.changed.notify()
            return None if known else QueueUnavailable(error.message)
        except QueueUnavailable as error:
            return error
        return None

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        last, self._has_spoken = loop.time(), False
        async with aclosing(self._open()) as messages:
            while True:
                limit_s = self._silence.limit_s
                try:
                    async with asyncio.timeout(limit_s * (1 + self._rng.random() / 10)):
                        message = await anext(messages, _END)
                except TimeoutError:
                    self._say_dead(last, loop.time())
                if message is _END:
                    return
                now = loop.time()
                if now - last > limit_s * 1.2:
                    self._say_dead(last, now)
                if message is Said.TAKEN:
                    self._believe(now)
                else:
                    self._hear(now, now - last)
                last = now
                if isinstance(message, Job):
                    self._on_job(message)

    def _say_dead(self, last: float, now: float) -> NoReturn:
        """Raises: also for a word that comes after such a silence, when the service may have given us up."""
        if not self._has_spoken:
            self._silence.mute()
        raise QueueUnavailable(f"the stream has said nothing for {now - last:.0f} s")

    def _hear(self, now: float, after_s: float) -> None:
        if self._has_spoken:
            self._silence.heard(after_s)
        self._has_spoken = True
        self._believe(now)

    def _believe(self, now: float) -> None:
        self._heard_at, self.failure = now, None
        self.changed.notify()

    def _failed(self, error: QueueUnavailable) -> None:
        level = log.error if isinstance(error, QueueRefused) else log.warning
        level("queue_stream_failed", error=error.message)
        self.failures += 1
        self.failure = error
        self.changed.notify()
