"""Jobs, images and results for tests of storage."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.s4 import ORGANIZATION, S4Service, Tokens
from worker.clock import CorrectedClock, SystemClock
from worker.errors import Fault
from worker.files import MP4
from worker.job import Job, Limits, parse
from worker.result import ErrorResult, FileResult, ImageResult, Result, WorkerResult
from worker.retry import Policy
from worker.storage.base import Artifact, FileArtifact
from worker.storage.keys import Keys
from worker.storage.s3 import Patience, Place, S3Storage
from worker.storage.s4 import Account, S4Storage, TokenSource
from worker.storage.s4 import Patience as S4Patience

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
SWIFT = Policy(attempts=4, first=timedelta(milliseconds=5), most=timedelta(milliseconds=20))
PATIENT = Patience(
    connect=timedelta(seconds=2),
    read=timedelta(seconds=5),
    image=timedelta(seconds=20),
    document=timedelta(seconds=20),
    policy=SWIFT,
)


def a_job(id: str = "job-1", *, prompt: str = "a lighthouse", **output: Any) -> Job:
    document = {"id": id, "params": {"prompt": prompt}, "output": output}
    return parse(document, fallback_id=id, limits=Limits())


def an_artifact(index: int = 0, text: str = "one", *, size: int = 3000) -> Artifact:
    data = b"\x89PNG\r\n\x1a\n" + random.Random(text).randbytes(size)
    return Artifact(index=index, data=data, format="png", width=64, height=64, seed=index)


def a_file_artifact(index: int = 1, text: str = "one", *, size: int = 3000) -> FileArtifact:
    data = b"\0\0\0\x10ftypisom" + random.Random(text).randbytes(size)
    return FileArtifact(index=index, data=data, name="clip_00001_.mp4", kind=MP4, node="9")


def a_result(job: Job, *images: ImageResult, files: tuple[FileResult, ...] = (), worker: str = "worker-1") -> Result:
    return Result(
        id=job.id,
        status="succeeded",
        images=images,
        files=files,
        worker=WorkerResult(id=worker, version="0"),
        job_sha256=job.sha256,
        created_at=AT,
        finished_at=AT + timedelta(seconds=3),
    )


def a_failure(job: Job) -> Result:
    error = ErrorResult(code="engine_lost", message="it went away", retryable=True, fault=Fault.NODE)
    return a_result(job).model_copy(update={"status": "failed", "error": error})


def an_s3_storage(endpoint_url: str | None, bucket: str, *, patience: Patience = PATIENT, **more: Any) -> S3Storage:
    place = {name: more.pop(name) for name in ("public_url", "presign_ttl", "cache_control") if name in more}
    keys = more.pop("keys", Keys(prefix="out"))
    return S3Storage(
        Place(bucket=bucket, endpoint_url=endpoint_url, **place),
        keys,
        clock=more.pop("clock", CorrectedClock(SystemClock())),
        rng=random.Random(1),
        patience=patience,
        **more,
    )


def an_s4_storage(
    service: S4Service, *, token: TokenSource | None = None, organization: str = ORGANIZATION, **more: Any
) -> S4Storage:
    patience = S4Patience(
        wait=timedelta(seconds=5), image=timedelta(seconds=20), document=timedelta(seconds=20), policy=SWIFT
    )
    return S4Storage(
        Account(organization, token or Tokens(), service.url("")),
        more.pop("keys", Keys(prefix="out")),
        clock=more.pop("clock", CorrectedClock(SystemClock())),
        rng=random.Random(1),
        patience=more.pop("patience", patience),
        **more,
    )
