"""A look at a picture in the making: only where the server gives one, and where it cannot become the result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support import comfy_engine, engines, fooocus
from tests.support.waiting import wait_until
from worker.engines.base import ProgressReport
from worker.images import sniffed
from worker.simulators import Knobs, comfyui
from worker.simulators import fooocus as fooocus_server
from worker.tasks import cancel_all

STEPS = 40
PATIENCE_S = 10.0


async def looked_at(bench: Any, document: dict[str, Any], reports: Sequence[ProgressReport]) -> bytes | None:
    """What the job's reports offer to look at once it samples; it is cancelled then."""
    task = asyncio.create_task(bench.make(document), name="generate")
    try:
        await wait_until(lambda: any(r.sampling and (r.preview or (r.step or 0) > 1) for r in reports), PATIENCE_S)
        look = reports[-1].preview
        return None if look is None else await look()
    finally:
        await cancel_all({task})


@pytest.mark.parametrize(("method", "shows"), [("latent2rgb", True), ("none", False)])
async def test_comfyui_shows_what_it_was_started_to_show(method: Any, shows: bool) -> None:
    """Its frames during sampling; without ``--preview-method`` there are none."""
    knobs = comfyui.Knobs(step_seconds=0.01, preview_method=method)
    async with comfy_engine.bench(knobs) as b:
        found = await looked_at(b, comfy_engine.small(steps=STEPS), b.reports)
    assert (found is not None and sniffed(found) == "jpeg") == shows


async def test_pictures_that_are_results_are_no_previews() -> None:
    """A node that sends its pictures by the socket sends what the job made."""
    knobs = comfyui.Knobs(step_seconds=0.01)
    async with comfy_engine.bench(knobs, settings={"comfyui_output": "websocket"}) as b:
        output = await b.make(comfy_engine.small())
    assert len(output.images) == 1
    assert [report.preview for report in b.reports if report.preview] == []


@pytest.mark.parametrize(
    ("dialect", "wanted", "shows"),
    [("a1111", True, True), ("forge", True, True), ("a1111", None, False), ("sdnext", True, False)],
)
async def test_automatic1111_shows_what_the_job_asks_for(dialect: str, wanted: bool | None, shows: bool) -> None:
    """Live previews are off unless the job itself turns them on; SD.Next is never asked, since it may return one."""
    overrides = {} if wanted is None else {"live_previews_enable": wanted}
    body = {"prompt": "a cat", "width": 64, "height": 64, "steps": STEPS, "override_settings": overrides}
    async with engines.bench(dialect, Knobs(step_seconds=0.02)) as b:
        found = await looked_at(b, {"request": body}, b.reports)
    assert (found is not None and sniffed(found) == "png") == shows


@pytest.mark.parametrize("version", fooocus.ALL)
@pytest.mark.parametrize(("disabled", "shows"), [(False, True), (True, False), (None, False)])
async def test_fooocus_shows_what_the_job_asks_for(version: str, disabled: bool | None, shows: bool) -> None:
    """A job that says that previews are not disabled has them; one that says nothing is spared the work."""
    advanced = {} if disabled is None else {"disable_preview": disabled}
    async with fooocus.bench(version, fooocus_server.Knobs(step_seconds=0.02)) as b:
        found = await looked_at(b, fooocus.small(steps=STEPS, advanced_params=advanced), b.reports)
    assert (found is not None and sniffed(found) == "png") == shows
