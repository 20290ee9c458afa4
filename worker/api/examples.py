"""What `/docs` offers to send: examples that the server here can carry out as they stand.

Which they are depends on what answers behind the worker, and that may be found out only after the start.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from worker.api import jobs
from worker.api.native import Native
from worker.errors import WorkerError
from worker.job import parse

FAMILIES = {
    "Automatic1111, SD.Next": frozenset({"a1111", "sdnext"}),
    "Fooocus-API": frozenset({"fooocus"}),
    "comfyui": frozenset({"comfyui"}),
}
"""Tags of endpoints that only these servers have."""

ADMIT_S = 2.0
"""How long the server may take to tell what it would run."""

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAA1klEQVR42u3XoRKCQBDGce7GZCZfIvgQl0kGM9nEE/AIBrLJzBPwCGYDyWw2G0xW"
    "RgzfzA0jq/9tLHvM/liGA5eHXWY5fGY8AAAAAAAAANOxKsOGCQBIeYT00mPfTJP19sAEAAAAAMDyPtDGa8r6xOVMAIClb6H5Iq/i+PDenc0A3lof"
    "J0WGX1r34tnvA5T+lBq/2O7FSl6jc95+pd49h1a80CPsp8n17cRGBgAAAAAAAPzxH1lRX8TSof+Q1JczgR8FuBArJgAAAAAAAAAAAAAAAACT8QIo"
    "Bh4caSuajAAAAABJRU5ErkJggg=="
)
"""A lighthouse, as well as 64 by 64 pixels can tell; base64 of a PNG."""

_PROMPT = "a lighthouse at dusk"
_PARAMS = {"prompt": _PROMPT, "width": 512, "height": 512, "steps": 20, "seed": 7}
_NATIVE = {"prompt": _PROMPT, "negative_prompt": "blurry", "width": 512, "height": 512, "steps": 20, "seed": 7}
_FOOOCUS = {"prompt": _PROMPT, "aspect_ratios_selection": "1152*896", "performance_selection": "Speed"}
_ENHANCED = {"enhance_uov_method": "Vary (Subtle)", "enhance_ctrlnets": [{"enhance_enabled": False}]}
_MODEL = "https://huggingface.co/latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors"

STANDARD: Mapping[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": _PROMPT, "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 7,
            "steps": 20,
            "cfg": 7.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "image"}},
}
"""A graph with the checkpoint of ComfyUI's own first example, for a server that cannot be asked what it has."""

Examples = dict[str, dict[str, Any]]


async def graph_of(native: Native) -> Mapping[str, Any]:
    """A graph that this very ComfyUI can run, of its own nodes and models."""
    if native.engine.name == "comfyui" and native.gate.is_open:
        with suppress(TimeoutError, WorkerError):
            async with asyncio.timeout(ADMIT_S):
                limits = native.desk.rules.limits
                return (
                    await native.engine.admit(parse({"params": _PARAMS}, fallback_id="example", limits=limits))
                ).request
    return STANDARD


def examples(server: str, graph: Mapping[str, Any] = STANDARD) -> dict[str, Examples]:
    """Named examples by path for the server of that name; only what every server can do while that is ``auto``.

    There is none where a request must name a job of the caller's own.
    """
    by_path = {"/v1/jobs": _jobs(server, graph), "/v1/models": _one("From Hugging Face", kind="lora", url=_MODEL)}
    match server:
        case "a1111" | "sdnext":
            return by_path | _sdapi()
        case "fooocus":
            return by_path | _fooocus()
        case "comfyui":
            return by_path | _comfyui(graph)
    return by_path


def exemplified(document: Mapping[str, Any], server: str, graph: Mapping[str, Any] = STANDARD) -> dict[str, Any]:
    """A copy of the OpenAPI document that suits the server: with examples, and without what another would speak."""
    suited = copy.deepcopy(dict(document))
    paths: dict[str, Any] = suited["paths"]
    for path in [path for path, item in paths.items() if not all(_is_spoken(one, server) for one in item.values())]:
        del paths[path]
    for path, found in examples(server, graph).items():
        content = paths.get(path, {}).get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            content.pop("example", None)
            content.update({"examples": found} if found else {})
    return suited


