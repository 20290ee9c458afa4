"""The life of a job, top to bottom.

A delivery is held (`run_job`), worked on (`produce`: admit, provide, generate, verify, publish) and settled.
Guards end the work by raising their own error: nobody cancels a job's task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from worker import failpoints
from worker.dependencies import Dependency
from worker.engines.base import Files, Output, ProgressReport, Work
from worker.errors import (
    DeliveryLimit,
    DiskFull,
    Disposition,
    Draining,
    EngineOutOfMemory,
    Expired,
    Fault,
    InternalError,
    JobTimedOut,
    LeaseLost,
    OutputEmpty,
    OutputFlat,
    OutputMismatch,
    WorkerError,
    WrongModel,
)
from worker.failpoints import Effect
from worker.gate import Verdict
from worker.history import informed
from worker.images import Encoding
from worker.job import Job, document_of, is_before, job_url_of, parse, salvage
from worker.lease import Lease
from worker.live import Hop
from worker.log import bind_job
from worker.made import Made, Stored, verified
from worker.mentions import Mention
from worker.queues.base import Delivery
from worker.report import used
from worker.result import FileResult, ImageResult, Result
from worker.settlement import (
    Failure,
    Journey,
    Outcome,
    Success,
    attempts_of,
    settle,
    timings_of,
    worker_of,
)
from worker.stages import StageClock
from worker.storage.base import Storable, Storage
from worker.tasks import aside, gather_bare, run_guarded
from worker.tools import Tools
from worker.wants import lent, settled, wants_of

log = structlog.get_logger()

DOUBTFUL = (OutputEmpty, OutputMismatch, WrongModel, EngineOutOfMemory)
"""Answers that get one new turn, then a verdict on the server."""

UNSTARTED = (Hop.RECEIVED, Hop.ADMIT, Hop.MODELS, Hop.WAITING)
"""Hops from which a job can be given back without any work lost."""

OUTAGE_S = 60.0
"""How long unstarted jobs wait for an engine that is being recovered."""


async def run_job(delivery: Delivery, tools: Tools) -> None:
    """Work on a delivery and settle it; ends silently, settling nothing, when its lease is lost."""
    with tools.live.holding(delivery.id, delivery.receipt) as live, bind_job(delivery.id):
        bench = tools.bench
        lease = Lease(bench.queue, delivery, live, rng=bench.rng, on_orders=tools.orders.obey)
        clock = StageClock(live, bench.metrics)
        journey = Journey(delivery, live, lease, clock, received_at=bench.clock.now())
        failpoints.reached("received")
        try:
            await run_guarded(work_and_settle(journey, tools), lease.keep(), name=f"job-{delivery.id}")
        except LeaseLost:
            bench.metrics.returned("lease_lost")
            live.ended("abandoned", "lease_lost")
            log.warning("job_abandoned", hop=str(live.hop), total_s=round(clock.total, 3))


async def work_and_settle(journey: Journey, tools: Tools) -> None:
    guards = (
        journey.live.cancelled(),
        tools.drain.due(journey.live),
        released_by_pause(journey, tools),
        released_by_outage(journey, tools),
    )
    outcome = await outcome_of(run_guarded(produce(journey, tools), *guards, name=f"produce-{journey.delivery.id}"))
    published_at = asyncio.get_running_loop().time()
    await settle(outcome, journey, tools.bench)
    settle_s = asyncio.get_running_loop().time() - published_at
    tools.pace.observe(settle=settle_s + journey.clock.seconds.get(Hop.UPLOAD, 0.0))


async def outcome_of(work: Awaitable[Success | Failure]) -> Outcome:
    """What it comes to, or the error that ended the work; what nobody foresaw becomes a bug with its traceback."""
    try:
        return await work
    except LeaseLost:
        raise
    except WorkerError as error:
        return error
    except Exception as error:
        log.exception("job_broke")
        return InternalError(f"{type(error).__name__} (the worker's log has the traceback)")


async def released_by_pause(journey: Journey, tools: Tools) -> None:
    """A guard: gives an unstarted job back while the operator's store is away."""
    await tools.dependencies.stopped(Dependency.STORAGE)
    while journey.live.hop not in UNSTARTED:
        await tools.live.changed()
        await tools.dependencies.stopped(Dependency.STORAGE)
    raise Draining("intake is paused: " + tools.dependencies.paused[Dependency.STORAGE])


