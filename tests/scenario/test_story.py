"""The life of a job in virtual time: what becomes of it when everything, or something, goes wrong."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.fakes import flat_output
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.errors import EngineCrashed, EngineOutOfMemory, OutputEmpty, UploadFailed
from worker.status import Phase
from worker.supervisor import ExitCode


@virtual
async def test_a_job_is_generated_stored_announced_and_acknowledged_once() -> None:
    """The plain case: one picture, one result, one success webhook, one ack."""
    world = World()
    async with world.running() as process:
        await world.submit("a")
        await world.ended("a")
        assert await world.status_of("a") == "done"
    assert process.result() is ExitCode.CLEAN
    result = world.storage.results()["a"]
    assert result.status == "succeeded"
    assert [image.key in world.storage.objects for image in result.images] == [True]
    assert world.receiver.ids("succeeded") == ["a"]
    assert world.engine.generated == ["a"]


@virtual
async def test_ready_only_after_a_warm_up_whose_picture_is_good() -> None:
    """A flat warm-up picture keeps the worker from becoming ready."""
    world = World()
    world.engine.canary_troubles.append(flat_output)
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.WARMING_UP)
        assert not world.status.startup().ok
        await world.until(lambda: world.status.phase is Phase.READY)
        assert asyncio.get_running_loop().time() > world.engine.seconds * 2


@virtual
async def test_an_empty_answer_gets_one_fresh_turn() -> None:
    """A doubtful answer is repeated with everything fresh, and the job succeeds."""
    world = World()
    world.engine.trouble("a", OutputEmpty())
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    assert world.storage.results()["a"].warnings == ("repeated_output_empty",)
    assert world.engine.fresh == ["a"]


@virtual
async def test_empty_answers_are_charged_to_the_job_when_the_canary_is_fine() -> None:
    """Three attempts of two turns each, then a rejection that its owner hears of."""
    world = World()
    world.engine.trouble("a", *[OutputEmpty()] * 6)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.status_of("a") == "dead"
        assert await world.code("a") == "output_empty"
    assert world.receiver.ids("failed") == ["a"]
    assert {key for key in world.storage.objects if "failure" in key} == {f"a/failure-{n}.json" for n in (1, 2, 3)}


@virtual
async def test_empty_answers_are_the_nodes_fault_when_the_canary_fails_too() -> None:
    """The job is given back uncharged and no further turn is taken until the server is fit again."""
    world = World()
    world.engine.trouble("a", OutputEmpty(), OutputEmpty())
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.canary_troubles.append(OutputEmpty())
        await world.submit("a")
        await world.ended("a")
    assert (await world.ends("a"))[:1] == [("output_empty", False)]
    assert world.storage.results()["a"].status == "succeeded"


@virtual
async def test_out_of_memory_frees_and_tries_once_more() -> None:
    """Memory is freed before the second turn."""
    world = World()
    world.engine.trouble("a", EngineOutOfMemory())
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    assert world.engine.freed == 1
    assert world.storage.results()["a"].status == "succeeded"


@virtual
async def test_a_crash_closes_the_gate_and_the_job_is_done_later() -> None:
    """The job goes back uncharged; after a passed warm-up it is taken again and succeeds."""
    world = World()
    world.engine.trouble("a", EngineCrashed())
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    assert (await world.ends("a"))[:1] == [("engine_lost", False)]
    assert world.engine.prepared == 2


@virtual
async def test_storage_away_holds_finished_pictures_and_rejects_nothing() -> None:
    """Fifteen minutes without a store: nothing rejected, hardly anything generated, everything done afterwards."""
    world = World()
    jobs = [f"job-{n}" for n in range(1000)]
    async with world.running():
        await world.submit(*jobs)
        await world.until(lambda: len(world.storage.results()) >= 5)
        before = len(world.engine.generated)
        world.storage.down = UploadFailed("503")
        await elapse(15 * 60)
        assert len(world.engine.generated) - before <= world.window + 2
        assert world.status.ready().reasons == ("upload_failed",)
        world.storage.down = None
        await world.ended(*jobs)
        assert {await world.status_of(job) for job in jobs} == {"done"}
    assert len(world.storage.results()) == len(jobs)
    assert sorted(world.receiver.ids("succeeded")) == sorted(jobs)


@virtual
async def test_a_dead_receiver_does_not_undo_a_success() -> None:
    """A webhook that is down for ever: four redeliveries for it alone, then a dead letter; the mark stands."""
    world = World()
    async with world.running():
        world.receiver.down_for_ever()
        await world.submit("a")
        await world.ended("a")
        assert await world.status_of("a") == "dead"
        assert await world.code("a") == "webhook_undelivered"
        assert asyncio.get_running_loop().time() > timedelta(minutes=81).total_seconds()
    assert world.engine.generated == ["a"]
    assert world.storage.results()["a"].status == "succeeded"
    assert world.receiver.ids("failed") == []


@virtual
async def test_a_drain_finishes_what_fits_and_gives_back_the_rest() -> None:
    """The running job ends within the deadline; the one waiting for the engine goes back at once, uncharged."""
    world = World()
    async with world.running() as process:
        await world.submit("first")
        await world.ended("first")
        await world.submit("a", "b")
        await world.until(lambda: world.engine.running == 1)
        world.supervisor.stop()
        await asyncio.wait({process})
        assert await world.status_of("a") == "done"
        assert await world.status_of("b") == "waiting"
    assert process.result() is ExitCode.CLEAN


@virtual
async def test_a_drain_interrupts_what_does_not_fit_and_another_worker_does_it() -> None:
    """A long generation is interrupted and its job done elsewhere, with no attempt charged."""
    world = World(drain_s=5)
    world.engine.seconds = 60
    async with world.running():
        await world.submit("a")
        await world.until(lambda: world.engine.running == 1 and world.status.phase is Phase.READY)
        await elapse(10)
    assert world.engine.interrupted == ["a"]
    assert await world.status_of("a") == "waiting"
    other = World(storage=world.storage, queue=world.queue.beside("w2"), worker="w2")
    async with other.running():
        await other.ended("a")
    assert await other.status_of("a") == "done"
    assert (await other.ends("a"))[:1] == [("draining", False)]
