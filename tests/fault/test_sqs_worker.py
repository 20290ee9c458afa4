"""A real worker on a real SQS queue: what becomes of jobs, and of those that fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import RunningWorker, document, running_worker
from tests.support.s3 import Bucket
from tests.support.sqs import Line, Refused, Server, made_line, submitting
from tests.support.waiting import wait_until
from worker.queues.sqs import Overflow, SqsProducer, SqsQueue

pytest_plugins = ("tests.support.sqs_fixtures", "tests.support.s3_fixtures")


@pytest.fixture(name="worker")
async def open_worker(line: Line, tmp_path: Path) -> AsyncIterator[RunningWorker[Any]]:
    async with working(line, tmp_path) as worker:
        yield worker


def working(line: Line, folder: Path, **variables: str) -> Any:
    """A worker that asks for a second at a time, so that it also stops in one."""

    def hurried(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(SqsQueue.__init__.__kwdefaults__ or {}, "wait", timedelta(seconds=1))

    settings: Any = {
        "WORKER_QUEUE": "sqs",
        "WORKER_SQS_QUEUE_URL": line.url,
        "WORKER_STORAGE": "directory",
        **variables,
    }
    return running_worker(folder, changed=hurried, quiet_s=10.0, **settings)


@pytest.fixture(name="producer")
async def open_producer(line: Line) -> AsyncIterator[SqsProducer]:
    async with submitting(line) as producer:
        yield producer


async def over(line: Line) -> None:
    """Wait until the queue holds nothing any more."""
    await wait_until(lambda: line.counts() == (0, 0), timeout=30)


async def test_jobs_are_done_and_told(worker: RunningWorker[Any], line: Line, producer: SqsProducer) -> None:
    """Those with ids and one without, which has the id that SQS gave it; one that is no job is a dead letter."""
    for job_id in ("a", "b"):
        await producer.submit(job_id, document(job_id))
    unnamed = json.loads(document("x"))
    del unnamed["id"]
    message_id = line.put(json.dumps(unnamed))
    await producer.submit("bad", b'{"params": {"prompt": "x", "widht": 1}}')
    await over(line)
    assert {job_id: worker.told(job_id) for job_id in ("a", "b", message_id, "bad")} == {
        "a": ["job.succeeded"],
        "b": ["job.succeeded"],
        message_id: ["job.succeeded"],
        "bad": ["job.failed"],
    }
    assert {name for name in worker.files() if name.endswith("result.json")} == {
        f"{job_id}/result.json" for job_id in ("a", "b", message_id)
    }
    [dead] = await producer.jobs("dead")
    assert (dead.id, dead.code) == ("bad", "invalid_job")


async def test_a_job_that_was_sent_twice(worker: RunningWorker[Any], line: Line, producer: SqsProducer) -> None:
    """The second message of a job that is done is settled by what stands: nothing is made again."""
    await producer.submit("a", document("a"))
    await over(line)
    made = len(worker.sim.stats.generations)
    await producer.submit("a", document("a"))
    await over(line)
    assert worker.told("a") == ["job.succeeded"] * 2
    assert len(worker.sim.stats.generations) == made


async def test_attempts_are_counted_by_their_documents(
    worker: RunningWorker[Any], line: Line, producer: SqsProducer
) -> None:
    """The third one that is the job's own doing is the last, and its result tells of those before."""
    worker.sim.knobs.arm("empty", times=100, prompt="doubtful")
    await producer.submit("a", document("a", params={"prompt": "doubtful", "width": 64, "height": 64, "steps": 2}))
    await over(line)
    assert worker.told("a") == ["job.failed"]
    last = json.loads(worker.files()["a/failure-3.json"])
    assert [(one["code"], one["charged"]) for one in last["attempts"]] == [("output_empty", True)] * 2
    [dead] = await producer.jobs("dead")
    assert (dead.id, dead.code, dead.deliveries) == ("a", "output_empty", 3)


async def test_a_queue_that_is_away_in_mid_job(
    sqs_server: Server, line: Line, producer: SqsProducer, tmp_path: Path
) -> None:
    """The job goes on, and nothing is told before its lease was renewed; it is done once."""
    async with working(line, tmp_path, WORKER_QUEUE_VISIBILITY="20s") as worker:
        sqs_server.bent.do("ChangeMessageVisibility", Refused("ServiceUnavailable", 503))
        await producer.submit("a", document("a"))
        await wait_until(lambda: sqs_server.bent.calls["ChangeMessageVisibility"] >= 3, timeout=20)
        assert (worker.told("a"), worker.files()) == ([], {})
        sqs_server.bent.mend()
        await over(line)
        assert worker.told("a") == ["job.succeeded"]
        assert json.loads(worker.files()["a/result.json"])["attempts"] == []


async def test_a_document_that_does_not_fit_into_a_message(
    sqs_server: Server, moto_bucket: Bucket, tmp_path: Path
) -> None:
    """It lies in the bucket of the results, where the worker reads it; Amazon's own pointers lead there too."""
    line = made_line(sqs_server, dead_after=50, MaximumMessageSize="2048")
    moto_bucket.write("elsewhere", document("b"))
    variables = {
        "WORKER_STORAGE": "s3",
        "WORKER_S3_BUCKET": moto_bucket.name,
        "WORKER_S3_ENDPOINT_URL": moto_bucket.endpoint_url,
    }
    place = Overflow(moto_bucket.name, "", moto_bucket.endpoint_url)
    async with working(line, tmp_path, **variables) as worker, submitting(line, overflow=place) as producer:
        await producer.submit("a", document("a", metadata={"long": "x" * 3000}))
        pointer = {"s3BucketName": moto_bucket.name, "s3Key": "elsewhere"}
        line.put(json.dumps(["software.amazon.payloadoffloading.PayloadS3Pointer", pointer]))
        await over(line)
        assert worker.told("a") == worker.told("b") == ["job.succeeded"]
    assert {"a/result.json", "b/result.json"} <= moto_bucket.keys()
    assert line.counts(dead=True) == (0, 0)
