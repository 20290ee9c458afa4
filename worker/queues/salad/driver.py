"""The worker's side of the platform's job queue.

The service pushes: whoever has a stream open is given a job, and the next one as soon as that is answered. There is no
lease and no way to renew one. What stands for it is the stream itself: while it lives, with our job named when it was
opened, the service has not given the job to another. A stream that broke is opened anew until the service has said a
word on it, or that the job is not ours any more; until then nothing is certain and `extend` says so. So a worker that
was cut off stops all effects before its visibility is over and learns of the loss when it is back. What remains is a
service that takes the job's name although another node has it as well; then both may end it, with the same result from
the store where there is one, the same webhook id, and one of them hears NOT_FOUND.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from worker.clock import Clock
from worker.errors import LeaseLost, QueueUnavailable, WorkerError
from worker.node import Node
from worker.queues.base import Delivery, Received
from worker.queues.policy import Policy
from worker.queues.salad.outputs import instead_of, output_of, refused
from worker.queues.salad.service import UNSAID, JobGone, OutputRefused, Service
from worker.queues.salad.service_v1alpha_pb2 import Job
from worker.queues.salad.silence import Silence
from worker.queues.salad.stream import RETRIES, Stream
from worker.result import Result
from worker.retry import Policy as Retries
from worker.retry import retrying
from worker.settings.node import SaladSettings
from worker.tasks import cancel_all

log = structlog.get_logger()

ATTEMPTS_MOST = 4
"""The platform hands a job over so often, lost nodes included; then it has failed."""

WAIT = timedelta(seconds=20)
LINGER = timedelta(seconds=5)
"""How long the stream stays open for a receive that is about to come: to close it costs the next job an attempt."""

SURE = timedelta(seconds=10)
"""How long `extend` waits for a word of the service."""

REST_MOST = timedelta(seconds=30)
CLOSING = timedelta(seconds=5)
GIVING_BACK = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Which hand-over it is, and at which endpoint the platform's user aims the job."""

    number: int
    path: str


@dataclass(eq=False, slots=True)
class Held:
    """The job that is out. ``asked_at``, in loop time, is when its holder last asked to keep it.

    ``told``: an end of it was sent that may have arrived. ``ending``: one is on its way.
    """

    id: str
    number: int
    asked_at: float
    told: bool = False
    ending: bool = False
    lost: bool = False


