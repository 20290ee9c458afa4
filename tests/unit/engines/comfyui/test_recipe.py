"""What a portable job becomes: names found, defaults filled in, and what cannot be honoured refused by its field."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engines.comfyui.supplies import CHECKPOINTS, CONTENTS, FOLDERS, clips, job, seen, server
from worker.engines.comfyui.architecture import Architecture, Contents
from worker.engines.comfyui.recipe import Recipe, headers, recipe
from worker.errors import EngineFault, InvalidJob, ModelNotFound
from worker.job import Job, Limits, ModelRef, parse

A = Architecture
INVENTORY = server()
PICTURE: dict[str, Any] = {"image": "aW1n"}
FLUX_UNET = "flux-dev-unet.safetensors"


def decided(wanted: Job) -> Recipe:
    return recipe(wanted, INVENTORY, CONTENTS)


def refusal(wanted: Job, **changes: Any) -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        recipe(wanted, server(**changes), CONTENTS)
    return caught.value


@pytest.mark.parametrize(
    ("checkpoint", "steps", "cfg", "sampler", "scheduler", "side"),
    [
        ("sd15.safetensors", 20, 7.0, "dpmpp_2m", "karras", 512),
        ("sd2.safetensors", 20, 7.0, "dpmpp_2m", "karras", 768),
        ("sdxl.safetensors", 25, 6.0, "dpmpp_2m", "karras", 1024),
        ("sd35.safetensors", 28, 4.5, "euler", "sgm_uniform", 1024),
        ("flux-dev.safetensors", 20, 1.0, "euler", "simple", 1024),
        ("flux-schnell.safetensors", 4, 1.0, "euler", "simple", 1024),
    ],
)
def test_what_is_left_out_has_a_default_of_its_architecture(
    checkpoint: str, steps: int, cfg: float, sampler: str, scheduler: str, side: int
) -> None:
    """Steps, cfg, sampler, scheduler and size suit the model."""
    found = decided(job(checkpoint))
    told = found.sampling
    assert (told.steps, told.cfg, told.sampler, told.scheduler) == (steps, cfg, sampler, scheduler)
    assert (found.width, found.height, found.batch_size) == (side, side, 1)
    assert told.guidance == (3.5 if checkpoint == "flux-dev.safetensors" else None)
    assert found.warnings == ()


def test_a_seed_that_is_left_to_us_is_drawn_from_the_job() -> None:
    """The same job asks for the same picture again; a seed that is given is kept."""
    wanted = job(seed=-1)
    assert decided(wanted).sampling.seed == decided(job()).sampling.seed == wanted.seed
    assert decided(job(seed=0)).sampling.seed == 0


def test_denoise_is_that_of_the_other_servers() -> None:
    """Three quarters for an image unless the job says otherwise, zero included; all of it without one."""
    assert decided(job()).sampling.denoise == 1.0
    assert decided(job(**PICTURE)).sampling.denoise == 0.75
    assert decided(job(**PICTURE, denoise=0)).sampling.denoise == 0


@pytest.mark.parametrize(
    ("checkpoint", "asked", "made"),
    [
        ("sd15.safetensors", (500, 512), (504, 512)),
        ("sdxl.safetensors", (1000, 1001), (1000, 1008)),
        ("flux-dev.safetensors", (1000, 1016), (1008, 1024)),
        ("sd35.safetensors", (1024, 1000), (1024, 1008)),
    ],
)
def test_sizes_are_rounded_up_to_what_the_model_can_make(
    checkpoint: str, asked: tuple[int, int], made: tuple[int, int]
) -> None:
    """Multiples of 8, of 16 for SD 3 and Flux, with a warning; a size that fits is left alone."""
    found = decided(job(checkpoint, width=asked[0], height=asked[1]))
    assert (found.width, found.height) == made
    assert found.warnings == ("size_rounded",)
    assert decided(job(checkpoint, width=made[0], height=made[1])).warnings == ()


def test_the_size_of_an_image_is_its_own_unless_the_job_says() -> None:
    """Sides that the job leaves out stay open with an image."""
    found = decided(job(**PICTURE, width=100))
    assert (found.width, found.height, found.warnings) == (104, None, ("size_rounded",))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sd15.safetensors", "sd15.safetensors"),
        ("sd15", "sd15.safetensors"),
        ("sub/other.safetensors", "sub/other.safetensors"),
        ("sub\\other", "sub/other.safetensors"),
        ("other.safetensors", "sub/other.safetensors"),
        ("other", "sub/other.safetensors"),
    ],
)
def test_a_name_is_the_path_or_the_base_name_with_or_without_extension(name: str, found: str) -> None:
    """A checkpoint is found by each of its names, and never by a part of one."""
    assert decided(job(name)).checkpoint == found
    with pytest.raises(ModelNotFound, match="checkpoint: the server has no checkpoint"):
        decided(job(name[:-2]))


def test_a_base_name_of_two_files_is_refused() -> None:
    """Which of two was meant cannot be told; the path tells it."""
    assert refusal(job(loras=[{"name": "twin"}])).errors[0].field == "params.loras.0.name"
    assert decided(job(loras=[{"name": "b/twin"}])).loras[0].name == "b/twin.safetensors"


def test_an_unnamed_checkpoint_is_the_first_that_can_be_used() -> None:
    """In sorted order, complete, of a known architecture and no refiner; the warning says that it was ours to pick."""
    found = decided(job(None))
    assert found.checkpoint == "flux-dev.safetensors"
    assert found.warnings == ("checkpoint_chosen",)
    some = seen(*((("checkpoints", f"{n}.safetensors")) for n in ("refiner", "sd3-bare", "sd2", "video")))
    folders = {"checkpoints": ["refiner.safetensors", "sd2.safetensors", "sd3-bare.safetensors", "video.safetensors"]}
    assert recipe(job(None), server(folders=folders), some).checkpoint == "sd2.safetensors"


def test_a_node_without_a_usable_checkpoint_says_so() -> None:
    """None at all: no model; one that could not be read: this node's fault."""
    with pytest.raises(ModelNotFound, match="lists none"):
        recipe(job(None), server(folders={"checkpoints": ["a.ckpt"]}), {})
    with pytest.raises(EngineFault, match=r"a\.safetensors"):
        recipe(job(None), server(folders={"checkpoints": ["a.safetensors"]}), {})


