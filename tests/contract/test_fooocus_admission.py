"""What is refused before the GPU is used, because Fooocus-API would drop or replace it without a word."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import job_of
from tests.support.fooocus import ALL, DEFAULT, NEW, OLD, SECOND, bench, image, offered, small
from tests.support.pictures import picture
from worker.engines.fooocus.translate import translate
from worker.errors import GenerationRejected, InvalidJob, ModelNotFound, WorkerError
from worker.job import Limits

every = pytest.mark.parametrize("version", ALL)
IMAGE = image(picture(64, 64))
INPAINT = "image-inpaint-outpaint"


def refused(version: str, document: dict[str, Any], error: type[WorkerError] = InvalidJob) -> str:
    """The message of a job that must be refused at its admission."""
    with pytest.raises(error) as caught:
        translate(job_of(document), offered(version), Limits())
    return caught.value.message


@every
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "a __animal__", "params.prompt: Fooocus would put a line"),
        ("negative_prompt", "[[red, blue]] cat", "params.negative_prompt: Fooocus would choose"),
        ("cfg", 0.5, "params.cfg: Fooocus-API"),
        ("cfg", 30.5, "params.cfg: Fooocus-API"),
        ("seed", 2**63, "params.seed: must be a whole number"),
        ("sampler", "Euler a", "params.sampler: is no sampler"),
        ("sampler", "dpmpp_2n", "close to it: dpmpp_2m"),
        ("scheduler", "beta", "params.scheduler: is no scheduler"),
        ("loras", [{"name": "detail", "weight": 2.5}], "params.loras.0.weight: "),
        ("refiner", {"checkpoint": SECOND, "switch_at": 0.05}, "params.refiner.switch_at: "),
        ("refiner", {"checkpoint": DEFAULT, "switch_at": 0.5}, "params.refiner.checkpoint: is the base model itself"),
        ("image", "no image!", "params.image: is neither base64"),
    ],
)
def test_portable_fields_that_cannot_be_honoured(version: str, field: str, value: Any, said: str) -> None:
    """Each is refused by its own name."""
    assert said in refused(version, {"params": {"prompt": "x", field: value}})


@every
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"denoise": 0.0}, "params.denoise: "),
        ({"width": 512, "height": 512}, "params.width: Fooocus varies images of the area"),
        ({"width": 1024}, "params.height: width and height go together"),
        ({"height": 1024}, "params.width: width and height go together"),
        ({"mask": "no image!"}, "params.mask: is neither base64"),
    ],
)
def test_portable_images_that_cannot_be_honoured(version: str, fields: dict[str, Any], said: str) -> None:
    """A strength of 0 means the default to it, and small pictures it would enlarge."""
    assert said in refused(version, {"params": {"prompt": "x", "image": IMAGE, **fields}})


async def test_a_vae_only_where_it_is_loaded() -> None:
    """0.4 takes its name and forgets it."""
    params = {"params": {"prompt": "x", "vae": "sdxl.safetensors"}}
    assert "params.vae: " in refused(OLD, params)
    async with bench(NEW) as b:
        assert (await b.admit(params)).request["advanced_params"]["vae_name"] == "sdxl.safetensors"
    native = small(advanced_params={"vae_name": "sdxl.safetensors"})
    assert "request.advanced_params.vae_name: " in refused(OLD, native)


async def test_a_sampler_of_the_newer_version_alone() -> None:
    """The lists differ, and the older one would take its default."""
    params = {"params": {"prompt": "x", "sampler": "restart"}}
    assert "params.sampler: " in refused(OLD, params)
    async with bench(NEW) as b:
        assert (await b.admit(params)).request["advanced_params"]["sampler_name"] == "restart"


@every
@pytest.mark.parametrize(
    ("document", "said"),
    [
        (small(no_such=1), "request.no_such: Fooocus-API"),
        (
            {"request": {"prompt": "x", "input_image": IMAGE, "outpaint_selections": 7}, "endpoint": INPAINT},
            "request.outpaint_selections: must be a list",
        ),
        (small(image_numer=1), "close to it: image_number"),
        (small(advanced_params={"clip_skp": 1}), "request.advanced_params.clip_skp: "),
        (small(loras=[{"enabled": True, "name": "x"}]), "request.loras.0.name: "),
        (small(loras="none"), "request.loras: must be a list"),
        (small(loras=[1]), "request.loras.0: must be an object"),
        (small(style_selections=["Fooocus V3"]), "request.style_selections.0: is no style"),
        (small(advanced_params={"sampler_name": "x"}), "request.advanced_params.sampler_name: "),
        (small(advanced_params={"scheduler_name": "x"}), "request.advanced_params.scheduler_name: "),
        (small(advanced_params={"inpaint_engine": "v3"}), "request.advanced_params.inpaint_engine: "),
        (small(advanced_params={"refiner_swap_method": "x"}), "request.advanced_params.refiner_swap_method: "),
        (small(advanced_params={"debugging_cn_preprocessor": True}), "debugging_cn_preprocessor: would end"),
        (small(meta_scheme="exif"), "request.meta_scheme: is no metadata scheme"),
        (small(webhook_url="https://example.com"), "request.webhook_url: "),
        (small(image_seed=2**63), "request.image_seed: must be a whole number"),
        (small(image_seed="7"), "request.image_seed: must be a whole number"),
        (small(image_number=0), "request.image_number: must be a whole number"),
        (small(aspect_ratios_selection="wide"), "request.aspect_ratios_selection: must be width"),
        (small(base_model_name=3), "request.base_model_name: must be a name"),
        (small(base_model_name=SECOND, refiner_model_name=SECOND), "request.refiner_model_name: is the base model"),
        ({**small(base_model_name=SECOND), "checkpoint": DEFAULT}, "names another model than another field"),
        ({**small(), "endpoint": "stop"}, "endpoint: unknown; known: text-to-image"),
        ({**small(), "endpoint": "image-upscale-vary"}, "request.input_image: is missing"),
        ({**small(input_image=IMAGE), "endpoint": "image-inpaint-outpaint"}, "request.input_mask: neither a mask"),
        ({**small(input_image=3), "endpoint": "image-upscale-vary"}, "request.input_image: must be base64"),
        ({"request": {"advanced_params": []}}, "request.advanced_params: must be an object"),
        ({"workflow": {"1": {}}}, "workflow: Fooocus-API"),
        ({"template": {"name": "x"}}, "template: Fooocus-API"),
        ({**small(), "models": [{"kind": "controlnet", "name": "x"}]}, "models.0.kind: Fooocus-API"),
    ],
)
def test_native_bodies_that_would_not_do_what_they_say(version: str, document: dict[str, Any], said: str) -> None:
    """Unknown fields and names, what would kill or confuse the server, and what names two things at once."""
    assert said in refused(version, document)


@every
@pytest.mark.parametrize(
    ("document", "said"),
    [
        (small(base_model_name="sd_xl_base.safetensors"), f"close to it: {SECOND}"),
        (small(refiner_model_name="none.safetensors"), "request.refiner_model_name: "),
        (small(loras=[{"enabled": True, "model_name": "detial.safetensors"}]), "close to it: detail.safetensors"),
        (small("a cat <lora:missing:0.8>"), "request.prompt: the server has no LoRA 'missing'"),
        ({"params": {"prompt": "x <lora:missing:0.8>"}}, "params.prompt: the server has no LoRA 'missing'"),
        ({"params": {"prompt": "x", "loras": [{"name": "missing"}]}}, "params.loras.0.name: "),
        ({**small(), "checkpoint": "missing"}, "checkpoint: the server has no checkpoint 'missing'"),
        ({**small(), "models": [{"kind": "lora", "name": "missing"}]}, "models.0: the server has no LoRA"),
        ({**small(), "models": [{"kind": "refiner", "name": "missing"}]}, "models.0: the server has no checkpoint"),
    ],
)
def test_models_that_the_server_would_replace(version: str, document: dict[str, Any], said: str) -> None:
    """Each with the names that come close to it."""
    assert said in refused(version, document, ModelNotFound)


@every
async def test_a_server_without_models_has_no_default(version: str) -> None:
    """Then every job is refused, also one that names no model."""
    async with bench(version, models=()) as b:
        with pytest.raises(ModelNotFound, match="no checkpoint at all"):
            await b.admit()


@every
async def test_a_name_of_several_files_is_refused(version: str) -> None:
    """Without its folder it could mean either."""
    async with bench(version, models=[DEFAULT, "a/one.safetensors", "b/one.safetensors"]) as b:
        with pytest.raises(InvalidJob, match="means any of a/one"):
            await b.admit(small(base_model_name="one.safetensors"))
        assert (await b.admit(small(base_model_name="b/one.safetensors"))).expect.checkpoint == "b/one.safetensors"


@every
@pytest.mark.parametrize(
    ("document", "field"),
    [
        (small(steps=151), "request.advanced_params.overwrite_step"),
        (small(image_number=17), "request.image_number"),
        (small(aspect_ratios_selection="4096*2048"), "request.aspect_ratios_selection"),
        (small(advanced_params={"overwrite_width": 70000}), "request.aspect_ratios_selection"),
    ],
)
def test_limits(version: str, document: dict[str, Any], field: str) -> None:
    """Steps, pictures and pixels."""
    assert field in refused(version, document)


@every
async def test_limits_count_what_a_mode_runs(version: str) -> None:
    """Steps that the performance implies, and pixels of what is enlarged or extended."""
    async with bench(version, limits=Limits(max_steps=40, max_pixels=1_000_000)) as b:
        with pytest.raises(InvalidJob, match="60 is more than 40"):
            await b.admit({"request": {"performance_selection": "Quality", "aspect_ratios_selection": "64*64"}})
        big = image(picture(1200, 800))
        for endpoint, fields in (
            ("image-upscale-vary", {"uov_method": "Upscale (1.5x)"}),
            ("image-upscale-vary", {"uov_method": "Upscale (Custom)", "upscale_value": 1.1}),
            ("image-inpaint-outpaint", {"outpaint_selections": ["Right"]}),
        ):
            with pytest.raises(InvalidJob, match=r"request\.input_image: "):
                await b.make({**small(input_image=big, **fields), "endpoint": endpoint})
        assert b.submitted == 0


@every
async def test_what_would_leak_or_lie_is_set_right(version: str) -> None:
    """Switched-off LoRAs go, the name of the file is ours, and the answer comes as we read it."""
    loras = [
        {"enabled": False, "model_name": "missing.safetensors", "weight": 1},
        {"enabled": True, "model_name": "None"},
        {"enabled": True, "model_name": "styles/ink.safetensors", "weight": 0.4},
    ]
    body = small(loras=loras, save_name="../../x", save_extension="jpg", require_base64=True, webhook_url="")
    async with bench(version) as b:
        work = await b.admit(body)
        assert work.request["loras"] == [loras[2]]
        ours = {k: work.request[k] for k in ("save_name", "save_extension", "require_base64", "async_process")}
        assert ours == {"save_name": "", "save_extension": "png", "require_base64": False, "async_process": True}
        assert work.request["advanced_params"]["disable_preview"] is True
        assert {(m.kind, m.name) for m in work.models} == {("checkpoint", DEFAULT), ("lora", "styles/ink.safetensors")}


async def test_loras_beyond_what_is_kept() -> None:
    """0.5 cuts the list; 0.4 only once the prompt names some too."""
    loras = [{"enabled": True, "model_name": f"{i}.safetensors"} for i in range(6)]
    names = [f"{i}.safetensors" for i in range(7)]
    async with bench(NEW, loras=names) as b:
        with pytest.raises(InvalidJob, match="keeps 5 LoRAs"):
            await b.admit(small(loras=loras))
    async with bench(OLD, loras=names) as b:
        assert len((await b.admit(small(loras=loras))).request["loras"]) == 6
        with pytest.raises(InvalidJob, match="keeps 5 LoRAs"):
            await b.admit(small("x <lora:6:1>", loras=loras))


@every
async def test_seeds_that_stay_or_wrap(version: str) -> None:
    """One seed for all where that is asked for, and from the largest on to 0."""
    async with bench(version) as b:
        same = await b.make(small(image_number=2, advanced_params={"disable_seed_increment": True}))
        assert [made.seed for made in same.images] == [7, 7]
        last = await b.make(small(image_number=2, image_seed=2**63 - 1))
        assert [made.seed for made in last.images] == [2**63 - 1, 0]
        assert (await b.admit(small(image_seed=-1))).request["image_seed"] == job_of(small()).seed


@every
async def test_what_only_the_server_checks_is_rejected_by_it(version: str) -> None:
    """Its 422 names the field, and the prompt does not come back in the message."""
    async with bench(version) as b:
        with pytest.raises(GenerationRejected, match=r"422: .*guidance_scale") as caught:
            await b.make(small("secret", guidance_scale=99))
        assert "secret" not in caught.value.message


@every
@pytest.mark.parametrize("endpoint", ["image-upscale-vary", "image-prompt"])
async def test_an_input_that_is_no_image_is_the_jobs_fault(version: str, endpoint: str) -> None:
    """Read by us where its size counts, else by the server, whose plain 500 its log explains."""
    body = (
        small(image_prompts=[{"cn_img": "aGVsbG8="}]) if endpoint == "image-prompt" else small(input_image="aGVsbG8=")
    )
    async with bench(version) as b:
        with pytest.raises((InvalidJob, GenerationRejected)):
            await b.make({**body, "endpoint": endpoint})


@every
async def test_a_null_where_an_image_may_be_is_none(version: str) -> None:
    """0.4 fails with null, and takes the empty text for no image."""
    async with bench(version) as b:
        document = {**small(image_prompts=[{"cn_img": None}]), "endpoint": "text-to-image-with-ip"}
        assert (await b.admit(document)).request["image_prompts"] == [{"cn_img": ""}]
        assert len((await b.make(document)).images) == 1
