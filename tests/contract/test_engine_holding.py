"""What Automatic1111, Forge and SD.Next hold or are configured with, and how they let go of it."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.engines import ALL, SECOND, Bench, bench, job_of, small
from tests.support.waiting import wait_until
from worker.engines.base import Files
from worker.mentions import Place

FIRST = "dreamshaper_8.safetensors"
VAE = "mine.pt"
every = pytest.mark.parametrize("dialect", ALL)


def checkpoint(name: str) -> Place:
    return Place("checkpoint", name)


def configure(b: Bench, name: str) -> None:
    """Have the settings name a model, as somebody else's request leaves them."""
    model = next(m for m in b.sim.disk.listed if m.name == name)
    b.sim.options["sd_model_checkpoint"] = b.sim.disk.title(model)


def refreshes(b: Bench) -> int:
    return sum(n for path, n in b.sim.stats.requests.items() if "refresh-checkpoints" in path)


@every
async def test_a_vae_that_goes_is_no_option_any_more(dialect: str) -> None:
    """Neither at once nor when the options of a job are taken back."""
    async with bench(dialect, vaes=[VAE, "other.pt"], prepare=False) as b:
        key = "forge_additional_modules" if dialect == "forge" else "sd_vae"
        path, other = f"/models/VAE/{VAE}", "/models/VAE/other.pt"
        b.sim.options[key] = [path] if dialect == "forge" else VAE
        await b.engine.prepare()
        await b.make(small(override_settings={key: [other] if dialect == "forge" else "other.pt"}))
        configured = b.sim.options[key]
        b.sim.options[key] = [path] if dialect == "forge" else VAE
        assert Place("vae", VAE) in await b.engine.loaded()
        await b.engine.unload([Place("vae", VAE)])
        assert Place("vae", VAE) not in await b.engine.loaded()
        assert b.sim.options[key] == ([] if dialect == "forge" else "Automatic")
        await b.make(small())
        assert b.sim.options[key] == ([] if dialect == "forge" else "Automatic") != configured


@every
async def test_the_model_that_last_made_a_picture_takes_the_place_of_the_one_that_goes(dialect: str) -> None:
    """It is what jobs that name none, and the canary, get."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        if dialect in ("forge", "a1111", "a1111-1.7"):
            configure(b, FIRST)
        else:
            await b.sim.machine.select(FIRST.removesuffix(".safetensors"))
            b.sim.machine.state.end()
        assert {checkpoint(FIRST), checkpoint(SECOND)} <= await b.engine.loaded()
        await b.engine.unload([checkpoint(FIRST)])
        assert checkpoint(FIRST) not in await b.engine.loaded()
        assert str(b.sim.options["sd_model_checkpoint"]).startswith("sd_xl_base_1.0")
        output = await b.make(small())
        assert output.engine.model == "sd_xl_base_1.0"


async def test_what_is_loaded_stays_when_only_an_option_names_what_goes() -> None:
    """SD.Next tells the one from the other."""
    async with bench("sdnext") as b:
        await b.make(small(), checkpoint=SECOND)
        configure(b, FIRST)
        loads = list(b.sim.stats.loads)
        assert {checkpoint(FIRST), checkpoint(SECOND)} <= await b.engine.loaded()
        await b.engine.unload([checkpoint(FIRST)])
        assert await b.engine.loaded() == {checkpoint(SECOND)}
        assert b.sim.stats.loads in (loads, [*loads, "sd_xl_base_1.0"])


@every
async def test_what_was_let_go_is_held_again_once_it_is_used(dialect: str) -> None:
    """An option goes on naming it meanwhile; unloading what is not held changes nothing."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        await b.engine.unload([checkpoint("nosuch.pt"), Place("lora", "x.pt")])
        assert checkpoint(SECOND) in await b.engine.loaded()
        await b.engine.unload([checkpoint(SECOND)])
        await b.engine.unload([checkpoint(FIRST)])
        assert await b.engine.loaded() == frozenset()
        await b.make(small(), checkpoint=SECOND)
        assert checkpoint(SECOND) in await b.engine.loaded()


async def test_a_server_that_generates_is_not_asked_to_look_again() -> None:
    """It would do so only after the generation, while the download of what is missing could have begun."""
    async with bench("a1111") as b:
        job = job_of({**small(), "checkpoint": "new"})
        before = refreshes(b)
        await b.engine.mentions(job)
        assert refreshes(b) == before + 1
        b.sim.knobs.arm("hang")
        work = await b.admit(small())
        running = asyncio.create_task(b.engine.generate(work, Files(), b.reports.append), name="test-generate")
        await wait_until(lambda: any(r.sampling for r in b.reports))
        found = await b.engine.mentions(job)
        assert [m.known for m in found] == [None]
        assert refreshes(b) == before + 1
        b.sim.release()
        assert len((await running).images) == 1


async def test_what_the_job_says_where_to_get_needs_no_look() -> None:
    """The cache fetches it; the list is read again when the job is admitted."""
    async with bench("a1111") as b:
        before = refreshes(b)
        listed = [{"kind": "checkpoint", "name": "new.safetensors", "url": "https://huggingface.co/x"}]
        await b.engine.mentions(job_of({**small(), "checkpoint": "new", "models": listed}))
        assert refreshes(b) == before