def test_a_model_may_be_named_by_the_list_of_models_alone() -> None:
    """One checkpoint or diffusion model in it is meant; of several none is."""
    wanted = [{"kind": "checkpoint", "name": "sd2.safetensors"}]
    found = decided(job(None, models=wanted))
    assert (found.checkpoint, found.warnings) == ("sd2.safetensors", ())
    parts = [{"kind": "unet", "name": FLUX_UNET}, {"kind": "vae", "name": "ae"}, *clips("clip_l", "t5xxl")]
    assert decided(job(None, models=parts)).unet == FLUX_UNET
    two = [*wanted, {"kind": "unet", "name": FLUX_UNET}]
    assert refusal(job(None, models=two)).errors[0].field == "checkpoint"
    refiner = [*wanted, {"kind": "refiner", "name": "refiner"}]
    assert decided(job(None, models=refiner)).checkpoint == "sd2.safetensors"


def test_every_file_that_is_used_is_reported() -> None:
    """Once each, by its kind and the name that the server lists."""
    found = decided(
        job(
            "sdxl.safetensors",
            models=[{"kind": "embedding", "name": "bad.pt"}, {"kind": "lora", "name": "style.safetensors"}],
            loras=[{"name": "style"}, {"name": "twin.safetensors", "weight": 1}][:1],
            vae="kl",
            refiner={"checkpoint": "refiner"},
        )
    )
    assert set(found.models) == {
        ModelRef(kind="checkpoint", name="sdxl.safetensors"),
        ModelRef(kind="refiner", name="refiner.safetensors"),
        ModelRef(kind="lora", name="style.safetensors"),
        ModelRef(kind="vae", name="kl.safetensors"),
        ModelRef(kind="embedding", name="bad.pt"),
    }
    assert len(found.models) == 5


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (job(loras=[{"name": "none"}]), "params.loras.0.name"),
        (job(vae="none"), "params.vae"),
        (job("sdxl", refiner={"checkpoint": "none"}), "params.refiner.checkpoint"),
        (job(models=[{"kind": "embedding", "name": "none.pt"}]), "models.0.name"),
        (job(FLUX_UNET, models=clips("clip_l", "none")), "models.1.name"),
        (job(None, models=[{"kind": "unet", "name": "none"}]), "models.0.name"),
    ],
)
def test_a_file_that_the_server_lacks_is_named_with_its_field(wanted: Job, field: str) -> None:
    """It is never replaced by another."""
    with pytest.raises(ModelNotFound, match="none") as caught:
        decided(wanted)
    assert caught.value.message.startswith(f"{field}: ")


