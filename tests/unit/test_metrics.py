"""What is counted, under which names."""

from __future__ import annotations

import re
import subprocess
import sys

from worker import metrics
from worker.metrics import Metrics, Observed
from worker.status import Phase

COUNTED = {
    "sd_worker_jobs_settled_total": {"status": "failed", "code": "invalid_job"},
    "sd_worker_deliveries_received_total": {},
    "sd_worker_deliveries_returned_total": {"code": "draining"},
    "sd_worker_generation_busy_seconds_total": {},
    "sd_worker_engine_faults_total": {"code": "engine_oom"},
    "sd_worker_uploads_bytes_total": {},
    "sd_worker_webhooks_total": {"outcome": "delivered"},
    "sd_worker_pauses_total": {"code": "upload_failed"},
    "sd_worker_bugs_total": {},
    "sd_worker_models_hits_total": {},
    "sd_worker_models_misses_total": {},
    "sd_worker_models_evictions_total": {},
    "sd_worker_models_downloaded_bytes_total": {},
    "sd_worker_models_wait_seconds_total": {},
    "sd_worker_paused": {"code": "upload_failed"},
    "sd_worker_orders_total": {"order": "evict", "outcome": "model_in_use"},
    "sd_worker_http_jobs_refused_total": {"code": "not_ready"},
}


def eventful() -> Metrics:
    """Metrics after one of everything."""
    found = Metrics()
    found.hop("upload", 0.3)
    found.settled("failed", "invalid_job")
    found.received()
    found.returned("draining")
    found.busy(1)
    found.engine_fault("engine_oom")
    found.uploaded(1)
    found.webhook("delivered")
    found.paused("upload_failed", True)
    found.bug()
    found.models_used(1, 1)
    found.model_evicted()
    found.model_downloaded(1)
    found.models_waited(1)
    found.ordered("evict", "model_in_use")
    found.http_refused("not_ready")
    return found


def test_each_method_counts_under_its_public_name() -> None:
    """Dashboards are built on these names and labels."""
    found = eventful()
    assert {name: found.value(name, **labels) for name, labels in COUNTED.items()} == dict.fromkeys(COUNTED, 1.0)


def test_successes_have_an_empty_code() -> None:
    """A label cannot be missing: success has the code of nothing."""
    found = Metrics()
    found.settled("succeeded", None)
    assert found.value(metrics.JOBS_SETTLED, status="succeeded", code="") == 1


def test_hops_fall_into_buckets() -> None:
    """Quantiles of each hop can be computed, from milliseconds to half an hour."""
    found = Metrics()
    for seconds in (0.001, 0.3, 40, 4000):
        found.hop("generate", seconds)
    name = metrics.HOP_SECONDS
    assert [
        found.value(f"{name}_bucket", hop="generate", le=le) for le in ("0.005", "0.5", "60.0", "1800.0", "+Inf")
    ] == [
        1,
        2,
        3,
        3,
        4,
    ]
    assert found.value(f"{name}_sum", hop="generate") == 4040.301


def test_a_pause_counts_once_however_often_it_is_told() -> None:
    """The gauge follows, the counter counts beginnings, and each reason stands for itself."""
    found = Metrics()
    for code, on in (("a", False), ("a", True), ("a", True), ("b", True), ("a", False), ("a", True), ("b", False)):
        found.paused(code, on)
    assert [found.value(metrics.PAUSES, code=code) for code in "ab"] == [2, 1]
    assert [found.value(metrics.PAUSED, code=code) for code in "ab"] == [1, 0]
    assert found.pauses == {"a"}


def test_time_does_not_run_backwards() -> None:
    """A negative duration, as a clock that steps back would give, counts for nothing."""
    found = Metrics()
    found.busy(2)
    found.busy(-1)
    assert found.value(metrics.GENERATION_BUSY_SECONDS) == 2


def test_the_rest_of_the_worker_is_asked_at_each_scrape() -> None:
    """Phase (one-hot), held jobs, clock offset and bytes are those of the moment."""
    phase, held = Phase.STARTING, [1]
    found = Metrics(
        Observed(
            phases=tuple(Phase),
            phase=lambda: phase,
            jobs_held=lambda: len(held),
            jobs_parked=lambda: 1,
            clock_offset_s=lambda: -3.5,
            unpublished_bytes=lambda: 70,
            models_bytes=lambda: 80,
            models_cap_bytes=lambda: 90,
        )
    )
    assert found.value(metrics.PHASE, phase="starting") == 1
    phase = Phase.READY
    held.append(2)
    assert {p: found.value(metrics.PHASE, phase=p) for p in Phase} == {p: float(p is Phase.READY) for p in Phase}
    assert found.value(metrics.JOBS_HELD) == 2
    assert found.value(metrics.JOBS_PARKED) == 1
    assert found.value(metrics.CLOCK_OFFSET_SECONDS) == -3.5
    assert found.value(metrics.UNPUBLISHED_BYTES) == 70
    assert found.value(metrics.MODELS_CACHE_BYTES) == 80
    assert found.value(metrics.MODELS_CACHE_CAP_BYTES) == 90


def test_counters_for_people() -> None:
    """The status page sums each counter over its labels, without prefix."""
    found = eventful()
    found.settled("succeeded", None)
    assert found.counters() == {
        "jobs_settled": 2,
        "deliveries_received": 1,
        "deliveries_returned": 1,
        "generation_busy_seconds": 1,
        "engine_faults": 1,
        "engine_restarts": 0,
        "uploads_bytes": 1,
        "images": 0,
        "previous_runs": 0,
        "webhooks": 1,
        "pauses": 1,
        "bugs": 1,
        "models_hits": 1,
        "models_misses": 1,
        "models_evictions": 1,
        "models_downloaded_bytes": 1,
        "models_wait_seconds": 1,
        "orders": 1,
        "http_jobs_refused": 1,
    }


def test_jobs_are_counted_by_how_they_ended() -> None:
    """Whatever their error codes; the busy time is that of the counter."""
    found = eventful()
    found.settled("failed", "model_not_found")
    found.settled("succeeded", None)
    assert found.jobs() == {"failed": 2, "succeeded": 1}
    assert found.busy_s == 1


def test_what_was_not_measured_has_no_series() -> None:
    """A rate of 0 would be a measurement."""
    measured: dict[str, float] = {}
    found = Metrics(Observed(rates=lambda: measured))
    assert not [line for line in found.text().splitlines() if b"_per_second" in line or b"step_seconds" in line]
    measured |= {"disk": 5e8, "network": 6e7, "load": 8.5, "step": 0.2}
    assert {name: found.value(metrics.RATES[name][0]) for name in measured} == measured


def test_the_text_is_of_prometheus() -> None:
    """Each line is a comment or a sample; the process is described; no `_created` series doubles the text."""
    lines = eventful().text().decode().splitlines()
    sample = re.compile(r'[a-z_]+(\{([a-z_]+="[^"]*",?)+\})? -?[0-9.e+-]+')
    assert [line for line in lines if not line.startswith("# ") and not sample.fullmatch(line)] == []
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"} <= {
        line.split()[0] for line in lines
    }
    assert [line for line in lines if "_created" in line] == []


def test_many_can_live_in_one_process() -> None:
    """A registry each: what one counts, the other does not."""
    one, other = Metrics(), Metrics()
    one.bug()
    assert (one.value(metrics.BUGS), other.value(metrics.BUGS)) == (1, 0)


def test_importing_costs_nothing() -> None:
    """The library is loaded with the first object, not with the module."""
    script = "import sys, worker.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
