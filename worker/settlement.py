"""How a delivery ends: outcome -> result document -> webhook -> ack, nack or reject.

Only a lost lease stops a settlement. The order is fixed: what others rely on is safe before they are told, and
they are told before the queue forgets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from worker.clock import Clock
from worker.drain import Drain
from worker.errors import (
    ENGINE_FAULT_CODES,
    UNCOUNTED_CODES,
    DeliveryLimit,
    DependencyFailed,
    Disposition,
    Draining,
    Fault,
    IdConflict,
    InternalError,
    JobCancelled,
    Owner,
    QueueUnavailable,
    UnsupportedDocument,
    WebhookFailed,
    WorkerError,
)
from worker.failpoints import Effect
from worker.job import Job
from worker.lease import Lease
from worker.live import Hop, LiveJob
from worker.metrics import Metrics
from worker.node import Identity
from worker.queues.base import Delivery, Queue
from worker.result import AttemptResult, ErrorResult, Result, Timings, WorkerResult
from worker.stages import StageClock
from worker.storage.base import Stores
from worker.tasks import run_guarded
from worker.webhooks import Notifier

log = structlog.get_logger()

WEBHOOK_DELAYS = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=60))
"""After which a standing success is handed over again for its webhook alone."""

UNDELIVERED = "webhook_undelivered"


@dataclass(slots=True)
class Journey:
    """What one delivery has gathered on its way; ``job`` is None until its document was understood.

    ``may_stand``: a success of the job may stand in the store, though nobody could tell us.
    """

    delivery: Delivery
    live: LiveJob
    lease: Lease
    clock: StageClock
    received_at: datetime
    job: Job | None = None
    salvaged: Job | None = None
    may_stand: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def known(self) -> Job | None:
        """The job, or what could be saved of a document that is none: enough to tell its owner."""
        return self.job or self.salvaged

    @property
    def id(self) -> str:
        return self.known.id if self.known else self.delivery.id

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1; names the failure document."""
        return max(self.delivery.deliveries or 0, len(self.delivery.attempts) + 1)


@dataclass(frozen=True, slots=True)
class Success:
    """A result that is safe. ``marked``: it stands in the store; ``standing``: an earlier delivery made it."""

    result: Result
    marked: bool
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """How an earlier delivery ended the job, that did not come to tell its queue."""

    result: Result


Outcome = Success | Failure | WorkerError


@dataclass(frozen=True, slots=True)
class Bench:
    """What settling needs."""

    queue: Queue
    stores: Stores
    sender: Notifier
    metrics: Metrics
    clock: Clock
    identity: Identity
    rng: random.Random
    drain: Drain


async def settle(outcome: Outcome, journey: Journey, bench: Bench) -> None:
    """Bring a delivery to its end. Raises nothing but `LeaseLost`."""
    with journey.clock.hop(Hop.SETTLE):
        if isinstance(outcome, Success):
            code = await _settle_success(outcome, journey, bench)
        elif isinstance(outcome, Failure):
            code = await _tell_failure(outcome.result, journey, bench)
        else:
            code = await _settle_error(outcome, journey, bench)
    _log_settled(outcome, code, journey, bench)


async def _settle_success(success: Success, journey: Journey, bench: Bench) -> str:
    result = success.result
    delivered = await _tell("succeeded", result, journey, bench)
    if not delivered and success.marked:
        return await _retry_webhook_later(result, journey, bench)
    if journey.warnings:
        result = result.model_copy(update={"warnings": tuple(dict.fromkeys((*result.warnings, *journey.warnings)))})
    await _answer(Effect.ACK, lambda: bench.queue.ack(journey.delivery, result), journey, bench)
    return "succeeded"


async def _retry_webhook_later(result: Result, journey: Journey, bench: Bench) -> str:
    """The success stands for ever; only its webhook is still owed, by later deliveries."""
    tried = webhook_tries(journey.delivery)
    if bench.drain.begun:
        return await _release(journey, bench)
    if tried < len(WEBHOOK_DELAYS):
        delay = WEBHOOK_DELAYS[tried]
        await _answer(
            Effect.NACK,
            lambda: bench.queue.nack(journey.delivery, delay, UNDELIVERED, charged=False),
            journey,
            bench,
        )
        return UNDELIVERED
    warned = result.model_copy(update={"warnings": tuple(dict.fromkeys((*result.warnings, UNDELIVERED)))})
    await _answer(Effect.REJECT, lambda: bench.queue.reject(journey.delivery, warned), journey, bench)
    return UNDELIVERED


def webhook_tries(delivery: Delivery) -> int:
    """Earlier deliveries that failed at the webhook alone; at most so many where the queue keeps no causes.

    All that there may be where it does not even count them: nobody could tell when to stop.
    """
    if delivery.attempts_most is not None:
        return len(WEBHOOK_DELAYS) if delivery.deliveries is None else delivery.deliveries - 1
    return sum(attempt.code == UNDELIVERED for attempt in delivery.attempts)