MASKED: dict[str, Any] = {**PICTURE, "mask": "bQ=="}
REFINER: dict[str, Any] = {"refiner": {"checkpoint": "refiner"}}


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        *[(job(CHECKPOINTS[a], clip_skip=2), "params.clip_skip") for a in (A.SD2, A.SD35, A.FLUX)],
        *[(job(CHECKPOINTS[a], **REFINER), "params.refiner") for a in (A.SD15, A.SD2, A.SD35, A.FLUX)],
        (job("flux-dev", negative_prompt="fog"), "params.negative_prompt"),
        (job("flux-schnell", negative_prompt="fog"), "params.negative_prompt"),
        (job("flux-schnell", cfg=3.5), "params.cfg"),
        (job(sampler="DPM++ 2M"), "params.sampler"),
        (job(scheduler="Karras"), "params.scheduler"),
        (job("sdxl", refiner={"checkpoint": "sd15"}), "params.refiner.checkpoint"),
        (job("sdxl", refiner={"checkpoint": "old.ckpt"}), "params.refiner.checkpoint"),
        (job("sdxl", **REFINER, steps=1), "params.refiner"),
        (job("sdxl", **REFINER, **PICTURE, denoise=0), "params.refiner"),
        (job("sdxl", **REFINER, **PICTURE, denoise=0.001), "params.denoise"),
        (job("refiner"), "checkpoint"),
        (job("video"), "checkpoint"),
        (job("old.ckpt"), "checkpoint"),
        (job("sd3-bare"), "checkpoint"),
        (job(FLUX_UNET), "checkpoint"),
        (job(vae="ae"), "params.vae"),
        (job("flux-dev", vae="kl"), "params.vae"),
        (job(FLUX_UNET, models=clips("clip_l", "clip_g")), "models"),
        (job(FLUX_UNET, models=clips("clip_l", "clip_l")), "models"),
        (job(models=[{"kind": "video_models", "name": "x"}]), "models.0.kind"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_field(wanted: Job, field: str) -> None:
    """A field that has no effect with this model is an error that names it, never ignored."""
    assert refusal(wanted).errors[0].field == field


def test_blank_or_neutral_values_are_no_refusal() -> None:
    """A negative prompt of blanks asks for nothing, and guidance 1 is what schnell does."""
    assert decided(job("flux-schnell", negative_prompt="  ", cfg=1)).sampling.cfg == 1.0


def test_a_large_batch_of_one_image_is_refused() -> None:
    """The node that repeats latents has a limit of its own."""
    wanted = {"id": "a", "checkpoint": "sd15", "params": {"prompt": "", "batch_size": 65, **PICTURE}}
    large = parse(wanted, fallback_id="a", limits=Limits(max_images=100))
    assert refusal(large).errors[0].field == "params.batch_size"


def test_close_names_are_offered() -> None:
    """A sampler by another server's name is told what it is called here; else all are listed."""
    assert "dpmpp_2m" in refusal(job(sampler="dpmpp2m")).message
    assert "known: normal, karras, simple, sgm_uniform" in refusal(job(scheduler="??")).message


def test_a_default_that_the_server_has_not_must_be_named() -> None:
    """Nothing is put in the place of a default sampler."""
    error = refusal(job(), without=("KSampler",))
    assert error.errors[0].field == "params.sampler"
    assert "dpmpp_2m" in error.message


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        (job(FLUX_UNET), ["clip_l", "t5xxl", "a VAE"]),
        (job(FLUX_UNET, models=clips("t5xxl")), ["clip_l", "a VAE"]),
        (job(FLUX_UNET, models=clips("clip_l", "t5xxl")), ["a VAE"]),
        (job("sd3-bare"), ["clip_l", "clip_g"]),
        (job("sd35", models=clips("t5xxl")), ["clip_l", "clip_g"]),
    ],
)
def test_every_missing_part_is_named(wanted: Job, lacking: list[str]) -> None:
    """A model in parts says at once all that it needs; t5 may be missing with SD 3."""
    message = refusal(wanted).message
    assert [part for part in ("clip_l", "clip_g", "t5xxl", "a VAE") if f"{part} (" in message] == lacking


def test_a_vae_is_taken_from_the_list_where_there_is_no_other() -> None:
    """A file of kind vae serves a model that has none; two leave it open; beside a checkpoint's own it is not used."""
    parts = clips("clip_l", "t5xxl")
    kl, ae = {"kind": "vae", "name": "kl"}, {"kind": "vae", "name": "ae"}
    assert decided(job(FLUX_UNET, models=[*parts, ae])).vae == "ae.safetensors"
    assert refusal(job(FLUX_UNET, models=[*parts, ae, kl])).errors[0].field == "params.vae"
    assert refusal(job(FLUX_UNET, models=[*parts, kl])).errors[0].field == "models.2.name"
    assert decided(job(models=[kl])).vae is None


def test_files_that_do_not_tell_are_believed() -> None:
    """A VAE as a pickle may be used, and encoders whose headers are unknown count as those not seen."""
    assert decided(job(vae="old.pt")).vae == "old.pt"
    known = {k: v for k, v in CONTENTS.items() if not k.startswith("text_encoders")}
    wanted = job(FLUX_UNET, models=clips("clip_l", "t5xxl"), vae="ae")
    assert recipe(wanted, INVENTORY, known).encoders == ("clip_l.safetensors", "t5xxl.safetensors")
    too_few = job(FLUX_UNET, models=clips("clip_l"), vae="ae")
    with pytest.raises(InvalidJob, match="t5xxl"):
        recipe(too_few, INVENTORY, known)
    too_many = job(FLUX_UNET, models=clips("clip_l", "t5xxl", "clip_g"), vae="ae")
    with pytest.raises(InvalidJob, match="3 are listed"):
        recipe(too_many, INVENTORY, known)


