"""The seam to the image server, on every server of the family: its state, its settings, and what it makes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import Any

import pytest

from tests.support.engines import ALL, SDNEXT, SECOND, bench, job_of, settings_for, small
from tests.support.pictures import encoded, opened, picture
from tests.support.published import REQUEST
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Files, Reach
from worker.errors import (
    AuthFailed,
    ConfigError,
    EngineCrashed,
)
from worker.job import Limits
from worker.simulators import Knobs

IMAGE = encoded(picture(96, 72))

every = pytest.mark.parametrize("dialect", ALL)


@every
async def test_each_wait_on_the_way_up_has_its_own_name(dialect: str) -> None:
    """Port closed, routes missing, model not loaded and ready are told apart."""
    never = 1e9
    knobs = Knobs(start_port_seconds=never, start_routes_seconds=never, start_model_seconds=never)
    async with bench(dialect, knobs, prepare=False) as b:

        async def reach() -> Reach:
            return (await b.engine.look()).reach

        assert await reach() is Reach.PORT_CLOSED
        knobs.start_port_seconds = 0
        await wait_until(lambda: b.sim.listening)
        assert await reach() is Reach.ROUTES_MISSING
        knobs.start_routes_seconds = 0
        loading = Reach.MODEL_NOT_LOADED if dialect == "sdnext" else Reach.READY
        assert await reach() is loading
        knobs.start_model_seconds = 0
        assert await reach() is Reach.READY


@every
async def test_a_look_names_the_server(dialect: str) -> None:
    """The kind is found out; after a generation its version is known too."""
    async with bench(dialect) as b:
        state = await b.engine.look()
        assert (state.reach, state.name, state.busy) == (Reach.READY, "sdnext" if dialect in SDNEXT else "a1111", False)
        assert state.model is not None
        assert state.model.startswith("dreamshaper_8")
        await b.make()
        assert (await b.engine.look()).version
        assert b.engine.name == state.name


@pytest.mark.parametrize("dialect", [d for d in ALL if d != "sdnext"])
async def test_a_server_without_models_is_not_ready(dialect: str) -> None:
    """Where models load lazily, one must be there to load."""
    async with bench(dialect, prepare=False, models=()) as b:
        assert (await b.engine.look()).reach is Reach.MODEL_NOT_LOADED


@every
async def test_a_look_tells_when_it_works(dialect: str) -> None:
    """A generation that runs is busy."""
    async with bench(dialect, Knobs(step_seconds=0.05)) as b:
        work = await b.admit(small(steps=20))
        running = asyncio.create_task(b.run(work))
        await wait_until(b.busy)
        running.cancel()
        await asyncio.wait([running])


async def test_a_port_that_does_not_speak_is_not_ready() -> None:
    """Something listens, but gives no answer that could be a server's."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        engine = open_engine(settings_for(f"http://[::1]:{port}"), Limits())
        assert engine.name == "auto"
        state = await engine.look()
        assert (state.reach, state.name) == (Reach.ROUTES_MISSING, None)
        assert state.detail
        with pytest.raises(EngineCrashed):
            await engine.prepare()
        await engine.aclose()


async def test_where_ipv6_refuses_ipv4_is_tried() -> None:
    """A server that listens on 127.0.0.1 alone is found by the default URL."""
    async with bench("a1111", prepare=False, host="127.0.0.1") as b:
        url = b.sim.url.replace("127.0.0.1", "[::1]")
        engine = open_engine(settings_for(url), Limits())
        assert (await engine.look()).reach is Reach.READY
        await engine.aclose()


@every
async def test_credentials_are_sent(dialect: str) -> None:
    """Basic authentication works, and a refusal is the operator's error, from a look too."""
    async with bench(dialect, auth="u:p", settings={"username": "u", "password": "p"}) as b:
        assert (await b.make()).images
        for wrong in ({"username": "u"}, {}):
            engine = open_engine(settings_for(b.sim.url, **wrong), Limits())
            with pytest.raises(AuthFailed):
                await engine.look()
            with pytest.raises(AuthFailed):
                await engine.prepare()
            await engine.aclose()


