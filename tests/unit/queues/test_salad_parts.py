"""What the driver of the platform's job queue is made of: the protocol, its errors, the watchdog, the outputs."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest
from google.protobuf import descriptor_pb2
from grpc import StatusCode, aio

from tests.support.queues import result_of
from tests.support.salad_proto import FOLDER, MADE, generated
from tests.support.virtual import elapse, virtual
from worker.errors import LeaseLost, QueueUnavailable, WorkerError
from worker.queues.salad import service_v1alpha_pb2 as made
from worker.queues.salad.outputs import instead_of, refused
from worker.queues.salad.service import BUGS, ERRORS, OutputRefused, Said, Word, translating
from worker.queues.salad.service_v1alpha_pb2 import Job
from worker.queues.salad.silence import FIRST_S, LEAST_S, MOST_S, Silence
from worker.queues.salad.stream import Stream
from worker.retry import Policy as Retries
from worker.settings.libraries import supposed

TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ3MSJ9.c2lnbmF0dXJl"


def test_the_generated_code_is_of_this_protocol() -> None:
    """What is committed is what the compiler makes of the file beside it."""
    assert generated() == {name: (FOLDER / name).read_text() for name in MADE}


def test_the_protocol_on_the_wire() -> None:
    """Names, numbers and kinds as the platform's own worker has them."""
    file = descriptor_pb2.FileDescriptorProto()
    made.DESCRIPTOR.CopyToProto(file)
    [service] = file.service
    assert f"{file.package}.{service.name}" == "salad.grpc.saladcloud_job_queue_worker.v1alpha.JobQueueWorkerService"
    assert {m.name: m.server_streaming for m in service.method} == {
        "AcceptJobs": True,
        "CompleteJob": False,
        "RejectJob": False,
    }
    fields = {m.name: [(f.name, f.number, f.type) for f in m.field] for m in file.message_type}
    assert fields == {
        "AcceptJobsRequest": [("current_job_id", 1, 9)],
        "AcceptJobsResponse": [("heartbeat", 1, 11), ("job", 2, 11)],
        "Job": [("job_id", 1, 9), ("port", 2, 5), ("path", 3, 9), ("input", 4, 12)],
        "CompleteJobRequest": [("job_id", 1, 9), ("output", 2, 12)],
        "RejectJobRequest": [("job_id", 1, 9)],
    }