class SaladQueue:
    """`Queue` over the platform's job queue.

    ``wait`` bounds one `receive`, ``linger`` how long a job that nobody waits for is kept for the next one. After a job
    was given back with a delay this node takes none for as long, at most `REST_MOST`, so that others get it.
    """

    capacity: int | None = 1
    can_delay: bool = False

    def __init__(
        self,
        salad: SaladSettings,
        node: Node,
        clock: Clock,
        *,
        policy: Policy | None = None,
        wait: timedelta = WAIT,
        linger: timedelta = LINGER,
        sure: timedelta = SURE,
        unsaid: timedelta = UNSAID,
        retries: Retries = RETRIES,
        silence: Silence | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._policy = policy or Policy()
        self._wait_s, self._linger_s, self._sure_s = (one.total_seconds() for one in (wait, linger, sure))
        self._rng = rng or random.SystemRandom()
        self._service = Service(salad, node, unsaid=unsaid)
        self._stream = Stream(
            lambda: self._service.accept(self._named),
            self._came,
            self._is_gone,
            rng=self._rng,
            retries=retries,
            silence=silence,
        )
        self._held: Held | None = None
        self._arrived: Job | None = None
        self._name = ""
        self._numbers = 0
        self._receivers = 0
        self._rest_until = 0.0
        self._has_left = False
        self._lapsing: asyncio.TimerHandle | None = None
        self._returns: set[asyncio.Task[None]] = set()

    async def receive(self) -> Received:
        self._has_left = False
        self._receivers += 1
        self._cancel_lapse()
        then = self._withdraw
        try:
            received = await self._received()
            then = self._lapse_later
        finally:
            self._receivers -= 1
            then()
        return received

    async def _received(self) -> Received:
        loop = asyncio.get_running_loop()
        over, seen = loop.time() + self._wait_s, self._stream.failures
        while True:
            ticket, now = self._stream.changed.ticket(), loop.time()
            if (delivery := self._handed_over(now)) is not None:
                return Received(delivery)
            if self._stream.failure is not None and (self._stream.failures > seen or now >= over):
                raise self._stream.failure
            if now >= over:
                return Received()
            if self._held is None and self._rest_until <= now:
                self._stream.start()
            until = min(over, self._rest_until) if self._rest_until > now else over
            await self._stream.changed.wait(ticket, until - now)

    def _handed_over(self, now: float) -> Delivery | None:
        if self._arrived is None or self._held is not None:
            return None
        job, self._arrived = self._arrived, None
        self._numbers += 1
        self._held = Held(job.job_id, self._numbers, now)
        return Delivery(
            id=job.job_id,
            body=job.input,
            visibility=self._policy.visibility,
            receipt=Receipt(self._numbers, job.path),
            attempts_most=min(self._policy.max_attempts, ATTEMPTS_MOST),
            run=job.job_id,
        )

    def _came(self, job: Job) -> None:
        """A job was pushed; the one that is out, again, is none, unless it was lost meanwhile."""
        held = self._held
        is_ours = held is not None and not (held.ending or held.lost)
        if held is not None and is_ours and held.id == job.job_id:
            log.info("job_pushed_again", job=job.job_id)
            return
        if held is not None and is_ours:
            log.warning("job_lost", job=held.id, instead=job.job_id)
            held.lost = True
        self._arrived = job
        if self._receivers == 0:
            self._lapse_later()

    def _named(self) -> str:
        """The job that the service is told we have."""
        self._name = ""
        if self._held is not None and not self._held.lost:
            self._name = self._held.id
        elif self._arrived is not None:
            self._name = self._arrived.job_id
        return self._name

    def _is_gone(self) -> bool:
        """The service does not know the job that it was told of, if it was told of one."""
        if self._held is not None and self._held.id == self._name:
            self._held.lost = True
            if self._receivers == 0:
                self._stream.stop()
        elif self._arrived is not None and self._arrived.job_id == self._name:
            self._arrived = None
        return bool(self._name)

    def path_of(self, delivery: Delivery) -> str:
        """The endpoint at which the job is aimed, as the container group's queue connection has it."""
        return delivery.receipt.path if isinstance(delivery.receipt, Receipt) else ""

    async def extend(self, delivery: Delivery) -> None:
        """Asks for nothing: tells whether the job surely is ours."""
        held = self._of(delivery)
        if held.ending:
            return
        now = asyncio.get_running_loop().time()
        if now - held.asked_at > self._policy.visibility.total_seconds():
            self._stream.stop()
        held.asked_at = now
        if not held.lost:
            self._stream.start()
        await self._is_sure(held, now + self._sure_s)
        if held.lost:
            self._over(held)
            raise LeaseLost

    async def _is_sure(self, held: Held, until: float) -> None:
        loop = asyncio.get_running_loop()
        while not (held.lost or self._stream.is_alive):
            ticket = self._stream.changed.ticket()
            if loop.time() >= until:
                raise self._stream.failure or QueueUnavailable("the service has not said whether the job still is ours")
            await self._stream.changed.wait(ticket, until - loop.time())

    def _of(self, delivery: Delivery) -> Held:
        """Raises `LeaseLost` for what is over, and for what another hand-over took the place of."""
        held = self._held
        if held is None or not isinstance(delivery.receipt, Receipt) or held.number != delivery.receipt.number:
            raise LeaseLost
        return held

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self._completed(delivery, output_of(result), lambda error: instead_of(result, error))

    async def reject(self, delivery: Delivery, result: Result) -> None:
        """The platform has no dead letters: its output says how the job failed."""
        await self.ack(delivery, result)

    async def complete(self, delivery: Delivery, output: bytes, otherwise: Callable[[WorkerError], bytes]) -> None:
        """The job is over with this JSON; else with what is to be said where the service does not take it, and why."""
        await self._completed(delivery, output, otherwise)

    async def _completed(self, delivery: Delivery, output: bytes, otherwise: Callable[[WorkerError], bytes]) -> None:
        held = self._of(delivery)
        async with self._ending(held):
            if self._has_left:
                await self._stream.stopped()
            try:
                await self._service.complete(held.id, output)
            except OutputRefused as refusal:
                log.warning("output_refused", job=held.id, error=refusal.message)
                await self._completed_otherwise(held, otherwise(refused(refusal)))

    async def _completed_otherwise(self, held: Held, output: bytes) -> None:
        try:
            await self._service.complete(held.id, output)
        except OutputRefused as refusal:
            log.error("output_refused", job=held.id, error=refusal.message)
            await self._service.reject(held.id)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        """The stream is closed first, and stays so for the delay: the job is for others."""
        held = self._of(delivery)
        async with self._ending(held):
            await self._stream.stopped()
            await self._service.reject(held.id)
            self._rest_until = asyncio.get_running_loop().time() + min(delay, REST_MOST).total_seconds()

    @asynccontextmanager
    async def _ending(self, held: Held) -> AsyncIterator[None]:
        """While the service is told how it ends. One that it no longer knows after it was told before has ended so."""
        held.ending, ended = True, False
        try:
            yield
            ended = True
        except JobGone:
            ended = True
            if not held.told:
                raise LeaseLost from None
            log.info("job_ended_before", job=held.id)
        finally:
            held.told, held.ending = True, ended
            if ended:
                self._over(held)
            else:
                self._stream.start()

    def _over(self, held: Held) -> None:
        if self._held is held:
            self._held = None
            self._stream.changed.notify()
            self._lapse_later()

    def leave(self) -> None:
        """No receive will follow soon: the stream stays open for the job that is out alone."""
        self._has_left = True
        if self._receivers == 0:
            self._withdraw()

    def _lapse_later(self) -> None:
        """The next receive is about to come, or nobody wants a job any more."""
        self._cancel_lapse()
        if self._receivers == 0 and self._held is None and (self._stream.is_wanted or self._arrived is not None):
            if self._has_left:
                self._withdraw()
            else:
                self._lapsing = asyncio.get_running_loop().call_later(self._linger_s, self._withdraw)

    def _cancel_lapse(self) -> None:
        if self._lapsing is not None:
            self._lapsing.cancel()
            self._lapsing = None

    def _withdraw(self) -> None:
        """Be available no more, unless somebody else waits or a job is out; what came nobody waits for goes back."""
        if self._receivers > 0 or self._held is not None:
            return
        self._stream.stop()
        if self._arrived is not None:
            job, self._arrived = self._arrived, None
            self._aside(self._given_back(job.job_id))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="salad-give-back")
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _given_back(self, job_id: str) -> None:
        try:
            await retrying(
                lambda: self._rejected(job_id),
                Retries(attempts=20),
                budget=GIVING_BACK,
                rng=self._rng,
                out_of_time=QueueUnavailable,
            )
        except QueueUnavailable as error:
            log.warning("late_job_not_given_back", job=job_id, error=error.message)
        else:
            log.info("late_job_given_back", job=job_id)

    async def _rejected(self, job_id: str) -> None:
        try:
            await self._service.reject(job_id)
        except JobGone:
            return

    async def check(self) -> str:
        """Takes no job. Raises `AuthFailed` where no token is taken, `ConfigError` for what is no job queue."""
        if not self._stream.is_alive:
            await self._service.look()
        return f"{self._service.place}: takes our identity token"

    async def settled(self) -> None:
        """Until what came late has been given back."""
        while self._returns:
            await asyncio.wait(self._returns)

    async def aclose(self) -> None:
        """Give back what is in hand; the job that is out too, since nobody will end it any more."""
        self._has_left = True
        self._cancel_lapse()
        held, self._held = self._held, None
        self._withdraw()
        if held is not None and not held.told and not held.lost:
            self._aside(self._given_back(held.id))
        await self._stream.aclose()
        try:
            async with asyncio.timeout(CLOSING.total_seconds()):
                await self.settled()
        except TimeoutError:
            log.warning("queue_cut_off", jobs=len(self._returns))
        await cancel_all(self._returns)
        await self._service.aclose()
