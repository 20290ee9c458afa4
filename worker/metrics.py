"""What the worker counts of itself, under names that begin with ``sd_worker_``.

A `Metrics` has a registry of its own, so that many can live in one process. The methods may be called from any
thread and never fail; prometheus-client is loaded with the first object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Metric

PREFIX = "sd_worker_"
HOP_SECONDS = PREFIX + "hop_seconds"
JOBS_SETTLED = PREFIX + "jobs_settled_total"
DELIVERIES_RECEIVED = PREFIX + "deliveries_received_total"
DELIVERIES_RETURNED = PREFIX + "deliveries_returned_total"
GENERATION_BUSY_SECONDS = PREFIX + "generation_busy_seconds_total"
ENGINE_FAULTS = PREFIX + "engine_faults_total"
ENGINE_RESTARTS = PREFIX + "engine_restarts_total"
ENGINE_MEMORY_BYTES = PREFIX + "engine_memory_bytes"
UPLOADS_BYTES = PREFIX + "uploads_bytes_total"
WEBHOOKS = PREFIX + "webhooks_total"
PAUSES = PREFIX + "pauses_total"
PAUSED = PREFIX + "paused"
BUGS = PREFIX + "bugs_total"
PHASE = PREFIX + "phase"
JOBS_HELD = PREFIX + "jobs_held"
JOBS_PARKED = PREFIX + "jobs_parked"
CLOCK_OFFSET_SECONDS = PREFIX + "clock_offset_seconds"
UNPUBLISHED_BYTES = PREFIX + "unpublished_bytes"
MODELS_HITS = PREFIX + "models_hits_total"
MODELS_MISSES = PREFIX + "models_misses_total"
MODELS_EVICTIONS = PREFIX + "models_evictions_total"
MODELS_DOWNLOADED_BYTES = PREFIX + "models_downloaded_bytes_total"
MODELS_WAIT_SECONDS = PREFIX + "models_wait_seconds_total"
MODELS_CACHE_BYTES = PREFIX + "models_cache_bytes"
MODELS_CACHE_CAP_BYTES = PREFIX + "models_cache_cap_bytes"
ORDERS = PREFIX + "orders_total"
HTTP_JOBS_WAITING = PREFIX + "http_jobs_waiting"
HTTP_JOBS_REFUSED = PREFIX + "http_jobs_refused_total"
IMAGES = PREFIX + "images_total"
PREVIOUS_RUNS = PREFIX + "previous_runs_total"
RATES = {
    "disk": (PREFIX + "disk_bytes_per_second", "How fast model files are read."),
    "network": (PREFIX + "network_bytes_per_second", "How fast model files are downloaded."),
    "load": (PREFIX + "load_seconds", "What the server takes to load another checkpoint."),
    "step": (PREFIX + "step_seconds", "What a sampling step of one picture takes."),
}
"""Names and meanings of what a node measured of itself; a series is missing until it was measured."""

VITALS = {
    "memory_used_bytes": "Memory that the container holds and cannot drop.",
    "memory_total_bytes": "Memory that the container may hold.",
    "vram_used_bytes": "Memory of the GPU that is taken, by whomever.",
    "vram_total_bytes": "Memory of the GPU.",
    "disk_free_bytes": "Bytes that can still be written on the worker's disk.",
}
"""Figures of the machine, by name without prefix, and their meanings; a series is missing until it was read."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HOP_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


@dataclass(frozen=True, slots=True)
class Observed:
    """What is asked for at the moment of a scrape instead of being kept up to date."""

    phases: Sequence[str] = ()
    phase: Callable[[], str] = str
    jobs_held: Callable[[], int] = int
    jobs_parked: Callable[[], int] = int
    clock_offset_s: Callable[[], float] = float
    unpublished_bytes: Callable[[], int] = int
    models_bytes: Callable[[], int] = int
    models_cap_bytes: Callable[[], int] = int
    rates: Callable[[], Mapping[str, float]] = dict
    vitals: Callable[[], Mapping[str, float]] = dict


