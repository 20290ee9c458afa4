"""The seam to Fooocus-API, in both series of versions: its state, what it makes, and what it leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image

from tests.support.engines import job_of, settings_for
from tests.support.fooocus import ALL, DEFAULT, NEW, OLD, SECOND, bench, image, small
from tests.support.pictures import encoded, opened, picture
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Files, NoLog, Reach
from worker.engines.fooocus import outputs
from worker.engines.fooocus.engine import FooocusEngine
from worker.errors import AuthFailed, ConfigError, EngineCrashed, InvalidJob, ModelNotFound, OutputEmpty
from worker.job import Limits
from worker.simulators import running as other_server
from worker.simulators.fooocus import Knobs


def pngs(folder: Path) -> list[str]:
    """The names of all pictures below a folder."""
    return [path.name for path in folder.rglob("*.png")]


every = pytest.mark.parametrize("version", ALL)
SERIES = {OLD: "0.4", NEW: "0.5"}


@every
async def test_each_wait_on_the_way_up_has_its_own_name(version: str) -> None:
    """Port closed, no model listed and ready are told apart."""
    knobs = Knobs(start_port_seconds=1e9)
    async with bench(version, knobs, prepare=False, models=()) as b:

        async def reach() -> Reach:
            return (await b.engine.look()).reach

        assert await reach() is Reach.PORT_CLOSED
        knobs.start_port_seconds = 0
        await wait_until(lambda: b.sim.listening)
        assert await reach() is Reach.MODEL_NOT_LOADED
        b.sim.catalogue.models.append(DEFAULT)
        assert await reach() is Reach.READY


@every
async def test_a_look_names_version_and_model(version: str) -> None:
    """The series is found by its routes; the model is the one that was used last."""
    async with bench(version, prepare=False) as b:
        state = await b.engine.look()
        assert (state.name, state.version, state.model, state.busy) == ("fooocus", SERIES[version], None, False)
        await b.make(small(base_model_name=SECOND))
        assert (await b.engine.look()).model == SECOND


@every
async def test_a_look_tells_when_it_works(version: str) -> None:
    """A job in the server's queue is busy."""
    async with bench(version, Knobs(step_seconds=0.02)) as b:
        running = asyncio.create_task(b.make(small(steps=50)))
        await wait_until(b.sampling)
        assert (await b.engine.look()).busy
        running.cancel()
        await asyncio.wait([running])
        assert not (await b.engine.look()).busy


async def test_another_server_is_told_from_this_one() -> None:
    """The wrong kind is a configuration error that names its variable, and never ready."""
    async with other_server("a1111") as sim:
        engine = FooocusEngine(settings_for(sim.url, kind="fooocus"), Limits(), NoLog())
        assert (await engine.look()).reach is Reach.ROUTES_MISSING
        with pytest.raises(ConfigError, match="WORKER_ENGINE: is fooocus"):
            await engine.prepare()
        with pytest.raises(EngineCrashed, match="no Fooocus-API"):
            await engine.admit(job_of(small()))
        await engine.aclose()


async def test_a_port_that_does_not_speak_is_not_ready() -> None:
    """Something listens, but gives no answer that could be a server's."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", 0)
    async with server:
        engine = open_engine(
            settings_for(f"http://[::1]:{server.sockets[0].getsockname()[1]}", kind="fooocus"), Limits()
        )
        assert (await engine.look()).reach is Reach.ROUTES_MISSING
        await engine.aclose()


@every
async def test_the_key_is_sent_and_a_refused_one_is_the_operators_fault(version: str) -> None:
    """``WORKER_ENGINE_API_KEY`` goes as X-API-KEY; without it nothing but `AuthFailed` comes."""
    async with bench(version, settings={"api_key": "right"}, api_key="right") as b:
        assert len((await b.make()).images) == 1
    async with bench(version, settings={"api_key": "wrong"}, api_key="right", prepare=False) as b:
        with pytest.raises(AuthFailed):
            await b.engine.look()
        with pytest.raises(AuthFailed):
            await b.engine.prepare()


@every
async def test_a_native_job_gives_its_pictures(version: str) -> None:
    """Count, size, seeds, times, progress, and a proof of the model by name."""
    async with bench(version) as b:
        output = await b.make(small(image_number=3, aspect_ratios_selection="96*64", steps=4))
        assert [made.seed for made in output.images] == [7, 8, 9]
        assert {opened(made.data).size for made in output.images} == {(96, 64)}
        assert len({made.data for made in output.images}) == 3
        assert (output.engine.proof, output.engine.model) == ("name", DEFAULT)
        assert b.reports[-1].steps == 12
        assert b.reports[-1].sampling
        assert output.load_s > 0
        assert output.generate_s >= 0


@every
async def test_a_portable_job_is_not_rewritten(version: str) -> None:
    """No style, no LoRA and no refiner that the job does not name, whatever the server's own defaults are."""
    async with bench(version) as b:
        work = await b.admit({"params": {"prompt": "a cat,\n  on a mat", "negative_prompt": "dog"}})
        assert work.request["prompt"] == "a cat, on a mat"
        assert (work.request["style_selections"], work.request["loras"]) == ([], [])
        assert work.request["refiner_model_name"] == "None"
        assert "sampler_name" not in work.request["advanced_params"]
        assert (work.expect.width, work.expect.height) == (1152, 896)


