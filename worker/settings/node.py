"""What the node is, where it runs, and what it must be capable of."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from worker.settings.checks import NodeName, PrivateHosts
from worker.settings.fields import ZERO, Group, var
from worker.settings.units import Duration, Size, WebUrl

_DAY = timedelta(days=1)


class NodeSettings(Group):
    urls_allow_private: PrivateHosts = var(
        "WORKER_URLS_ALLOW_PRIVATE",
        "false",
        "`true`, or hosts and CIDRs, that URLs named by a job may point at; link-local stays refused unless listed",
    )
    platform: Literal["auto", "plain", "salad"] = var(
        "WORKER_PLATFORM", "auto", "where the node runs: `plain`, `salad`; `auto` tells by the platform's variables"
    )
    node_id: NodeName | None = var(
        "WORKER_NODE_ID",
        None,
        "this worker's name in results and logs",
        shown="the host's name, on Salad the machine's id",
    )
    blocked_for: Duration = var(
        "WORKER_BLOCKED_FOR",
        timedelta(minutes=30),
        "on Salad: how long a node with a mistake in its configuration stays, telling it, before it exits",
        shown="30m",
        gt=ZERO,
    )
    disk_size: Size = var(
        "WORKER_DISK_SIZE",
        50_000_000_000,
        "writable disk as ordered; what is written stays 2 GB below it",
        shown="50GB",
        gt=2_000_000_000,
    )
    drain_timeout: Duration = var(
        "WORKER_DRAIN_TIMEOUT",
        timedelta(seconds=25),
        "from SIGTERM to the last moment of the running job",
        shown="25s",
        le=_DAY,
    )
    price_per_hour: float | None = var("WORKER_PRICE_PER_HOUR", None, "adds `cost` to results", ge=0)
    metrics_push_url: WebUrl | None = var("WORKER_METRICS_PUSH_URL", None, "OTLP over HTTP, beside `/metrics`")
    log_level: Literal["debug", "info", "warning", "error"] = var(
        "WORKER_LOG_LEVEL", "info", "least severe that is printed"
    )
    log_format: Literal["auto", "json", "console"] = var(
        "WORKER_LOG_FORMAT", "auto", "`json` when stdout is no terminal, else `console`"
    )
    strict: bool = var("WORKER_STRICT", False, "unknown `WORKER_` variables are errors", shown="false")


class FitnessSettings(Group):
    """What a fit node must have; what is not set is not checked. A `WORKER_DISK_SIZE` that is set counts then, too."""

    vram: Size | None = var(
        "WORKER_FITNESS_VRAM",
        None,
        "memory that the GPU must have free before the server starts (in all where it runs already), such as `20GB`",
        gt=0,
    )
    download: Size | None = var(
        "WORKER_FITNESS_DOWNLOAD",
        None,
        "bytes a second that must come from the first model source, such as `10MB`",
        gt=0,
    )
    upload: Size | None = var(
        "WORKER_FITNESS_UPLOAD", None, "bytes a second that must go out to `WORKER_S3_BUCKET`, such as `1MB`", gt=0
    )
    step: Duration | None = var(
        "WORKER_FITNESS_STEP",
        None,
        "the longest that one step of the warm-up job may take once it is warm, decoding included, such as `0.5s`",
        gt=ZERO,
    )


class SaladSettings(Group):
    """What SaladCloud sets in each of its containers; nobody sets it by hand but for a trial."""

    machine_id: str | None = var("SALAD_MACHINE_ID", None, "the node's hardware")
    instance_id: str | None = var("SALAD_INSTANCE_ID", None, "this start of the container")
    container_group_id: str | None = var("SALAD_CONTAINER_GROUP_ID", None, "the deployment")
    container_group_name: str | None = var("SALAD_CONTAINER_GROUP_NAME", None, "its name")
    organization_id: str | None = var("SALAD_ORGANIZATION_ID", None, "whose it is")
    organization_name: str | None = var("SALAD_ORGANIZATION_NAME", None, "their name, which is part of S4's addresses")
    project_id: str | None = var("SALAD_PROJECT_ID", None, "the project")
    project_name: str | None = var("SALAD_PROJECT_NAME", None, "its name")
    metadata_uri: WebUrl = var("SALAD_METADATA_URI", "http://169.254.169.254:80", "the instance metadata service")
    storage_uri: WebUrl = var("SALAD_STORAGE_URI", "https://storage-api.salad.com", "its temporary storage service, S4")
    service_endpoint: str = var(
        "SALAD_SERVICE_ENDPOINT", "job-queue-worker-api.salad.com:443", "the job queue's service, host and port"
    )
    service_use_tls: bool = var("SALAD_SERVICE_USE_TLS", True, "whether it speaks TLS", shown="true")
