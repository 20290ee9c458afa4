"""The line of the log with all that was counted: when it is told, and what stands in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from tests.support.virtual import elapse, virtual
from worker.metrics import Metrics, Observed
from worker.report import Bill
from worker.statistics import EVERY_S, Statistics, counted
from worker.tasks import cancel_all

FIELDS = {"event", "log_level", "last", "up_s"}


@asynccontextmanager
async def telling(metrics: Metrics, phase: list[str], bill: Bill | None = None) -> AsyncIterator[list[Any]]:
    """The lines that are told within; the last one comes with the end."""
    service = Statistics(metrics.families, lambda: phase[0], lambda: bill)
    with structlog.testing.capture_logs() as lines:
        task = asyncio.create_task(service.run(), name="statistics")
        yield lines
        await cancel_all({task})
    assert {line["event"] for line in lines} == {"worker_stats"}


@virtual
async def test_a_minute_in_which_something_happened_is_told() -> None:
    """An idle one is not, but once in ten minutes it shows that it lives; the end of the drain is told in any case."""
    metrics, phase = Metrics(), ["starting"]
    async with telling(metrics, phase) as lines:
        await elapse(59)
        assert lines == []
        await elapse(2)
        phase[0] = "ready"
        await elapse(60)
        metrics.settled("succeeded", None)
        await elapse(60)
        assert [(line["up_s"], line["phase"]) for line in lines] == [(60, "starting"), (120, "ready"), (180, "ready")]
        await elapse(3600)
        assert [line["up_s"] for line in lines[3:]] == [780, 1380, 1980, 2580, 3180, 3780]
        phase[0] = "draining"
    assert [line["last"] for line in lines] == [False] * 9 + [True]
    assert lines[-1]["phase"] == "draining"


@virtual
async def test_figures_that_move_by_themselves_are_no_news() -> None:
    """Memory is never the same twice."""
    taken = [0.0]

    def moving() -> dict[str, float]:
        taken[0] += 1
        return {"memory_used_bytes": taken[0]}

    async with telling(Metrics(Observed(vitals=moving)), ["ready"]) as lines:
        await elapse(10 * EVERY_S - 1)
        assert [line["up_s"] for line in lines] == [60]


def test_everything_is_told_flat_under_the_metrics_names() -> None:
    """A field a label, zeros left out: it is read by people and by whatever takes the log."""
    metrics = Metrics(Observed(phases=("ready",), phase=lambda: "ready", jobs_held=lambda: 2, models_bytes=lambda: 5))
    metrics.settled("succeeded", None)
    metrics.settled("failed", "invalid_job")
    metrics.settled("failed", "job_timeout")
    metrics.received()
    metrics.returned("draining")
    metrics.busy(1.23456)
    metrics.engine_fault("gpu_fault")
    metrics.engine_restarted("gpu_fault")
    metrics.engine_memory(7)
    metrics.webhook("delivered")
    metrics.paused("upload_failed", True)
    metrics.models_waited(0.0001)
    metrics.ordered("download", "done")
    metrics.hop("generate", 1.0)
    metrics.imaged(3)
    metrics.previous_run("killed")
    assert counted(metrics.families()) == {
        "jobs_settled_succeeded": 1,
        "jobs_settled_failed": 2,
        "deliveries_received": 1,
        "deliveries_returned_draining": 1,
        "generation_busy_seconds": 1.235,
        "engine_faults_gpu_fault": 1,
        "engine_restarts_gpu_fault": 1,
        "engine_memory_bytes": 7,
        "webhooks_delivered": 1,
        "pauses_upload_failed": 1,
        "orders_download": 1,
        "images": 3,
        "previous_runs_killed": 1,
        "jobs_held": 2,
        "models_cache_bytes": 5,
    }


@virtual
async def test_money_is_told_where_there_is_a_price() -> None:
    """Seconds paid and generating, what they cost until now, and what an image costs."""
    bill = Bill(price=0.36, paid_s=7200.04, busy_s=3600.0, images=100)
    async with telling(Metrics(), ["ready"], bill) as lines:
        await elapse(1)
    assert lines[0].items() >= {"paid_s": 7200.0, "busy_s": 3600.0, "cost": 0.720004, "cost_per_image": 0.0072}.items()
    assert lines[0].keys() - FIELDS == {"phase", "paid_s", "busy_s", "cost", "cost_per_image"}
    assert Bill(price=0.36, paid_s=100.0, busy_s=0.0, images=0).told() == {"paid_s": 100.0, "busy_s": 0.0, "cost": 0.01}
