"""Metrics sent as OTLP over HTTP, JSON encoding, for nodes that no Prometheus can reach.

`WORKER_METRICS_PUSH_URL` is the collector's address, such as ``http://collector:4318``: ``/v1/metrics`` is added
where the path does not end with it. Its user information is sent as HTTP Basic. What is sent is cumulative, so a
push that fails costs resolution, no counts.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import structlog

from worker import __version__, http
from worker.clock import Clock
from worker.errors import DependencyFailed
from worker.metrics import Metrics
from worker.node import Identity

if TYPE_CHECKING:
    import httpx
    from prometheus_client import Metric
    from prometheus_client.samples import Sample

log = structlog.get_logger()

EVERY = timedelta(seconds=30)
MOST = timedelta(seconds=10)
LAST_MOST = timedelta(seconds=2)
PATH = "/v1/metrics"

_CUMULATIVE = 2
_UNITS = {"seconds": "s", "bytes": "By"}


async def push(metrics: Metrics, url: str, identity: Identity, clock: Clock, *, every: timedelta = EVERY) -> None:
    """Send the metrics now and then until cancelled, and once more then. Never raises; a failure is logged when
    pushing begins to fail, and its end."""
    target = _target(url)
    started = clock.now()
    fails = False
    async with http.client(timeout=MOST, loopback=http.is_loopback(url)) as client:

        async def send(most: timedelta) -> None:
            nonlocal fails
            body = export(metrics.families(), identity, started=started, now=clock.now())
            reason = await _sent(client, target, body, most)
            if reason and not fails:
                log.warning("metrics_push_failed", url=http.shown(target), reason=reason)
            elif fails and not reason:
                log.info("metrics_push_recovered", url=http.shown(target))
            fails = bool(reason)

        try:
            while True:
                await asyncio.sleep(every.total_seconds())
                await send(MOST)
        finally:
            await send(LAST_MOST)


def _target(url: str) -> str:
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(PATH) else path + PATH))


async def _sent(client: httpx.AsyncClient, target: str, body: dict[str, Any], most: timedelta) -> str:
    """Post it; gives back why that failed, nothing when it did not."""
    try:
        async with asyncio.timeout(most.total_seconds()):
            with http.translating(DependencyFailed, url=target):
                (await client.post(target, json=body)).raise_for_status()
    except DependencyFailed as error:
        return error.message
    except TimeoutError:
        return "no answer in time"
    return ""


def export(families: Iterable[Metric], identity: Identity, *, started: datetime, now: datetime) -> dict[str, Any]:
    """An ExportMetricsServiceRequest in OTLP's JSON encoding, where 64-bit integers are strings."""
    resource = {
        "service.name": "sd-worker",
        "service.version": identity.version,
        "service.instance.id": identity.id,
        "host.name": identity.machine,
    }
    times = {"startTimeUnixNano": _nanoseconds(started), "timeUnixNano": _nanoseconds(now)}
    sent = [_metric(family, times) for family in families if family.samples]
    scope = {"scope": {"name": "sd-worker", "version": __version__}, "metrics": sent}
    return {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [scope]}]}


def _metric(family: Metric, times: dict[str, str]) -> dict[str, Any]:
    unit = _UNITS.get(family.name.rpartition("_")[2], "1")
    metric: dict[str, Any] = {"name": family.name, "description": family.documentation, "unit": unit}
    if family.type == "histogram":
        points = list(_histogram_points(family.samples, times))
        return {**metric, "histogram": {"aggregationTemporality": _CUMULATIVE, "dataPoints": points}}
    points = [{**times, "attributes": _attributes(s.labels), "asDouble": s.value} for s in family.samples]
    if family.type == "counter":
        return {**metric, "sum": {"aggregationTemporality": _CUMULATIVE, "isMonotonic": True, "dataPoints": points}}
    return {**metric, "gauge": {"dataPoints": points}}


def _histogram_points(samples: Iterable[Sample], times: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A point for each label set. Prometheus counts buckets from the lowest up, OTLP each for itself."""
    for labels, group in itertools.groupby(samples, lambda s: {k: v for k, v in s.labels.items() if k != "le"}):
        found = list(group)
        buckets = [(s.labels["le"], int(s.value)) for s in found if s.name.endswith("_bucket")]
        upto = [0, *(count for _, count in buckets)]
        yield {
            **times,
            "attributes": _attributes(labels),
            "count": str(upto[-1]),
            "sum": next(s.value for s in found if s.name.endswith("_sum")),
            "bucketCounts": [str(count - below) for below, count in itertools.pairwise(upto)],
            "explicitBounds": [float(bound) for bound, _ in buckets[:-1]],
        }


def _attributes(labels: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in labels.items()]


def _nanoseconds(at: datetime) -> str:
    return str(round(at.timestamp() * 1_000_000) * 1000)
