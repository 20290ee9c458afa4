"""What the worker is doing: `/v1/status` for people and programs, `/metrics` for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from worker.desk import Desk
from worker.live import Live, LiveJob, Past, Span
from worker.metrics import CONTENT_TYPE, Metrics
from worker.node import Identity, Report
from worker.status import Status
from worker.wire import DiskReport, HeldModel


class NodeStatus(BaseModel):
    """The node as a scheduler is told of it: seen and measured things only.

    ``rates`` as in the scheduling API, what was not measured left out; ``models`` those on disk and, ``tier`` ``vram``,
    in the server's memory; ``disk`` in bytes, null without a folder of models; ``stats`` since the start.
    """

    id: str
    machine: str
    version: str
    gpu: str | None
    vram_gb: float | None
    instance: str
    rates: dict[str, float]
    models: list[HeldModel]
    disk: DiskReport | None
    stats: dict[str, Any]


class SpanStatus(BaseModel):
    """A hop that is over: when it began and ended, in seconds before now."""

    hop: str
    began_s: float
    ended_s: float


class JobStatus(BaseModel):
    """A job held: times in seconds, ``progress`` a fraction of the running generation, ``parked`` for its models.

    ``spans`` are the hops before the present one; ``preview``: there may be a look at the picture in the making.
    """

    id: str
    hop: str
    held_s: float
    hop_s: float
    parked: bool
    progress: float | None
    eta_s: float | None
    preview: bool
    spans: list[SpanStatus]


class PastStatus(BaseModel):
    """A job that is not held any more; ``outcome`` and ``code`` as the log's `job_settled` has them."""

    id: str
    outcome: str
    code: str | None
    ended_s: float
    spans: list[SpanStatus]


class DeskStatus(BaseModel):
    """HTTP jobs: so many wait of at most ``max_pending``; ``full`` says why no further one may come in now."""

    waiting: int
    max_pending: int
    full: list[str]


class StatusAnswer(BaseModel):
    """``pauses`` are the codes that hold intake back; ``counters`` count since the start of the process.

    ``recent`` are the latest jobs that ended, the last one last. ``outcomes`` counts since the start, too: by how jobs
    ended, then by error code, which is empty where there was none.
    """

    model_config = ConfigDict(extra="allow")

    phase: str
    reasons: list[str]
    started: bool
    live: bool
    ready: bool
    node: NodeStatus
    engine: dict[str, Any]
    jobs: list[JobStatus]
    recent: list[PastStatus]
    outcomes: dict[str, dict[str, int]]
    pauses: list[str]
    counters: dict[str, float]


def routes(
    status: Status,
    live: Live,
    metrics: Metrics,
    identity: Identity,
    engine: Callable[[], dict[str, Any]],
    extras: Callable[[], dict[str, Any]],
    report: Callable[[], Report] = Report,
) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get("/v1/status", summary="Phase, engine, jobs held, pauses and counters")
    async def show() -> StatusAnswer:
        now = asyncio.get_running_loop().time()
        return StatusAnswer(
            **extras(),
            phase=status.phase,
            reasons=list(status.reasons),
            started=status.startup().ok,
            live=status.live().ok,
            ready=status.ready().ok,
            node=_node(identity, report()),
            engine=engine(),
            jobs=[_job(job, now) for job in live],
            recent=[_past(past, now) for past in live.recent],
            outcomes=metrics.ends(),
            pauses=sorted(metrics.pauses),
            counters=metrics.counters(),
        )

    @router.get(
        "/metrics",
        summary="Everything counted, in Prometheus's text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def text() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return router


def _node(identity: Identity, report: Report) -> NodeStatus:
    return NodeStatus(
        id=identity.id,
        machine=identity.machine,
        version=identity.version,
        gpu=identity.gpu,
        vram_gb=report.vram_gb,
        instance=identity.instance,
        rates=report.rates.model_dump(exclude_none=True),
        models=list(report.models),
        disk=report.disk,
        stats=dict(report.stats),
    )


def _job(job: LiveJob, now: float) -> JobStatus:
    return JobStatus(
        id=job.id,
        hop=job.hop,
        held_s=round(now - job.since, 3),
        hop_s=round(now - job.hop_since, 3),
        parked=job.parked,
        progress=job.progress,
        eta_s=job.eta_s,
        preview=job.preview is not None,
        spans=_spans(job.spans, now),
    )


def _past(past: Past, now: float) -> PastStatus:
    return PastStatus(
        id=past.id,
        outcome=past.outcome,
        code=past.code,
        ended_s=round(now - past.ended, 3),
        spans=_spans(past.spans, now),
    )


def _spans(spans: Iterable[Span], now: float) -> list[SpanStatus]:
    return [
        SpanStatus(hop=span.hop, began_s=round(now - span.began, 3), ended_s=round(now - span.ended, 3))
        for span in spans
    ]


def described(desk: Desk) -> dict[str, Any]:
    """The desk for the status page."""
    load = desk.load
    status = DeskStatus(waiting=load.waiting, max_pending=desk.rules.max_pending, full=list(desk.full()))
    return status.model_dump()
