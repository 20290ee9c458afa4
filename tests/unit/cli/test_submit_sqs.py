"""`sd-worker submit` and `queue` over SQS: what the queue does not tell stands in the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.queues import result_of, taken
from tests.support.sqs import Line, Refused, Server, taking
from tests.unit.cli.conftest import Command
from worker.cli import ends as waiting_for
from worker.cli import main, submit
from worker.clock import SystemClock
from worker.errors import Fault
from worker.job import Job, Limits, parse
from worker.queues.sqs import SqsQueue
from worker.result import ErrorResult, Result
from worker.storage.directory import DirectoryStorage

pytest_plugins = ("tests.support.sqs_fixtures",)

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _configured(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "WORKER_QUEUE": "sqs",
        "WORKER_SQS_QUEUE_URL": line.url,
        "WORKER_STORAGE": "directory",
        "WORKER_STORAGE_DIRECTORY": str(tmp_path / "outputs"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submit, "LOOK_INTO_STORE_EVERY_S", 0.02)


@pytest.fixture(name="queue")
async def open_queue(line: Line) -> AsyncIterator[SqsQueue]:
    async with taking(line, wait=timedelta(seconds=1)) as queue:
        yield queue


@pytest.fixture(name="store")
async def open_store(tmp_path: Path) -> AsyncIterator[DirectoryStorage]:
    store = DirectoryStorage(tmp_path / "outputs")
    yield store
    await store.aclose()


@pytest.fixture
def document(tmp_path: Path) -> bytes:
    """A job, which stands in ``job.json`` too."""
    (tmp_path / "job.json").write_text('{"id": "a", "params": {"prompt": "x"}}')
    return (tmp_path / "job.json").read_bytes()


async def ran(*argv: str) -> int:
    return await asyncio.to_thread(main, argv)


def job_of(body: bytes) -> Job:
    return parse(json.loads(body), fallback_id="", limits=Limits())


def result(job: Job, *, code: str | None = None, retryable: bool = False, ago: timedelta = timedelta(0)) -> Result:
    at = SystemClock().now() - ago
    error = None if code is None else ErrorResult(code=code, message="why", retryable=retryable, fault=Fault.JOB)
    told: dict[str, Any] = {"created_at": at, "finished_at": at, "error": error, "job_sha256": job.sha256}
    return result_of(job.id, "failed" if code else "succeeded").model_copy(update=told)


@pytest.mark.parametrize("code", [None, "invalid_job"])
async def test_the_store_tells_how_jobs_ended(
    queue: SqsQueue, store: DirectoryStorage, document: bytes, code: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier failure under the id does not count, nor one that is tried again; exit 1 where the last one failed."""
    job = job_of(document)
    await store.put_failure(job, result(job, code="engine_oom", ago=HOUR), 1)
    submitted = asyncio.create_task(ran("submit", "job.json", "--wait"), name="submit")
    delivery = await taken(queue, tries=20)
    assert (delivery.id, job_of(delivery.body).sha256) == ("a", job.sha256)
    await store.put_failure(job, result(job, code="engine_oom", retryable=True), 2)
    assert not submitted.done()
    if code is None:
        await store.put_mark(job, result(job))
    else:
        await store.put_failure(job, result(job, code=code), 3)
    assert await submitted == (1 if code else 0)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "a"
    assert out[-1].split("\t")[:2] == ["a", "failed" if code else "succeeded"]


async def test_a_success_counts_whenever_it_was(
    store: DirectoryStorage, document: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that is submitted again is settled with it."""
    job = job_of(document)
    await store.put_mark(job, result(job, ago=HOUR))
    assert await ran("submit", "job.json", "--wait") == 0
    assert "succeeded" in capsys.readouterr().out


def test_where_no_store_tells_nothing_is_waited_for(
    command: Command, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told before anything is sent."""
    monkeypatch.setenv("WORKER_STORAGE", "inline")
    ran = command("submit", "--prompt", "x", "--wait")
    assert ran.code == 64
    assert "WORKER_STORAGE: keeps no results" in ran.err
    assert line.counts() == (0, 0)
    assert command("submit", "--prompt", "x").code == 0
    assert line.counts() == (1, 0)


def test_who_submits_needs_no_store(command: Command, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers do, and who waits: a folder that is nobody else's tells nothing."""
    monkeypatch.delenv("WORKER_STORAGE")
    monkeypatch.delenv("WORKER_STORAGE_DIRECTORY")
    assert command("submit", "--prompt", "x").code == 0
    assert line.counts() == (1, 0)
    ran = command("submit", "--prompt", "x", "--wait")
    assert (ran.code, "WORKER_STORAGE: is needed to wait" in ran.err) == (64, True)
    assert line.counts() == (1, 0)


def test_jobs_that_do_not_get_through_are_told(command: Command, line: Line, sqs_server: Server) -> None:
    """By id, with how many come after them, and the variable that says where they were to go."""
    sqs_server.bent.do("SendMessage", Refused("ServiceUnavailable", 503))
    ran = command("submit", "--prompt", "x", "--count", "3")
    assert (ran.code, ran.out) == (1, "")
    told = [one for one in ran.err.splitlines() if "werkzeug" not in one]
    assert told[0].endswith("-0001: was not submitted, nor were the 2 after it")
    assert told[1].startswith("WORKER_SQS_QUEUE_URL: ")
    assert told[2].startswith("queue_unavailable: ")


def test_the_queue_commands(command: Command, line: Line) -> None:
    """Dead letters are listed and requeued; of what waits the number is told."""

    async def fail() -> None:
        async with taking(line) as queue:
            delivery = await taken(queue)
            await queue.reject(delivery, result_of(delivery.id, "failed", code="invalid_job"))

    job_id = command("submit", "--prompt", "x").out.strip()
    asyncio.run(fail())
    listed = command("queue", "list")
    assert (listed.code, "0 wait" in listed.err) == (64, True)
    assert command("queue", "dead").out.split("\t") == [job_id, "1", "0", "invalid_job", "why\n"]
    assert command("queue", "requeue", "--all").out == f"{job_id}\n"
    assert (line.counts(), line.counts(dead=True)) == ((1, 0), (0, 0))


def test_refused_credentials_are_bad_configuration(command: Command, sqs_server: Server) -> None:
    """Exit 64; a queue that is not there names its variable."""
    sqs_server.bent.do("*", Refused("InvalidClientTokenId", 403))
    ran = command("submit", "--prompt", "x")
    assert (ran.code, "AWS_PROFILE" in ran.err, "auth_failed: " in ran.err) == (64, True, True)
    sqs_server.bent.do("*", Refused("QueueDoesNotExist"))
    ran = command("submit", "--prompt", "x")
    assert (ran.code, "WORKER_SQS_QUEUE_URL: names no queue" in ran.err) == (64, True)


def test_queues_that_tell_need_no_store() -> None:
    """Which queue is asked alone, and which tells nothing, is no accident."""
    assert not set(waiting_for.SILENT) & set(waiting_for.KEEPS_RESULTS)
