"""Everything around the engine that fails: store, receiver, disk, queue. Nothing is lost, and what is told is true."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.bench import PATIENCE_S, RunningWorker, ends, params, running_worker
from tests.support.faulty import Deed, FaultyProxy, faulty_proxy, refusal
from tests.support.receiver import Answer, Receiver
from tests.support.s3 import Bucket
from tests.support.storage import an_s3_storage
from tests.support.waiting import wait_until
from worker import app, settlement
from worker.clock import SystemClock
from worker.errors import ConfigError, UploadFailed
from worker.node import Orders
from worker.queues.base import Delivery
from worker.queues.sqlite import SqliteQueue
from worker.result import Result
from worker.settings import load_settings
from worker.simulators import Knobs
from worker.storage import Storages

pytest_plugins = ("tests.support.s3_fixtures",)

SLOW = {"width": 64, "height": 64, "steps": 40}


@pytest.fixture
async def store(rclone_bucket: Bucket, credentials: None) -> AsyncIterator[FaultyProxy]:
    """The operator's store, and what stands in front of it."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        yield proxy


@asynccontextmanager
async def with_store(root: Path, store: FaultyProxy, bucket: Bucket) -> AsyncIterator[RunningWorker]:
    async with running_worker(root, storage=an_s3_storage(store.url, bucket.name)) as worker:
        yield worker


def assert_whole(worker: RunningWorker, bucket: Bucket, job_id: str) -> None:
    """The result stands, what it names is there, and its owner was told of it once."""
    result = Result.model_validate_json(bucket.read(f"out/{job_id}/result.json"))
    assert result.status == "succeeded"
    assert all(len(bucket.read(image.key or "")) == image.bytes for image in result.images)
    assert worker.told(job_id) == ["job.succeeded"]


def generated(worker: RunningWorker) -> list[str]:
    """The prompts of the test's own jobs, in the order of their turns."""
    return [one.prompt for one in worker.sim.stats.generations if one.prompt.startswith("a picture of")]


async def test_a_store_that_fails_for_a_while_costs_no_attempt(
    tmp_path: Path, store: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """503 beyond the driver's own tries: the finished image waits under its lease and is stored once it can be."""
    async with with_store(tmp_path, store, rclone_bucket) as worker:
        store.first(6, refusal(503, "SlowDown"))
        state = await worker.done("patient")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])
        assert len(generated(worker)) == 1
        assert_whole(worker, rclone_bucket, "patient")
        await worker.goes_on("patient")


AWAY: dict[str, tuple[Deed, str]] = {
    "answers-503": (refusal(503, "ServiceUnavailable"), "upload_failed"),
    "cuts-connections": ("cut", "upload_failed"),
    "refuses-credentials": (refusal(403, "InvalidAccessKeyId"), "auth_failed"),
    "denies-writing": (refusal(403, "AccessDenied"), "auth_failed"),
}


@pytest.mark.parametrize("how", AWAY)
async def test_a_store_that_is_away_pauses_intake(
    tmp_path: Path, store: FaultyProxy, rclone_bucket: Bucket, how: str
) -> None:
    """READY ends with the code, no further job is generated, and what was made goes out once the store is back."""
    deed, code = AWAY[how]
    async with with_store(tmp_path, store, rclone_bucket) as worker:
        store.deed = lambda asked: deed if asked.method == "PUT" else "forward"
        jobs = [f"job-{n}" for n in range(5)]
        for job_id in jobs:
            await worker.submit(job_id)
        await worker.unready(code)
        assert (await worker.status())["paused"] == {"storage": code}
        made, asked = generated(worker), len(store.seen)
        assert 1 <= len(made) <= worker.settings.queue.window + 2
        await wait_until(lambda: len(store.seen) >= asked + 3)
        assert len(generated(worker)) <= worker.settings.queue.window + 2
        assert (await worker.probe("ready"))[0] == 503
        assert [s.id for s in await worker.queue.jobs("dead")] == []
        store.deed = lambda asked: "forward"
        for job_id in jobs:
            state = await worker.ended(job_id)
            assert state.status == "done"
            assert not any(charged for _, charged in ends(state))
            assert_whole(worker, rclone_bucket, job_id)
        assert sorted(set(generated(worker))) == sorted(generated(worker))
        await worker.goes_on("away")


async def test_a_webhook_that_fails_at_first_is_sent_again(tmp_path: Path) -> None:
    """The same id at every try, and the job is acknowledged after the one that was taken."""
    async with running_worker(tmp_path) as worker:
        worker.receiver.script.extend([Answer(500), Answer(503)])
        state = await worker.done("told-late")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])
        assert len(worker.receiver.ids) == 3
        assert len(set(worker.receiver.ids)) == 1
        assert worker.told("told-late") == ["job.succeeded"]
        await worker.goes_on("told-late")