async def _settle_error(error: WorkerError, journey: Journey, bench: Bench) -> str:
    if isinstance(error, InternalError):
        bench.metrics.bug()
    error = final(error, journey.delivery, bench.identity.id, may_stand=journey.may_stand)
    match error.disposition:
        case Disposition.REJECT:
            return await _reject(error, journey, bench)
        case Disposition.ACK:
            result = failure_of(error, journey, bench)
            await _tell("cancelled", result, journey, bench)
            await _answer(Effect.ACK, lambda: bench.queue.ack(journey.delivery, result), journey, bench)
            return "cancelled"
        case Disposition.NACK_CHARGED:
            await _keep_failure(failure_of(error, journey, bench), journey, bench)
            await _nack(error, retry_delay(error, journey.delivery, bench.rng), journey, bench)
            return "returned"
        case Disposition.NACK | Disposition.ABANDON:
            if error.code in ENGINE_FAULT_CODES and journey.delivery.attempts_most is not None:
                await _keep_failure(failure_of(error, journey, bench), journey, bench)
            await _nack(error, retry_delay(error, journey.delivery, bench.rng), journey, bench)
            return "released"


def final(error: WorkerError, delivery: Delivery, worker: str, *, may_stand: bool = False) -> WorkerError:
    """What an error means for this delivery: charged engine faults, last attempts and last deliveries.

    A server that breaks is the node's fault the first time, and charged to the job from the second different
    node on. No limit ends a job whose success may stand while the operator's store cannot tell.
    """
    elsewhere = any(a.code in ENGINE_FAULT_CODES and a.worker != worker for a in delivery.attempts)
    if error.code in ENGINE_FAULT_CODES and elsewhere and error.disposition is Disposition.NACK:
        error.blamed(Fault.JOB, Disposition.NACK_CHARGED)
    if error.disposition is Disposition.NACK_CHARGED and delivery.last_attempt:
        error.disposition = Disposition.REJECT
    released = error.code in UNCOUNTED_CODES
    released |= may_stand and isinstance(error, DependencyFailed) and error.owner is Owner.OPERATOR
    if error.disposition in (Disposition.NACK, Disposition.NACK_CHARGED) and delivery.last_delivery and not released:
        return DeliveryLimit(f"handed over {delivery.deliveries} times, lastly: {error.message}", fault=error.fault)
    return error


def retry_delay(error: WorkerError, delivery: Delivery, rng: random.Random) -> timedelta:
    """When to hand the job over again: at once for a drain, else growing with each earlier end, with jitter."""
    if isinstance(error, Draining):
        return timedelta(0)
    if error.retry_after is not None:
        return min(error.retry_after, timedelta(minutes=15))
    first_s = 30.0 if isinstance(error, UnsupportedDocument) else 2.0
    grown_s = min(first_s * 2.0 ** min(len(delivery.attempts), 6), 120.0)
    return timedelta(seconds=grown_s * rng.uniform(0.75, 1))


async def _reject(error: WorkerError, journey: Journey, bench: Bench) -> str:
    result = failure_of(error, journey, bench)
    if not isinstance(error, IdConflict):
        return await _tell_failure(result, journey, bench)
    await _answer(Effect.REJECT, lambda: bench.queue.reject(journey.delivery, result), journey, bench)
    return "failed"


async def _tell_failure(result: Result, journey: Journey, bench: Bench) -> str:
    await _keep_failure(result, journey, bench)
    if not await _tell("failed", result, journey, bench):
        if bench.drain.begun:
            return await _release(journey, bench)
        result = result.model_copy(update={"warnings": (*result.warnings, UNDELIVERED)})
    await _answer(Effect.REJECT, lambda: bench.queue.reject(journey.delivery, result), journey, bench)
    return "failed"


async def _release(journey: Journey, bench: Bench) -> str:
    """The drain has cut a webhook off: the next delivery owes it."""
    await _nack(Draining(), timedelta(0), journey, bench)
    return "released"


async def _nack(error: WorkerError, delay: timedelta, journey: Journey, bench: Bench) -> None:
    charged = error.disposition is Disposition.NACK_CHARGED
    bench.metrics.returned(error.code)
    await _answer(
        Effect.NACK,
        lambda: bench.queue.nack(journey.delivery, delay, error.code, charged=charged),
        journey,
        bench,
    )