def test_every_error_of_the_library_has_a_meaning() -> None:
    """Each status but success, and each kind of exception that it has."""
    assert ERRORS.keys() == set(StatusCode) - {StatusCode.OK}
    kinds = {kind for kind in vars(aio).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds == {aio.AioRpcError, aio.InternalError, aio.BaseError} | BUGS


@pytest.mark.parametrize("status", list(ERRORS))
def test_every_status_is_translated(status: StatusCode) -> None:
    """Into an error of ours, which names the place and the status, and holds no token."""
    nothing = aio.Metadata()
    failure = aio.AioRpcError(status, nothing, nothing, f"no {TOKEN}\n at all", None)
    with pytest.raises(WorkerError) as caught, translating("host:443"):
        raise failure
    assert isinstance(caught.value, QueueUnavailable | LeaseLost)
    assert caught.value.message.startswith(f"host:443: {status.name} (no ")
    assert TOKEN not in caught.value.message


def test_a_broken_library_is_a_queue_that_is_away() -> None:
    """What it calls an internal error; its misuse is a bug, and stays one."""
    with pytest.raises(QueueUnavailable), translating("x"):
        raise aio.InternalError("x")
    with pytest.raises(aio.UsageError), translating("x"):
        raise aio.UsageError("x")


async def test_a_cancellation_of_ours_stays_one() -> None:
    """That of the service, which looks the same, does not."""
    with pytest.raises(QueueUnavailable, match="CANCELLED"), translating("x"):
        raise asyncio.CancelledError

    async def waiting() -> None:
        with translating("x"):
            await asyncio.Event().wait()

    task = asyncio.create_task(waiting(), name="waiting")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_how_long_silence_is_borne() -> None:
    """Three pauses of the longest kind, within bounds; longer each time for a service that never says a word."""
    silence = Silence()
    assert silence.limit_s == FIRST_S
    silence.heard(1)
    assert silence.limit_s == LEAST_S
    silence.heard(20)
    silence.heard(5)
    assert silence.limit_s == 60
    silence.heard(1000)
    assert silence.limit_s == MOST_S
    mute = Silence()
    limits = []
    for _ in range(4):
        mute.mute()
        limits.append(mute.limit_s)
    assert limits == [120, 240, MOST_S, MOST_S]


class Scripted:
    """Streams that say a word after each of their pauses, or are taken at once, or end; the last one says nothing."""

    def __init__(self, *streams: list[float | Said]) -> None:
        self.streams = list(streams)
        self.opened: list[float] = []
        self.jobs: list[str] = []
        self.stream = Stream(
            self._open,
            lambda job: self.jobs.append(job.job_id),
            lambda: False,
            rng=random.Random(1),
            retries=Retries(first=timedelta(seconds=1), most=timedelta(seconds=8), jitter=0),
        )

    async def _open(self) -> AsyncGenerator[Word, None]:
        self.opened.append(asyncio.get_running_loop().time())
        pauses = self.streams.pop(0) if self.streams else [float("inf")]
        for number, pause in enumerate(pauses):
            if isinstance(pause, Said):
                yield pause
                continue
            await asyncio.sleep(min(pause, 1e6))
            yield Job(job_id=str(number)) if number else Said.HEARTBEAT


@virtual
async def test_streams_that_end_at_once_come_less_and_less_often() -> None:
    """A stream that lived long begins anew."""
    script = Scripted([], [], [], [], [0, 9], [])
    script.stream.start()
    await elapse(40)
    gaps = [after - before for before, after in zip(script.opened, script.opened[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 9 + 1, 1], abs=0.01)
    assert script.stream.failures == 2
    await script.stream.aclose()


@virtual
async def test_a_silent_stream_is_opened_anew() -> None:
    """After the limit, which grows while no stream says a word."""
    script = Scripted()
    script.stream.start()
    await elapse(60 * 1.1 + 1 + 120 * 1.1 + 3)
    assert len(script.opened) == 3
    assert isinstance(script.stream.failure, QueueUnavailable)
    assert not script.stream.is_alive
    await script.stream.aclose()


@virtual
async def test_a_stream_that_was_taken_needs_no_word() -> None:
    """It is alive without one until the limit, which grows all the same; nobody hears of a failure."""
    quiet: list[float | Said] = [Said.TAKEN, float("inf")]
    script = Scripted(quiet, quiet, quiet)
    script.stream.start()
    alive = []
    for _ in range(4):
        await elapse(59)
        alive.append(script.stream.is_alive)
    assert (len(script.opened), alive) == (3, [True] * 4)
    assert (script.stream.failure, script.stream.failures) == (None, 0)
    await script.stream.aclose()


async def test_a_word_after_too_long_a_silence_is_not_believed() -> None:
    """As when the process was frozen: the service may have given its job to another meanwhile."""
    thawed, opened, jobs = asyncio.Event(), asyncio.Queue[None](), list[str]()

    async def open_() -> AsyncGenerator[Word, None]:
        opened.put_nowait(None)
        yield Said.HEARTBEAT
        await thawed.wait()
        thawed.clear()
        yield Job(job_id="a")

    def freeze() -> None:
        thawed.set()
        time.sleep(0.3)

    quick = Retries(first=timedelta(milliseconds=1))
    silence = Silence(0.2, 0.2)
    stream = Stream(
        open_, lambda job: jobs.append(job.job_id), lambda: False, rng=random.Random(1), retries=quick, silence=silence
    )
    stream.start()
    await opened.get()
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(freeze)
    await opened.get()
    assert jobs == []
    await stream.aclose()


def test_what_takes_the_place_of_a_refused_output() -> None:
    """The same result as a failure, with its reason."""
    large, odd = refused(OutputRefused("x", too_large=True)), refused(OutputRefused("x"))
    assert (large.code, odd.code) == ("result_too_large", "internal")
    assert b'"failed"' in instead_of(result_of("a"), large)
    assert b"10 MiB" in instead_of(result_of("a"), large)


def test_a_variable_for_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set while the block lasts, unless somebody else did."""
    monkeypatch.delenv("A_LIBRARY", raising=False)
    with supposed("A_LIBRARY", "1"):
        assert os.environ["A_LIBRARY"] == "1"
    assert "A_LIBRARY" not in os.environ
    monkeypatch.setenv("A_LIBRARY", "2")
    with supposed("A_LIBRARY", "1"):
        assert os.environ["A_LIBRARY"] == "2"
    assert os.environ["A_LIBRARY"] == "2"
