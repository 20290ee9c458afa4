"""What the dispatcher counts of itself, under names that begin with ``sd_dispatcher_``.

One `Metrics` has a registry of its own. Its methods never fail; prometheus-client is loaded with the first object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.words import Why

if TYPE_CHECKING:
    from prometheus_client import Metric

PREFIX = "sd_dispatcher_"
ASSIGNMENTS = PREFIX + "assignments_total"
LOADS = PREFIX + "loads_total"
LOST_GPU_SECONDS = PREFIX + "lost_gpu_seconds_total"
REQUEST_SECONDS = PREFIX + "request_seconds"
BATCH_SIZE = PREFIX + "batch_size"
SUBMITTED = PREFIX + "jobs_submitted_total"
ENDED = PREFIX + "jobs_ended_total"
RELEASED = PREFIX + "jobs_released_total"
STALE = PREFIX + "stale_tokens_total"
SWEPT = PREFIX + "jobs_swept_total"
WEBHOOKS = PREFIX + "webhooks_total"
BUGS = PREFIX + "bugs_total"
WAITING = PREFIX + "jobs_waiting"
LEASED = PREFIX + "jobs_leased"
NODES = PREFIX + "nodes"
POLLS = PREFIX + "polls_held"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.08, 0.15, 0.3, 1, 5, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Observed:
    """What is asked for at the moment of a scrape instead of being kept up to date. ``nodes``: alive, away."""

    waiting: Callable[[], int] = int
    leased: Callable[[], int] = int
    nodes: Callable[[], tuple[int, int]] = lambda: (0, 0)
    polls: Callable[[], int] = int


class Metrics:
    """The counters of one dispatcher; each method notes one thing that happened."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

        self.registry = registry = CollectorRegistry(auto_describe=True)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        self._assignments = counter(ASSIGNMENTS, "Jobs given to nodes, by why they were.", "why")
        self._loads = counter(LOADS, "Jobs given to nodes that did not have their model in memory.")
        self._lost = counter(LOST_GPU_SECONDS, "Expected time of GPUs without work, by what they wait for.", "what")
        self._requests = Histogram(
            REQUEST_SECONDS,
            "From a request to its answer; long polls without their waiting.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(BATCH_SIZE, "Nodes that one decision was made for.", buckets=SIZES, registry=registry)
        self._submitted = counter(SUBMITTED, "Jobs that were submitted for the first time.")
        self._ended = counter(ENDED, "Jobs that nodes brought to an end, by status.", "status")
        self._released = counter(RELEASED, "Jobs that nodes gave back, by reason.", "code")
        self._stale = counter(STALE, "Answers under a lease that is over; they changed nothing.", "verb")
        self._swept = counter(SWEPT, "Jobs that the dispatcher itself moved on, by what became of them.", "what")
        self._webhooks = counter(WEBHOOKS, "Owed webhooks that came to an end, by outcome.", "outcome")
        self._bugs = counter(BUGS, "Failures that nobody foresaw; the log has their tracebacks.")
        ProcessCollector(registry=registry)

    def observe(self, observed: Observed) -> None:
        """Ask for these at each scrape; once."""
        self.registry.register(_Observing(observed))

    def assigned(self, why: Why, cost_s: float, *, load: bool, download: bool) -> None:
        """A node got a job; ``cost_s`` is what it needs before its first step."""
        self._assignments.labels(why).inc()
        if load:
            self._loads.inc()
        if cost_s > 0:
            self._lost.labels("download" if download else "swap").inc(cost_s)

    def request(self, endpoint: str, seconds: float) -> None:
        self._requests.labels(endpoint).observe(max(0.0, seconds))

    def batch(self, size: int) -> None:
        self._batches.observe(size)

    def submitted(self, count: int) -> None:
        self._submitted.inc(count)

    def ended(self, status: str) -> None:
        self._ended.labels(status).inc()

    def released(self, code: str) -> None:
        self._released.labels(code).inc()

    def stale(self, verb: str) -> None:
        self._stale.labels(verb).inc()

    def swept(self, what: str, count: int) -> None:
        self._swept.labels(what).inc(count)

    def webhook(self, outcome: str) -> None:
        self._webhooks.labels(outcome).inc()

    def bug(self) -> None:
        self._bugs.inc()

    def value(self, name: str, **labels: str) -> float:
        """The present value of one series, 0 when nothing was noted yet."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def text(self) -> bytes:
        """All of it in Prometheus's text format; its media type is `worker.metrics.CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class _Observing:
    """Asks the rest of the dispatcher at each scrape; a collector in prometheus-client's sense."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        seen = self._observed
        yield GaugeMetricFamily(WAITING, "Jobs that wait, in all processes.", value=seen.waiting())
        yield GaugeMetricFamily(LEASED, "Jobs that nodes say they hold.", value=seen.leased())
        yield GaugeMetricFamily(POLLS, "Requests for work that are held back here.", value=seen.polls())
        nodes = GaugeMetricFamily(NODES, "Nodes, by whether they were heard of lately.", labels=["state"])
        for state, count in zip(("alive", "away"), seen.nodes(), strict=True):
            nodes.add_metric([state], count)
        yield nodes
