"""Known pitfalls of Automatic1111, Forge and SD.Next between two requests: what must never overlap or stick."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.support.engines import A1111, ALL, SECOND, bench, small
from tests.support.waiting import wait_until
from worker.simulators import Knobs

every = pytest.mark.parametrize("dialect", ALL)
FIRST = "dreamshaper_8.safetensors"


@every
async def test_nothing_changes_the_server_while_it_generates(dialect: str) -> None:
    """Settings, unloading and another model wait for the generation that runs: the servers do not lock them out."""
    async with bench(dialect, Knobs(step_seconds=0.01)) as b:
        during: list[str] = []
        post = b.engine._client.post

        async def noted(path: str, *args: Any, **options: Any) -> Any:
            if b.sim.stats.in_flight:
                during.append(path)
            return await post(path, *args, **options)

        b.engine._client.post = noted  # type: ignore[method-assign]
        running = asyncio.create_task(b.make(small(steps=80)))
        await wait_until(lambda: bool(b.reports) and b.reports[-1].sampling)
        upkeep = asyncio.gather(b.engine.prepare(), b.engine.free(True))
        output, other, _ = await asyncio.gather(running, b.make(small(), checkpoint=SECOND), upkeep)
        assert during == []
        assert b.sim.stats.interrupts == 0
        assert len(output.images) == len(other.images) == 1
        assert other.engine.model == SECOND.removesuffix(".safetensors")


@every
async def test_another_model_is_loaded_after_unloading(dialect: str) -> None:
    """Servers are known to come back to the model that was unloaded, whatever was asked for."""
    async with bench(dialect) as b:
        for checkpoint in (FIRST, SECOND, FIRST):
            await b.engine.free(True)
            output = await b.make(small(), checkpoint=checkpoint)
            assert output.engine.model == checkpoint.removesuffix(".safetensors")
            assert output.engine.proof != "none"


@every
async def test_a_long_first_load_is_no_stall(dialect: str) -> None:
    """A model may be read, and its configuration looked for in vain on the network, far longer than a step takes."""
    quick = {"stall_timeout": timedelta(seconds=0.1)}
    async with bench(dialect, Knobs(load_seconds=0.5), settings=quick) as b:
        assert (await b.make(small(), checkpoint=SECOND)).images


@pytest.mark.parametrize("dialect", A1111)
async def test_polls_never_draw_a_preview(dialect: str) -> None:
    """Drawing the unfinished picture for a poll is known to deadlock servers and to cost them 500s."""
    async with bench(dialect, Knobs(step_seconds=0.01)) as b:
        polls: list[str] = []
        get = b.engine._client.get

        async def noted(path: str, **options: Any) -> Any:
            if "progress" in path:
                polls.append(path)
            return await get(path, **options)

        b.engine._client.get = noted  # type: ignore[method-assign]
        await b.make(small(steps=30))
        assert b.reports
        assert {path.partition("?")[2] for path in polls} == {"skip_current_image=true"}
