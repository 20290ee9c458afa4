"""Six servers at their worst: cancelled, shared with others, broken, lying. Each rule on every server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta

import pytest

from tests.support.engines import settings_for
from tests.support.pictures import opened
from tests.support.six import SERVERS, Fault, bench, shown
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Engine, Reach
from worker.errors import (
    ConfigError,
    EngineCrashed,
    EngineFault,
    EngineOutOfMemory,
    EngineStalled,
    GpuFault,
    OutputEmpty,
    OutputError,
    OutputMismatch,
    WorkerError,
    WrongModel,
)
from worker.job import Limits
from worker.settings.groups import EngineKind

every = pytest.mark.parametrize("name", SERVERS)


@every
async def test_progress_rises_and_tells_when_sampling_began(name: str) -> None:
    """Fractions never fall, steps are those of the job, and loading comes before."""
    async with bench(name, step_seconds=0.02) as b:
        b.sim.knobs.load_seconds = 0.1
        await b.make(steps=20, checkpoint=b.second)
        fractions = [r.fraction for r in b.reports]
        assert fractions == sorted(fractions)
        assert 0 <= fractions[0] <= fractions[-1] <= 1
        assert not b.reports[0].sampling
        assert {r.steps for r in b.reports if r.sampling} == {20}


@every
async def test_a_cancelled_job_leaves_nothing_running(name: str) -> None:
    """It is interrupted before the call returns, and the next job is whole."""
    async with bench(name, step_seconds=0.02) as b:
        running = b.begin(await b.admit(steps=150))
        await wait_until(b.samples)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not await b.busy()
        assert all(end is not None for _, end in b.spans)
        assert (await b.make(prompt="a dog")).images


@every
async def test_an_impatient_second_cancel_changes_nothing(name: str) -> None:
    """Cancelled again while it interrupts: still nothing runs when it returns."""
    async with bench(name, step_seconds=0.05) as b:
        running = b.begin(await b.admit(steps=100))
        await wait_until(b.samples)
        running.cancel()
        await wait_until(lambda: b.sim.stats.interrupts > 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not await b.busy()


@every
async def test_a_job_cancelled_before_its_first_step_leaves_nothing_running(name: str) -> None:
    """While the server still loads the model."""
    async with bench(name) as b:
        b.sim.knobs.load_seconds = 0.3
        running = b.begin(await b.admit(b.document(checkpoint=b.second, steps=100)))
        await wait_until(b.busy)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert not await b.busy()


@every
async def test_anothers_generation_is_ended_first(name: str) -> None:
    """A zombie of a client that went away is interrupted, not waited for.

    A stop that comes as the zombie ends hits the next job on Fooocus, which is then submitted once more.
    """
    async with bench(name, step_seconds=0.02) as b:
        zombie = asyncio.create_task(b.foreign(), name="zombie")
        await wait_until(b.busy)
        await wait_until(lambda: b.sampled > 0)
        assert (await b.make()).images
        first, *ours = b.spans
        assert first[1] is not None
        assert len(ours) == 1 or (name == "fooocus" and len(ours) == 2)
        assert first[1] <= ours[0][0]
        zombie.cancel()
        await asyncio.wait([zombie])


@every
async def test_one_generation_at_a_time(name: str) -> None:
    """Three at once run one after the other."""
    async with bench(name) as b:
        works = [await b.admit(prompt=f"cat {n}") for n in range(3)]
        outputs = await asyncio.gather(*(b.run(work) for work in works))
        assert all(len(output.images) == 1 for output in outputs)
        ends = [end or 0.0 for _, end in b.spans]
        starts = [start for start, _ in b.spans]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
        assert len(starts) == 3


FAULTS: Mapping[Fault, type[WorkerError]] = {
    "oom": EngineOutOfMemory,
    "gpu": GpuFault,
    "exit": EngineCrashed,
    "restart": EngineCrashed,
    "empty": OutputEmpty,
    "short_count": OutputEmpty,
    "wrong_size": OutputMismatch,
    "not_an_image": OutputMismatch,
}
POISONED = ("comfyui", "fooocus")
"""Where the simulated GPU stays broken until the server has a new process."""


@every
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_told_for_what_it_is(name: str, fault: Fault) -> None:
    """Each way in which a server fails or lies becomes its own error; the next job works, on a new process at need."""
    async with bench(name, step_seconds=0.01) as b:
        b.arm(fault)
        with pytest.raises(WorkerError) as caught:
            await b.make(batch_size=2, steps=6)
        assert type(caught.value) is FAULTS[fault]
        if fault == "exit" or (fault == "gpu" and name in POISONED):
            b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        await b.engine.prepare()
        assert len((await b.make(batch_size=2)).images) == 2


async def test_without_its_log_a_failure_of_fooocus_is_an_empty_answer() -> None:
    """The API says ERROR and nothing else: the canary then has to tell whose fault it is."""
    async with bench("fooocus", deaf=True) as b:
        b.arm("oom")
        with pytest.raises(OutputEmpty, match="log"):
            await b.make()


@every
async def test_a_picture_cut_in_the_middle_is_left_to_who_opens_it(name: str) -> None:
    """Its first bytes are right: the hop that decodes finds it, outside the turn."""
    async with bench(name) as b:
        b.arm("truncated_image")
        output = await b.make()
        with pytest.raises(OSError, match=r"truncated|broken"):
            opened(output.images[0].data)
        assert shown(await b.make(fresh=True)).size == (64, 64)


@every
async def test_a_black_picture_is_left_to_who_opens_it(name: str) -> None:
    """One colour all over: a picture as far as its header goes."""
    async with bench(name) as b:
        b.arm("black")
        assert shown(await b.make()).convert("L").getextrema() == (0, 0)


@every
async def test_a_picture_of_another_model_is_noticed(name: str) -> None:
    """By what the server itself says of it."""
    async with bench(name) as b:
        with pytest.raises(WrongModel):
            await b.deceived()
        assert (await b.make()).images


@every
async def test_somebody_elses_interrupt_gives_no_picture(name: str) -> None:
    """A part of a picture, or none, is never passed off as the job's."""
    async with bench(name, step_seconds=0.02) as b:
        running = b.begin(await b.admit(steps=100))
        await wait_until(b.samples)
        await b.interrupt()
        with pytest.raises(OutputError):
            await running
        assert (await b.make(prompt="a dog")).images


