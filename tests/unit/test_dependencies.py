"""What the operator configured: counted in a row, paused, probed, and back with one success."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fakes import FakeEngine
from tests.support.virtual import elapse, virtual
from worker.dependencies import Dependencies, Dependency
from worker.errors import AuthFailed, DiskFull, Owner, QueueUnavailable, UploadFailed, WorkerError
from worker.gate import Gate
from worker.live import Live
from worker.metrics import PAUSED, Metrics
from worker.status import Phase, Status
from worker.tasks import cancel_all
from worker.watch import Watch


def test_two_failures_in_a_row_pause_and_one_success_resumes() -> None:
    """A success between two failures makes them two single ones."""
    known = Dependencies()
    known.failed(Dependency.STORAGE, UploadFailed())
    known.succeeded(Dependency.STORAGE)
    known.failed(Dependency.STORAGE, UploadFailed())
    assert known.paused == {}
    known.failed(Dependency.STORAGE, UploadFailed())
    assert known.paused == {Dependency.STORAGE: "upload_failed"}
    known.succeeded(Dependency.STORAGE)
    assert known.paused == {}


@pytest.mark.parametrize("error", [AuthFailed(), DiskFull()], ids=lambda error: error.code)
def test_what_no_repetition_mends_pauses_at_the_first(error: WorkerError) -> None:
    """Refused credentials and a full disk; the first code stays."""
    known = Dependencies()
    known.failed(Dependency.STORAGE, error)
    known.failed(Dependency.STORAGE, UploadFailed())
    assert known.paused == {Dependency.STORAGE: error.code}


def test_what_a_job_named_itself_never_counts() -> None:
    """However often it fails."""
    known = Dependencies()
    for _ in range(5):
        known.failed(Dependency.STORAGE, UploadFailed(owner=Owner.JOB))
        known.failed(Dependency.STORAGE, AuthFailed(owner=Owner.JOB))
    assert known.paused == {}


def test_dependencies_are_counted_apart() -> None:
    """One failure of each is not two of one."""
    known = Dependencies()
    known.failed(Dependency.STORAGE, UploadFailed())
    known.failed(Dependency.QUEUE, QueueUnavailable())
    assert known.paused == {}


@virtual
async def test_pausing_and_resuming_are_waited_for() -> None:
    """By whoever must stop, and by whoever waits to go on."""
    known = Dependencies()
    await known.resumed(Dependency.STORAGE)
    stopped = asyncio.create_task(known.stopped(Dependency.STORAGE), name="stopped")
    await elapse(1)
    known.failed(Dependency.STORAGE, DiskFull())
    await stopped
    resumed = asyncio.create_task(known.resumed(Dependency.STORAGE), name="resumed")
    await elapse(1)
    assert not resumed.done()
    known.succeeded(Dependency.STORAGE)
    await resumed


@virtual
async def test_a_change_between_the_call_and_the_wait_is_not_missed() -> None:
    """Whoever waits for one of several changes asks first and begins to wait a moment later."""
    known, status, live = Dependencies(), Status(), Live()
    waits = [known.changed(), status.changed(), live.changed()]
    known.failed(Dependency.STORAGE, DiskFull())
    status.move(Phase.WAITING_FOR_ENGINE)
    with live.holding("a"):
        await asyncio.gather(*waits)


class Watched:
    """A ready worker of which only the watch runs; ``probed`` are the times of its probes."""

    def __init__(self) -> None:
        self.known, self.status, self.metrics = Dependencies(), Status(), Metrics()
        self.gate = Gate(FakeEngine())
        self.gate.open("starting")
        for phase in (Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP, Phase.READY):
            self.status.move(phase)
        self.error: WorkerError | None = UploadFailed()
        self.probed: list[float] = []
        probes = {Dependency.STORAGE: self.probe, Dependency.QUEUE: self.probe}
        self.watch = Watch(self.known, self.status, self.gate, self.metrics, probes)

    async def probe(self) -> str:
        self.probed.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return "ok"


@virtual
async def test_a_store_that_is_away_closes_the_gate_and_is_probed_ever_more_rarely() -> None:
    """From 5 s to 2 min between probes; the first that succeeds resumes everything."""
    world = Watched()
    watching = asyncio.create_task(world.watch.run(), name="watch")
    await elapse(1)
    world.known.failed(Dependency.STORAGE, DiskFull())
    await elapse(600)
    assert world.status.ready().reasons == ("disk_full",)
    assert world.gate.reasons == ("paused",)
    assert world.metrics.value(PAUSED, code="disk_full") == 1
    waits = [round(b - a) for a, b in zip([1.0, *world.probed], world.probed, strict=False)]
    assert waits == [5, 10, 20, 40, 80, 120, 120, 120]
    world.error = None
    await world.status.reached(Phase.READY)
    assert world.gate.is_open
    assert world.metrics.value(PAUSED, code="disk_full") == 0
    await cancel_all({watching})


@virtual
async def test_a_queue_that_is_away_leaves_the_gate_open() -> None:
    """What is held is still generated."""
    world = Watched()
    watching = asyncio.create_task(world.watch.run(), name="watch")
    for _ in range(2):
        world.known.failed(Dependency.QUEUE, QueueUnavailable())
    await world.status.reached(Phase.PAUSED)
    assert world.gate.is_open
    world.known.succeeded(Dependency.QUEUE)
    await world.status.reached(Phase.READY)
    await cancel_all({watching})