async def released_by_outage(journey: Journey, tools: Tools) -> None:
    """A guard: gives an unstarted job back when the engine stays away: another node may do it meanwhile."""
    await tools.gate.closed_for("engine", OUTAGE_S)
    while journey.live.hop not in UNSTARTED:
        await tools.live.changed()
        await tools.gate.closed_for("engine", OUTAGE_S)
    raise Draining("the engine is away")


async def produce(journey: Journey, tools: Tools) -> Success | Failure:
    """The straight line from a delivery to a safe result."""
    with journey.clock.hop(Hop.ADMIT):
        job, storage = await admit(journey, tools)
        standing = await standing_success(job, storage, journey, tools)
        if standing is not None:
            return standing
        journey.delivery, ended = await informed(journey.delivery, job, storage, tools.patience)
        if ended is not None:
            return Failure(ended)
        job, mentions = await accepted(job, journey, tools)
        failpoints.reached("admitted")
    async with AsyncExitStack() as held:
        pins = await held.enter_async_context(AsyncExitStack())
        with journey.clock.hop(Hop.MODELS):
            work, files = await provided(job, mentions, storage, journey, tools, pins)
        share = await held.enter_async_context(tools.budget.take(work.expect.pixels * 4))
        made = await generated(job, work, files, journey, tools, pins)
        share.at_least(made.size)
        journey.live.made = made
        storage.accepts(job, len(made.artifacts))
        with journey.clock.hop(Hop.UPLOAD):
            return await publish(job, storage, made, journey, tools)


async def admit(journey: Journey, tools: Tools) -> tuple[Job, Storage]:
    """Read the document and become the only delivery of its job at work here."""
    delivery, limits = journey.delivery, tools.rules.limits
    document: dict[str, Any] | None = None
    try:
        body = delivery.body
        document = await aside(len(body), partial(document_of, body, max_body=limits.max_body))
        url = job_url_of(document)
        if url is not None:
            body = await tools.inputs.document(url)
            document = await aside(len(body), partial(document_of, body, max_body=limits.max_body))
        journey.job = await aside(len(body), partial(parse, document, fallback_id=delivery.id, limits=limits))
    except WorkerError:
        journey.salvaged = salvage(document or {}, fallback_id=delivery.id)
        raise
    await tools.live.own(journey.live, journey.job.id)
    return journey.job, tools.bench.stores.of(journey.job)


async def standing_success(job: Job, storage: Storage, journey: Journey, tools: Tools) -> Success | None:
    """An earlier delivery's result, looked up only when there may have been one."""
    if journey.delivery.redelivered is False:
        return None
    journey.may_stand = True
    result = await tools.patience.once(storage, lambda: storage.find_mark(job))
    journey.may_stand = False
    return None if result is None else Success(result, marked=True, standing=True)


async def accepted(job: Job, journey: Journey, tools: Tools) -> tuple[Job, tuple[Mention, ...]]:
    """The job with its template expanded, and where it names its models: nothing was fetched for it yet."""
    if journey.delivery.over_limit:
        raise DeliveryLimit(f"handed over {journey.delivery.deliveries} times without an end")
    in_time(job, tools)
    job = journey.job = await tools.workflows.expanded(job, tools.rules.limits)
    await tools.bench.sender.accepts(job)
    await tools.inputs.allows(job)
    await tools.gate.opened()
    with tools.gate.noticing():
        return job, await tools.engine.mentions(job)


