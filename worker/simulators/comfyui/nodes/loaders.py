"""Nodes that read model files, and that change a model."""

from __future__ import annotations

from typing import Any

from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import NodeSpec, choice, files, integer, link, number
from worker.simulators.comfyui.values import NodeFailed, Result, Weights
from worker.simulators.comfyui.weights import contents

_CLIP_TYPES = (
    "stable_diffusion",
    "stable_cascade",
    "sd3",
    "stable_audio",
    "mochi",
    "ltxv",
    "pixart",
    "cosmos",
    "lumina2",
    "wan",
    "hidream",
    "chroma",
    "ace",
    "omnigen2",
    "qwen_image",
    "hunyuan_image",
)
_DUAL_CLIP_TYPES = ("sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")


def _unknown(path: object) -> NodeFailed:
    return NodeFailed("RuntimeError", f"ERROR: Could not detect model type of: {path}\n")


async def _checkpoint(call: NodeCall, inputs: dict[str, Any]) -> Result:
    name = inputs["ckpt_name"]
    header = await call.load("checkpoints", name)
    whole = Weights(f"checkpoint:{name}", (name,))
    if header is None:
        return Result((whole, Weights(f"clip:{name}", (name,)), Weights(f"vae:{name}", (name,))))
    found = contents(header)
    if not found.unet:
        raise _unknown(call.folders.real("checkpoints", name))
    clip = Weights(f"clip:{name}", (name,)) if found.clip else None
    return Result((whole, clip, Weights(f"vae:{name}", (name,)) if found.vae else None))


async def _unet(call: NodeCall, inputs: dict[str, Any]) -> Result:
    name = inputs["unet_name"]
    header = await call.load("diffusion_models", name)
    if header is not None and not contents(header).unet:
        raise _unknown(call.folders.real("diffusion_models", name))
    return Result((Weights(f"unet:{name}:{inputs['weight_dtype']}", (name,)),))


async def _clips(call: NodeCall, inputs: dict[str, Any]) -> Result:
    names = tuple(inputs[key] for key in ("clip_name", "clip_name1", "clip_name2", "clip_name3") if key in inputs)
    for name in names:
        await call.load("text_encoders", name)
    return Result((Weights(f"clip:{'+'.join(names)}:{inputs.get('type', 'sd3')}", names),))


async def _vae(call: NodeCall, inputs: dict[str, Any]) -> Result:
    name = inputs["vae_name"]
    if name != "pixel_space":
        await call.load("vae", name)
    return Result((Weights(f"vae:{name}", (name,)),))


async def _lora(call: NodeCall, inputs: dict[str, Any]) -> Result:
    name, strength = inputs["lora_name"], inputs["strength_model"]
    clip_strength = inputs.get("strength_clip", 0.0)
    model, clip = inputs["model"], inputs.get("clip")
    if strength == 0 and clip_strength == 0:
        return Result((model, clip))
    await call.load("loras", name)
    patched = model.patched(f"lora:{name}:{strength}", name)
    return Result((patched, clip.patched(f"lora:{name}:{clip_strength}", name) if clip else None))


