"""The seam to the image server, on every server of the family: one suite, five dialects, real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from typing import Any

import pytest

from tests.support.engines import A1111, ALL, SDNEXT, bench, job_of, settings_for, small
from tests.support.pictures import encoded, opened, picture
from tests.support.published import REQUEST
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Files, Reach
from worker.engines.sdapi.engine import SdapiEngine
from worker.engines.sdapi.run import Pace
from worker.errors import (
    AuthFailed,
    ConfigError,
    EngineCrashed,
    EngineFault,
    EngineOutOfMemory,
    EngineStalled,
    GenerationRejected,
    GpuFault,
    InvalidJob,
    ModelNotFound,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
    WrongModel,
)
from worker.job import Limits
from worker.simulators import Knobs, ModelFile

SECOND = "sd_xl_base_1.0.safetensors"
IMAGE = encoded(picture(96, 72))

every = pytest.mark.parametrize("dialect", ALL)


# --- what state it is in


@every
async def test_each_wait_on_the_way_up_has_its_own_name(dialect: str) -> None:
    """Port closed, routes missing, model not loaded and ready are told apart, in that order."""
    knobs = Knobs(start_port_seconds=0.1, start_routes_seconds=0.1, start_model_seconds=0.1)
    seen: list[Reach] = []
    async with bench(dialect, knobs, prepare=False) as b:
        assert (await b.engine.look()).reach is Reach.PORT_CLOSED

        async def ready() -> bool:
            seen.append((await b.engine.look()).reach)
            return seen[-1] is Reach.READY

        await wait_until(ready)
    order = list(Reach)
    assert seen == sorted(seen, key=order.index)
    assert Reach.ROUTES_MISSING in seen
    assert (Reach.MODEL_NOT_LOADED in seen) is (dialect == "sdnext")


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
        await wait_until(lambda: _busy(b.engine))
        running.cancel()
        await asyncio.wait([running])


async def _busy(engine: SdapiEngine) -> bool:
    return (await engine.look()).busy


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


# --- what is settled before the first job


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


# --- generating


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


@every
async def test_bodies_are_asked_for_uncompressed_and_connections_are_fresh(dialect: str) -> None:
    """A server that closes idle connections at once does not matter."""
    async with bench(dialect, Knobs(keep_alive_seconds=0.001)) as b:
        for _ in range(5):
            assert (await b.make()).images


# --- models


@every
@pytest.mark.parametrize("name", [SECOND, "sd_xl_base_1.0", "/models/Stable-diffusion/sd_xl_base_1.0.safetensors"])
async def test_a_checkpoint_is_selected_by_identity(dialect: str, name: str) -> None:
    """File name, stem and path find the same file, whatever the server itself would make of the name."""
    async with bench(dialect) as b:
        output = await b.make(small(), checkpoint=name)
        assert output.engine.model == "sd_xl_base_1.0"
        again = await b.make(small())
        assert again.engine.model == "sd_xl_base_1.0"
        assert len(b.sim.stats.loads) <= 2


@every
async def test_a_checkpoint_in_a_folder_and_by_override(dialect: str) -> None:
    """The native way of naming a model works, with or without extension and folder."""
    async with bench(dialect) as b:
        for name in ("realistic/vision_v6.safetensors", "vision_v6"):
            output = await b.make(small(override_settings={"sd_model_checkpoint": name}))
            assert output.engine.model in ("vision_v6", "realistic_vision_v6")


@every
async def test_an_unknown_model_is_never_replaced(dialect: str) -> None:
    """Never the closest, never the first, never the one that is loaded, and nothing is downloaded."""
    async with bench(dialect) as b:
        for name in ("nosuch", "dreamshaper", "dreamshaper_8 [0123456789]", "sd_xl"):
            for document in (
                small(override_settings={"sd_model_checkpoint": name}),
                {**small(), "checkpoint": name},
                {"params": {"prompt": "x"}, "checkpoint": name},
            ):
                with pytest.raises(ModelNotFound):
                    await b.admit(document)
        assert b.sim.stats.generations == []
        assert b.sim.stats.downloads == []


@every
async def test_a_new_file_is_found_after_one_refresh(dialect: str) -> None:
    """A model that was put there after the start is found, because the server is told to look again."""
    async with bench(dialect) as b:
        b.sim.disk.add("fresh_one.safetensors")
        output = await b.make(small(), checkpoint="fresh_one.safetensors")
        assert output.engine.model == "fresh_one"


@every
async def test_changed_files_refresh_the_lists(dialect: str) -> None:
    """A growing version of the files has the server look again before the generation."""
    async with bench(dialect) as b:
        work = await b.admit(small())
        b.sim.disk.add("late.safetensors")
        await b.run(work, Files(version=1))
        assert "late.safetensors" in {f.name for f in b.sim.disk.listed}


@every
async def test_a_model_that_vanished_since_admission_is_not_replaced(dialect: str) -> None:
    """Between admission and turn the file was evicted and the lists were refreshed."""
    async with bench(dialect) as b:
        work = await b.admit(small(), checkpoint=SECOND)
        b.sim.disk.remove(SECOND)
        with pytest.raises(ModelNotFound):
            await b.run(work, Files(version=1))


@every
async def test_proof_by_hash_once_the_server_has_hashed(dialect: str) -> None:
    """A title gains its hash at the first load; the next job knows it."""
    async with bench(dialect, Knobs(hashing=True)) as b:
        await b.make(small(), checkpoint=SECOND)
        assert (await b.make(small(), checkpoint=SECOND)).engine.proof == "hash"


@every
async def test_a_wrong_hash_is_another_file(dialect: str) -> None:
    """A model of that name with another hash is never used."""
    async with bench(dialect, Knobs(hashing=True)) as b:
        await b.make(small(), checkpoint=SECOND)
        models = [{"kind": "checkpoint", "name": SECOND, "sha256": "0" * 64}]
        with pytest.raises(ModelNotFound, match="another file"):
            await b.admit(small(), checkpoint=SECOND, models=models)


@every
@pytest.mark.parametrize("how", ["params", "prompt", "models"])
async def test_a_missing_lora_is_not_skipped(dialect: str, how: str) -> None:
    """All servers generate without it; here it is refused, unless a refresh brings it."""
    document: dict[str, Any] = {
        "params": {"params": {"prompt": "x", "width": 64, "height": 64, "loras": [{"name": "my.style"}]}},
        "prompt": small("x <lora:my.style:0.7>"),
        "models": {**small(), "models": [{"kind": "lora", "name": "my.style.safetensors"}]},
    }[how]
    async with bench(dialect) as b:
        with pytest.raises(ModelNotFound, match="LoRA"):
            await b.admit(document)
        b.sim.disk.add("my.style.safetensors", "lora")
        assert (await b.make(document)).images


@every
async def test_a_vae_is_found_or_refused(dialect: str) -> None:
    """An unknown VAE would be ignored with a warning in the server's log."""
    async with bench(dialect, vaes=["sharp.safetensors"]) as b:
        params = {"prompt": "x", "width": 64, "height": 64, "steps": 1}
        assert (await b.make({"params": {**params, "vae": "sharp"}})).images
        with pytest.raises(ModelNotFound, match="VAE"):
            await b.admit({"params": {**params, "vae": "blurry"}})


