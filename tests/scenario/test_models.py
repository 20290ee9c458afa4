"""The models of a job: had before it generates, pinned until its images are verified, and never in others' way."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fakes import FakeEngine, Trouble, flat_output
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.engines.base import Output, Work
from worker.errors import DiskFull, DownloadFailed, ModelNotFound, OutputMismatch
from worker.live import Hop
from worker.mentions import Place
from worker.status import Phase

CAT, DOG = Place("checkpoint", "cat.safetensors"), Place("checkpoint", "dog.safetensors")


@virtual
async def test_the_models_of_a_job_are_pinned_until_its_images_are_verified() -> None:
    """Not evicted while it waits, generates or is looked at; free while it is uploaded."""
    world = World()
    async with world.running():
        world.engine.delays[Hop.GENERATE, "a"] = 5.0
        world.storage.delays[Hop.UPLOAD, "a"] = 5.0
        await world.submit("a", checkpoint=CAT.name)
        await world.at(Hop.GENERATE, "a")
        assert world.models.pinned == [CAT]
        await world.at(Hop.UPLOAD, "a")
        assert world.models.pinned == []
        await world.ended("a")
    assert await world.code("a") is None


@virtual
async def test_a_job_whose_model_is_here_overtakes_one_that_waits_for_its_own() -> None:
    """The turn goes to whoever is ready first."""
    world = World()
    world.models.held[DOG] = asyncio.Event()
    async with world.running():
        await world.submit("far", checkpoint=DOG.name)
        await world.at(Hop.MODELS, "far")
        await world.submit("near", checkpoint=CAT.name)
        await world.ended("near")
        world.models.held[DOG].set()
        await world.ended("far")
    assert world.engine.generated == ["near", "far"]


@virtual
async def test_a_model_that_no_source_has_ends_the_job_alone() -> None:
    """Its owner is told the field; nothing is generated, nothing stays pinned, the next job is done."""
    world = World()
    world.models.missing.add(DOG)
    async with world.running():
        await world.submit("a", checkpoint=DOG.name)
        await world.ended("a")
        await world.submit("b", checkpoint=CAT.name)
        await world.ended("b")
    assert await world.code("a") == ModelNotFound.code
    assert world.engine.generated == ["b"]
    assert world.models.pinned == []


@virtual
async def test_a_source_that_is_away_gives_the_job_back_uncharged() -> None:
    """Another node, or this one later, may have more luck."""
    world = World()
    world.models.errors[DOG] = [DownloadFailed("models.example: no answer in time")]
    async with world.running():
        await world.submit("a", checkpoint=DOG.name)
        await world.ended("a")
    assert await world.code("a") is None
    assert world.engine.generated == ["a"]
    assert [len(wanted) for wanted in world.models.provisions] == [0, 1, 1], "the canary's, and two tries"


@virtual
@pytest.mark.parametrize("trouble", [OutputMismatch(), flat_output], ids=["mismatch", "flat"])
async def test_a_job_that_waits_for_a_verdict_holds_no_models(trouble: Trouble) -> None:
    """The canary may need their room, and would wait for the job for ever."""
    world = World()
    pinned: list[list[Place]] = []

    def canary(engine: FakeEngine, work: Work) -> Output:
        pinned.append(list(world.models.pinned))
        return flat_output(engine, work)

    async with world.running():
        await world.status.reached(Phase.READY)
        world.engine.trouble("a", trouble, trouble)
        world.engine.canary_troubles.append(canary)
        await world.submit("a", checkpoint=CAT.name)
        await world.until(lambda: bool(pinned), 60)
    assert pinned == [[]]


@virtual
async def test_a_full_disk_pauses_intake_until_there_is_room() -> None:
    """The job is given back uncharged, nothing more is received, and one look that finds room resumes."""
    world = World()
    world.models.full = DiskFull("no room for another model")
    world.models.errors[DOG] = [DiskFull("no room for another model")]
    async with world.running():
        await world.submit("a", checkpoint=DOG.name)
        assert await world.status.reached(Phase.PAUSED) is Phase.PAUSED
        assert world.status.ready().reasons == ("disk_full",)
        await elapse(60)
        assert world.engine.generated == []
        world.models.full = None
        await world.ended("a")
    assert await world.code("a") is None
    assert world.engine.generated == ["a"]