async def _lora_model_only(call: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((await _lora(call, inputs)).outputs[:1])


def _single(folder: str, key: str) -> Any:
    async def load(call: NodeCall, inputs: dict[str, Any]) -> Result:
        name = inputs[key]
        await call.load(folder, name)
        return Result((Weights(f"{folder}:{name}", (name,)),))

    return load


async def _clip_layer(_: NodeCall, inputs: dict[str, Any]) -> Result:
    clip: Weights | None = inputs["clip"]
    if clip is None:
        raise NodeFailed("AttributeError", "'NoneType' object has no attribute 'clone'")
    return Result((clip.patched(f"layer:{inputs['stop_at_clip_layer']}"),))


async def _patched(_: NodeCall, inputs: dict[str, Any]) -> Result:
    how = ",".join(f"{k}={v}" for k, v in sorted(inputs.items()) if k != "model")
    return Result((inputs["model"].patched(how),))


LOADERS = (
    NodeSpec(
        "CheckpointLoaderSimple",
        _checkpoint,
        {"ckpt_name": files("checkpoints", tooltip="The name of the checkpoint (model) to load.")},
        outputs=("MODEL", "CLIP", "VAE"),
        category="loaders",
        title="Load Checkpoint",
    ),
    NodeSpec(
        "UNETLoader",
        _unet,
        {
            "unet_name": files("diffusion_models"),
            "weight_dtype": choice("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"),
        },
        outputs=("MODEL",),
        category="advanced/loaders",
        title="Load Diffusion Model",
    ),
    NodeSpec(
        "CLIPLoader",
        _clips,
        {"clip_name": files("text_encoders"), "type": choice(*_CLIP_TYPES)},
        {"device": choice("default", "cpu", advanced=True)},
        outputs=("CLIP",),
        category="advanced/loaders",
        title="Load CLIP",
    ),
    NodeSpec(
        "DualCLIPLoader",
        _clips,
        {
            "clip_name1": files("text_encoders"),
            "clip_name2": files("text_encoders"),
            "type": choice(*_DUAL_CLIP_TYPES),
        },
        {"device": choice("default", "cpu", advanced=True)},
        outputs=("CLIP",),
        category="advanced/loaders",
    ),
    NodeSpec(
        "TripleCLIPLoader",
        _clips,
        {name: files("text_encoders") for name in ("clip_name1", "clip_name2", "clip_name3")},
        outputs=("CLIP",),
        category="advanced/loaders",
        module="comfy_extras.nodes_sd3",
        modern=True,
    ),
    NodeSpec(
        "VAELoader",
        _vae,
        {"vae_name": files("vae", "pixel_space")},
        outputs=("VAE",),
        category="loaders",
        title="Load VAE",
    ),
    NodeSpec(
        "LoraLoader",
        _lora,
        {
            "model": link("MODEL", tooltip="The model to change."),
            "clip": link("CLIP", tooltip="The text encoder to change."),
            "lora_name": files("loras", tooltip="The name of the LoRA."),
            "strength_model": number(1.0, -100.0, 100.0),
            "strength_clip": number(1.0, -100.0, 100.0),
        },
        outputs=("MODEL", "CLIP"),
        category="loaders",
        title="Load LoRA",
    ),
    NodeSpec(
        "LoraLoaderModelOnly",
        _lora_model_only,
        {"model": link("MODEL"), "lora_name": files("loras"), "strength_model": number(1.0, -100.0, 100.0)},
        outputs=("MODEL",),
        category="loaders",
    ),
    NodeSpec(
        "ControlNetLoader",
        _single("controlnet", "control_net_name"),
        {"control_net_name": files("controlnet")},
        outputs=("CONTROL_NET",),
        category="loaders",
        title="Load ControlNet Model",
    ),
    NodeSpec(
        "UpscaleModelLoader",
        _single("upscale_models", "model_name"),
        {"model_name": files("upscale_models")},
        outputs=("UPSCALE_MODEL",),
        category="loaders",
        title="Load Upscale Model",
        module="comfy_extras.nodes_upscale_model",
        modern=True,
    ),
    NodeSpec(
        "IPAdapterModelLoader",
        _single("ipadapter", "ipadapter_file"),
        {"ipadapter_file": files("ipadapter")},
        outputs=("IPADAPTER",),
        category="ipadapter/loaders",
        title="IPAdapter Model Loader",
        module="custom_nodes.ComfyUI_IPAdapter_plus",
    ),
    NodeSpec(
        "CLIPSetLastLayer",
        _clip_layer,
        {"clip": link("CLIP"), "stop_at_clip_layer": integer(-1, -24, -1)},
        outputs=("CLIP",),
        category="conditioning",
        title="CLIP Set Last Layer",
    ),
    NodeSpec(
        "ModelSamplingSD3",
        _patched,
        {"model": link("MODEL"), "shift": number(3.0, 0.0, 100.0)},
        outputs=("MODEL",),
        category="advanced/model",
        module="comfy_extras.nodes_model_advanced",
    ),
    NodeSpec(
        "ModelSamplingFlux",
        _patched,
        {
            "model": link("MODEL"),
            "max_shift": number(1.15, 0.0, 100.0),
            "base_shift": number(0.5, 0.0, 100.0),
            "width": integer(1024, 16, 16384, 8),
            "height": integer(1024, 16, 16384, 8),
        },
        outputs=("MODEL",),
        category="advanced/model",
        module="comfy_extras.nodes_model_advanced",
    ),
)
