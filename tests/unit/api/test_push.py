"""Metrics pushed as OTLP are read by the protocol's own schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Metric
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from tests.support.serving import serving
from tests.support.waiting import wait_until
from worker.api import push
from worker.metrics import Metrics, Observed
from worker.node import Identity
from worker.tasks import cancel_all

IDENTITY = Identity("node-1", "machine-1", "0.1.0")
START = datetime(2026, 5, 1, 12, tzinfo=UTC)
RARELY, OFTEN = timedelta(hours=1), timedelta(milliseconds=5)


@dataclass
class Steps:
    """A clock on which each look is a second later."""

    at: datetime = START

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


@dataclass
class Collector:
    """An OTLP receiver; it answers with the statuses given, then with 200."""

    statuses: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    silent: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.paths.append(scope["path"])
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        self.bodies.append(body)
        if self.silent:
            await asyncio.Event().wait()
        status = self.statuses.pop(0) if self.statuses else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    def request(self) -> ExportMetricsServiceRequest:
        return json_format.Parse(self.bodies[-1], ExportMetricsServiceRequest())


@asynccontextmanager
async def pushing(metrics: Metrics, url: str, every: timedelta) -> AsyncIterator[asyncio.Task[None]]:
    clock = Steps()
    task = asyncio.create_task(push.push(metrics, url, IDENTITY, clock, every=every), name="push")
    try:
        await wait_until(lambda: clock.at > START)
        yield task
    finally:
        await cancel_all({task})


async def pushed(metrics: Metrics, path: str = "") -> Collector:
    """What a collector has got after one push."""
    collector = Collector()
    async with serving(collector) as service, pushing(metrics, service.url(path), OFTEN):
        await wait_until(lambda: collector.bodies)
    return collector


def sent(collector: Collector) -> dict[str, Metric]:
    [resource] = collector.request().resource_metrics
    [scope] = resource.scope_metrics
    return {metric.name: metric for metric in scope.metrics}


def labels(point: Any) -> dict[str, str]:
    return {attribute.key: attribute.value.string_value for attribute in point.attributes}


async def test_the_resource_is_this_worker() -> None:
    """Whose numbers they are stands in the resource, as OpenTelemetry names it."""
    collector = await pushed(Metrics())
    [resource] = collector.request().resource_metrics
    assert labels(resource.resource) == {
        "service.name": "sd-worker",
        "service.version": "0.1.0",
        "service.instance.id": "node-1",
        "host.name": "machine-1",
    }
    assert resource.scope_metrics[0].scope.name == "sd-worker"
    assert collector.headers[0]["content-type"] == "application/json"


async def test_counters_are_monotonic_cumulative_sums() -> None:
    """Counts since the start, with when that was, in seconds and bytes where they are that."""
    metrics = Metrics()
    metrics.settled("failed", "invalid_job")
    metrics.settled("succeeded", None)
    metrics.busy(2.5)
    found = sent(await pushed(metrics))
    settled = found["sd_worker_jobs_settled"].sum
    assert settled.is_monotonic
    assert settled.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    points = {(p.attributes and labels(p)["code"]): p.as_double for p in settled.data_points}
    assert points == {"invalid_job": 1, "": 1}
    [busy] = found["sd_worker_generation_busy_seconds"].sum.data_points
    assert busy.as_double == 2.5
    assert busy.start_time_unix_nano == int((START + timedelta(seconds=1)).timestamp()) * 10**9
    assert busy.time_unix_nano > busy.start_time_unix_nano
    assert found["sd_worker_generation_busy_seconds"].unit == "s"
    assert found["sd_worker_uploads_bytes"].unit == "By"
    assert found["sd_worker_bugs"].unit == "1"


async def test_gauges_are_gauges() -> None:
    """What goes up and down has no beginning."""
    metrics = Metrics(Observed(phases=("ready", "paused"), phase=lambda: "ready", jobs_held=lambda: 3))
    found = sent(await pushed(metrics))
    assert [p.as_double for p in found["sd_worker_jobs_held"].gauge.data_points] == [3]
    phases = {labels(p)["phase"]: p.as_double for p in found["sd_worker_phase"].gauge.data_points}
    assert phases == {"ready": 1, "paused": 0}
    assert found["process_resident_memory_bytes"].gauge.data_points[0].as_double > 0
    assert "sd_worker_paused" not in found


async def test_histograms_have_explicit_bounds() -> None:
    """Buckets count for themselves, one more than there are bounds, a point for each hop."""
    metrics = Metrics()
    for hop, seconds in (("upload", 0.3), ("upload", 0.4), ("upload", 9000), ("generate", 3)):
        metrics.hop(hop, seconds)
    histogram = sent(await pushed(metrics))["sd_worker_hop_seconds"].histogram
    assert histogram.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    upload, generate = histogram.data_points
    assert (labels(upload), labels(generate)) == ({"hop": "upload"}, {"hop": "generate"})
    assert upload.count == 3
    assert upload.sum == pytest.approx(9000.7)
    assert len(upload.bucket_counts) == len(upload.explicit_bounds) + 1
    assert dict(zip([*upload.explicit_bounds, "over"], upload.bucket_counts, strict=True))[0.5] == 2
    assert upload.bucket_counts[-1] == 1
    assert sum(upload.bucket_counts) == 3
    assert list(upload.explicit_bounds) == sorted(upload.explicit_bounds)


@pytest.mark.parametrize(
    ("path", "visited"),
    [
        ("", "/v1/metrics"),
        ("/", "/v1/metrics"),
        ("/otlp", "/otlp/v1/metrics"),
        ("/v1/metrics", "/v1/metrics"),
        ("/otlp/v1/metrics/", "/otlp/v1/metrics"),
    ],
)
async def test_the_path_is_completed(path: str, visited: str) -> None:
    """The collector's address is enough."""
    assert (await pushed(Metrics(), path)).paths[0] == visited


