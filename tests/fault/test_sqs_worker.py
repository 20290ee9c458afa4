"""A real worker on a real SQS queue: what becomes of jobs, and of those that fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import SMALL, RunningWorker, document, running_worker
from tests.support.s3 import Bucket
from tests.support.sqs import Line, Refused, Server, made_line, submitting
from tests.support.waiting import wait_until
from worker.queues.sqs import Overflow, SqsProducer, SqsQueue

pytest_plugins = ("tests.support.sqs_fixtures", "tests.support.s3_fixtures")


def working(line: Line, folder: Path, **variables: str) -> Any:
    """A worker that asks for a second at a time, so that it also stops in one; two attempts are all that a job has."""

    def hurried(patch: pytest.MonkeyPatch) -> None:
        patch.setitem(SqsQueue.__init__.__kwdefaults__ or {}, "wait", timedelta(seconds=1))

    settings: Any = {
        "WORKER_QUEUE": "sqs",
        "WORKER_SQS_QUEUE_URL": line.url,
        "WORKER_QUEUE_MAX_ATTEMPTS": "2",
        "WORKER_STORAGE": "directory",
        **variables,
    }
    return running_worker(folder, changed=hurried, quiet_s=10.0, **settings)


@pytest.fixture(name="producer")
async def open_producer(line: Line) -> AsyncIterator[SqsProducer]:
    async with submitting(line) as producer:
        yield producer


async def over(worker: RunningWorker[Any], line: Line, *job_ids: str) -> None:
    """Wait until these were told of and the queue holds nothing any more."""
    await wait_until(lambda: all(worker.told(job_id) for job_id in job_ids), timeout=30)
    await wait_until(lambda: line.counts() == (0, 0), timeout=30)


async def test_jobs_are_done_and_told(line: Line, producer: SqsProducer, tmp_path: Path) -> None:
    """Those with ids and one without, which has the id that SQS gave it; one that is no job is a dead letter.

    So is one that failed by its own doing as often as it may: its result tells of the attempt before. What is sent
    twice is made once.
    """
    async with working(line, tmp_path) as worker:
        worker.sim.knobs.arm("empty", times=100, prompt="doubtful")
        await producer.submit("doubtful", document("doubtful", params={"prompt": "doubtful", **SMALL}))
        await producer.submit("a", document("a"))
        unnamed = json.loads(document("x"))
        del unnamed["id"]
        message_id = line.put(json.dumps(unnamed))
        await producer.submit("bad", b'{"params": {"prompt": "x", "widht": 1}}')
        await over(worker, line, "a", message_id, "bad", "doubtful")
        made = len(worker.sim.stats.generations)
        await producer.submit("a", document("a"))
        await wait_until(lambda: len(worker.told("a")) == 2, timeout=30)
        await over(worker, line)
        assert len(worker.sim.stats.generations) == made
        assert {job_id: worker.told(job_id) for job_id in ("a", message_id, "bad", "doubtful")} == {
            "a": ["job.succeeded"] * 2,
            message_id: ["job.succeeded"],
            "bad": ["job.failed"],
            "doubtful": ["job.failed"],
        }
        files = worker.files()
    assert {name for name in files if name.endswith("result.json")} == {
        f"{job_id}/result.json" for job_id in ("a", message_id)
    }
    last = json.loads(files["doubtful/failure-2.json"])
    assert [(one["code"], one["charged"]) for one in last["attempts"]] == [("output_empty", True)]
    dead = {one.id: (one.code, one.deliveries) for one in await producer.jobs("dead")}
    assert dead == {"bad": ("invalid_job", 1), "doubtful": ("output_empty", 2)}


async def test_a_queue_that_is_away_in_mid_job(sqs_server: Server, moto_bucket: Bucket, tmp_path: Path) -> None:
    """The job goes on, and nothing is told before its lease was renewed; it is done once.

    Its document does not fit into a message: it lies in the bucket of the results, where the worker reads it. Amazon's
    own pointers lead there too.
    """
    line = made_line(sqs_server, dead_after=50, MaximumMessageSize="2048")
    moto_bucket.write("elsewhere", document("b"))
    variables = {
        "WORKER_QUEUE_VISIBILITY": "20s",
        "WORKER_STORAGE": "s3",
        "WORKER_S3_BUCKET": moto_bucket.name,
        "WORKER_S3_ENDPOINT_URL": moto_bucket.endpoint_url,
    }
    place = Overflow(moto_bucket.name, "", moto_bucket.endpoint_url)
    async with working(line, tmp_path, **variables) as worker, submitting(line, overflow=place) as producer:
        sqs_server.bent.do("ChangeMessageVisibility", Refused("ServiceUnavailable", 503))
        await producer.submit("a", document("a", metadata={"long": "x" * 3000}))
        await wait_until(lambda: sqs_server.bent.calls["ChangeMessageVisibility"] >= 3, timeout=20)
        assert worker.told("a") == []
        assert [name for name in sorted(moto_bucket.keys()) if not name.startswith("a/job-")] == ["elsewhere"]
        sqs_server.bent.mend()
        pointer = {"s3BucketName": moto_bucket.name, "s3Key": "elsewhere"}
        line.put(json.dumps(["software.amazon.payloadoffloading.PayloadS3Pointer", pointer]))
        await over(worker, line, "a", "b")
        assert worker.told("a") == worker.told("b") == ["job.succeeded"]
    assert {"a/result.json", "b/result.json"} <= moto_bucket.keys()
    assert json.loads(moto_bucket.read("a/result.json"))["attempts"] == []
    assert line.counts(dead=True) == (0, 0)
