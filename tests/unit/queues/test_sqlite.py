"""The sqlite driver at its edges: the file, its errors, its plans."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import START, FakeClock
from tests.support.queues import result_of, taken
from worker.clock import CorrectedClock
from worker.errors import ConfigError, InternalError, QueueUnavailable, WorkerError
from worker.node import Identity
from worker.outfit import ThisNode
from worker.platforms.plain import PlainPlatform
from worker.queues import open_producer, open_queue
from worker.queues.policy import Policy
from worker.queues.sqlite import SqliteProducer, SqliteQueue, rows
from worker.queues.sqlite.schema import APPLICATION_ID, VERSION, connect, writing
from worker.queues.sqlite.thread import translating
from worker.settings.queue import QueueSettings

BRIEF = timedelta(milliseconds=20)
NOW = timedelta(0)


@pytest.fixture(name="path")
def queue_path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture(name="queue")
async def open_sqlite(path: Path) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(path, FakeClock(), worker="w1", busy=BRIEF, wait=BRIEF, rng=random.Random(1))
    yield queue
    await queue.aclose()


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def overwrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def inside(queue: SqliteQueue, sql: str) -> None:
    """Run a statement on the driver's own connection."""
    await queue._thread.run(lambda db: db.execute(sql).fetchall())


class Lock:
    """Another process's lock on the file, as another connection has it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._db.execute("ROLLBACK")
        self._db.close()


async def test_restart(path: Path, queue: SqliteQueue) -> None:
    """What was submitted is there for the next process that opens the file."""
    await queue.submit("a", b"{}", priority=3)
    await queue.aclose()
    again = SqliteQueue(path, FakeClock(), worker="w2", wait=BRIEF)
    assert (await taken(again)).id == "a"
    await again.aclose()


async def test_every_commit_is_synced(queue: SqliteQueue) -> None:
    """The file is kept with a write-ahead log that is on disk before a commit returns."""
    read = await queue._thread.run(
        lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    )
    assert read == ["wal", 2]


async def test_locked(path: Path, queue: SqliteQueue) -> None:
    """A file that another process keeps locked is an unavailable queue, and a good one again afterwards."""
    await queue.submit("a", b"{}")
    with Lock(path):
        for refused in (queue.submit("b", b"{}"), queue.receive(), queue.check()):
            with pytest.raises(QueueUnavailable, match=r"queue\.db is locked"):
                await refused
        assert [state.id for state in await queue.jobs()] == ["a"]
    delivery = await taken(queue)
    with Lock(path), pytest.raises(QueueUnavailable):
        await queue.ack(delivery, result_of("a"))
    await queue.ack(delivery, result_of("a"))


async def test_locked_for_a_moment(path: Path) -> None:
    """A lock that is let go within the time for it is waited for."""
    queue = SqliteQueue(path, FakeClock(), worker="w1", busy=timedelta(seconds=30))
    await queue.check()
    lock = Lock(path)
    lock.__enter__()
    submitting = asyncio.create_task(queue.submit("a", b"{}"), name="submitting")
    asyncio.get_running_loop().call_later(0.05, lock.__exit__)
    assert await submitting
    await queue.aclose()


async def test_locked_while_made(path: Path, queue: SqliteQueue) -> None:
    """A new file that another process holds is an unavailable queue, not a wrong one."""
    with Lock(path), pytest.raises(QueueUnavailable, match="locked"):
        await queue.check()
    assert "no jobs" in await queue.check()


async def test_late_claim_while_locked(path: Path, queue: SqliteQueue) -> None:
    """A claim that came too late and met a lock is given back by the next one."""
    await queue.submit("a", b"{}")
    claim = queue._thread.submit(queue._claim_now)
    late = await asyncio.wrap_future(claim)
    assert late is not None
    claim.add_done_callback(queue._disown)
    with Lock(path), pytest.raises(QueueUnavailable):
        await queue.receive()
    delivery = await taken(queue)
    assert (delivery.id, delivery.deliveries, delivery.redelivered) == ("a", 1, False)


async def test_failed_claim_disowned(path: Path, queue: SqliteQueue) -> None:
    """A receive that was cancelled while its claim failed leaves nothing behind."""
    await queue.submit("a", b"{}")
    with Lock(path):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        asyncio.get_running_loop().call_later(0.005, receiving.cancel)
        with pytest.raises(asyncio.CancelledError):
            await receiving
        with pytest.raises(QueueUnavailable):
            await queue.check()
    assert (await taken(queue)).redelivered is False


async def test_cancelled_after_close(path: Path, queue: SqliteQueue) -> None:
    """A receive that is cancelled after the driver was closed still ends as cancelled."""
    await queue.check()
    with Lock(path):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        closing = asyncio.create_task(queue.aclose(), name="closing")
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(receiving.cancel))
        with pytest.raises(asyncio.CancelledError):
            await receiving
        await closing


async def test_closed(queue: SqliteQueue) -> None:
    """A closed driver is an unavailable queue."""
    await queue.aclose()
    with pytest.raises(QueueUnavailable, match="closed"):
        await queue.receive()


@pytest.mark.parametrize("content", [b"this is no database, it is a text of some length" * 40, b"short"])
async def test_not_a_database(path: Path, queue: SqliteQueue, content: bytes) -> None:
    """A file of another kind is a configuration error that names it, and stays as it was."""
    overwrite(path, content)
    with pytest.raises(ConfigError, match=r"queue\.db is not an SQLite database"):
        await queue.receive()
    assert content_of(path) == content


async def test_another_programs_database(path: Path, queue: SqliteQueue) -> None:
    """Another program's database is a configuration error, and gets no tables of ours."""
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="another program"):
        await queue.check()
    assert [name for (name,) in other.execute("SELECT name FROM sqlite_schema")] == ["theirs"]
    other.close()