@every
async def test_portable_fields_arrive_where_the_server_looks_for_them(version: str) -> None:
    """Every portable field that can be honoured, seen in what the server made of the request."""
    params = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "width": 136,
        "height": 72,
        "steps": 5,
        "cfg": 3.5,
        "seed": 11,
        "sampler": "euler_ancestral",
        "scheduler": "sgm_uniform",
        "batch_size": 2,
        "clip_skip": 1,
        "loras": [{"name": "detail", "weight": -1.5}],
        "refiner": {"checkpoint": "vision_xl", "switch_at": 0.6},
    }
    async with bench(version) as b:
        output = await b.make({"params": params, "checkpoint": "sd_xl_base_1.0"})
        body = b.sim.machine.history[0].body if b.sim.machine.history else None
        assert [made.seed for made in output.images] == [11, 12]
        assert {opened(made.data).size for made in output.images} == {(136, 72)}
        assert output.engine.model == SECOND
        if version == OLD:
            assert body is not None
            adp = body.advanced_params
            assert (adp.overwrite_step, adp.clip_skip, adp.sampler_name) == (5, 1, "euler_ancestral")
            assert (body.guidance_scale, body.refiner_model_name) == (3.5, "realistic/vision_xl.safetensors")
            assert [(lora.model_name, lora.weight) for lora in body.loras] == [("detail.safetensors", -1.5)]


@every
async def test_a_seed_left_to_us_is_drawn_from_the_jobs_id(version: str) -> None:
    """The same job asks for the same picture again."""
    async with bench(version) as b:
        document = {"params": {"prompt": "x", "width": 64, "height": 64, "steps": 2}}
        first, second = await b.make(document), await b.make(document)
        assert first.images[0].seed == second.images[0].seed == job_of(document).seed
        assert opened(first.images[0].data).tobytes() == opened(second.images[0].data).tobytes()


@every
async def test_an_image_is_varied_as_strongly_as_asked(version: str) -> None:
    """Denoise arrives exactly; the size is the one asked for, and both steps to it are ours."""
    given = image(picture(96, 72))
    async with bench(version) as b:
        params = {"prompt": "x", "image": given, "denoise": 0.3, "steps": 2, "width": 1152, "height": 896}
        output = await b.make({"params": params})
        assert opened(output.images[0].data).size == (1152, 896)
        work = await b.admit({"params": params})
        assert work.request["advanced_params"]["overwrite_vary_strength"] == 0.3
        assert (work.endpoint, work.request["uov_method"]) == ("image-upscale-vary", "Vary (Subtle)")
        free = await b.make({"params": {"prompt": "x", "image": given, "steps": 2}})
        assert opened(free.images[0].data).size == (1152, 896)


@every
async def test_what_is_white_in_a_mask_is_painted_anew(version: str) -> None:
    """The result has the size of the image, or the one asked for; the server's own patch is not downloaded."""
    given, mask = image(picture(100, 60)), image(picture(100, 60))
    async with bench(version) as b:
        params = {"prompt": "x", "image": given, "mask": mask, "denoise": 0.8, "steps": 2}
        output = await b.make({"params": params})
        assert opened(output.images[0].data).size == (100, 60)
        sized = await b.make({"params": {**params, "width": 128, "height": 64}})
        assert opened(sized.images[0].data).size == (128, 64)
        advanced = (await b.admit({"params": params})).request["advanced_params"]
        assert (advanced["inpaint_strength"], advanced["inpaint_engine"]) == (0.8, "None")


@every
async def test_a_mask_that_selects_nothing_is_refused(version: str) -> None:
    """The server would ignore image and mask, and make a picture of the prompt alone."""
    black = image(Image.new("RGB", (64, 64)))
    async with bench(version) as b:
        with pytest.raises(InvalidJob, match=r"params\.mask: selects nothing"):
            await b.make({"params": {"prompt": "x", "image": image(picture(64, 64)), "mask": black}})
        assert b.submitted == 0


@every
@pytest.mark.parametrize(
    ("endpoint", "fields", "given", "size"),
    [
        ("image-upscale-vary", {"uov_method": "Vary (Strong)"}, (1100, 900), (1096, 896)),
        ("image-upscale-vary", {"uov_method": "Upscale (Fast 2x)"}, (520, 510), (1040, 1020)),
        (
            "image-inpaint-outpaint",
            {"outpaint_selections": ["Left", "Top"], "outpaint_distance_top": 40},
            (50, 30),
            (65, 70),
        ),
    ],
)
async def test_native_bodies_with_images(
    version: str, endpoint: str, fields: dict[str, Any], given: tuple[int, int], size: tuple[int, int]
) -> None:
    """The image is put back as base64 at its place, and the result measures what the server makes of it."""
    async with bench(version) as b:
        document = {**small(steps=2, **fields, input_image=image(picture(*given))), "endpoint": endpoint}
        output = await b.make(document)
        assert [opened(made.data).size for made in output.images] == [size]


