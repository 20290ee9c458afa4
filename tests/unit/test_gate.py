"""The one right to use the server: one at a time, only while the gate is open, and faults close it."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fakes import FakeEngine
from tests.support.virtual import elapse, virtual
from worker.engines.base import Expectation, Files, Output, Progress, Work
from worker.errors import EngineCrashed, EngineOutOfMemory, EngineStalled, GpuFault, OutputEmpty, WorkerError
from worker.gate import Gate, Verdict
from worker.tasks import cancel_all, gather_bare

WORK = Work({"prompt": "p", "id": "a"}, "txt2img", Expectation(1, 16, 16, (1,)))


def opened(engine: FakeEngine | None = None) -> Gate:
    gate = Gate(engine or FakeEngine())
    gate.open("starting")
    return gate


@virtual
async def test_turns_come_one_after_the_other() -> None:
    """In the order in which they were asked for."""
    gate, order = opened(), []

    async def turn(name: str) -> None:
        async with gate.turn():
            assert gate.in_use
            order.append(name)
            await elapse(1)

    await gather_bare([turn(name) for name in "abc"], name="turn")
    assert order == ["a", "b", "c"]
    assert asyncio.get_running_loop().time() == 3
    assert not gate.in_use


@virtual
async def test_a_closed_gate_lets_nobody_in_but_maintenance() -> None:
    """Who stood in line when it closed waits on; every reason has to go."""
    gate, entered = opened(), []

    async def turn() -> None:
        async with gate.turn():
            entered.append(asyncio.get_running_loop().time())

    async with gate.turn():
        waiting = asyncio.create_task(turn(), name="turn")
        await elapse(1)
        gate.close("paused")
        gate.close("engine")
    async with gate.maintenance() as engine:
        assert engine is gate.engine
        assert gate.reasons == ("engine", "paused")
    await elapse(1)
    gate.open("engine")
    await elapse(1)
    assert entered == []
    gate.open("paused")
    await waiting
    assert entered == [3]
    assert gate.is_open


@virtual
async def test_a_turn_given_up_while_waiting_leaves_the_gate_usable() -> None:
    """A cancelled waiter takes no turn with it."""
    gate = opened()
    async with gate.turn():
        waiting = asyncio.create_task(gate.turn().__aenter__(), name="waiting")
        await elapse(1)
        await cancel_all({waiting})
    async with gate.turn():
        assert gate.in_use


@pytest.mark.parametrize("error", [EngineCrashed(), EngineStalled(), GpuFault()], ids=lambda error: error.code)
@virtual
async def test_a_fault_inside_a_turn_closes_the_gate_and_becomes_a_case(error: WorkerError) -> None:
    """Even for a job that no longer listens: in generating as in freeing."""

    class Broken(FakeEngine):
        async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
            raise error

        async def free(self, everything: bool) -> None:
            raise error

    gate = opened(Broken())
    async with gate.turn() as turn:
        with pytest.raises(type(error)):
            await turn.generate(WORK, Files(), lambda report: None)
        with pytest.raises(type(error)):
            await turn.free(everything=True)
    assert gate.reasons == ("engine",)
    assert [(await gate.case()).error for _ in range(2)] == [error, error]


@virtual
async def test_what_is_no_fault_leaves_the_gate_open() -> None:
    """Out of memory and doubtful answers are for the job's second turn to find out."""
    engine = FakeEngine()
    engine.trouble("p", EngineOutOfMemory(), OutputEmpty())
    gate = opened(engine)
    async with gate.turn() as turn:
        for kind in (EngineOutOfMemory, OutputEmpty):
            with pytest.raises(kind):
                await turn.generate(WORK, Files(), lambda report: None)
        await turn.free(everything=False)
    assert gate.is_open
    assert engine.freed == 1


@virtual
async def test_a_verdict_closes_the_gate_until_it_is_given() -> None:
    """Every question that waits is about the same server and gets the same answer."""
    gate = opened()
    asked = [asyncio.create_task(gate.verdict(OutputEmpty()), name=f"ask-{n}") for n in range(3)]
    await elapse(1)
    assert not gate.is_open
    case = await gate.case()
    case.settle(Verdict.UNFIT)
    case.settle(Verdict.FIT)
    gate.settle_all(Verdict.UNFIT)
    assert [await one for one in asked] == [Verdict.UNFIT] * 3
    assert not gate.is_open


@virtual
async def test_a_case_is_waited_for() -> None:
    """A fault without a question needs no answer."""
    gate = opened()
    waiting = asyncio.create_task(gate.case(), name="case")
    await elapse(1)
    gate.fault(EngineCrashed())
    case = await waiting
    case.settle(Verdict.FIT)
    assert case.answer is None