async def test_a_receiver_that_is_gone_counts_as_told(tmp_path: Path) -> None:
    """410 is an answer: one try, and a warning in the queue's result."""
    async with running_worker(tmp_path) as worker:
        worker.receiver.script.append(Answer(410))
        state = await worker.done("gone")
        assert (state.status, ends(state)) == ("done", [("succeeded", False)])
        assert state.result is not None
        assert state.result.warnings == ("webhook_gone",)
        assert len(worker.receiver.ids) == 1
        await worker.goes_on("gone")


@pytest.mark.parametrize("deed", [Answer(500), Answer(hang=True), Answer(302, {"location": "/elsewhere"})])
async def test_a_success_stands_while_its_webhook_is_owed(tmp_path: Path, deed: Answer) -> None:
    """The delivery goes back uncharged for the webhook alone; the image is not made again."""
    delays = (timedelta(milliseconds=50),) * 4
    async with running_worker(
        tmp_path,
        changed=lambda patch: patch.setattr(settlement, "WEBHOOK_DELAYS", delays),
        WORKER_WEBHOOK_BUDGET="1s",
        WORKER_WEBHOOK_TIMEOUT="0.3s",
    ) as worker:
        worker.receiver.otherwise = deed
        await worker.submit("owed")
        await worker.attempted("owed", "webhook_undelivered")
        files = worker.files()
        assert Result.model_validate_json(files["owed/result.json"]).status == "succeeded"
        worker.receiver.otherwise = Answer()
        state = await worker.ended("owed")
        assert (state.status, state.code) == ("done", None)
        assert set(ends(state)[:-1]) == {("webhook_undelivered", False)}
        assert worker.told("owed") == ["job.succeeded"]
        assert len(set(worker.receiver.ids)) == 1
        assert len(generated(worker)) == 1
        assert worker.files() == files
        await worker.goes_on("owed")


async def test_a_failure_is_over_even_when_nobody_hears_of_it(tmp_path: Path) -> None:
    """Without a mark the webhook has its budget once; then the job is a dead letter with a warning."""
    async with running_worker(tmp_path, WORKER_WEBHOOK_BUDGET="1s", WORKER_WEBHOOK_TIMEOUT="1s") as worker:
        worker.receiver.otherwise = Answer(500)
        state = await worker.done("unheard", params=params(steps=10_000))
        assert (state.status, state.code) == ("dead", "invalid_job")
        assert state.result is not None
        assert state.result.warnings == ("webhook_undelivered",)
        worker.receiver.otherwise = Answer()
        await worker.goes_on("unheard")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_pauses_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The job goes back uncharged, no half-written file stays, and it is done when there is space again."""
    async with running_worker(tmp_path) as worker:
        sync = os.fsync

        def full(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", full)
        await worker.submit("no-space")
        await worker.attempted("no-space", "disk_full")
        await worker.unready("disk_full")
        assert worker.files() == {}
        monkeypatch.setattr(os, "fsync", sync)
        state = await worker.ended("no-space")
        assert (state.status, ends(state)) == ("done", [("disk_full", False), ("succeeded", False)])
        assert worker.told("no-space") == ["job.succeeded"]
        await worker.goes_on("no-space")


async def test_a_folder_that_is_no_folder_is_waited_for(tmp_path: Path) -> None:
    """A mount that is gone, or lost its right to be written: the images wait, as for any store."""
    async with running_worker(tmp_path) as worker:
        worker.outputs.write_bytes(b"something else stands here")
        jobs = ("first", "second")
        for job_id in jobs:
            await worker.submit(job_id)
        await worker.unready("upload_failed")
        worker.outputs.unlink()
        for job_id in jobs:
            state = await worker.ended(job_id)
            assert (state.status, ends(state)) == ("done", [("succeeded", False)])
            assert worker.told(job_id) == ["job.succeeded"]
        await worker.goes_on("no-folder")


async def test_images_that_cannot_be_deleted_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Purging is housekeeping: it is tried again, and jobs go on."""
    tries = []

    async def failing(self: Storages, now: datetime) -> None:
        tries.append(now)
        raise UploadFailed("read-only file system")

    monkeypatch.setattr(Storages, "purge", failing)
    monkeypatch.setattr(app, "PURGE_EVERY_S", 0.05)
    async with running_worker(tmp_path) as worker:
        await wait_until(lambda: len(tries) >= 2)
        await worker.goes_on("purge")