@pytest.mark.parametrize("dialect", A1111)
async def test_refiner_and_hires_checkpoint_are_resolved(dialect: str) -> None:
    """Automatic1111 would answer 500 for one that it does not find."""
    async with bench(dialect) as b:
        params = {"prompt": "x", "width": 64, "height": 64, "steps": 2}
        refined = {**params, "refiner": {"checkpoint": "sd_xl_base_1.0", "switch_at": 0.7}}
        assert (await b.make({"params": refined})).images
        for field in ("refiner_checkpoint", "hr_checkpoint_name"):
            assert (await b.make(small(enable_hr=True, **{field: "vision_v6"}))).images
            with pytest.raises(ModelNotFound):
                await b.admit(small(**{field: "nosuch"}))


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_refiner_that_cannot_be_honoured_is_refused(dialect: str) -> None:
    """SD.Next has no switch at a step: the field is refused, not ignored."""
    async with bench(dialect) as b:
        with pytest.raises(InvalidJob, match=r"params\.refiner"):
            await b.admit({"params": {"prompt": "x", "refiner": {"checkpoint": SECOND}}})


async def test_sdnext_loads_a_named_model_when_it_has_none() -> None:
    """The current SD.Next does not even look at an override while no model is loaded: 200 and nothing."""
    async with bench("sdnext") as b:
        b.sim.machine.loaded = None
        b.sim.options["sd_model_checkpoint"] = "gone"
        output = await b.make(small(), checkpoint=SECOND)
        assert output.engine.model == "sd_xl_base_1.0"