@pytest.mark.parametrize(
    ("holds", "why"),
    [("loras/x", "is a LoRA"), ("vae/kl.safetensors", "holds no diffusion model")],
)
def test_a_file_in_the_wrong_folder_is_named_for_what_it_is(holds: str, why: str) -> None:
    """A LoRA or a VAE among the checkpoints is no checkpoint."""
    held = {"loras/x": Contents(lora=True), **CONTENTS}[holds]
    with pytest.raises(InvalidJob, match=why):
        recipe(job("sd15"), INVENTORY, {"checkpoints/sd15.safetensors": held})


def test_no_vae_is_taken_for_one() -> None:
    """A file of the folder that is something else is refused."""
    odd = {**CONTENTS, "vae/kl.safetensors": CONTENTS["text_encoders/clip_l.safetensors"]}
    with pytest.raises(InvalidJob, match="is no VAE"):
        recipe(job(vae="kl"), INVENTORY, odd)


def test_an_unread_header_is_the_nodes_fault() -> None:
    """A named file that is listed, but could not be read here, may be whole on another node."""
    with pytest.raises(EngineFault, match="sd15"):
        recipe(job(), INVENTORY, {})


@pytest.mark.parametrize(
    ("wanted", "missing", "field"),
    [
        (job(FLUX_UNET, models=clips("clip_l", "t5xxl"), vae="ae"), "DualCLIPLoader", "models"),
        (job("flux-dev"), "FluxGuidance", "checkpoint"),
        (job("sd35"), "EmptySD3LatentImage", "checkpoint"),
        (job(loras=[{"name": "style"}]), "LoraLoader", "params.loras"),
        (job(clip_skip=2), "CLIPSetLastLayer", "params.clip_skip"),
        (job("sdxl", **REFINER), "KSamplerAdvanced", "params.refiner"),
        (job(**MASKED), "ImageCompositeMasked", "params.mask"),
        (job("sd15-inpaint", **MASKED), "InpaintModelConditioning", "params.mask"),
        (job(**MASKED, batch_size=2), "RepeatImageBatch", "params.batch_size"),
        (job(), "SaveImage", "params"),
    ],
)
def test_a_class_that_this_version_lacks_is_refused_by_the_field_that_needs_it(
    wanted: Job, missing: str, field: str
) -> None:
    """An old server is told apart by the classes that it has, not by its number."""
    error = refusal(wanted, without=(missing,))
    assert error.errors[0].field == field
    assert missing in error.message


def test_a_loader_that_does_not_know_the_encoders_is_refused() -> None:
    """A version from before Flux lists other pairs of text encoders."""
    wanted = job(FLUX_UNET, models=clips("clip_l", "t5xxl"), vae="ae")
    assert "flux" in refusal(wanted, types=("sdxl", "sd3")).message


def test_only_a_job_of_params_has_a_recipe() -> None:
    """A workflow is its own recipe."""
    workflow = parse({"id": "a", "workflow": {}}, fallback_id="a", limits=Limits())
    assert refusal(workflow).errors[0].field == "params"
    assert headers(workflow, INVENTORY) == ()


def test_headers_are_asked_for_where_they_decide() -> None:
    """The named model, refiner, encoders and VAE; every checkpoint when none is named; never what is no safetensors."""
    wanted = job(FLUX_UNET, models=clips("clip_l", "t5xxl", "nowhere"), vae="ae")
    assert headers(wanted, INVENTORY) == (
        ("diffusion_models", FLUX_UNET),
        ("text_encoders", "clip_l.safetensors"),
        ("text_encoders", "t5xxl.safetensors"),
        ("vae", "ae.safetensors"),
    )
    assert headers(job("sdxl", **REFINER, vae="old"), INVENTORY) == (
        ("checkpoints", "sdxl.safetensors"),
        ("checkpoints", "refiner.safetensors"),
    )
    files = [name for name in sorted(FOLDERS["checkpoints"]) if name.endswith(".safetensors")]
    assert headers(job(None), INVENTORY) == tuple(("checkpoints", name) for name in files)
    with pytest.raises(ModelNotFound):
        headers(job("none"), INVENTORY)


def test_a_vae_that_does_not_tell_its_channels_is_believed() -> None:
    """What a file says of itself may name no shapes; only channels that are known to differ are refused."""
    said = {**CONTENTS, "vae/ae.safetensors": Contents(vae=True)}
    assert recipe(job(vae="ae"), INVENTORY, said).vae == "ae.safetensors"
