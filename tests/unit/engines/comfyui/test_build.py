"""Each recipe becomes a graph that the server takes, and each field shows in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.engines.comfyui.supplies import CHECKPOINTS, CONTENTS, clips, job, server
from worker.engines.comfyui.architecture import Architecture
from worker.engines.comfyui.build import build
from worker.engines.comfyui.graph import is_link
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.recipe import recipe
from worker.job import Job

A = Architecture
INVENTORY = server()
PICTURE: dict[str, Any] = {"image": "aW1n"}
MASKED: dict[str, Any] = {**PICTURE, "mask": "bWFzaw=="}

SEPARATE_FLUX = job("flux-dev-unet.safetensors", models=clips("t5xxl", "clip_l"), vae="ae.safetensors")
SEPARATE_SDXL = job("sdxl-unet.safetensors", models=clips("clip_g", "clip_l"), vae="kl.safetensors")
SEPARATE_SD15 = job("sd15-unet.safetensors", models=clips("clip_l"), vae="kl.safetensors")
SD3_BARE = job("sd3-bare.safetensors", models=clips("clip_g", "clip_l", "t5xxl"))
REFINED: dict[str, Any] = {"refiner": {"checkpoint": "refiner", "switch_at": 0.75}, "steps": 20}


def graph_of(wanted: Job) -> dict[str, Any]:
    return build(recipe(wanted, INVENTORY, CONTENTS))


def flaws(graph: Mapping[str, Any], inventory: Inventory) -> list[str]:
    """Why a server would refuse a graph: unknown classes, inputs missing or unknown, links that lead nowhere."""
    found = []
    for node_id, node in graph.items():
        known = inventory.nodes.get(node["class_type"])
        if known is None:
            found.append(f"{node_id}: no class {node['class_type']}")
            continue
        required = {name for name, declared in known.inputs.items() if declared.required}
        found += [f"{node_id}.{name}: missing" for name in required - set(node["inputs"])]
        for name, value in node["inputs"].items():
            declared = known.inputs.get(name)
            if declared is None:
                found.append(f"{node_id}.{name}: unknown")
            elif is_link(value):
                source = inventory.nodes[graph[value[0]]["class_type"]] if value[0] in graph else None
                if source is None or source.outputs[value[1] : value[1] + 1] != (declared.kind,):
                    found.append(f"{node_id}.{name}: leads to no {declared.kind}")
            elif declared.kind.isupper() and declared.kind not in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"):
                found.append(f"{node_id}.{name}: needs a link")
            elif declared.options and value not in declared.options:
                found.append(f"{node_id}.{name}: {value!r} is no choice")
    return found


def of_class(graph: Mapping[str, Any], class_type: str) -> list[dict[str, Any]]:
    return [node["inputs"] for node in graph.values() if node["class_type"] == class_type]


def the(graph: Mapping[str, Any], class_type: str) -> dict[str, Any]:
    """The inputs of the one node of a class."""
    (only,) = of_class(graph, class_type)
    return only


EXTRAS: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "numbers": {"width": 640, "height": 832, "steps": 9, "seed": 2**64 - 1, "batch_size": 3},
    "loras": {"loras": [{"name": "style", "weight": 0.5}, {"name": "detail.safetensors", "weight": -1}]},
    "image": {**PICTURE, "denoise": 0.3, "width": 640, "height": 832},
    "image batch": {**PICTURE, "batch_size": 4},
    "mask": {**MASKED, "width": 640, "height": 832},
    "mask batch": {**MASKED, "batch_size": 2, "width": 640, "height": 832},
}


@pytest.mark.parametrize("architecture", CHECKPOINTS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_graph_is_one_that_the_server_takes(architecture: A, extra: str) -> None:
    """Every architecture with every kind of job: classes, links, types, choices and required inputs are right."""
    graph = graph_of(job(CHECKPOINTS[architecture], **EXTRAS[extra]))
    assert flaws(graph, INVENTORY) == []
    assert list(graph)[-1] == "save"
    assert [n for n in graph.values() if INVENTORY.nodes[n["class_type"]].output_node] == [graph["save"]]
    assert all(node["_meta"]["title"] for node in graph.values())


@pytest.mark.parametrize(
    "wanted",
    [
        SEPARATE_FLUX,
        SEPARATE_SDXL,
        SEPARATE_SD15,
        SD3_BARE,
        job("sdxl.safetensors", **REFINED),
        job("sdxl.safetensors", **REFINED, **PICTURE, denoise=0.5),
        job("sdxl.safetensors", **REFINED, **MASKED, clip_skip=2, batch_size=2),
        job("sd15-inpaint.safetensors", **MASKED, batch_size=2),
        job("flux-fill.safetensors", **MASKED),
        job("sd15-inpaint.safetensors"),
    ],
)
def test_separate_files_refiners_and_inpainting_models_make_valid_graphs(wanted: Job) -> None:
    """The same holds for models in parts, for two models in turn, and for nine channels."""
    graph = graph_of(wanted)
    assert flaws(graph, INVENTORY) == []
    assert list(graph)[-1] == "save"


def test_the_checker_sees_flaws() -> None:
    """A graph with a wrong link, choice, class or input does not pass the check that the others pass."""
    graph = graph_of(job())
    graph["sampler"]["inputs"] |= {"model": ["checkpoint", 1], "sampler_name": "ddim", "more": 1, "positive": 3}
    del graph["sampler"]["inputs"]["seed"]
    graph["decoded"]["class_type"] = "Other"
    assert sorted(f.partition(":")[0] for f in flaws({k: v for k, v in graph.items() if k != "save"}, INVENTORY)) == [
        "decoded",
        "sampler.model",
        "sampler.more",
        "sampler.positive",
        "sampler.sampler_name",
        "sampler.seed",
    ]


def test_numbers_and_words_reach_the_sampler() -> None:
    """Prompt, negative prompt, size, steps, cfg, seed, sampler, scheduler and batch stand where they belong."""
    params: dict[str, Any] = {"negative_prompt": "fog", "width": 640, "height": 832, "steps": 9, "cfg": 4.5, "seed": 7}
    names: dict[str, Any] = {"sampler": "euler", "scheduler": "normal", "batch_size": 3}
    graph = graph_of(job(**params, **names))
    assert graph["positive"]["inputs"]["text"] == "a lighthouse"
    assert graph["negative"]["inputs"]["text"] == "fog"
    assert the(graph, "EmptyLatentImage") == {"width": 640, "height": 832, "batch_size": 3}
    told = the(graph, "KSampler")
    expected = {"seed": 7, "steps": 9, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    assert {k: told[k] for k in expected} == expected


def test_loras_are_chained_in_their_order() -> None:
    """Each LoRA works on what the one before it made, and prompts and sampler use the last."""
    graph = graph_of(job(**EXTRAS["loras"], clip_skip=2))
    first, second = of_class(graph, "LoraLoader")
    assert (first["lora_name"], first["strength_model"], first["strength_clip"]) == ("style.safetensors", 0.5, 0.5)
    assert (second["lora_name"], second["strength_model"], second["model"]) == (
        "detail.safetensors",
        -1,
        ["lora1", 0],
    )
    assert the(graph, "CLIPSetLastLayer") == {"clip": ["lora2", 1], "stop_at_clip_layer": -2}
    assert the(graph, "KSampler")["model"] == ["lora2", 0]
    assert all(node["clip"] == ["clip_skip", 0] for node in of_class(graph, "CLIPTextEncode"))


def test_a_vae_of_its_own_takes_the_place_of_the_checkpoints() -> None:
    """The named VAE encodes and decodes."""
    graph = graph_of(job(vae="kl", **PICTURE))
    assert the(graph, "VAELoader") == {"vae_name": "kl.safetensors"}
    assert the(graph, "VAEEncode")["vae"] == the(graph, "VAEDecode")["vae"] == ["vae", 0]
    assert the(graph_of(job()), "VAEDecode")["vae"] == ["checkpoint", 2]


def test_an_image_is_scaled_as_asked_and_encoded() -> None:
    """Image-to-image starts from the image at the size asked for, its ratio not kept, repeated for a batch."""
    graph = graph_of(job(**PICTURE, width=640, height=832, denoise=0.3, batch_size=4))
    assert the(graph, "LoadImage") == {"image": "input:params.image"}
    scaled = the(graph, "ImageScale")
    assert (scaled["width"], scaled["height"], scaled["crop"]) == (640, 832, "disabled")
    assert the(graph, "VAEEncode")["pixels"] == ["scaled", 0]
    assert the(graph, "RepeatLatentBatch") == {"samples": ["encoded", 0], "amount": 4}
    assert the(graph, "KSampler")["latent_image"] == ["latent", 0]
    assert the(graph, "KSampler")["denoise"] == 0.3
    assert of_class(graph, "EmptyLatentImage") == []


def test_a_side_that_is_left_out_is_the_images_own() -> None:
    """What only the image can tell stands as a slot, with the grid of the model."""
    assert the(graph_of(job(**PICTURE)), "ImageScale")["width"] == "size:width/8"
    scaled = the(graph_of(job("sd35.safetensors", **PICTURE, width=512)), "ImageScale")
    assert (scaled["width"], scaled["height"]) == (512, "size:height/16")


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_limits_what_is_sampled_and_what_comes_back(batch: int) -> None:
    """White is sampled anew, and outside of it the input's own pixels come back, in each picture of a batch."""
    graph = graph_of(job(**MASKED, batch_size=batch))
    assert the(graph, "LoadImageMask") == {"image": "input:params.mask", "channel": "red"}
    assert the(graph, "SetLatentNoiseMask") == {"samples": ["encoded", 0], "mask": ["mask", 0]}
    pasted = the(graph, "ImageCompositeMasked")
    assert (pasted["source"], pasted["mask"]) == (["decoded", 0], ["mask", 0])
    assert pasted["destination"] == (["originals", 0] if batch > 1 else ["scaled", 0])
    assert graph["save"]["inputs"]["images"] == ["composited", 0]
    assert [node["amount"] for node in of_class(graph, "RepeatImageBatch")] == [2] * (batch - 1)


