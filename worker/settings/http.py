"""What the HTTP service listens on, and how it takes jobs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from worker.settings.fields import ZERO, Group, var
from worker.settings.units import Duration, Size


class HttpSettings(Group):
    host: str = var("WORKER_HTTP_HOST", "::", "`::` listens on IPv6 and IPv4")
    port: int = var("WORKER_HTTP_PORT", 3000, "probes, status, metrics and jobs", ge=0, le=65535)
    jobs: Literal["auto", "on", "off"] = var(
        "WORKER_HTTP_JOBS", "auto", "job and model endpoints; `auto`: on when the queue is `none` or a key is set"
    )
    api_key: SecretStr | None = var(
        "WORKER_API_KEY",
        None,
        "needed by everything but the probes: `Authorization: Bearer`, `X-API-Key`, or password of HTTP Basic",
    )
    max_body: Size = var("WORKER_MAX_BODY", 100_000_000, "larger documents are refused", shown="100MB", gt=0)
    max_pending: int = var("WORKER_MAX_PENDING", 16, "waiting HTTP jobs; one more is answered 429", ge=1)
    max_wait: Duration = var(
        "WORKER_MAX_WAIT",
        timedelta(seconds=60),
        "measured waiting time plus the job's own estimate; a job beyond it is answered 429 with `Retry-After`",
        shown="60s",
        gt=ZERO,
    )
    timeout: Duration | None = var(
        "WORKER_HTTP_TIMEOUT",
        None,
        "a synchronous job that takes longer is answered 504 with its id, and goes on",
        shown="none, on Salad 95s",
        gt=ZERO,
    )
    cancel_on_disconnect: bool = var(
        "WORKER_HTTP_CANCEL_ON_DISCONNECT", True, "a synchronous job whose caller went away is cancelled", shown="true"
    )
    workflows_dir: Path = var("WORKER_WORKFLOWS_DIR", Path("/workflows"), "custom endpoints", shown="/workflows")