@every
async def test_the_environments_proxy_is_ignored(dialect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even ``[::1]`` would go to a proxy otherwise."""
    monkeypatch.setenv("HTTP_PROXY", "http://[::1]:9")
    async with bench(dialect) as b:
        assert (await b.engine.look()).reach is Reach.READY


@every
async def test_prepare_makes_answers_honest(dialect: str) -> None:
    """PNG, no previews, no rate limit, no incomplete images, no downloads, as far as the server knows these."""
    async with bench(dialect) as b:
        wanted = {
            "samples_format": "png",
            "live_previews_enable": False,
            "return_grid": False,
            "server_rate_limit": 0,
            "keep_incomplete": False,
            "sd_checkpoint_autodownload": False,
        }
        for key in wanted.keys() & b.sim.options.keys():
            assert b.sim.options[key] == wanted[key], key
        assert not {"server_rate_limit"} & b.sim.options.keys() or dialect == "sdnext"


async def test_settings_that_cannot_be_changed_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with frozen settings says yes and changes nothing: answers are verified all the same."""
    async with bench("sdnext", prepare=False) as b:

        async def frozen(_: object) -> dict[str, list[object]]:
            return {"updated": []}

        monkeypatch.setattr(b.sim.machine, "set_options", frozen)
        await b.engine.prepare()
        assert opened((await b.make()).images[0].data).format == "JPEG"


@pytest.mark.parametrize(("dialect", "kind"), [("sdnext", "a1111"), ("forge", "sdnext"), ("sdnext-2023", "a1111")])
async def test_another_server_than_configured_is_a_configuration_error(dialect: str, kind: str) -> None:
    """What answers must be what the operator says."""
    async with bench(dialect, prepare=False, settings={"kind": kind}) as b:
        with pytest.raises(ConfigError, match="WORKER_ENGINE"):
            await b.engine.prepare()


@every
async def test_prepare_survives_a_restart(dialect: str) -> None:
    """The server is found out anew after it went away."""
    async with bench(dialect) as b:
        b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        await b.engine.prepare()
        assert (await b.make()).images


@every
async def test_a_native_request_is_answered(dialect: str) -> None:
    """The asked-for picture: size, seed, format, model and its proof."""
    async with bench(dialect) as b:
        output = await b.make(small(width=72, height=64))
        image = opened(output.images[0].data)
        assert (image.format, image.size) == ("PNG", (72, 64))
        assert output.images[0].seed == 7
        assert output.engine.model == "dreamshaper_8"
        assert output.engine.proof in ("hash", "name")
        assert output.generate_s > 0


@every
async def test_portable_parameters_mean_the_same_everywhere(dialect: str) -> None:
    """One document of portable parameters is honoured by each server."""
    document = {
        "params": {
            "prompt": "a cat",
            "negative_prompt": "dog",
            "width": 80,
            "height": 64,
            "steps": 4,
            "cfg": 5.5,
            "seed": 11,
            "sampler": "euler_ancestral",
            "batch_size": 2,
            "clip_skip": 2,
            "loras": [{"name": "add_detail", "weight": 0.5}],
        },
        "checkpoint": SECOND,
    }
    async with bench(dialect, loras=["add_detail.safetensors"]) as b:
        output = await b.make(document)
        assert [i.seed for i in output.images] == [11, 12]
        assert {opened(i.data).size for i in output.images} == {(80, 64)}
        assert output.engine.model == "sd_xl_base_1.0"
        info = output.engine.info
        assert info["sampler_name"] == "Euler a"
        assert info["cfg_scale"] == 5.5
        assert "<lora:add_detail:0.5>" in info["prompt"]


@every
async def test_the_published_request_is_answered(dialect: str) -> None:
    """The request printed in the published guide; the seed, which it leaves open, follows from the job's id."""
    async with bench(dialect, Knobs(step_seconds=0.0)) as b:
        first = await b.make({"request": json.loads(REQUEST)})
        second = await b.make({"request": json.loads(REQUEST)})
        assert first.images[0].seed == job_of(small()).seed
        assert first.images[0].data == second.images[0].data
        side = 1024 if dialect == "sdnext" else 512
        assert opened(first.images[0].data).size == (side, side)


@every
async def test_several_images_have_consecutive_seeds(dialect: str) -> None:
    """``batch_size`` times ``n_iter`` pictures, all different."""
    async with bench(dialect) as b:
        output = await b.make(small(batch_size=2, n_iter=2))
        assert [i.seed for i in output.images] == [7, 8, 9, 10]
        assert len({i.data for i in output.images}) == 4


@every
@pytest.mark.parametrize("how", ["request", "params"])
async def test_an_image_is_changed(dialect: str, how: str) -> None:
    """img2img, natively and portably, with the image as bytes that were fetched or as base64 in the job."""
    text = base64.b64encode(IMAGE).decode()
    document: dict[str, Any] = {"params": {"prompt": "a cat", "image": "https://cdn.example/cat.png", "denoise": 0.4}}
    if how == "request":
        document = {
            "request": {"prompt": "a cat", "init_images": [f"data:image/png;base64,{text}"], "width": 96, "height": 72},
            "endpoint": "img2img",
        }
    async with bench(dialect) as b:
        work = await b.admit(document)
        field = work.inputs[0].field
        output = await b.run(work, Files({field: IMAGE}))
        assert opened(output.images[0].data).size == (96, 72)
        if how == "request":
            assert (await b.run(work)).images[0].data == output.images[0].data


@every
async def test_a_mask_keeps_the_rest(dialect: str) -> None:
    """Inpainting comes back at the size of the whole image."""
    mask = base64.b64encode(encoded(picture(96, 72, mode="L"))).decode()
    image = base64.b64encode(IMAGE).decode()
    async with bench(dialect) as b:
        output = await b.make({"params": {"prompt": "x", "image": image, "mask": mask, "width": 96, "height": 72}})
        assert opened(output.images[0].data).size == (96, 72)


@every
async def test_an_image_is_enlarged(dialect: str) -> None:
    """``extra-single-image`` has one image, and no model to prove."""
    async with bench(dialect) as b:
        request = {"image": base64.b64encode(IMAGE).decode(), "upscaling_resize": 2, "upscaler_1": "Lanczos"}
        output = await b.make({"request": request, "endpoint": "extra-single-image"})
        assert opened(output.images[0].data).size == (192, 144)
        assert (output.images[0].seed, output.engine.proof) == (None, "none")


@every
async def test_the_high_resolution_pass_sets_the_size(dialect: str) -> None:
    """The expected size is that of the second pass."""
    async with bench(dialect) as b:
        output = await b.make(small(enable_hr=True, hr_scale=1.5, hr_upscaler="Lanczos"))
        assert opened(output.images[0].data).size == (96, 96)


@every
async def test_progress_is_reported(dialect: str) -> None:
    """Reports rise, and say when sampling began; an error of a poll does not disturb."""
    async with bench(dialect, Knobs(step_seconds=0.01)) as b:
        b.sim.knobs.arm("progress_500", times=2)
        output = await b.make(small(steps=20))
        fractions = [r.fraction for r in b.reports]
        assert fractions == sorted(fractions)
        assert any(r.sampling for r in b.reports)
        assert {r.steps for r in b.reports if r.sampling} == {20}
        assert output.generate_s > 0


async def test_each_request_has_a_connection_of_its_own_and_wants_plain_bytes() -> None:
    """Kept connections fail when the server closes them idle; gzip hardly shrinks base64 and costs the server CPU."""
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            heads.append((await reader.readuntil(b"\r\n\r\n")).lower())
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "::1", 0)
    async with server:
        engine = open_engine(settings_for(f"http://[::1]:{server.sockets[0].getsockname()[1]}", kind="a1111"), Limits())
        assert (await engine.look()).reach is Reach.ROUTES_MISSING
        await engine.aclose()
    assert len(heads) == 1
    assert b"accept-encoding: identity" in heads[0]
    assert b"connection: close" in heads[0]


async def test_sdnext_is_never_asked_to_draw_a_preview() -> None:
    """Asking for the progress makes the preview that a failed generation then gives as its result."""
    async with bench("sdnext", Knobs(step_seconds=0.02)) as b:
        running = asyncio.create_task(b.make(small(steps=20)))
        await wait_until(b.busy)
        await running
        assert b.reports
        assert b.sim.stats.requests["GET /sdapi/v1/status"] > 1
        assert b.sim.stats.requests["GET /sdapi/v1/progress"] == 0


@every
async def test_idle_connections_that_the_server_closes_do_not_matter(dialect: str) -> None:
    """None is kept."""
    async with bench(dialect, Knobs(keep_alive_seconds=0.001)) as b:
        for _ in range(5):
            assert (await b.make()).images
