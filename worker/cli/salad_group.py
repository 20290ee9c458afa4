"""`sd-worker salad-group`: the container group of SaladCloud that fits these settings, as its API takes it.

Probes are HTTP: the platform asks over IPv6 where the group has the gateway and over IPv4 otherwise, the worker listens
on both, and no process is started for each. Only where it listens on one address of its own are they commands.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

import typer

from worker.cli.output import complain
from worker.errors import ConfigError, FieldError
from worker.log import hide
from worker.models.declared import is_declared
from worker.settings.deployed import Deployed, deployed, placeholder
from worker.settings.groups import Settings, secrets_of
from worker.settings.source import environment, load_settings

IMAGE, GPU_CLASS = placeholder("IMAGE"), placeholder("GPU_CLASS_ID")
REPLICAS = 3
CPUS = 4
MEMORY_MB, MEMORY_MOST_MB = 24_576, 61_440
"""Enough for SDXL, and what a container may have at most."""

DISK_MOST = 250 * 2**30
GATEWAY_MOST = timedelta(milliseconds=100_000)
DELAY_MOST_S, PERIOD_MOST_S, FAILURES_MOST = 1200, 120, 20
NO_DELAY_MOST = timedelta(seconds=PERIOD_MOST_S * FAILURES_MOST)
STARTUP_MOST = timedelta(seconds=DELAY_MOST_S) + NO_DELAY_MOST
JOBS = "/v1/jobs"
_QUEUE = re.compile(r"[a-z][a-z0-9-]{0,61}[a-z0-9]")
_EVERYWHERE = ("::", "")
_IPV4 = "0.0.0.0"  # noqa: S104

Which = Literal["startup", "live", "ready"]


@dataclass(frozen=True, slots=True)
class Way:
    """How jobs reach the group: by the gateway, by the platform's ``queue``, or they are fetched by the nodes."""

    gateway: bool = False
    queue: str | None = None


def salad_group(
    gateway: Annotated[bool, typer.Option("--gateway", help="Requests come through the container gateway.")] = False,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="Jobs come from this job queue of the platform.")
    ] = None,
) -> None:
    """Print SaladCloud's container group for these settings, as its API takes it.

    What has to be filled in looks like <THIS> and is told on stderr, with whatever is doubtful.
    """
    environ = {**environment(), "WORKER_PLATFORM": "salad"}
    if queue is not None and not environ.get("WORKER_QUEUE", "").strip():
        environ["WORKER_QUEUE"] = "salad"
    settings, way = load_settings(environ), Way(gateway, queue)
    hide(secrets_of(settings))
    mistakes = tuple(unfit(settings, way))
    if mistakes:
        raise ConfigError(mistakes)
    given = deployed(settings, {name: value for name, value in environ.items() if name != "WORKER_PLATFORM"})
    print(json.dumps(group_of(settings, way, given), indent=2))
    complain(*(f"warning: {one}" for one in (*settings.warnings, *given.notes, *doubts(settings, way))))
    complain(f"fill in: {', '.join((IMAGE, GPU_CLASS, *map(placeholder, given.to_fill_in)))}")


def group_of(settings: Settings, way: Way, given: Deployed) -> dict[str, Any]:
    """The body of the API's request that creates the group."""
    engine, port = settings.engine.kind, settings.http.port
    group: dict[str, Any] = {
        "name": "sd-worker" if engine == "auto" else f"sd-worker-{engine}",
        "container": {
            "image": IMAGE,
            "resources": {
                "cpu": CPUS,
                "memory": memory_mb(settings),
                "gpu_classes": [GPU_CLASS],
                "storage_amount": settings.node.disk_size,
            },
            "environment_variables": dict(given.variables),
        },
        "autostart_policy": True,
        "restart_policy": "always",
        "replicas": REPLICAS,
    }
    if way.gateway:
        group["networking"] = _networking(settings)
    if way.queue is not None:
        group["queue_connection"] = {"path": JOBS, "port": port, "queue_name": way.queue}
    delay, period = startup_times(start_needs(settings))
    group["startup_probe"] = _probe(settings, way, "startup", delay, period, timeout=10, failures=FAILURES_MOST)
    group["liveness_probe"] = _probe(settings, way, "live", 0, 30, timeout=10, failures=5)
    group["readiness_probe"] = _probe(settings, way, "ready", 0, 2, timeout=5, failures=3)
    return group


def start_needs(settings: Settings) -> timedelta:
    """How long a start may take: what is fetched before it is ready, where there is anything, and the server."""
    models = settings.models.start_timeout if is_declared(settings) else timedelta(0)
    return models + settings.engine.start_timeout


