"""Where jobs come from, and how long and how often they are handed over."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import SecretStr, StringConstraints

from worker.settings.fields import Group, var
from worker.settings.units import Duration, WebUrl

QueueKind = Literal["none", "sqlite", "availability", "salad", "sqs", "redis"]
StreamName = Annotated[str, StringConstraints(pattern=r"^[!-z|~]{1,128}$")]


class QueueSettings(Group):
    kind: QueueKind = var(
        "WORKER_QUEUE",
        "none",
        "where jobs come from: over HTTP alone, the embedded queue, a scheduling server that gives each node the job whose model it has, SaladCloud's job queue, Amazon SQS, or a Redis stream",
    )
    window: int = var("WORKER_QUEUE_WINDOW", 3, "at most so many deliveries generating or ready to", ge=1, le=32)
    parked: int = var(
        "WORKER_QUEUE_PARKED",
        2,
        "deliveries waiting for a model, beside the window; later jobs overtake them",
        ge=0,
        le=32,
    )
    visibility: Duration = var(
        "WORKER_QUEUE_VISIBILITY",
        timedelta(seconds=120),
        "lease, renewed at a quarter of it",
        shown="120s",
        ge=timedelta(seconds=1),
        le=timedelta(hours=12),
    )
    max_attempts: int = var("WORKER_QUEUE_MAX_ATTEMPTS", 3, "charged attempts", ge=1)
    max_deliveries: int = var(
        "WORKER_QUEUE_MAX_DELIVERIES", 10, "hand-overs, then dead-lettered as `delivery_limit`", ge=1
    )
    sqlite_path: Path = var("WORKER_SQLITE_PATH", Path("./sd-worker.db"), "the queue's file", shown="./sd-worker.db")
    availability_url: WebUrl | None = var(
        "WORKER_AVAILABILITY_URL", None, "of the scheduling server, such as `sd-dispatcher`; needed with `availability`"
    )
    availability_token: SecretStr | None = var(
        "WORKER_AVAILABILITY_TOKEN", None, "a node's token for it", shown="the platform's identity token"
    )
    availability_user_token: SecretStr | None = var(
        "WORKER_AVAILABILITY_USER_TOKEN", None, "a user's token for it: for `sd-worker submit` and `queue`"
    )
    sqs_queue_url: WebUrl | None = var("WORKER_SQS_QUEUE_URL", None, "of the queue; credentials by the standard chain")
    redis_url: SecretStr | None = var("WORKER_REDIS_URL", None, "`redis://` or `rediss://`, with the password in it")
    redis_stream: StreamName = var("WORKER_REDIS_STREAM", "sd-jobs", "the stream's key; what belongs to it begins so")
    redis_group: StreamName = var("WORKER_REDIS_GROUP", "sd-workers", "the consumer group")