async def provided(
    job: Job, mentions: Sequence[Mention], storage: Storage, journey: Journey, tools: Tools, pins: AsyncExitStack
) -> tuple[Work, Files]:
    """All that the generation needs: the job's models as one set, pinned, then the native request and the inputs."""
    at_most = None if journey.delivery.last_delivery or not tools.bench.queue.can_delay else tools.rules.models_max_wait
    try:
        with journey.live.parking():
            wanted = lent(wants_of(job, mentions, journey.delivery.sources), tools.credentials(job.id))
            models = await pins.enter_async_context(tools.models.provided(wanted, at_most))
    except DiskFull as error:
        tools.dependencies.failed(Dependency.DISK, error)
        raise
    with tools.gate.noticing():
        places = models.places[: len(mentions)]
        work = await tools.engine.admit(settled(job, mentions, places))
    storage.accepts(job, work.expect.count or 1)
    journey.warnings.extend(work.warnings)
    inputs = await tools.inputs.images(work.inputs)
    work = replace(work, key=attempt_key(job, journey), uses=used(work.request, mentions, places))
    return work, Files(inputs=inputs, version=models.version)


def attempt_key(job: Job, journey: Journey) -> str:
    """The name of this attempt at this job, by which a server that lets us name its work can be asked about it.

    Where the queue does not count deliveries, the time at which this one came tells it from others.
    """
    which = journey.delivery.deliveries or journey.received_at.isoformat()
    return f"{job.id}/{job.sha256[:16]}/{which}"


def in_time(job: Job, tools: Tools) -> None:
    if not is_before(job.deadline, tools.bench.clock.now()):
        raise Expired(f"the deadline {job.deadline} has passed")


async def generated(job: Job, work: Work, files: Files, journey: Journey, tools: Tools, pins: AsyncExitStack) -> Made:
    """What was made, verified: a doubtful answer gets one fresh turn more, then a verdict on the server.

    The models are let go of before a verdict is waited for: the canary may need their room.
    """
    try:
        made = await attempted(job, work, files, journey, tools)
    except DOUBTFUL as error:
        log.warning("generation_repeated", code=error.code, error=error.message)
        journey.warnings.append(f"repeated_{error.code}")
        try:
            made = await attempted(job, work, files, journey, tools, after=error)
        except DOUBTFUL as second:
            await pins.aclose()
            raise await blamed(second, tools) from None
    failpoints.reached("verified")
    await pins.aclose()
    if made.flat:
        await judge_flat(journey, tools)
    tools.reporter.verified(work, made.output)
    return made


async def attempted(
    job: Job, work: Work, files: Files, journey: Journey, tools: Tools, *, after: WorkerError | None = None
) -> Made:
    """One turn and what it made, pictures fully decoded; ``after`` is the error that made it necessary."""
    output = await turn(job, work, files, journey, tools, after=after)
    failpoints.reached("generated")
    spec, rules = job.output, tools.rules
    encoding = Encoding(
        format=spec.format or rules.encoding.format,
        quality=spec.quality or rules.encoding.quality,
        lossless=spec.lossless,
        encoder=spec.encoder,
        metadata=spec.metadata or rules.encoding.metadata,
    )
    with journey.clock.hop(Hop.IMAGES):
        return await verified(output, work.expect, encoding)


async def turn(
    job: Job, work: Work, files: Files, journey: Journey, tools: Tools, *, after: WorkerError | None
) -> Output:
    """One generation, alone on the engine, bounded from its first step on by the job's timeout."""
    sampling = asyncio.Event()
    loop = asyncio.get_running_loop()
    prepared_s = journey.clock.total - journey.live.models_s

    async with AsyncExitStack() as stack:
        with journey.clock.hop(Hop.WAITING):
            engine = await stack.enter_async_context(tools.gate.turn())
        in_time(job, tools)
        sender, lease = tools.bench.sender, journey.lease
        updates = await stack.enter_async_context(sender.updates(job, before_try=lease.before_effect))

        def on_progress(report: ProgressReport) -> None:
            journey.live.report(report.fraction, report.eta_s, report.preview)
            updates.progress(report.fraction, str(Hop.GENERATE))
            if report.sampling:
                sampling.set()

        began = loop.time()
        with journey.clock.hop(Hop.GENERATE):
            updates.started(str(Hop.GENERATE))
            if isinstance(after, EngineOutOfMemory):
                await engine.free(everything=True)
            output = await run_guarded(
                engine.generate(work, files, on_progress, fresh=after is not None),
                timed_out(sampling, job.timeout or tools.rules.job_timeout),
                name=f"generate-{job.id}",
            )
    tools.pace.observe(prepare=prepared_s if after is None else None, generate=loop.time() - began)
    tools.bench.metrics.busy(loop.time() - began)
    return output