async def _tell(event: str, result: Result, journey: Journey, bench: Bench) -> bool:
    """Send a webhook within its budget; False when it did not arrive. A job that named a bad one is told nothing."""
    if journey.known is None or not bench.sender.wants(event, journey.known):
        return True
    try:
        async with journey.lease.effect(Effect.WEBHOOK):
            send = bench.sender.send(event, journey.known, result, before_try=journey.lease.before_effect)
            warnings = await run_guarded(send, bench.drain.over(), name=f"webhook-{journey.id}")
        journey.warnings.extend(warnings)
        bench.metrics.webhook("delivered")
    except (WebhookFailed, TimeoutError) as error:
        log.warning(UNDELIVERED, event_type=event, error=str(error))
        journey.warnings.append(UNDELIVERED)
        bench.metrics.webhook("undelivered")
        return False
    except WorkerError as error:
        if error.disposition is Disposition.ABANDON:
            raise
        log.warning("webhook_refused", event_type=event, code=error.code, error=error.message)
        journey.warnings.append("webhook_refused")
        bench.metrics.webhook("refused")
    return True


async def _keep_failure(result: Result, journey: Journey, bench: Bench) -> None:
    """Store how the attempt failed. It never stops the settlement: the queue and the webhook say it too."""
    if journey.known is None:
        return
    try:
        storage = bench.stores.of(journey.known)
        async with journey.lease.effect(Effect.FAILURE):
            await storage.put_failure(journey.known, result, journey.attempt)
    except WorkerError as error:
        if error.disposition is Disposition.ABANDON:
            raise
        log.warning("failure_not_stored", code=error.code, error=error.message)


async def _answer(effect: Effect, call: Callable[[], Awaitable[None]], journey: Journey, bench: Bench) -> None:
    """Tell the queue, however long it is away; while draining only until the deadline."""
    pause_s = 0.5
    while True:
        try:
            async with journey.lease.effect(effect):
                await call()
            return
        except QueueUnavailable as error:
            left = bench.drain.left()
            if left is not None and left <= 0:
                log.warning("job_unanswered", effect=str(effect), error=error.message)
                return
            log.warning("queue_not_answering", effect=str(effect), error=error.message)
            await asyncio.sleep(pause_s * bench.rng.uniform(0.5, 1))
            pause_s = min(pause_s * 2, 15.0)


def failure_of(error: WorkerError, journey: Journey, bench: Bench) -> Result:
    """The result document of a job that did not succeed."""
    job = journey.known
    return Result(
        id=journey.id,
        client_id=journey.delivery.client_id,
        status="cancelled" if isinstance(error, JobCancelled) else "failed",
        error=ErrorResult(code=error.code, message=error.message, retryable=error.retryable, fault=error.fault),
        timings=timings_of(journey),
        warnings=tuple(dict.fromkeys(journey.warnings)),
        attempts=attempts_of(journey.delivery),
        worker=worker_of(bench.identity),
        job_sha256=journey.job.sha256 if journey.job else None,
        run=journey.delivery.run,
        metadata=job.metadata if job else None,
        created_at=journey.delivery.queued_at or journey.received_at,
        finished_at=bench.clock.now(),
    )


def timings_of(journey: Journey) -> Timings:
    """Seconds so far; ``load`` and ``generate`` are set from the engine's own account where there is one."""
    seconds = journey.clock.seconds
    queued_at = journey.delivery.queued_at
    return Timings(
        queued=max(0.0, (journey.received_at - queued_at).total_seconds()) if queued_at else None,
        models=seconds.get(Hop.MODELS),
        generate=seconds.get(Hop.GENERATE),
        images=seconds.get(Hop.IMAGES),
        upload=seconds.get(Hop.UPLOAD),
        total=journey.clock.total,
    )


def attempts_of(delivery: Delivery) -> tuple[AttemptResult, ...]:
    return tuple(
        AttemptResult(worker=a.worker, ended=a.ended, code=a.code, charged=a.charged or None) for a in delivery.attempts
    )


def worker_of(identity: Identity) -> WorkerResult:
    return WorkerResult(id=identity.id, machine=identity.machine, gpu=identity.gpu, version=identity.version)


def _log_settled(outcome: Outcome, ended: str, journey: Journey, bench: Bench) -> None:
    """The one canonical line of a job."""
    error = outcome if isinstance(outcome, WorkerError) else outcome.result.error
    bench.metrics.settled(ended, error.code if error else None)
    journey.live.ended(ended, error.code if error else None)
    hops = {str(hop): round(seconds, 3) for hop, seconds in journey.clock.seconds.items()}
    say = log.error if isinstance(error, InternalError) else log.warning if ended == "failed" else log.info
    say(
        "job_settled",
        outcome=ended,
        code=error.code if error else None,
        fault=str(error.fault) if error else None,
        error=error.message if error else None,
        images=len(outcome.result.images) if isinstance(outcome, Success) else 0,
        files=len(outcome.result.files) if isinstance(outcome, Success) else 0,
        standing=outcome.standing if isinstance(outcome, Success) else isinstance(outcome, Failure),
        warnings=journey.warnings,
        deliveries=journey.delivery.deliveries,
        attempt=journey.attempt,
        total_s=round(journey.clock.total, 3),
        hops=hops,
    )
