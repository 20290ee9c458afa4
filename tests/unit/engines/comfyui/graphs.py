"""A small ComfyUI as its routes describe it, and graphs for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support.engines import job_of
from worker.engines.base import Work
from worker.engines.comfyui.inventory import Inventory, inventory
from worker.engines.comfyui.translate import translate
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Limits

FOLDERS: Mapping[str, list[str]] = {
    "checkpoints": ["base.safetensors", "sub/other.safetensors"],
    "loras": ["a/twin.safetensors", "b/twin.safetensors", "detail.safetensors"],
    "vae": ["kl.safetensors"],
    "diffusion_models": ["flux.safetensors"],
    "text_encoders": ["clip_l.safetensors"],
    "embeddings": ["bad.pt", "sub/good.safetensors"],
    "upscale_models": ["4x.pth"],
    "clip_vision": [],
    "LLM-models": ["llama.safetensors"],
    "custom_nodes": ["anything.safetensors"],
}
SEED = ["INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}]
SIDE = ["INT", {"default": 512, "min": 16, "max": 16384}]
COUNT = ["INT", {"default": 1, "min": 1, "max": 4096}]
PREFIX = ["STRING", {"default": "ComfyUI"}]


def node(
    required: Mapping[str, Any], *outputs: Any, optional: Mapping[str, Any] | None = None, saves: bool = False
) -> dict[str, Any]:
    """One entry of ``/object_info``."""
    return {
        "input": {"required": dict(required), "optional": dict(optional or {}), "hidden": {"prompt": "PROMPT"}},
        "output": list(outputs),
        "output_node": saves,
        "description": "never kept",
    }


KSAMPLER = {
    "model": ["MODEL", {"tooltip": "x"}],
    "seed": SEED,
    "steps": ["INT", {"default": 20, "min": 1, "max": 10000}],
    "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0}],
    "sampler_name": [["euler", "dpmpp_2m"], {}],
    "scheduler": [["normal", "karras"], {}],
    "positive": ["CONDITIONING"],
    "negative": ["CONDITIONING"],
    "latent_image": ["LATENT"],
    "denoise": ["FLOAT", {"default": 1.0}],
}
OBJECT_INFO: Mapping[str, Any] = {
    "CheckpointLoaderSimple": node(
        {"ckpt_name": [FOLDERS["checkpoints"], {"tooltip": "the model"}]}, "MODEL", "CLIP", "VAE"
    ),
    "UNETLoader": node({"unet_name": [FOLDERS["diffusion_models"]]}, "MODEL"),
    "LoraLoader": node(
        {"model": ["MODEL"], "clip": ["CLIP"], "lora_name": [FOLDERS["loras"], {}], "strength_model": ["FLOAT", {}]},
        "MODEL",
        "CLIP",
    ),
    "VAELoader": node({"vae_name": [[*FOLDERS["vae"], "taesd", "pixel_space"]]}, "VAE"),
    "UpscaleModelLoader": node({"model_name": ["COMBO", {"options": FOLDERS["upscale_models"]}]}, "UPSCALE_MODEL"),
    "CLIPVisionLoader": node({"clip_name": [[]]}, "CLIP_VISION"),
    "CLIPVisionEncode": node({"clip_vision": ["CLIP_VISION"], "crop": [["center", "none"]]}, "CLIP_VISION_OUTPUT"),
    "CLIPTextEncode": node({"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}, "CONDITIONING"),
    "CLIPTextEncodeSDXL": node({"width": SIDE, "height": SIDE, "clip": ["CLIP"]}, "CONDITIONING"),
    "EmptyLatentImage": node({"width": SIDE, "height": SIDE, "batch_size": COUNT}, "LATENT"),
    "EmptyImage": node({"width": SIDE, "height": SIDE, "batch_size": COUNT}, "IMAGE"),
    "RepeatLatentBatch": node({"samples": ["LATENT"], "amount": COUNT}, "LATENT"),
    "RebatchLatents": node({"latents": ["LATENT"], "batch_size": COUNT}, "LATENT"),
    "KSampler": node(KSAMPLER, "LATENT"),
    "VAEDecode": node({"samples": ["LATENT"], "vae": ["VAE"]}, "IMAGE"),
    "VAEEncode": node({"pixels": ["IMAGE"], "vae": ["VAE"]}, "LATENT"),
    "LoadImage": node({"image": [["there.png"], {"image_upload": True}]}, "IMAGE", "MASK"),
    "LoadImageMask": node({"image": [["there.png"], {"image_upload": True}], "channel": [["red"]]}, "MASK"),
    "LoadVideo": node({"file": ["COMBO", {"options": [], "video_upload": True}]}, "VIDEO"),
    "PrimitiveInt": node(
        {"value": ["INT", {"min": -(2**63), "max": 2**63 - 1, "control_after_generate": True}]}, "INT"
    ),
    "PrimitiveString": node({"value": ["STRING", {}]}, "STRING"),
    "Chooser": node({"style": [["dark", "light"]], "model": [["who_knows.safetensors"]]}, "IMAGE"),
    "Dynamic": node({"images": ["COMFY_AUTOGROW_V3", {}], "image": ["IMAGE"]}, "IMAGE"),
    "SaveImage": node({"images": ["IMAGE"], "filename_prefix": PREFIX}, saves=True),
    "PreviewImage": node({"images": ["IMAGE"]}, saves=True),
    "SaveImageWebsocket": node({"images": ["IMAGE"]}, saves=True),
    "SaveVideo": node(
        {"video": ["VIDEO"]}, optional={"filename_prefix": ["STRING", {"default": "video/x"}]}, saves=True
    ),
}
STATS = {"system": {"comfyui_version": "0.3.64", "argv": ["main.py", "--cpu"], "python_version": "3.11"}}


def server(
    *, without: tuple[str, ...] = (), also: Mapping[str, Any] | None = None, folders: Mapping[str, Any] = FOLDERS
) -> Inventory:
    classes = {name: info for name, info in OBJECT_INFO.items() if name not in without}
    return inventory({**classes, **(also or {})}, folders, STATS)


SERVER = server()
CLASSIC: Mapping[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 2,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
        "_meta": {"title": "The sampler"},
    },
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "mine"}},
}


def classic(**inputs: Any) -> dict[str, Any]:
    """The classic graph with some inputs changed, as ``_<node>_<input>=value``; ``...`` removes one."""
    graph = copy.deepcopy(dict(CLASSIC))
    for name, value in inputs.items():
        node_id, _, key = name.removeprefix("_").partition("_")
        if value is ...:
            del graph[node_id]["inputs"][key]
        else:
            graph[node_id]["inputs"][key] = value
    return graph


def with_nodes(graph: Mapping[str, Any] = CLASSIC, **nodes: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A graph with more nodes, as ``_<id>=(class, inputs)``."""
    added = {i.removeprefix("_"): {"class_type": c, "inputs": dict(inputs)} for i, (c, inputs) in nodes.items()}
    return {**copy.deepcopy(dict(graph)), **added}


def worked(
    workflow: Mapping[str, Any], *, on: Inventory = SERVER, limits: Limits | None = None, **document: Any
) -> Work:
    return translate(job_of({"workflow": dict(workflow), **document}), on, {}, limits or Limits())


def fields_of(make: Callable[[], object]) -> list[str]:
    """The fields that a refusal names."""
    with pytest.raises(InvalidJob) as caught:
        make()
    return [error.field for error in caught.value.errors]


def refused(
    workflow: Mapping[str, Any], *, on: Inventory = SERVER, limits: Limits | None = None, **document: Any
) -> str:
    """The message of the refusal."""
    with pytest.raises((InvalidJob, ModelNotFound)) as caught:
        worked(workflow, on=on, limits=limits, **document)
    return str(caught.value)