class Metrics:
    """The counters of one worker; each method notes one thing that happened."""

    def __init__(self, observed: Observed | None = None) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
        from prometheus_client import disable_created_metrics as without_created_series

        without_created_series()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        self._hops = Histogram(
            HOP_SECONDS, "Time of each hop of a job.", ["hop"], buckets=HOP_BUCKETS_S, registry=registry
        )
        self._settled = counter(JOBS_SETTLED, "Jobs that ended, by status and error code.", "status", "code")
        self._received = counter(DELIVERIES_RECEIVED, "Deliveries taken from the queue.")
        self._returned = counter(DELIVERIES_RETURNED, "Deliveries given back to the queue, by reason.", "code")
        self._busy = counter(GENERATION_BUSY_SECONDS, "Time in which the engine generated.")
        self._faults = counter(ENGINE_FAULTS, "Failures of the image server, by code.", "code")
        self._restarts = counter(ENGINE_RESTARTS, "Restarts of the image server's process, by reason.", "reason")
        self._engine_memory = Gauge(
            ENGINE_MEMORY_BYTES, "Memory that the image server holds, without mapped files.", registry=registry
        )
        self.engine_holds: int | None = None
        """The image server's memory as it was read last."""
        self._uploaded = counter(UPLOADS_BYTES, "Bytes of images stored.")
        self._images = counter(IMAGES, "Images stored, or sent in results.")
        self._webhooks = counter(WEBHOOKS, "Webhooks that came to an end, by outcome.", "outcome")
        self._pauses_total = counter(PAUSES, "Times that intake was paused, by reason.", "code")
        self._paused = Gauge(PAUSED, "1 while intake is paused for this reason.", ["code"], registry=registry)
        self.pauses: frozenset[str] = frozenset()
        self._bugs = counter(BUGS, "Failures that nobody foresaw; the log has their tracebacks.")
        self._models_hits = counter(MODELS_HITS, "Models that were on disk when they were wanted.")
        self._models_misses = counter(MODELS_MISSES, "Models that were not on disk when they were wanted.")
        self._models_evictions = counter(MODELS_EVICTIONS, "Model files deleted to make room.")
        self._models_downloaded = counter(MODELS_DOWNLOADED_BYTES, "Bytes of model files that came whole.")
        self._models_wait = counter(MODELS_WAIT_SECONDS, "Time in which somebody waited for models.")
        self._orders = counter(ORDERS, "Orders of the queue that came to an end, by outcome.", "order", "outcome")
        self._http_waiting = Gauge(HTTP_JOBS_WAITING, "Jobs over HTTP that wait for their turn.", registry=registry)
        self._http_refused = counter(HTTP_JOBS_REFUSED, "Jobs over HTTP that were not taken in, by code.", "code")
        self._previous = counter(PREVIOUS_RUNS, "Runs of which this one found how they ended, by cause.", "cause")
        registry.register(_Observing(observed or Observed()))
        ProcessCollector(registry=registry)

    def hop(self, name: str, seconds: float) -> None:
        self._hops.labels(name).observe(seconds)

    def settled(self, status: str, code: str | None) -> None:
        self._settled.labels(status, code or "").inc()

    def received(self) -> None:
        self._received.inc()

    def returned(self, code: str) -> None:
        self._returned.labels(code).inc()

    def busy(self, seconds: float) -> None:
        """The engine generated for so long; clocks that step back count for nothing."""
        self._busy.inc(max(0.0, seconds))

    def engine_fault(self, code: str) -> None:
        self._faults.labels(code).inc()

    def engine_restarted(self, reason: str) -> None:
        self._restarts.labels(reason).inc()

    def engine_memory(self, bytes: int) -> None:
        self.engine_holds = bytes
        self._engine_memory.set(bytes)

    def uploaded(self, bytes: int) -> None:
        self._uploaded.inc(bytes)

    def imaged(self, count: int) -> None:
        """A job's images are safe."""
        self._images.inc(count)

    def previous_run(self, cause: str) -> None:
        """The run before this one was found to have ended so."""
        self._previous.labels(cause).inc()

    def webhook(self, outcome: str) -> None:
        self._webhooks.labels(outcome).inc()

    def paused(self, code: str, on: bool) -> None:
        """Intake is (no longer) paused for a reason; each beginning counts once, however often it is told."""
        if on and code not in self.pauses:
            self._pauses_total.labels(code).inc()
        self.pauses = self.pauses | {code} if on else self.pauses - {code}
        self._paused.labels(code).set(on)

    def models_used(self, hits: int, misses: int) -> None:
        """So many models were on disk when they were wanted, so many were not."""
        self._models_hits.inc(hits)
        self._models_misses.inc(misses)

    def model_evicted(self) -> None:
        self._models_evictions.inc()

    def model_downloaded(self, bytes: int) -> None:
        self._models_downloaded.inc(bytes)

    def models_waited(self, seconds: float) -> None:
        self._models_wait.inc(max(0.0, seconds))

    def ordered(self, order: str, outcome: str) -> None:
        """An order came to an end: ``done``, or the code of the error that was in its way."""
        self._orders.labels(order, outcome).inc()

    def http_waiting(self, count: Callable[[], int]) -> None:
        """How many jobs of HTTP callers wait is asked for at each scrape."""
        self._http_waiting.set_function(count)

    def http_refused(self, code: str) -> None:
        self._http_refused.labels(code).inc()

    def jobs(self) -> dict[str, int]:
        """Jobs that ended here since the start, by how."""
        ended: dict[str, int] = {}
        for sample in next(iter(self._settled.collect())).samples:
            status = sample.labels["status"]
            ended[status] = ended.get(status, 0) + int(sample.value)
        return ended

    def ends(self) -> dict[str, dict[str, int]]:
        """Jobs that ended here since the start: by how, then by error code, ``""`` without one."""
        ended: dict[str, dict[str, int]] = {}
        for sample in next(iter(self._settled.collect())).samples:
            ended.setdefault(sample.labels["status"], {})[sample.labels["code"]] = int(sample.value)
        return ended

    @property
    def busy_s(self) -> float:
        """Seconds in which the engine generated."""
        return self.value(GENERATION_BUSY_SECONDS)

    def bug(self) -> None:
        self._bugs.inc()

    def value(self, name: str, **labels: str) -> float:
        """The present value of one series, 0 when nothing was noted yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def counters(self) -> dict[str, float]:
        """Our counters without prefix and suffix, each summed over its labels."""
        return {
            family.name.removeprefix(PREFIX): sum((s.value for s in family.samples), 0.0)
            for family in self.registry.collect()
            if family.type == "counter" and family.name.startswith(PREFIX)
        }

    def families(self) -> Iterable[Metric]:
        return self.registry.collect()

    def text(self) -> bytes:
        """All of it in Prometheus's text format; its media type is `CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Observing:
    """Asks the rest of the worker at each scrape; a collector in prometheus-client's sense."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        seen = self._observed
        phase = GaugeMetricFamily(PHASE, "1 for the phase that the worker is in.", labels=["phase"])
        now = seen.phase()
        for name in seen.phases:
            phase.add_metric([name], float(name == now))
        yield phase
        yield GaugeMetricFamily(JOBS_HELD, "Jobs that this worker holds.", value=seen.jobs_held())
        yield GaugeMetricFamily(JOBS_PARKED, "Jobs held that wait for their models.", value=seen.jobs_parked())
        yield GaugeMetricFamily(
            CLOCK_OFFSET_SECONDS, "By how much servers' clocks are ahead of ours.", value=seen.clock_offset_s()
        )
        yield GaugeMetricFamily(
            UNPUBLISHED_BYTES, "Finished images in memory that are not stored yet.", value=seen.unpublished_bytes()
        )
        yield GaugeMetricFamily(
            MODELS_CACHE_BYTES, "What models and partial files take of the cache.", value=seen.models_bytes()
        )
        yield GaugeMetricFamily(
            MODELS_CACHE_CAP_BYTES, "What models may take at most just now.", value=seen.models_cap_bytes()
        )
        for rate, value in seen.rates().items():
            yield GaugeMetricFamily(*RATES[rate], value=value)
        for name, value in seen.vitals().items():
            yield GaugeMetricFamily(PREFIX + name, VITALS[name], value=value)