@every
async def test_overrides_do_not_leak_into_the_next_job(dialect: str) -> None:
    """Overrides are not restored by the server, since it would swap models: the next job puts them back."""
    async with bench(dialect) as b:
        before = b.sim.options["eta_noise_seed_delta"]
        await b.make(small(override_settings={"eta_noise_seed_delta": 31337}))
        assert b.sim.options["eta_noise_seed_delta"] == 31337
        await b.make(small())
        assert b.sim.options["eta_noise_seed_delta"] == before
        loads = len(b.sim.stats.loads)
        await b.make(small())
        assert len(b.sim.stats.loads) == loads


# --- what servers would drop or replace silently


@every
async def test_what_the_server_does_not_know_is_refused(dialect: str) -> None:
    """Unknown fields, samplers, schedulers and scripts would be dropped or replaced."""
    unknown = {"sampler_name": "Eulr", "scheduler": "karas", "no_such_field": 1, "script_name": "nosuch"}
    async with bench(dialect) as b:
        for field, value in unknown.items():
            with pytest.raises(InvalidJob, match=rf"request\.{field}"):
                await b.admit(small(**{field: value}))


@every
async def test_unknown_options_and_scripts_are_refused(dialect: str) -> None:
    """SD.Next ignores an unknown option, the others answer 500; the operator's own options are not for jobs."""
    async with bench(dialect) as b:
        for key in ("no_such_option", "samples_format", "outdir_samples"):
            with pytest.raises(InvalidJob, match=rf"override_settings\.{key}"):
                await b.admit(small(override_settings={key: "x"}))
        with pytest.raises(InvalidJob, match=r"alwayson_scripts\.nope"):
            await b.admit(small(alwayson_scripts={"nope": {"args": []}}))


@every
async def test_a_sampler_in_another_spelling_is_the_same(dialect: str) -> None:
    """Case does not matter: the server is sent its own spelling."""
    async with bench(dialect) as b:
        work = await b.admit(small(sampler_name="euler A"))
        assert work.request["sampler_name"] == "Euler a"
        assert (await b.run(work)).engine.info["sampler_name"] == "Euler a"


KARRAS = {
    "sdnext": {"sampler_name": "DPM++ 2M", "schedulers_sigma": "karras"},
    "a1111": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "a1111-1.7": {"sampler_name": "DPM++ 2M Karras"},
    "forge": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
}
"""Each server has its own way: a field, or a part of the sampler's name."""


@pytest.mark.parametrize("dialect", KARRAS)
async def test_portable_schedulers_are_honoured(dialect: str) -> None:
    """One of ComfyUI's schedulers is asked for as this server understands it."""
    params = {"prompt": "x", "width": 64, "height": 64, "sampler": "dpmpp_2m", "scheduler": "karras"}
    async with bench(dialect) as b:
        work = await b.admit({"params": params})
        assert work.request.items() >= KARRAS[dialect].items()
        assert (await b.run(work)).images
        with pytest.raises(InvalidJob, match=r"params\.scheduler"):
            await b.admit({"params": {**params, "scheduler": "no_such"}})


async def test_a_scheduler_that_cannot_be_honoured_is_refused() -> None:
    """This SD.Next of 2023 has no option for it: the field is refused, not ignored."""
    async with bench("sdnext-2023") as b:
        with pytest.raises(InvalidJob, match=r"params\.scheduler"):
            await b.admit({"params": {"prompt": "x", "scheduler": "karras"}})
        assert (await b.admit({"params": {"prompt": "x", "scheduler": "normal"}})).request


