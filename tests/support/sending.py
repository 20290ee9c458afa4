"""What tests of webhooks send, and a sender that is in a hurry."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.receiver import ScriptedServer
from worker.clock import CorrectedClock, SystemClock
from worker.job import Job, Limits, parse
from worker.result import FileResult, ImageResult, Result, WorkerResult
from worker.retry import Policy
from worker.signature import decode_secrets
from worker.urls import Guard
from worker.webhooks import Defaults, Sender

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-of-32-bytes-long!").decode()
WORKER = WorkerResult(id="w1", version="1")
TWICE = Policy(attempts=2, first=timedelta(milliseconds=1), most=timedelta(milliseconds=1))
SWIFT = Policy(attempts=50, first=timedelta(milliseconds=5), most=timedelta(milliseconds=20))
FINISHED = datetime(2026, 3, 1, 12, 0, 1, 500_000, tzinfo=UTC)


def job_of(**fields: Any) -> Job:
    return parse({"params": {"prompt": "a cat"}, **fields}, fallback_id="job-1", limits=Limits())


def result_of(job: Job, **fields: Any) -> Result:
    return Result(id=job.id, status="succeeded", worker=WORKER, created_at=FINISHED, finished_at=FINISHED, **fields)


IMAGE = ImageResult(index=0, base64="QUJD", format="png", width=1, height=1, bytes=3, sha256="0" * 64)
FILE = FileResult(index=1, base64="QUJD", name="a.mp4", format="mp4", media_type="video/mp4", bytes=3, sha256="1" * 64)


def clock() -> CorrectedClock:
    return CorrectedClock(SystemClock())


@asynccontextmanager
async def sending(
    defaults: Defaults | None = None, *, guard: Guard | None = None, at: CorrectedClock | None = None, **options: Any
) -> AsyncIterator[Sender]:
    sender = Sender(
        defaults or Defaults(),
        guard=guard or Guard.from_setting("::1"),
        clock=at or clock(),
        rng=random.Random(3),
        **{"policy": SWIFT, "budget": timedelta(seconds=5), **options},
    )
    try:
        yield sender
    finally:
        await sender.aclose()


def own(server: ScriptedServer, secrets: str = SECRET, events: str = "succeeded failed") -> Defaults:
    return Defaults(url=server.url("/hook?k=1"), events=frozenset(events.split()), secrets=decode_secrets(secrets))