async def test_it_is_pushed_now_and_then() -> None:
    """Later pushes have later counts."""
    metrics, collector = Metrics(), Collector()
    async with serving(collector) as service, pushing(metrics, service.url(), OFTEN):
        await wait_until(lambda: len(collector.bodies) > 1)
        metrics.bug()
        await wait_until(lambda: sent(collector)["sd_worker_bugs"].sum.data_points[0].as_double == 1)


async def test_the_last_numbers_are_not_lost() -> None:
    """When cancelled it pushes once more."""
    metrics, collector = Metrics(), Collector()
    async with serving(collector) as service:
        async with pushing(metrics, service.url(), RARELY):
            metrics.bug()
        assert len(collector.bodies) == 1
    assert sent(collector)["sd_worker_bugs"].sum.data_points[0].as_double == 1


async def test_failures_are_logged_once_and_so_is_their_end() -> None:
    """A collector that is away fills no log, and stops nothing."""
    collector = Collector(statuses=[503, 500, 403, 200, 200, 500])
    with capture_logs() as logs:
        async with serving(collector) as service, pushing(Metrics(), service.url("/x?token=secret"), OFTEN):
            await wait_until(lambda: len(collector.bodies) > 6)
    names = [(line["event"], line.get("reason", "")[-12:]) for line in logs]
    assert names[:4] == [
        ("metrics_push_failed", "answered 503"),
        ("metrics_push_recovered", ""),
        ("metrics_push_failed", "answered 500"),
        ("metrics_push_recovered", ""),
    ]
    assert "secret" not in str(logs)


async def test_nobody_there_is_a_failure_too() -> None:
    """Refused connections raise nothing, not at the end either."""
    async with serving(Collector()) as service:
        url = service.url()
    with capture_logs() as logs:
        async with pushing(Metrics(), url, OFTEN) as task:
            await wait_until(lambda: logs)
            assert not task.done()
        assert task.cancelled()
    assert [line["event"] for line in logs] == ["metrics_push_failed"]


async def test_a_silent_collector_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each push is bounded, the last one too."""
    monkeypatch.setattr(push, "MOST", OFTEN)
    monkeypatch.setattr(push, "LAST_MOST", OFTEN)
    with capture_logs() as logs:
        async with serving(Collector(silent=True)) as service, pushing(Metrics(), service.url(), OFTEN):
            await wait_until(lambda: logs)
    assert logs[0]["reason"] == "no answer in time"