async def timed_out(sampling: asyncio.Event, timeout: timedelta) -> None:
    """A guard: raises `JobTimedOut` when the time is up, counted from the first step."""
    await sampling.wait()
    await asyncio.sleep(timeout.total_seconds())
    raise JobTimedOut(f"the generation took longer than {timeout.total_seconds():g} s")


async def blamed(error: WorkerError, tools: Tools) -> WorkerError:
    """Have the canary tell whose fault a doubtful answer is."""
    if await tools.gate.verdict(error) is Verdict.FIT:
        return error.blamed(Fault.JOB, Disposition.NACK_CHARGED)
    return error.blamed(Fault.NODE, Disposition.NACK)


async def judge_flat(journey: Journey, tools: Tools) -> None:
    """An image of one colour may be what was asked for, or the sign of a broken GPU: the canary tells."""
    if tools.rules.flat == "off":
        return
    error = OutputFlat()
    if tools.rules.flat == "fail":
        raise error.blamed(Fault.JOB, Disposition.NACK_CHARGED)
    if await tools.gate.verdict(error) is Verdict.UNFIT:
        raise error.blamed(Fault.NODE, Disposition.NACK)
    journey.warnings.append(error.code)


async def publish(job: Job, storage: Storage, made: Made, journey: Journey, tools: Tools) -> Success:
    """Images and files first, the mark last; who finds a mark standing already settles with that one."""
    width = asyncio.Semaphore(tools.rules.upload_concurrency)

    async def upload(artifact: Storable[Stored]) -> Stored:
        async def put() -> Stored:
            async with width, journey.lease.effect(Effect.UPLOAD):
                return await storage.put_artifact(job, artifact)

        stored = await tools.patience.until_taken(storage, put)
        tools.bench.metrics.uploaded(len(artifact.data))
        return stored

    stored = await gather_bare([upload(artifact) for artifact in made.artifacts], name=f"upload-{job.id}")
    result = succeeded(job, made.output, stored, journey, tools)
    tools.bench.metrics.imaged(len(result.images))

    async def mark() -> Result:
        async with journey.lease.effect(Effect.MARK):
            journey.live.commit()
            journey.may_stand = True
            return await storage.put_mark(job, result)

    return Success(await tools.patience.until_taken(storage, mark), marked=storage.marks(job))


def succeeded(job: Job, output: Output, stored: list[Stored], journey: Journey, tools: Tools) -> Result:
    bench = tools.bench
    journey.warnings.extend(output.warnings)
    timings = timings_of(journey).model_copy(
        update={
            "load": output.load_s,
            "generate": output.generate_s,
            "upload": asyncio.get_running_loop().time() - journey.live.hop_since,
        }
    )
    price = tools.rules.price_per_hour
    return Result(
        id=job.id,
        client_id=journey.delivery.client_id,
        status="succeeded",
        images=tuple(one for one in stored if isinstance(one, ImageResult)),
        files=tuple(one for one in stored if isinstance(one, FileResult)),
        engine=output.engine,
        timings=timings,
        warnings=tuple(dict.fromkeys(journey.warnings)),
        cost=None if price is None else round(price * (output.load_s + output.generate_s) / 3600, 6),
        attempts=attempts_of(journey.delivery),
        worker=worker_of(bench.identity),
        job_sha256=job.sha256,
        metadata=job.metadata,
        created_at=journey.delivery.queued_at or journey.received_at,
        finished_at=bench.clock.now(),
    )