def _is_spoken(operation: Mapping[str, Any], server: str) -> bool:
    return server == "auto" or all(server in FAMILIES.get(tag, {server}) for tag in operation.get("tags", ()))


def _one(summary: str, **value: Any) -> Examples:
    return {"example": {"summary": summary, "value": value}}


def _jobs(server: str, graph: Mapping[str, Any]) -> Examples:
    size = {"width": 1024, "height": 1024} if server == "fooocus" else {}
    image = {**_PARAMS, **size, "image": PICTURE, "denoise": 0.6}
    found: Examples = {
        **jobs.EXAMPLES,
        "image": {"summary": "From an image", "value": {"params": image}},
        "jpeg": {"summary": "As JPEG", "value": {"params": _PARAMS, "output": {"format": "jpeg", "quality": 85}}},
    }
    match server:
        case "a1111" | "sdnext":
            found["request"] = {"summary": "In the server's own language", "value": {"request": _NATIVE}}
        case "fooocus":
            found["request"] = {"summary": "In the server's own language", "value": {"request": _FOOOCUS}}
        case "comfyui":
            found["workflow"] = {"summary": "A graph", "value": {"workflow": graph}}
    return found


def _sdapi() -> dict[str, Examples]:
    text = {
        "text": {"summary": "Text to image", "value": _NATIVE},
        "jpeg": {"summary": "With ours beside it: as JPEG", "value": {**_NATIVE, "output": {"format": "jpeg"}}},
    }
    image = {**_NATIVE, "init_images": [PICTURE], "denoising_strength": 0.6}
    single = {"image": PICTURE, "upscaling_resize": 2, "upscaler_1": "None"}
    return {
        "/sdapi/v1/txt2img": text,
        "/sdapi/v1/img2img": _one("From an image", **image),
        "/sdapi/v1/extra-single-image": _one("Twice as large", **single),
    }


def _fooocus() -> dict[str, Examples]:
    prompts = [{"cn_img": PICTURE, "cn_stop": 0.6, "cn_weight": 0.6, "cn_type": "ImagePrompt"}]
    text: Examples = {
        "text": {"summary": "Text to image", "value": _FOOOCUS},
        "base64": {"summary": "The picture in the answer", "value": {**_FOOOCUS, "require_base64": True}},
        "async": {"summary": "To be asked for with query-job", "value": {**_FOOOCUS, "async_process": True}},
    }
    generation = "/v2/generation/"
    return {
        "/v1/generation/text-to-image": text,
        f"{generation}text-to-image-with-ip": _one("With an image as prompt", **_FOOOCUS, image_prompts=prompts),
        f"{generation}image-prompt": _one("With an image as prompt", **_FOOOCUS, image_prompts=prompts),
        f"{generation}image-upscale-vary": _one("Varied", **_FOOOCUS, input_image=PICTURE, uov_method="Vary (Subtle)"),
        f"{generation}image-inpaint-outpaint": _one(
            "More on the left", **_FOOOCUS, input_image=PICTURE, outpaint_selections=["Left"]
        ),
        f"{generation}image-enhance": _one("Varied", **_FOOOCUS, enhance_input_image=PICTURE, **_ENHANCED),
    }


def _comfyui(graph: Mapping[str, Any]) -> dict[str, Examples]:
    options = {"quality": 80, "progressive": True}
    return {
        "/prompt": {
            "graph": {"summary": "A graph", "value": {"prompt": graph}},
            "jpeg": {
                "summary": "As JPEG",
                "value": {"prompt": graph, "convert_output": {"format": "jpeg", "options": options}},
            },
        },
        "/download": _one("From Hugging Face", url=_MODEL, model_type="loras", wait=False),
        "/interrupt": {},
    }