async def test_a_result_too_large_for_its_place_is_the_jobs_fault(tmp_path: Path) -> None:
    """It can never succeed here, and nothing pauses for it."""
    async with running_worker(tmp_path, WORKER_STORAGE="inline", WORKER_INLINE_MAX="20kB") as worker:
        state = await worker.done("large", params=params(width=512, height=512))
        assert (state.status, state.code, ends(state)) == ("dead", "result_too_large", [("result_too_large", True)])
        assert worker.told("large") == ["job.failed"]
        await worker.goes_on("large")


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_a_generation_that_takes_too_long_is_interrupted(tmp_path: Path, dialect: str) -> None:
    """Its time counts from the first step; the attempt is charged, and the server is free for the next job."""
    async with running_worker(tmp_path, dialect, Knobs(step_seconds=0.02)) as worker:
        state = await worker.done("slow", timeout=0.2, params=params(steps=150))
        assert (state.status, state.code, ends(state)) == ("dead", "job_timeout", [("job_timeout", True)] * 3)
        assert worker.sim.stats.generations[-1].interrupted
        assert worker.sim.stats.in_flight == 0
        assert worker.told("slow") == ["job.failed"]
        await worker.goes_on("slow")


@pytest.mark.parametrize(
    ("answers", "end"), [([403], ("upload_forbidden", True)), ([500] * 30, ("upload_failed", False))]
)
async def test_a_jobs_own_place_pauses_nothing(tmp_path: Path, answers: list[int], end: tuple[str, bool]) -> None:
    """A refused URL is the job's fault; one that fails is tried again later. Other jobs go on meanwhile."""
    async with (
        Receiver(*(Answer(status) for status in answers)) as place,
        running_worker(tmp_path, WORKER_URLS_ALLOW_PRIVATE="::1") as worker,
    ):
        await worker.submit("own-place", output={"upload_urls": [place.url("/image")]})
        await worker.attempted("own-place", end[0])
        assert ends(await worker.state("own-place"))[0] == end
        assert (await worker.probe("ready"))[0] == 200
        await worker.goes_on("own-place")


class Renewing(SqliteQueue):
    """Tells how often a lease was renewed."""

    renewals = 0

    async def extend(self, delivery: Delivery) -> Orders | None:
        orders = await super().extend(delivery)
        self.renewals += 1
        return orders


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another connection holds the queue's file, once it is free."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


async def test_a_locked_queue_is_waited_for(tmp_path: Path) -> None:
    """Longer than the driver waits: the running job goes on, is answered when the lock is gone, and runs once."""
    queue = Renewing(tmp_path / "queue.db", SystemClock(), worker="w1", busy=timedelta(milliseconds=50))
    async with running_worker(tmp_path, queue=queue, WORKER_QUEUE_WINDOW="1") as worker:
        worker.sim.knobs.step_seconds = 0.1
        await worker.submit("held", params={"prompt": "a picture of held", **SLOW})
        await worker.submit("next")
        await wait_until(lambda: queue.renewals and worker.sim.machine.state.sampling_step)
        with locked(tmp_path / "queue.db"):
            worker.sim.knobs.step_seconds = 0.001
            await worker.unready("queue_unavailable")
            await wait_until(lambda: worker.told("held") == ["job.succeeded"])
            assert [(await worker.state(job_id)).status for job_id in ("held", "next")] == ["leased", "waiting"]
        for job_id in ("held", "next"):
            state = await worker.ended(job_id)
            assert (state.status, ends(state)) == ("done", [("succeeded", False)])
            assert worker.told(job_id) == ["job.succeeded"]
        assert len(generated(worker)) == 2
        await worker.goes_on("held")


async def refused_by(queue: Path) -> str:
    """Why a worker does not begin over this file: it looks before anything else."""
    settings = load_settings({"WORKER_QUEUE": "sqlite", "WORKER_SQLITE_PATH": str(queue)})
    async with app.opened(settings, {"queue"}) as parts:
        assert parts.queue is not None
        with pytest.raises(ConfigError) as refused:
            await parts.queue.check()
    return refused.value.message


async def test_a_queue_file_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    """It says which file is what."""
    (tmp_path / "queue.db").write_bytes(b"this is no database, but a letter " * 100)
    assert f"{tmp_path / 'queue.db'} is not an SQLite database" in await refused_by(tmp_path / "queue.db")


async def test_a_queue_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    """Its tables are not touched."""
    with closing(sqlite3.connect(tmp_path / "queue.db")) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
        other.commit()
    before = (tmp_path / "queue.db").read_bytes()
    assert "queue.db" in await refused_by(tmp_path / "queue.db")
    assert (tmp_path / "queue.db").read_bytes() == before
