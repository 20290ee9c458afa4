"""The box in a worker's life: each second is written down, the end has its last word, the next start tells of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.fakes import FakeProcess
from tests.support.virtual import VirtualClock, elapse, virtual
from worker.blackbox import BlackBox, Seen, box
from worker.blackbox.record import Record, last_run
from worker.blackbox.ring import Ring
from worker.engines.child.ending import ASKED
from worker.engines.child.lines import Piece, Tail
from worker.errors import ConfigError
from worker.live import Hop, Live
from worker.metrics import Metrics
from worker.node import Identity, Use
from worker.status import Phase, Status
from worker.tasks import cancel_all

ME = Identity("w1", "machine", "0")


class Worker:
    """What a box sees of a worker."""

    def __init__(self) -> None:
        self.status, self.live, self.process, self.metrics = Status(), Live(), FakeProcess(owned=True), Metrics()
        self.tail = Tail()
        self.process.log = self.tail
        self.seen = Seen(self.status, self.live, self.process, self.metrics, restarts=lambda: 2)

    def prints(self, *lines: str) -> None:
        for line in lines:
            self.tail.add("stdout", Piece(line))


async def opened(path: Path | None, run: str, identity: Identity = ME) -> BlackBox:
    return await BlackBox.open(path, identity, VirtualClock(), run)


@asynccontextmanager
async def killed(path: Path, worker: Worker, run: str = "r1") -> AsyncIterator[BlackBox]:
    """A worker that is gone at the end of the block: nothing is said of its end."""
    one = await opened(path, run)
    one.watch(worker.seen)
    task = asyncio.create_task(one.run(), name="blackbox")
    try:
        yield one
    finally:
        await cancel_all({task})
        assert one._ring is not None
        one._ring.close()


@contextmanager
def events() -> Iterator[list[Any]]:
    """What is logged within, by event and fields."""
    with structlog.testing.capture_logs() as logged:
        yield logged


def records(path: Path) -> list[Record]:
    ring = Ring(path)
    ring.close()
    return last_run(ring.records)


@pytest.fixture(name="path")
def a_path(tmp_path: Path) -> Path:
    return tmp_path / "blackbox"


@virtual
async def test_every_second_is_written_down(path: Path) -> None:
    """From the start on, whatever is done."""
    worker = Worker()
    async with killed(path, worker):
        await elapse(3.5)
    found = records(path)
    assert [record.up_s for record in found] == [0.0, 1.0, 2.0, 3.0]
    assert {(record.worker, record.phase) for record in found} == {("w1", "starting")}


@virtual
async def test_a_record_holds_all_that_matters(path: Path) -> None:
    """The job at work first, how the server ended, its last lines; nothing that a later start could not use."""
    worker = Worker()
    worker.metrics.engine_memory(123)
    worker.prints(*(f"line {number}" for number in range(30)))
    worker.status.move(Phase.WAITING_FOR_ENGINE, "engine_port_closed")
    with worker.live.holding("waits", "x" * 500), worker.live.holding("works", 7) as job:
        job.enter(Hop.GENERATE)
        async with killed(path, worker) as one:
            await elapse(1.5)
            job.report(0.12345, None)
            worker.prints("the last words")
            worker.process.die("killed by SIGSEGV")
            one.vitals.vram = Use(20, 24)
            await elapse(1.0)
        assert one.vitals.memory is not None
        assert one.vitals.disk_free
    last = records(path)[-1]
    assert (last.phase, last.reasons) == ("waiting_for_engine", ("engine_port_closed",))
    assert [(job.id, job.hop, job.token) for job in last.jobs] == [
        ("works", "generate", 7),
        ("waits", "received", None),
    ]
    assert (last.jobs[0].hop_s, last.jobs[0].held_s, last.jobs[0].progress) == (2.0, 2.0, 0.123)
    assert last.server is not None
    assert last.server.model_dump() == {"owned": True, "end": "killed by SIGSEGV", "restarts": 2, "memory": 123}
    assert last.lines == (*(f"line {number}" for number in range(11, 30)), "the last words")
    assert (last.vram, last.memory) == (Use(20, 24), one.vitals.memory)


@virtual
async def test_a_killed_run_is_told_of_at_the_next_start(path: Path) -> None:
    """One event; the queue can be told which jobs were held."""
    worker = Worker()
    worker.prints("a cat")
    with worker.live.holding("a", 3) as job:
        job.enter(Hop.GENERATE)
        async with killed(path, worker):
            await elapse(2)
    with events() as logged:
        after = await opened(path, "r2")
    (event,) = logged
    assert (event["event"], event["log_level"]) == ("previous_run_ended", "warning")
    assert (event["cause"], event["at_work"], event["lines"]) == ("killed", ["a"], ["a cat"])
    assert after.cause == "killed"
    assert after.vitals.previous is not None
    assert [(job.id, job.token, job.hop) for job in after.vitals.previous.jobs] == [("a", 3, "generate")]
    after.end(0)


@virtual
async def test_an_end_in_order_has_the_last_word(path: Path) -> None:
    """Exit code, and whether all jobs were settled; the first word counts."""
    worker = Worker()
    async with await opened(path, "r1") as one:
        one.watch(worker.seen)
        one.end(75)
        one.end(0)
    with events() as logged:
        async with await opened(path, "r2") as one:
            one.watch(worker.seen)
            with worker.live.holding("left", 1):
                one.end(0)
        async with await opened(path, "r3") as one:
            one.watch(worker.seen)
        async with await opened(path, "r4"):
            pass
    told = [(one["cause"], one["exit_code"], one["drained"], one["log_level"]) for one in logged]
    assert told == [
        ("exited", 75, True, "warning"),
        ("stopped", 0, False, "warning"),
        ("clean", 0, True, "info"),
    ]


@virtual
async def test_a_start_that_fails_says_why(path: Path) -> None:
    """A mistake of the operator's is told from a bug."""
    for error in (ConfigError("no such folder"), RuntimeError("a bug")):
        with pytest.raises(type(error)):
            async with await opened(path, type(error).__name__):
                raise error
    with pytest.raises(asyncio.CancelledError):
        async with await opened(path, "r3"):
            raise asyncio.CancelledError
    with events() as logged:
        (await opened(path, "r4")).end(0)
    assert [one["event"] for one in logged] == ["previous_run_ended"]
    whole = Ring(path)
    whole.close()
    ends = [record.end for record in map(Record.model_validate_json, whole.records) if record.end is not None]
    assert [(end.exit_code, end.error) for end in ends] == [
        (64, "ConfigError"),
        (70, "RuntimeError"),
        (0, "CancelledError"),
        (0, None),
    ]