@every
async def test_images_by_url_come_from_the_files_provided(version: str) -> None:
    """A URL is never left to the server, at the top of a body or within its list of image prompts."""
    url, data = "https://example.com/a.png", encoded(picture(64, 64))
    async with bench(version) as b:
        document = {**small(image_prompts=[{"cn_img": url}]), "endpoint": "text-to-image-with-ip"}
        work = await b.admit(document)
        assert [(ref.field, ref.value) for ref in work.inputs] == [("request.image_prompts.0.cn_img", url)]
        output = await b.run(work, Files({"request.image_prompts.0.cn_img": data}))
        assert len(output.images) == 1


async def test_0_5_enhances() -> None:
    """An endpoint that only the current series has; only the server knows how many pictures come."""
    async with bench(NEW) as b:
        fields: dict[str, Any] = {"enhance_input_image": image(picture(64, 64)), "enhance_ctrlnets": []}
        output = await b.make({**small(**fields), "endpoint": "image-enhance"})
        assert len(output.images) == 1
    async with bench(OLD) as b:
        with pytest.raises(InvalidJob, match="endpoint: unknown"):
            await b.admit({**small(), "endpoint": "image-enhance"})


async def test_0_5_proves_the_model_by_its_hash() -> None:
    """Where the job says which file it means; another one is the wrong model."""
    right = hashlib.sha256(DEFAULT.encode()).hexdigest()
    async with bench(NEW) as b:
        named = {"kind": "checkpoint", "name": DEFAULT, "sha256": right}
        assert (await b.make(models=[named])).engine.proof == "hash"


@every
async def test_a_model_that_came_later_is_found(version: str) -> None:
    """The server reads its folders at each request; so do we, when a name is missing."""
    async with bench(version) as b:
        with pytest.raises(ModelNotFound):
            await b.admit(small(base_model_name="new.safetensors"))
        b.sim.catalogue.models.append("new.safetensors")
        assert (await b.make(small(base_model_name="new.safetensors"))).engine.model == "new.safetensors"


@every
async def test_a_model_that_went_since_its_admission_is_not_replaced(version: str) -> None:
    """The server would silently use its default."""
    async with bench(version) as b:
        work = await b.admit(small(base_model_name=SECOND))
        b.sim.catalogue.models.remove(SECOND)
        with pytest.raises(ModelNotFound, match="no longer lists"):
            await b.run(work)
        assert b.submitted == 0


@every
async def test_the_servers_own_default_is_sent_by_name(version: str) -> None:
    """Also where it names a file that is not there: then the first one listed is used, and proven."""
    async with bench(version, models=["only.safetensors"]) as b:
        assert (await b.make()).engine.model == "only.safetensors"


async def test_files_are_deleted_by_0_5_itself(tmp_path: Path) -> None:
    """Although its answer to that is an error."""
    async with bench(NEW, outputs=tmp_path) as b:
        await b.make(small(image_number=2))
        assert not pngs(tmp_path)
        assert b.sim.machine.history == []


async def test_files_of_0_4_are_deleted_in_a_shared_folder(tmp_path: Path) -> None:
    """Known by their job's id; what else lies there stays."""
    async with bench(OLD, outputs=tmp_path, folders=[tmp_path / "none", tmp_path]) as b:
        (tmp_path / "keep.png").touch()
        await b.make(small(image_number=2))
        assert pngs(tmp_path) == ["keep.png"]


async def test_a_folder_that_grows_for_ever_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only once the server shows that it keeps all it made."""
    monkeypatch.setattr(outputs, "KEPT", 2)
    async with bench(OLD) as b:
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                await b.make()
        assert [e["advice"] for e in logs if e["event"] == "engine_outputs_grow"] == [
            "start the server with --queue-history 1"
        ]
    async with bench(OLD, Knobs(queue_history=1)) as b:
        with structlog.testing.capture_logs() as logs:
            for _ in range(4):
                await b.make()
        assert not [e for e in logs if e["event"] == "engine_outputs_grow"]


@every
async def test_memory_is_given_back_where_the_version_can(version: str) -> None:
    """0.5 unloads; 0.4 cannot, which is said and no error."""
    async with bench(version) as b:
        await b.make()
        await b.engine.free(everything=True)
        assert b.sim.machine.loaded == (DEFAULT if version == OLD else None)
        await b.make(fresh=True)
        assert b.sim.stats.loads == ([DEFAULT] if version == OLD else [DEFAULT, DEFAULT])


@every
async def test_a_file_that_is_gone_is_no_picture(version: str) -> None:
    """The server says SUCCESS and names a place where nothing is."""
    knobs = Knobs()
    knobs.arm("missing_file")
    async with bench(version, knobs) as b:
        with pytest.raises(OutputEmpty, match="answered 404"):
            await b.make()


async def test_auto_finds_it() -> None:
    """The kind `auto` drives it like any other."""
    async with bench(NEW) as b:
        engine = open_engine(settings_for(b.sim.url), Limits(), b.sim.journal)
        try:
            assert (await engine.look()).reach is Reach.READY
            assert engine.name == "fooocus"
        finally:
            await engine.aclose()