@every
async def test_no_progress_is_a_stall(name: str) -> None:
    """A generation that hangs between two steps, deaf to interrupts, is given up."""
    async with bench(name, settings={"stall_timeout": timedelta(seconds=0.3)}) as b:
        b.arm("hang")
        with pytest.raises(EngineStalled):
            await b.make(steps=10)
        b.sim.release()


@every
async def test_a_first_step_that_never_comes_is_a_stall(name: str) -> None:
    """Before it only the time of a load counts, and the server lives on."""
    async with bench(name, settings={"load_timeout": timedelta(seconds=0.2)}) as b:
        b.arm("slow", seconds=0.8)
        with pytest.raises(EngineStalled, match="no first step"):
            await b.make()


@every
async def test_a_slow_start_is_no_stall(name: str) -> None:
    """And is told apart from the generation."""
    settings = {"stall_timeout": timedelta(seconds=0.2)}
    async with bench(name, step_seconds=0.02, settings=settings) as b:
        b.arm("slow", seconds=0.4)
        output = await b.make(steps=10)
        assert output.load_s > settings["stall_timeout"].total_seconds()
        assert output.generate_s > 0


ODD = {
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "text": b'"pong"',
    "number": b"1e400",
    "page": b"<html><body>Welcome to nginx!</body></html>",
    "nothing": b"",
    "nested": b'{"system": [], "devices": {}, "model_filenames": 7, "paths": []}',
    "half": b'{"system": {"comfyui_version": ',
}


@pytest.mark.parametrize("kind", ["a1111", "sdnext", "comfyui", "fooocus", "auto"])
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_odd_answers_are_no_server_and_no_bug(kind: EngineKind, status: int) -> None:
    """Whatever answers at the port: a look says so, everything else is an error of ours."""
    for what, body in ODD.items():
        async with odd(status, body, kind) as engine:
            state = await engine.look()
            assert (state.reach, state.name) == (Reach.ROUTES_MISSING, None), what
            assert state.detail
            with pytest.raises((ConfigError, EngineFault)):
                await engine.prepare()
            with pytest.raises(EngineFault):
                await engine.free(False)


@contextlib.asynccontextmanager
async def odd(status: int, body: bytes, kind: EngineKind) -> AsyncIterator[Engine]:
    """An engine on a port where each request gets the same answer."""
    head = f"HTTP/1.1 {status} Odd\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head.encode() + body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "::1", 0)
    async with server:
        url = f"http://[::1]:{server.sockets[0].getsockname()[1]}"
        engine = open_engine(settings_for(url, kind=kind), Limits())
        try:
            yield engine
        finally:
            await engine.aclose()
