"""Nodes that make and change conditionings."""

from __future__ import annotations

from typing import Any

from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import MAX_RESOLUTION, NodeSpec, choice, integer, link, number, prompt
from worker.simulators.comfyui.values import Conditioning, NodeFailed, Result, Weights, digest

_NO_CLIP = (
    "ERROR: clip input is invalid: None\n\nIf the clip is from a checkpoint loader node your checkpoint does not "
    "contain a valid clip or text encoder model."
)


async def _encode(call: NodeCall, inputs: dict[str, Any]) -> Result:
    clip: Weights | None = inputs["clip"]
    if clip is None:
        raise NodeFailed("RuntimeError", _NO_CLIP)
    await call.pause(call.knobs.encode_seconds)
    words = {k: v for k, v in inputs.items() if k != "clip"}
    texts = dict.fromkeys(str(v) for k, v in sorted(words.items()) if isinstance(v, str) and k != "empty_padding")
    numbers = ",".join(f"{k}={v}" for k, v in sorted(words.items()))
    return Result((Conditioning(f"({clip.key}|{numbers})", " ".join(texts)),))


async def _guidance(_: NodeCall, inputs: dict[str, Any]) -> Result:
    given: Conditioning = inputs["conditioning"]
    return Result((Conditioning(f"{given.key}+guidance:{inputs['guidance']}", given.text),))


async def _zeroed(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((Conditioning("zero", ""),))


async def _controlled(_: NodeCall, inputs: dict[str, Any]) -> Result:
    positive, negative = inputs["positive"], inputs["negative"]
    if inputs["strength"] == 0:
        return Result((positive, negative))
    how = f"{inputs['control_net'].key}:{inputs['strength']}:{inputs['start_percent']}:{inputs['end_percent']}"
    key = f"+control:{how}:{digest(inputs['image'])}"
    return Result(tuple(Conditioning(given.key + key, given.text) for given in (positive, negative)))


_MODERN: dict[str, Any] = {"outputs": ("CONDITIONING",), "modern": True}

TEXTS = (
    NodeSpec(
        "CLIPTextEncode",
        _encode,
        {"text": prompt(), "clip": link("CLIP", tooltip="The text encoder.")},
        outputs=("CONDITIONING",),
        category="conditioning",
        title="CLIP Text Encode (Prompt)",
    ),
    NodeSpec(
        "CLIPTextEncodeSDXL",
        _encode,
        {
            "clip": link("CLIP"),
            "width": integer(1024, 0, MAX_RESOLUTION, None),
            "height": integer(1024, 0, MAX_RESOLUTION, None),
            "crop_w": integer(0, 0, MAX_RESOLUTION, None),
            "crop_h": integer(0, 0, MAX_RESOLUTION, None),
            "target_width": integer(1024, 0, MAX_RESOLUTION, None),
            "target_height": integer(1024, 0, MAX_RESOLUTION, None),
            "text_g": prompt(),
            "text_l": prompt(),
        },
        category="advanced/conditioning",
        module="comfy_extras.nodes_clip_sdxl",
        **_MODERN,
    ),
    NodeSpec(
        "CLIPTextEncodeSDXLRefiner",
        _encode,
        {
            "ascore": number(6.0, 0.0, 1000.0),
            "width": integer(1024, 0, MAX_RESOLUTION, None),
            "height": integer(1024, 0, MAX_RESOLUTION, None),
            "text": prompt(),
            "clip": link("CLIP"),
        },
        category="advanced/conditioning",
        module="comfy_extras.nodes_clip_sdxl",
        **_MODERN,
    ),
    NodeSpec(
        "CLIPTextEncodeSD3",
        _encode,
        {
            "clip": link("CLIP"),
            "clip_l": prompt(),
            "clip_g": prompt(),
            "t5xxl": prompt(),
            "empty_padding": choice("none", "empty_prompt"),
        },
        category="advanced/conditioning",
        module="comfy_extras.nodes_sd3",
        **_MODERN,
    ),
    NodeSpec(
        "CLIPTextEncodeFlux",
        _encode,
        {"clip": link("CLIP"), "clip_l": prompt(), "t5xxl": prompt(), "guidance": number(3.5, 0.0, 100.0, 0.1)},
        category="advanced/conditioning/flux",
        module="comfy_extras.nodes_flux",
        **_MODERN,
    ),
    NodeSpec(
        "FluxGuidance",
        _guidance,
        {"conditioning": link("CONDITIONING"), "guidance": number(3.5, 0.0, 100.0, 0.1)},
        category="advanced/conditioning/flux",
        module="comfy_extras.nodes_flux",
        **_MODERN,
    ),
    NodeSpec(
        "ConditioningZeroOut",
        _zeroed,
        {"conditioning": link("CONDITIONING")},
        outputs=("CONDITIONING",),
        category="advanced/conditioning",
    ),
    NodeSpec(
        "ControlNetApplyAdvanced",
        _controlled,
        {
            "positive": link("CONDITIONING"),
            "negative": link("CONDITIONING"),
            "control_net": link("CONTROL_NET"),
            "image": link("IMAGE"),
            "strength": number(1.0, 0.0, 10.0),
            "start_percent": number(0.0, 0.0, 1.0, 0.001),
            "end_percent": number(1.0, 0.0, 1.0, 0.001),
        },
        {"vae": link("VAE")},
        outputs=("CONDITIONING", "CONDITIONING"),
        output_names=("positive", "negative"),
        category="conditioning/controlnet",
        title="Apply ControlNet",
    ),
)