@every
async def test_the_back_door_is_closed(dialect: str) -> None:
    """SD.Next's ``extra`` sets any attribute of its job; others do not know it."""
    async with bench(dialect) as b:
        with pytest.raises(InvalidJob, match=r"request\.extra"):
            await b.admit(small(extra={"outpath_samples": "/etc"}))


@every
async def test_an_unused_controlnet_is_sent_empty(dialect: str) -> None:
    """Without arguments the extension would go on with those of the job before."""
    async with bench(dialect) as b:
        assert (await b.admit(small())).request["alwayson_scripts"] == {"ControlNet": {"args": []}}
        b.sim.knobs.scripts = []
    async with bench(dialect, Knobs(scripts=[])) as b:
        assert "alwayson_scripts" not in (await b.admit(small())).request


@every
async def test_images_are_sent_and_nothing_is_saved(dialect: str) -> None:
    """``send_images: false`` would answer 200 without images, ``save_images`` would fill the disk."""
    async with bench(dialect) as b:
        work = await b.admit(small(send_images=False, save_images=True, override_settings_restore_afterwards=True))
        request = work.request
        assert (request["send_images"], request["save_images"]) == (True, False)
        assert request["override_settings_restore_afterwards"] is False
        assert (await b.run(work)).images


TOO_MUCH: list[tuple[str, dict[str, Any]]] = [
    ("request.width", {"width": 100_000, "height": 100_000}),
    ("request.width", {"width": -64}),
    ("request.height", {"height": 0}),
    ("request.width", {"width": "wide"}),
    ("request.steps", {"steps": 10_000}),
    ("request.steps", {"steps": 0}),
    ("request.batch_size", {"batch_size": 17}),
    ("request.n_iter", {"n_iter": 9, "batch_size": 2}),
    ("request.n_iter", {"n_iter": 0}),
    ("request.hr_scale", {"enable_hr": True, "hr_scale": 16, "width": 1024, "hr_upscaler": "Lanczos"}),
]


@every
async def test_limits_hold_before_the_gpu(dialect: str) -> None:
    """What is too much, or senseless, is refused with its field."""
    async with bench(dialect) as b:
        for field, changes in TOO_MUCH:
            with pytest.raises(InvalidJob) as caught:
                await b.admit(small(**changes))
            assert caught.value.errors[0].field == field, changes


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"workflow": {"1": {}}}, "workflow"),
    ({"template": {"name": "x"}}, "template"),
    ({"request": {"prompt": "x"}, "endpoint": "png-info"}, "endpoint"),
    ({"request": {"prompt": "x"}, "endpoint": "img2img"}, "request.init_images"),
    ({"request": {"init_images": ["%%%"]}, "endpoint": "img2img"}, "request.init_images.0"),
    ({"request": {"init_images": ["file:///etc/passwd"]}, "endpoint": "img2img"}, "request.init_images.0"),
    ({"params": {"prompt": "x", "image": "%%%"}}, "params.image"),
    ({"params": {"prompt": "x", "sampler": "eulr"}}, "params.sampler"),
]


@every
async def test_what_it_cannot_do_is_refused_by_name(dialect: str) -> None:
    """Documents of other engines, unknown endpoints and broken inputs name the field."""
    async with bench(dialect) as b:
        for document, field in IMPOSSIBLE:
            with pytest.raises(InvalidJob) as caught:
                await b.admit(document)
            assert caught.value.errors[0].field == field


@every
async def test_a_side_that_is_no_multiple_of_8_is_rounded_knowingly(dialect: str) -> None:
    """Servers round down without a word: so do we, with a warning, and hold them to it."""
    async with bench(dialect) as b:
        output = await b.make(small(width=77, height=64))
        assert opened(output.images[0].data).size == (72, 64)
        assert "size_rounded" in output.warnings


# --- 200 but not an image, and other faults