def test_an_inpainting_model_is_given_image_and_mask() -> None:
    """Its conditionings carry both; without a mask it is an ordinary model."""
    graph = graph_of(job("sd15-inpaint.safetensors", **MASKED, batch_size=2))
    given = the(graph, "InpaintModelConditioning")
    assert (given["pixels"], given["mask"], given["noise_mask"]) == (["scaled", 0], ["mask", 0], True)
    told = the(graph, "KSampler")
    assert (told["positive"], told["negative"]) == (["inpaint", 0], ["inpaint", 1])
    assert the(graph, "RepeatLatentBatch")["samples"] == ["inpaint", 2]
    assert of_class(graph, "SetLatentNoiseMask") == []
    assert of_class(graph_of(job("sd15-inpaint.safetensors")), "InpaintModelConditioning") == []


def test_a_refiner_goes_on_where_the_first_model_stops() -> None:
    """Two samplers share one schedule, seed and batch; the second adds no noise and reads the prompts itself."""
    graph = graph_of(job("sdxl.safetensors", **REFINED, seed=5, negative_prompt="fog", clip_skip=2))
    first, second = of_class(graph, "KSamplerAdvanced")
    assert (first["start_at_step"], first["end_at_step"], second["start_at_step"]) == (0, 15, 15)
    assert (first["add_noise"], first["return_with_leftover_noise"]) == ("enable", "enable")
    assert (second["add_noise"], second["return_with_leftover_noise"]) == ("disable", "disable")
    assert first["steps"] == second["steps"] == 20
    assert first["noise_seed"] == second["noise_seed"] == 5
    assert second["latent_image"] == ["sampler", 0]
    assert second["model"] == ["refiner", 0]
    texts = {node["text"] for node in of_class(graph, "CLIPTextEncode") if node["clip"] == ["refiner", 1]}
    assert texts == {"a lighthouse", "fog"}
    assert the(graph, "VAEDecode")["samples"] == ["refiner_sampler", 0]


