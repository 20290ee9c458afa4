"""Servers as they are found after a life of their own: interrupted jobs, stored settings, no model selected."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.engines import ALL, bench, settings_for, small
from tests.support.waiting import wait_until
from worker.engines.base import Reach
from worker.engines.client import Client
from worker.engines.sdapi.dialects import SDNEXT
from worker.engines.sdapi.run import NORMAL, Pace
from worker.engines.sdapi.server import Server
from worker.settings.node import NodeSettings
from worker.simulators import Knobs


@pytest.mark.parametrize("dialect", ALL)
async def test_what_an_interrupted_job_leaves_behind_is_not_work(dialect: str) -> None:
    """The step and the flag of a job that was cut short stay in sight; nothing is interrupted or waited for."""
    async with (
        bench(dialect, Knobs(step_seconds=0.01), pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=30)) as b,
        httpx.AsyncClient(base_url=b.sim.url, trust_env=False, timeout=20) as other,
    ):
        body = {"prompt": "a cat", "steps": 4000, "width": 64, "height": 64}
        request = asyncio.create_task(other.post("/sdapi/v1/txt2img", json=body), name="another's")
        await wait_until(lambda: b.sim.machine.state.sampling_step > 2)
        await other.post("/sdapi/v1/interrupt")
        await request
        assert not await b.busy()
        await b.make()
        assert b.sim.stats.interrupts == 1


async def test_a_stored_settings_file_hides_no_option() -> None:
    """SD.Next with a settings file lists only what differs from the defaults; all settings are made all the same."""
    async with bench("sdnext", prepare=False) as b:
        listed = (await httpx_get(b.sim.url, "options")).keys()
        assert "samples_format" not in listed
        await b.engine.prepare()
        assert b.sim.options["samples_format"] == "png"
        assert b.sim.options["server_rate_limit"] == 0
        assert b.sim.options["keep_incomplete"] is False
        assert b.sim.options["sd_checkpoint_autodownload"] is False


async def test_an_unlisted_option_may_be_overridden_and_is_put_back() -> None:
    """What a job overrides is known by its default, and the next job runs without it."""
    async with bench("sdnext") as b:
        await b.make(small(override_settings={"token_merging_ratio": 0.5}))
        assert b.sim.options["token_merging_ratio"] == 0.5
        await b.make()
        assert b.sim.options["token_merging_ratio"] == 0.0


@pytest.mark.parametrize("new_install", [True, False])
async def test_options_are_complete_on_a_new_install_and_later(new_install: bool) -> None:
    """The inventory holds every option, whatever the server lists."""
    async with bench("sdnext", Knobs(new_install=new_install), prepare=False) as b:
        client = Client(settings_for(b.sim.url))
        assert (await Server(client, SDNEXT).options()).keys() == b.sim.options.keys()
        await client.aclose()


@pytest.mark.parametrize("changes", [{"sd_model_checkpoint": "model.safetensors"}, {"sd_checkpoint_autoload": False}])
async def test_a_server_that_loads_nothing_by_itself_is_told_to(changes: dict[str, Any]) -> None:
    """A new SD.Next has models and none selected, or is told to load none: it is ready, and the first job loads one."""
    async with bench("sdnext", prepare=False) as b:
        b.sim.options.update(changes)
        b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        assert (await b.engine.look()).reach is Reach.READY
        await b.engine.prepare()
        output = await b.make()
        assert output.engine.model == "dreamshaper_8"
        assert (await b.engine.look()).model == "dreamshaper_8"


async def test_a_server_without_models_is_not_ready() -> None:
    """There is nothing to choose from."""
    async with bench("sdnext", prepare=False, models=()) as b:
        assert (await b.engine.look()).reach is Reach.MODEL_NOT_LOADED


async def test_a_selected_model_is_waited_for_and_then_loaded() -> None:
    """What SD.Next lost after its start it does not load again until somebody asks; a while of silence tells."""
    async with bench("sdnext", pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=0.5)) as b:
        b.sim.machine.loaded = None
        assert (await b.engine.look()).reach is Reach.MODEL_NOT_LOADED

        async def ready() -> bool:
            return (await b.engine.look()).reach is Reach.READY

        await wait_until(ready)
        assert (await b.make()).engine.model == "dreamshaper_8"


async def test_a_server_without_a_model_that_says_for_ever_that_it_is_at_work() -> None:
    """As after an exception, when a worker was lost that had it unload: who comes anew does not wait for its end."""
    async with bench("sdnext", pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=0.2)) as b:
        b.sim.machine.begin("txt2img", 1)
        b.sim.machine.loaded = None
        assert (await b.engine.look()).reach is Reach.MODEL_NOT_LOADED

        async def ready() -> bool:
            return (await b.engine.look()).reach is Reach.READY

        await wait_until(ready)
        assert (await b.make()).engine.model == "dreamshaper_8"


async def test_a_model_that_is_being_loaded_is_waited_for() -> None:
    """However long it shows the same."""
    async with bench("sdnext", pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=0.1)) as b:
        b.sim.machine.begin("Load model", 1)
        b.sim.machine.loaded = None
        loop, reaches = asyncio.get_running_loop(), set()
        began = loop.time()

        async def for_long() -> bool:
            reaches.add((await b.engine.look()).reach)
            return loop.time() > began + 0.5

        await wait_until(for_long)
        assert reaches == {Reach.MODEL_NOT_LOADED}


def test_an_interrupt_that_is_ignored_ends_before_the_drain() -> None:
    """A step on Forge may take longer than a drain: the job is given back in time all the same."""
    assert NORMAL.quiet_s < NodeSettings.model_fields["drain_timeout"].get_default().total_seconds()


async def httpx_get(url: str, path: str) -> dict[str, Any]:
    """The body of a GET below ``/sdapi/v1``."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:
        body: dict[str, Any] = (await client.get(f"/sdapi/v1/{path}")).json()
        return body