async def test_newer_version(path: Path, queue: SqliteQueue) -> None:
    """A file of a newer version is a configuration error that says both versions."""
    other = sqlite3.connect(path)
    other.executescript(f"CREATE TABLE t (x); PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99")
    other.close()
    with pytest.raises(ConfigError, match=f"version 99 .* up to {VERSION}"):
        await queue.check()


async def test_no_folder(tmp_path: Path) -> None:
    """A path whose folder does not exist, or that is a folder, is a configuration error."""
    for wrong in (tmp_path / "none" / "queue.db", tmp_path):
        producer = SqliteProducer(wrong, FakeClock())
        with pytest.raises(ConfigError, match="cannot be opened"):
            await producer.submit("a", b"{}")
        await producer.aclose()


async def test_damaged(path: Path, queue: SqliteQueue) -> None:
    """A damaged file is an unavailable queue that is named."""
    for number in range(200):
        await queue.submit(f"j{number}", b"{}")
    await queue.aclose()
    whole = content_of(path) or b""
    overwrite(path, whole[:4096] + b"\x5a" * (len(whole) - 4096))
    again = SqliteQueue(path, FakeClock(), worker="w1", busy=BRIEF, wait=BRIEF)
    with pytest.raises(QueueUnavailable, match=r"queue\.db is damaged"):
        await again.receive()
    overwrite(path, whole)
    assert (await taken(again)).id == "j0"
    await again.aclose()


async def test_disk_full(queue: SqliteQueue) -> None:
    """A file that cannot grow is an unavailable queue; what was confirmed stays, and the rest works again."""
    await queue.submit("a", b"{}")
    await inside(queue, "PRAGMA max_page_count = 1")
    with pytest.raises(QueueUnavailable, match="disk is full"):
        await queue.submit("b", b"x" * 100_000)
    assert [state.id for state in await queue.jobs()] == ["a"]
    assert await queue.submit("b", b"x" * 100_000)


async def test_read_only(queue: SqliteQueue) -> None:
    """A file that became read-only is an unavailable queue."""
    await queue.submit("a", b"{}")
    await inside(queue, "PRAGMA query_only = ON")
    with pytest.raises(QueueUnavailable, match="read-only"):
        await queue.receive()
    assert (await taken(queue)).id == "a"


def sqlite_errors(root: type[sqlite3.Error] = sqlite3.Error) -> list[type[sqlite3.Error]]:
    found = [root]
    for one in root.__subclasses__():
        found += sqlite_errors(one)
    return found