def startup_times(needs: timedelta) -> tuple[int, int]:
    """Delay and period in seconds of a startup probe that gives up no earlier, where the platform lets it.

    No more delay than it takes: who is ready earlier is not asked before, and so gets neither requests nor jobs.
    """
    seconds = min(needs, STARTUP_MOST).total_seconds()
    period = max(1, min(PERIOD_MOST_S, math.ceil(seconds / FAILURES_MOST)))
    return max(0, math.ceil(seconds) - period * FAILURES_MOST), period


def memory_mb(settings: Settings) -> int:
    """What the container gets: so much that the server's share, 90 % of it, is what it may hold."""
    most = settings.engine.memory_max
    return MEMORY_MB if most is None else max(1024, math.ceil(most / 0.9 / 2**20))


def unfit(settings: Settings, way: Way) -> Iterator[FieldError]:
    """What the platform does not take, or could never work there."""
    if way.gateway and way.queue is not None:
        yield FieldError("--queue", "and --gateway exclude each other")
    if way.queue is not None and not _QUEUE.fullmatch(way.queue):
        yield FieldError("--queue", "must be 2 to 63 of a-z, 0-9 and -, with a letter first and no - at the end")
    if settings.http.port == 0:
        yield FieldError("WORKER_HTTP_PORT", "is 0: the platform has to know the port")
    if way.gateway and settings.http.host not in _EVERYWHERE:
        yield FieldError("WORKER_HTTP_HOST", "must be ::, since the gateway comes by IPv6 and from outside")
    if way.gateway and way.queue is None and not settings.takes_http_jobs:
        yield FieldError("WORKER_HTTP_JOBS", "is off, or `auto` without WORKER_API_KEY: no job could be taken")
    if way.queue is not None and settings.queue.kind != "salad":
        yield FieldError("WORKER_QUEUE", f"is {settings.queue.kind}: nobody would take the jobs of --queue")
    if way.queue is None and settings.queue.kind == "salad":
        yield FieldError("WORKER_QUEUE", "is salad: --queue has to say which one")
    if settings.node.disk_size > DISK_MOST:
        yield FieldError("WORKER_DISK_SIZE", "is more than the 250 GiB that a container may have")
    if memory_mb(settings) > MEMORY_MOST_MB:
        yield FieldError("WORKER_ENGINE_MEMORY_MAX", "takes a container of more than the 60 GiB that it may have")


def doubts(settings: Settings, way: Way) -> Iterator[FieldError]:
    """What works, but hardly as it was meant."""
    needs, timeout = start_needs(settings), settings.http.timeout
    delay, _ = startup_times(needs)
    if needs > STARTUP_MOST:
        yield FieldError(
            "WORKER_MODELS_START_TIMEOUT",
            f"and WORKER_ENGINE_START_TIMEOUT come to {_minutes(needs)}; the longest startup probe ends after "
            f"{_minutes(STARTUP_MOST)}, and the node is moved then",
        )
    if delay:
        yield FieldError(
            "WORKER_MODELS_START_TIMEOUT",
            f"takes a startup probe that begins after {_minutes(timedelta(seconds=delay))}: nodes that are ready "
            "earlier get nothing from gateway or queue until then; with WORKER_ENGINE_START_TIMEOUT at most "
            f"{_minutes(NO_DELAY_MOST)} in all, it begins at once",
        )
    if way.gateway and (timeout is None or timeout >= GATEWAY_MOST):
        yield FieldError("WORKER_HTTP_TIMEOUT", "is not below the 100 s after which the gateway answers 524")
    if way.gateway and settings.http.api_key is None:
        yield FieldError("WORKER_API_KEY", "is not set: the gateway asks for a Salad-Api-Key instead")


def _networking(settings: Settings) -> dict[str, Any]:
    """With the gateway's own authentication where the worker asks for no key; the worker bounds its queue itself."""
    most = int(GATEWAY_MOST / timedelta(milliseconds=1))
    return {
        "protocol": "http",
        "port": settings.http.port,
        "auth": settings.http.api_key is None,
        "load_balancer": "least_number_of_connections",
        "single_connection_limit": False,
        "client_request_timeout": most,
        "server_response_timeout": most,
    }


def _probe(
    settings: Settings, way: Way, which: Which, delay: int, period: int, *, timeout: int, failures: int
) -> dict[str, Any]:
    return {
        **_action(settings, way, which),
        "initial_delay_seconds": delay,
        "period_seconds": period,
        "timeout_seconds": timeout,
        "success_threshold": 1,
        "failure_threshold": failures,
    }


def _action(settings: Settings, way: Way, which: Which) -> dict[str, Any]:
    host = settings.http.host
    if host in _EVERYWHERE or (host == _IPV4 and not way.gateway):
        headers = [{"name": "accept", "value": "application/json"}]
        return {"http": {"path": f"/{which}", "port": settings.http.port, "scheme": "http", "headers": headers}}
    return {"exec": {"command": ["sd-worker", "probe", which]}}


def _minutes(time: timedelta) -> str:
    return f"{time / timedelta(minutes=1):g} minutes"