FAULTS: list[tuple[Any, dict[str, Any], type[WorkerError]]] = [
    ("empty", {}, OutputEmpty),
    ("short_count", {}, OutputEmpty),
    ("wrong_size", {}, OutputMismatch),
    ("wrong_model", {}, WrongModel),
    ("wrong_seed", {}, OutputMismatch),
    ("not_an_image", {}, OutputMismatch),
    ("oom", {}, EngineOutOfMemory),
    ("error_500", {}, GpuFault),
    ("error_500", {"error": "TypeError", "text": "unhashable"}, OutputEmpty),
    ("error_500", {"error": "KeyError", "text": "'x'"}, GenerationRejected),
    ("error_500", {"text": "CUDA out of memory."}, EngineOutOfMemory),
    ("crash_mid_body", {}, EngineCrashed),
]


@every
async def test_a_fault_is_told_for_what_it_is(dialect: str) -> None:
    """Each way in which a server fails or lies becomes its own error, and the next job works."""
    async with bench(dialect) as b:
        for kind, fault, error in FAULTS:
            b.sim.knobs.arm(kind, **fault)
            with pytest.raises(error) as caught:
                await b.make(small(batch_size=2))
            assert type(caught.value) is error, kind
            assert (await b.make()).images


@every
@pytest.mark.parametrize("kind", ["exit", "restart"])
async def test_a_server_that_goes_away_is_told(dialect: str, kind: Any) -> None:
    """A connection that breaks in the middle of a generation is a crash."""
    async with bench(dialect) as b:
        b.sim.knobs.arm(kind)
        with pytest.raises(EngineCrashed):
            await b.make()


@pytest.mark.parametrize("dialect", ["a1111", "a1111-1.7"])
async def test_nan_gives_no_picture(dialect: str) -> None:
    """Automatic1111 answers an error where others send a black picture: there is nothing that could go out."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("nan")
        with pytest.raises(OutputEmpty, match="NansException"):
            await b.make()


@every
async def test_a_preview_alone_is_no_picture(dialect: str) -> None:
    """The live preview as the only result has the wrong size."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("preview")
        with pytest.raises(OutputMismatch, match="pixels instead of"):
            await b.make()


@pytest.mark.parametrize("dialect", ["sdnext", "sdnext-2023", "forge"])
async def test_a_black_picture_is_left_to_who_opens_it(dialect: str) -> None:
    """Servers that do not check for NaN send a black one: a picture as far as its header goes."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("nan")
        image = opened((await b.make()).images[0].data)
        assert image.convert("L").getextrema() == (0, 0)


async def test_a_rate_limit_is_lifted() -> None:
    """SD.Next counts after the work; the limit is turned off once more, and the job done again."""
    async with bench("sdnext") as b:
        b.sim.options["server_rate_limit"] = 300
        b.sim.knobs.arm("rate_limited")
        assert (await b.make()).images
        assert b.sim.options["server_rate_limit"] == 0
        b.sim.knobs.arm("rate_limited", times=2)
        with pytest.raises(EngineFault) as caught:
            await b.make()
        assert type(caught.value) is EngineFault


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_state_left_busy_by_an_exception_does_not_block(dialect: str) -> None:
    """SD.Next forgets to end its state after an exception and looks busy for ever."""
    async with bench(dialect, pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=30)) as b:
        b.sim.knobs.arm("error_500", error="TypeError", text="odd")
        with pytest.raises(OutputEmpty):
            await b.make()
        assert b.sim.machine.state.job_count != 0
        assert not (await b.engine.look()).busy
        async with asyncio.timeout(10):
            assert (await b.make()).images


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_state_that_was_left_busy_before_we_came_is_seen_through(dialect: str) -> None:
    """The very same reading for too long is no generation."""
    async with bench(dialect, Knobs(), pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=0.2)) as b:
        b.sim.machine.state.begin("txt2img", 1, "stuck")
        assert (await b.make()).images


@every
async def test_another_ones_generation_is_interrupted_first(dialect: str) -> None:
    """A zombie of a client that went away is not waited for to its end."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b, bench(dialect, settings={"url": b.sim.url}) as other:
        zombie = asyncio.create_task(other.engine._client.post("/sdapi/v1/txt2img", small(steps=400)["request"]))
        await wait_until(lambda: _busy(b.engine))
        output = await b.make()
        assert output.images
        assert b.sim.stats.interrupts >= 1
        assert b.sim.stats.generations[0].interrupted
        await asyncio.wait([zombie])