def test_a_refiner_after_an_image_uses_the_schedule_of_its_denoise() -> None:
    """Half the noise and 20 steps are the last 20 of 40, as the plain sampler node has it."""
    graph = graph_of(job("sdxl.safetensors", **REFINED, **PICTURE, denoise=0.5))
    first, second = of_class(graph, "KSamplerAdvanced")
    assert (first["steps"], first["start_at_step"], first["end_at_step"]) == (40, 20, 35)
    assert second["start_at_step"] == 35


def test_flux_takes_guidance_in_place_of_cfg() -> None:
    """cfg becomes the guidance, the sampler's own stays 1, and nothing is encoded as a negative prompt."""
    graph = graph_of(job("flux-dev.safetensors", cfg=2.5))
    assert the(graph, "FluxGuidance") == {"conditioning": ["positive", 0], "guidance": 2.5}
    assert the(graph, "KSampler")["cfg"] == 1.0
    assert the(graph, "KSampler")["positive"] == ["guidance", 0]
    assert len(of_class(graph, "CLIPTextEncode")) == 1
    assert the(graph, "ConditioningZeroOut") == {"conditioning": ["positive", 0]}
    assert the(graph, "EmptySD3LatentImage")["width"] == 1024
    schnell = graph_of(job("flux-schnell.safetensors"))
    assert of_class(schnell, "FluxGuidance") == []
    assert the(schnell, "KSampler")["steps"] == 4


@pytest.mark.parametrize(
    ("wanted", "loader", "names", "kind"),
    [
        (SEPARATE_SD15, "CLIPLoader", ["clip_l"], "stable_diffusion"),
        (SEPARATE_SDXL, "DualCLIPLoader", ["clip_g", "clip_l"], "sdxl"),
        (SEPARATE_FLUX, "DualCLIPLoader", ["t5xxl", "clip_l"], "flux"),
        (job("sd3-bare.safetensors", models=clips("clip_l", "clip_g")), "DualCLIPLoader", ["clip_l", "clip_g"], "sd3"),
        (SD3_BARE, "TripleCLIPLoader", ["clip_g", "clip_l", "t5xxl"], None),
    ],
)
def test_separate_text_encoders_are_loaded_together(
    wanted: Job, loader: str, names: list[str], kind: str | None
) -> None:
    """One, two or three files by the loader for so many, told what they are for."""
    given = dict(the(graph_of(wanted), loader))
    assert given.pop("type", None) == kind
    assert list(given.values()) == [f"{name}.safetensors" for name in names]


def test_a_separate_diffusion_model_needs_no_checkpoint() -> None:
    """Model, text encoders and VAE come from three loaders."""
    graph = graph_of(SEPARATE_FLUX)
    assert the(graph, "UNETLoader") == {"unet_name": "flux-dev-unet.safetensors", "weight_dtype": "default"}
    assert of_class(graph, "CheckpointLoaderSimple") == []
    assert the(graph, "KSampler")["model"] == ["unet", 0]
    assert the(graph, "VAEDecode")["vae"] == ["vae", 0]
