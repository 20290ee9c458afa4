"""The PyPI client ``webuiapi``, unchanged, at a real worker with Automatic1111 behind it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import webuiapi  # type: ignore[import-untyped]

from tests.support.pictures import picture
from tests.support.sims import in_background
from tests.support.waiting import wait_until
from tests.support.workshop import LONGEST_S, living
from worker.simulators import Knobs, Simulator, running

KEY = "a key of the operator's"
SMALL = {"prompt": "a cat", "seed": 7, "steps": 4, "width": 64, "height": 64}


@asynccontextmanager
async def ready(folder: Path, sim: Simulator) -> AsyncIterator[int]:
    """The port of a worker's process that takes jobs for that server."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    variables = {
        **inherited,
        "WORKER_ENGINE": "a1111",
        "WORKER_ENGINE_URL": sim.url,
        "WORKER_HTTP_PORT": "0",
        "WORKER_API_KEY": KEY,
        "WORKER_LOG_FORMAT": "json",
    }
    async with living("worker", "run", environment=variables, log=folder / "worker.log") as life:
        await wait_until(lambda: life.over or _is_ready(life.events("phase_changed")), LONGEST_S, life.tail)
        assert not life.over, life.tail()
        yield life.events("listening")[0]["port"]


def _is_ready(changes: list[dict[str, Any]]) -> bool:
    return any(change["phase"] == "ready" for change in changes)


def draws(client: Any) -> None:
    """Text to image and image to image, alone and in batches, with what the server says of them."""
    made = client.txt2img(**SMALL, batch_size=2, override_settings={"sd_model_checkpoint": "sd_xl_base_1.0"})
    assert [image.size for image in made.images] == [(64, 64)] * 2
    assert (made.info["all_seeds"], made.info["sd_model_name"]) == ([7, 8], "sd_xl_base_1.0")
    assert made.parameters["prompt"] == "a cat"
    again = client.txt2img(**SMALL, override_settings={"sd_model_checkpoint": "sd_xl_base_1.0"})
    assert again.image.tobytes() == made.image.tobytes()
    changed = client.img2img(images=[made.image], mask_image=picture(64, 64, mode="L"), **SMALL)
    assert (changed.image.size, changed.info["seed"]) == ((64, 64), 7)
    assert client.extra_single_image(made.image, upscaler_1="Lanczos").image.size == (128, 128)
    assert [one.size for one in client.extra_batch_images([made.image] * 2).images] == [(128, 128)] * 2
    assert client.png_info(made.image).info == made.info["infotexts"][0]
    assert client.interrogate(made.image).info == "a picture of 64 by 64 pixels"


def looks_around(client: Any) -> None:
    """The lists and settings that it asks for."""
    assert client.util_get_current_model() in client.util_get_model_names()
    assert client.get_options()["samples_format"] == "png"
    assert {"Euler", "Euler a"} <= set(client.util_get_sampler_names())
    assert "automatic" in client.util_get_scheduler_names()
    assert "Lanczos" in [one["name"] for one in client.get_upscalers()]
    assert "Latent" in [one["name"] for one in client.get_latent_upscale_modes()]
    assert client.get_cmd_flags()["api"] is True
    assert client.get_memory()["cuda"]["events"]["oom"] == 0
    assert (client.get_loras(), client.get_sd_vae(), client.get_hypernetworks()) == ([], [], [])
    assert client.refresh_checkpoints() is None
    assert client.controlnet_version() == 3
    assert client.set_options({"CLIP_stop_at_last_layers": 2})["code"] == "engine_options_refused"
    client.util_wait_for_ready(check_interval=0.01)


def is_refused(port: int) -> None:
    """A wrong password, and a mistake in a request, are told as the client tells errors."""
    stranger = webuiapi.WebUIApi(port=port, username="any", password="wrong")
    with pytest.raises(RuntimeError) as unknown:
        stranger.txt2img(**SMALL)
    assert unknown.value.args[0] == 401
    with pytest.raises(RuntimeError, match="sampler_name: unknown sampler") as mistaken:
        known(port).txt2img(**SMALL, sampler_name="nope")
    assert mistaken.value.args[0] == 422


def known(port: int) -> Any:
    """As its README makes one for a server that asks for a login; the worker's key is the password."""
    return webuiapi.WebUIApi(port=port, username="any", password=KEY)


async def test_webuiapi_works_unchanged(tmp_path: Path) -> None:
    """Text to image, image to image, options and progress, and what else it has for the plain server."""
    knobs = Knobs()
    async with running("a1111", knobs) as sim, ready(tmp_path, sim) as port:
        client = await asyncio.to_thread(known, port)
        await asyncio.to_thread(looks_around, client)
        await asyncio.to_thread(draws, client)
        await asyncio.to_thread(is_refused, port)
        knobs.arm("hang", prompt="slow")
        slow = asyncio.to_thread(client.txt2img, **{**SMALL, "prompt": "slow"})
        async with in_background(slow) as job:
            await wait_until(lambda: _hangs(sim), LONGEST_S)
            told = await asyncio.to_thread(lambda: known(port).get_progress())
            await wait_until(lambda: _released(sim) and job.done(), LONGEST_S)
            made: Any = await job
    assert (told["state"]["sampling_step"], told["state"]["sampling_steps"]) == (3, 4)
    assert 0 < told["progress"] < 1
    assert made.image.size == (64, 64)


def _hangs(sim: Simulator) -> bool:
    return sim.machine.state.sampling and sim.machine.state.sampling_step >= 3


def _released(sim: Simulator) -> bool:
    """Let go on what hangs by now."""
    sim.release()
    return True