@pytest.mark.parametrize("error", sqlite_errors())
@pytest.mark.parametrize("opening", [False, True])
def test_every_error_is_ours(error: type[sqlite3.Error], opening: bool) -> None:
    """Each of the library's errors comes out as one of ours: a bug of ours, or an unavailable queue."""
    is_bug = not issubclass(error, sqlite3.OperationalError) and error not in (sqlite3.Error, sqlite3.DatabaseError)
    with (
        pytest.raises(WorkerError, match=r"/q\.db: it happened") as raised,
        translating(Path("/q.db"), opening=opening),
    ):
        raise error("it happened")
    assert type(raised.value) is (InternalError if is_bug else QueueUnavailable)


def test_large_job_is_not_written_again(path: Path) -> None:
    """Renewing the lease of a large job writes a few pages, not the job."""
    db = connect(path, BRIEF)
    with writing(db):
        rows.submit(db, "a", b"x" * 2_000_000, "f", 0, START)
        delivery = rows.claim(db, START, "w1", Policy())
    assert delivery is not None
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with writing(db):
        rows.extend(db, delivery, START)
    assert path.with_name("queue.db-wal").stat().st_size < 50_000
    db.close()


@pytest.mark.parametrize(
    ("sql", "values", "indexes"),
    [
        (rows.IS_ANYTHING_DUE, (0,), {"jobs_waiting", "jobs_hidden"}),
        (rows.NEXT_WAITING, (), {"jobs_waiting"}),
        (rows.SURFACE, (0,), {"jobs_hidden"}),
        (rows.UNWANTED, (0,), {"jobs_hidden"}),
        (rows.FORGET_OLD, (0,), {"jobs_done"}),
        (rows.FORGET_MANY, (5,), {"jobs_done"}),
    ],
)
def test_plans(path: Path, sql: str, values: tuple[Any, ...], indexes: set[str]) -> None:
    """With 10,000 jobs waiting a claim walks no table and sorts nothing: it goes by the indexes."""
    db = connect(path, BRIEF)
    with writing(db):
        db.executemany(
            "INSERT INTO jobs (id, fingerprint, priority, status, queued_at, visible_at) VALUES (?, '', 0, ?, 0, 0)",
            [(f"j{n}", "done" if n % 10 == 0 else "waiting") for n in range(11_000)],
        )
    plan = [detail for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    used = {name for name in ("jobs_waiting", "jobs_hidden", "jobs_done") if any(name in line for line in plan)}
    assert used == indexes
    assert not [line for line in plan if line.startswith("SCAN jobs") and "INDEX" not in line]
    assert not [line for line in plan if "TEMP B-TREE" in line]
    db.close()


async def test_opened_by_settings(path: Path) -> None:
    """The configured queue works for the node's worker, with the limits that are set."""
    node = ThisNode(Identity(id="node-7", machine="m", version="1"), PlainPlatform())
    settings = QueueSettings(
        kind="sqlite", sqlite_path=path, visibility=timedelta(seconds=33), max_attempts=1, max_deliveries=1
    )
    producer = open_producer(settings, CorrectedClock(FakeClock()))
    assert content_of(path) is None
    await producer.submit("a", b"{}")
    queue = open_queue(settings, node, CorrectedClock(FakeClock()))
    delivery = await taken(queue)
    assert (delivery.visibility, delivery.last_attempt, delivery.last_delivery) == (timedelta(seconds=33), True, True)
    await queue.nack(delivery, NOW, "internal", charged=True)
    state = await producer.state("a")
    assert state is not None
    assert state.attempts[0].worker == "node-7"
    await queue.aclose()
    await producer.aclose()


async def test_abandoned_driver_leaves_no_thread(path: Path) -> None:
    """A closed driver keeps no thread."""
    import threading

    queue = SqliteQueue(path, FakeClock(), worker="w1")
    await queue.check()
    [thread] = [one for one in threading.enumerate() if one.name.startswith("sqlite-queue")]
    await queue.aclose()
    thread.join(10)
    assert not thread.is_alive()
