"""Nodes that make, change and decode latent pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import MAX_RESOLUTION, NodeSpec, choice, integer, link, number
from worker.simulators.comfyui.painting import painted
from worker.simulators.comfyui.values import Images, Latent, NodeFailed, Result, Weights, digest

_METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "bislerp")
_NO_VAE = (
    "ERROR: VAE is invalid: None\n\nIf the VAE is from a checkpoint loader node your checkpoint does not contain "
    "a valid VAE."
)


def _sound(vae: Weights | None) -> Weights:
    if vae is None:
        raise NodeFailed("RuntimeError", _NO_VAE)
    return vae


async def _empty(_: NodeCall, inputs: dict[str, Any]) -> Result:
    width, height = inputs["width"] // 8 * 8, inputs["height"] // 8 * 8
    return Result((Latent("empty", width, height, inputs["batch_size"]),))


async def _decode(call: NodeCall, inputs: dict[str, Any]) -> Result:
    vae = _sound(inputs["vae"])
    await call.pause(call.knobs.decode_seconds)
    return Result((await painted(inputs["samples"], vae, call.fault),))


async def _encode(call: NodeCall, inputs: dict[str, Any]) -> Result:
    vae, images = _sound(inputs["vae"]), inputs["pixels"]
    await call.pause(call.knobs.encode_seconds)
    mask = inputs["mask"][0] if "mask" in inputs else None
    return Result((_encoded(images, vae, mask),))


def _encoded(images: Images, vae: Weights, mask: Image.Image | None) -> Latent:
    size = (images[0].width // 8 * 8, images[0].height // 8 * 8)
    cut = tuple(image.crop((0, 0, *size)) for image in images)
    key = f"({vae.key}|{digest(cut)})" + (f"+mask:{digest([mask])}" if mask else "")
    return Latent(key, *size, len(cut), cut, 0.0, mask)


async def _masked(_: NodeCall, inputs: dict[str, Any]) -> Result:
    mask = inputs["mask"][0]
    samples: Latent = inputs["samples"]
    return Result((replace(samples, key=f"{samples.key}+mask:{digest([mask])}", mask=mask),))


async def _repeat(_: NodeCall, inputs: dict[str, Any]) -> Result:
    samples: Latent = inputs["samples"]
    return Result((replace(samples, count=samples.count * inputs["amount"], images=samples.images * inputs["amount"]),))


async def _upscale(_: NodeCall, inputs: dict[str, Any]) -> Result:
    samples: Latent = inputs["samples"]
    width, height = inputs["width"], inputs["height"]
    if width == 0 and height == 0:
        return Result((samples,))
    width = width or round(samples.width * height / samples.height)
    height = height or round(samples.height * width / samples.width)
    return Result((_resized(samples, max(width, 64) // 8 * 8, max(height, 64) // 8 * 8),))


async def _upscale_by(_: NodeCall, inputs: dict[str, Any]) -> Result:
    samples: Latent = inputs["samples"]
    factor = inputs["scale_by"]
    return Result((_resized(samples, round(samples.width / 8 * factor) * 8, round(samples.height / 8 * factor) * 8),))


def _resized(samples: Latent, width: int, height: int) -> Latent:
    images = tuple(image.resize((width, height)) for image in samples.images)
    return replace(samples, key=f"{samples.key}+to:{width}x{height}", width=width, height=height, images=images)


def _empty_spec(low_step: int, name: str, default: int, **more: Any) -> NodeSpec:
    return NodeSpec(
        name,
        _empty,
        {
            "width": integer(default, 16, MAX_RESOLUTION, low_step),
            "height": integer(default, 16, MAX_RESOLUTION, low_step),
            "batch_size": integer(1, 1, 4096, None),
        },
        outputs=("LATENT",),
        **more,
    )


LATENTS = (
    _empty_spec(8, "EmptyLatentImage", 512, category="latent", title="Empty Latent Image"),
    _empty_spec(16, "EmptySD3LatentImage", 1024, category="latent/sd3", module="comfy_extras.nodes_sd3", modern=True),
    NodeSpec(
        "VAEDecode",
        _decode,
        {"samples": link("LATENT", tooltip="What to decode."), "vae": link("VAE", tooltip="The decoder.")},
        outputs=("IMAGE",),
        category="latent",
        title="VAE Decode",
    ),
    NodeSpec(
        "VAEEncode",
        _encode,
        {"pixels": link("IMAGE"), "vae": link("VAE")},
        outputs=("LATENT",),
        category="latent",
        title="VAE Encode",
    ),
    NodeSpec(
        "VAEEncodeForInpaint",
        _encode,
        {
            "pixels": link("IMAGE"),
            "vae": link("VAE"),
            "mask": link("MASK"),
            "grow_mask_by": integer(6, 0, 64),
        },
        outputs=("LATENT",),
        category="latent/inpaint",
        title="VAE Encode (for Inpainting)",
    ),
    NodeSpec(
        "SetLatentNoiseMask",
        _masked,
        {"samples": link("LATENT"), "mask": link("MASK")},
        outputs=("LATENT",),
        category="latent/inpaint",
        title="Set Latent Noise Mask",
    ),
    NodeSpec(
        "RepeatLatentBatch",
        _repeat,
        {"samples": link("LATENT"), "amount": integer(1, 1, 64, None)},
        outputs=("LATENT",),
        category="latent/batch",
        title="Repeat Latent Batch",
    ),
    NodeSpec(
        "LatentUpscale",
        _upscale,
        {
            "samples": link("LATENT"),
            "upscale_method": choice(*_METHODS),
            "width": integer(512, 0, MAX_RESOLUTION, 8),
            "height": integer(512, 0, MAX_RESOLUTION, 8),
            "crop": choice("disabled", "center"),
        },
        outputs=("LATENT",),
        category="latent",
        title="Upscale Latent",
    ),
    NodeSpec(
        "LatentUpscaleBy",
        _upscale_by,
        {"samples": link("LATENT"), "upscale_method": choice(*_METHODS), "scale_by": number(1.5, 0.01, 8.0)},
        outputs=("LATENT",),
        category="latent",
        title="Upscale Latent By",
    ),
)