@virtual
async def test_a_process_that_tries_again_is_no_run_before_itself(path: Path) -> None:
    """As in phase BLOCKED: it was misconfigured, and has not ended."""
    async with killed(path, Worker(), run="r1"):
        await elapse(1)
    with events() as logged:
        for _ in range(2):
            with pytest.raises(ConfigError):
                async with await opened(path, "r2") as one:
                    raise ConfigError("not yet")
    assert [event["previous_run"] for event in logged] == ["r1"]
    assert one.cause is None


@virtual
async def test_another_nodes_run_is_told_to_people_alone(path: Path) -> None:
    """Its jobs are not ours to speak of."""
    with events() as logged:
        async with killed(path, Worker()):
            await elapse(1)
        after = await opened(path, "r2", Identity("w2", "machine", "0"))
    assert logged[-1]["previous_worker"] == "w1"
    assert (after.cause, after.vitals.previous) == ("killed", None)
    after.end(0)


@virtual
async def test_without_a_file_the_figures_are_still_read(path: Path) -> None:
    """None is wanted, it is another's, or it cannot be made: said once, and nothing else fails."""
    with events() as logged:
        first = await opened(path, "r1")
        boxes = [await opened(path, "r2"), await opened(None, "r3"), await opened(path / "no" / "such", "r4")]
        for one in boxes:
            task = asyncio.create_task(one.run(), name="blackbox")
            await elapse(1.5)
            await cancel_all({task})
            one.end(0)
        assert all(one.vitals.memory is not None for one in boxes)
    assert [one["event"] for one in logged] == ["blackbox_not_kept"] * 3
    first.end(0)
    assert [record.run for record in records(path)] == ["r1"]


@virtual
async def test_a_disk_that_takes_no_more_costs_the_record_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once; the worker goes on."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with events() as logged:
        async with killed(path, Worker()) as one:
            await elapse(1.5)
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                await elapse(3)
            one.end(0)
    assert [(one["event"], one["error"]) for one in logged] == [("blackbox_not_kept", "No space left on device")]
    assert len(records(path)) == 2


@virtual
async def test_the_gpu_is_asked_seldom_and_when_work_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs a process each time."""
    looks: list[float] = []

    async def look() -> Use:
        looks.append(asyncio.get_running_loop().time())
        return Use(len(looks), 24)

    monkeypatch.setattr(box, "gpu_memory", look)
    worker, identity = Worker(), Identity("w1", "machine", "0", gpu="NVIDIA GeForce RTX 4090")
    with events():
        one = await opened(None, "r1", identity)
    one.watch(worker.seen)
    task = asyncio.create_task(one.run(), name="blackbox")
    await elapse(400)
    assert looks == [0, 300]
    with worker.live.holding("a"):
        await elapse(100)
    assert looks == [0, 300, 400, 430, 460, 490]
    assert one.vitals.vram == Use(6, 24)
    await cancel_all({task})
    one.end(0)


@virtual
async def test_a_server_that_we_stopped_had_not_died(path: Path) -> None:
    """It is between two lives."""
    worker = Worker()
    async with killed(path, worker):
        worker.process.die(ASKED)
        await elapse(1.5)
    last = records(path)[-1]
    assert last.server is not None
    assert last.server.end is None