@every
async def test_cancelling_interrupts_until_nothing_runs(dialect: str) -> None:
    """When cancelled it ends the work on the server before it returns: the next job need not wait."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b:
        running = asyncio.create_task(b.make(small(steps=150)))
        await wait_until(lambda: bool(b.reports) and b.reports[-1].sampling)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.stats.in_flight == 0
        assert b.sim.stats.generations[0].finished is not None
        assert (await b.make()).images


@every
async def test_an_impatient_second_cancel_leaves_nothing_running(dialect: str) -> None:
    """Cancelling again while it interrupts changes nothing."""
    async with bench(dialect, Knobs(step_seconds=0.05)) as b:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(lambda: bool(b.reports))
        running.cancel()
        await wait_until(lambda: b.sim.stats.interrupts > 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.stats.in_flight == 0


@every
async def test_a_cancelled_server_that_does_not_react_is_stalled(dialect: str) -> None:
    """A generation that ignores interrupts is not left behind in silence."""
    async with bench(dialect, Knobs(), pace=Pace(0.02, 0.02, 0.1)) as b:
        b.sim.knobs.arm("hang")
        running = asyncio.create_task(b.make())
        await wait_until(lambda: bool(b.reports))
        running.cancel()
        with pytest.raises(EngineStalled, match="react to interrupts"):
            await running
        b.sim.release()


@every
async def test_no_progress_is_a_stall(dialect: str) -> None:
    """A generation that hangs at a step is given up."""
    quick = {"stall_timeout": timedelta(seconds=0.1)}
    async with bench(dialect, Knobs(), settings=quick, pace=Pace(0.02, 0.02, 0.1)) as b:
        b.sim.knobs.arm("hang")
        with pytest.raises(EngineStalled):
            await b.make()
        b.sim.release()


@every
async def test_a_load_that_takes_too_long_is_a_stall(dialect: str) -> None:
    """Nothing sampled within the time for loading: it is interrupted, and the server lives on."""
    async with bench(dialect, Knobs(), settings={"load_timeout": timedelta(seconds=0.1)}) as b:
        b.sim.knobs.arm("slow", seconds=0.4)
        with pytest.raises(EngineStalled, match="first step"):
            await b.make(small(steps=1))
        assert b.sim.stats.in_flight == 0


@every
async def test_one_generation_at_a_time(dialect: str) -> None:
    """Two at once queue here, not in the server."""
    async with bench(dialect) as b:
        works = [await b.admit(small(f"cat {n}")) for n in range(3)]
        outputs = await asyncio.gather(*(b.run(w) for w in works))
        assert all(o.images for o in outputs)
        assert b.sim.stats.max_in_flight == 1


# --- fresh and free


@every
async def test_a_fresh_run_loads_the_model_anew(dialect: str) -> None:
    """After a wrong or empty answer the model is loaded again before the second try."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        loads = len(b.sim.stats.loads)
        output = await b.make(small(), checkpoint=SECOND, fresh=True)
        assert output.engine.model == "sd_xl_base_1.0"
        assert len(b.sim.stats.loads) > loads
        assert (await b.make(small(), fresh=True)).engine.model == "sd_xl_base_1.0"


@every
@pytest.mark.parametrize("everything", [True, False])
async def test_freed_memory_is_taken_again_by_the_next_job(dialect: str, everything: bool) -> None:
    """Unloading leaves a server that is ready, and the next job has the same model."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        await b.engine.free(everything)
        assert (b.sim.machine.loaded is None) is (everything or dialect == "forge")
        assert (await b.engine.look()).reach is Reach.READY
        output = await b.make(small())
        assert (output.engine.model, output.engine.proof != "none") == ("sd_xl_base_1.0", True)


@every
async def test_an_unreadable_model_is_not_the_end(dialect: str) -> None:
    """A broken file is no picture; another model works afterwards."""
    broken = ModelFile("broken.safetensors", unreadable=True)
    async with bench(dialect, models=["dreamshaper_8.safetensors", SECOND, broken]) as b:
        with pytest.raises((OutputEmpty, WrongModel)):
            await b.make(small(), checkpoint="broken")
        assert (await b.make(small(), checkpoint=SECOND)).images
