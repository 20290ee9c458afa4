"""What a model file holds, by the tensor names and shapes of its safetensors header.

ComfyUI decides the same way which model class to build, so the rules follow its own: the same keys, prefixes and
shapes. Nothing here reads a tensor; only `read_header` does I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pydantic_core

from worker.errors import EngineFault, InvalidJob

MAX_HEADER = 100_000_000
"""Bytes; the safetensors library itself refuses a longer header."""

_LENGTH = struct.Struct("<Q")
_PREFIXES = ("model.diffusion_model.", "model.model.", "net.")
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Architecture(StrEnum):
    """A family of models that is sampled by the same graph. ``sd35`` is SD 3 too."""

    SD15 = "sd15"
    SD2 = "sd2"
    SDXL = "sdxl"
    SDXL_REFINER = "sdxl_refiner"
    SD35 = "sd35"
    FLUX = "flux"
    UNKNOWN = "unknown"


class Encoder(StrEnum):
    """A text encoder, as ComfyUI names them."""

    CLIP_L = "clip_l"
    CLIP_G = "clip_g"
    CLIP_H = "clip_h"
    T5 = "t5xxl"


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file holds.

    ``architecture`` is that of the diffusion model inside, ``unknown`` where there is none or no graph fits it.
    ``inpainting``: it also takes the masked image and the mask (9 channels, 96 with Flux). ``guidance``: it was
    distilled to take the guidance as a number (Flux dev, not schnell). ``latent_channels`` are its VAE's.
    """

    architecture: Architecture = Architecture.UNKNOWN
    unet: bool = False
    vae: bool = False
    clips: frozenset[Encoder] = frozenset()
    inpainting: bool = False
    guidance: bool = False
    lora: bool = False
    latent_channels: int | None = None

    @property
    def clip(self) -> bool:
        """Whether any text encoder is inside."""
        return bool(self.clips)

    @property
    def usable(self) -> bool:
        """Whether pictures can be made with it from the start."""
        return self.unet and self.architecture not in (Architecture.UNKNOWN, Architecture.SDXL_REFINER)


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: tensor names to dtype, shape and offsets, and ``__metadata__``.

    Raises `InvalidJob` for a file of another format, which no other node could use either, and `EngineFault`,
    which gives the job to another node uncharged, for one that is gone, cut off or broken here.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            _check_format(path, start)
            (length,) = _LENGTH.unpack(start)
            if length > MAX_HEADER:
                raise EngineFault(f"{path.name}: its header claims {length} bytes; the file is broken")
            text = file.read(length)
    except OSError as error:
        raise EngineFault(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(text) < length:
        raise EngineFault(f"{path.name}: ends within its header; the file is not complete")
    try:
        header = pydantic_core.from_json(text)
    except ValueError:
        raise EngineFault(f"{path.name}: its header is no JSON; the file is broken") from None
    if not isinstance(header, dict):
        raise EngineFault(f"{path.name}: its header is no object; the file is broken")
    return header


def _check_format(path: Path, start: bytes) -> None:
    if start.startswith(b"GGUF"):
        raise InvalidJob(f"{path.name} is a GGUF file; portable params need safetensors, a workflow may use it")
    if start.startswith(_PICKLES):
        raise InvalidJob(f"{path.name} is a pickle; what it holds cannot be told without running it: use safetensors")
    if len(start) < _LENGTH.size:
        raise EngineFault(f"{path.name}: has {len(start)} bytes; the file is not complete")


class _Shapes:
    """The tensors of a header below a prefix."""

    def __init__(self, header: Mapping[str, Any], prefix: str = "") -> None:
        self._header = header
        self._prefix = prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._header

    def shape(self, name: str) -> tuple[int, ...]:
        """Empty where there is no such tensor, or its entry says nothing sensible."""
        entry = self._header.get(self._prefix + name)
        found = entry.get("shape") if isinstance(entry, Mapping) else None
        return tuple(found) if isinstance(found, list) and all(type(n) is int for n in found) else ()

    def side(self, name: str, axis: int) -> int | None:
        shape = self.shape(name)
        return shape[axis] if len(shape) > axis else None

    def any(self, *starts: str) -> bool:
        wanted = tuple(self._prefix + start for start in starts)
        return any(name.startswith(wanted) for name in self._header)


def contents(header: Mapping[str, Any]) -> Contents:
    """What the file with this header holds: a checkpoint, a diffusion model, text encoders, a VAE, a LoRA."""
    if _is_lora(header):
        return Contents(lora=True)
    for prefix in (_unet_prefix(header), ""):
        found = _diffusion_model(_Shapes(header, prefix))
        if found is not None:
            architecture, inpainting, guidance = found
            clips = _clips_inside(header, architecture)
            channels = _vae_channels(header, ("first_stage_model.", "vae."))
            return Contents(
                architecture=architecture,
                unet=True,
                vae=channels is not None,
                clips=clips,
                inpainting=inpainting,
                guidance=guidance,
                latent_channels=channels,
            )
    encoder = _encoder(_Shapes(header))
    if encoder is not None:
        return Contents(clips=frozenset({encoder}))
    channels = _vae_channels(header, ("", "first_stage_model.", "vae."))
    return Contents(vae=channels is not None, latent_channels=channels)


def _is_lora(header: Mapping[str, Any]) -> bool:
    marks = (".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", "_lora.up.", ".hada_w1_a", ".lokr_w", ".oft_")
    return any(mark in name for name in header for mark in marks)


def _unet_prefix(header: Mapping[str, Any]) -> str:
    """As ComfyUI finds it: the commonest of the known ones with more than five tensors, else ``model.``."""
    counts = dict.fromkeys(_PREFIXES, 0)
    for name in header:
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                counts[prefix] += 1
                break
    top = max(counts, key=lambda prefix: counts[prefix])
    return top if counts[top] > 5 else "model."


def _diffusion_model(shapes: _Shapes) -> tuple[Architecture, bool, bool] | None:
    """Architecture, inpainting, guidance of a diffusion model; None where there is none."""
    if "joint_blocks.0.context_block.attn.qkv.weight" in shapes:
        fits = shapes.side("x_embedder.proj.weight", 1) == 16
        return (Architecture.SD35 if fits else Architecture.UNKNOWN), False, False
    if "double_blocks.0.img_attn.norm.key_norm.scale" in shapes:
        return _flux(shapes)
    if "input_blocks.0.0.weight" in shapes:
        return _unet(shapes)
    if "conv_in.weight" in shapes and shapes.any("down_blocks.0.resnets."):
        return _diffusers_unet(shapes)
    if shapes.any("transformer_blocks.0.", "blocks.0.", "layers.0.", "double_layers.0.") and shapes.any(
        "x_embedder", "img_in", "patch_embedding", "proj_out", "final_layer", "pos_embed.proj"
    ):
        return _diffusers_transformer(shapes)
    return None


def _flux(shapes: _Shapes) -> tuple[Architecture, bool, bool]:
    """Flux takes 16 latent channels, its inpainting model 96, in patches of 2 by 2; its relatives differ."""
    relative = shapes.any("distilled_guidance_layer.", "txt_in.individual_token_refiner.", "nerf_blocks.")
    channels = shapes.side("img_in.weight", 1)
    if relative or channels not in (64, 384):
        return Architecture.UNKNOWN, False, False
    return Architecture.FLUX, channels == 384, shapes.any("guidance_in.in_layer.")


def _unet(shapes: _Shapes) -> tuple[Architecture, bool, bool]:
    channels, width = shapes.side("input_blocks.0.0.weight", 1), shapes.side("input_blocks.0.0.weight", 0)
    first = next((f"input_blocks.{i}.1." for i in range(16) if f"input_blocks.{i}.1.proj_in.weight" in shapes), "")
    key = f"{first}transformer_blocks.0.attn2.to_k.weight"
    temporal = shapes.any(f"{first}time_stack.", f"{first}time_mix_blocks.")
    linear = len(shapes.shape(f"{first}proj_in.weight")) == 2
    context = shapes.side(key, 1)
    extra = shapes.side("label_emb.0.0.weight", 1)
    return _by_numbers(None if temporal else width, context, extra, channels, linear=linear)


def _diffusers_unet(shapes: _Shapes) -> tuple[Architecture, bool, bool]:
    """A bare diffusion model in the layout of diffusers, which ComfyUI converts on loading."""
    firsts = (f"down_blocks.{i}.attentions.0." for i in range(4))
    first = next((f for f in firsts if f"{f}proj_in.weight" in shapes), "")
    extra = shapes.side("add_embedding.linear_1.weight", 1) or shapes.side("class_embedding.linear_1.weight", 1)
    return _by_numbers(
        shapes.side("conv_in.weight", 0),
        shapes.side(f"{first}transformer_blocks.0.attn2.to_k.weight", 1),
        extra,
        shapes.side("conv_in.weight", 1),
        linear=len(shapes.shape(f"{first}proj_in.weight")) == 2,
    )


def _by_numbers(
    width: int | None, context: int | None, extra: int | None, channels: int | None, *, linear: bool
) -> tuple[Architecture, bool, bool]:
    known = {
        (320, 768, None, False): Architecture.SD15,
        (320, 1024, None, True): Architecture.SD2,
        (320, 2048, 2816, True): Architecture.SDXL,
        (384, 1280, 2560, True): Architecture.SDXL_REFINER,
    }
    found = known.get((width or 0, context or 0, extra, linear), Architecture.UNKNOWN)
    if channels not in (4, 9):
        found = Architecture.UNKNOWN
    return found, channels == 9 and found is not Architecture.UNKNOWN, False


def _diffusers_transformer(shapes: _Shapes) -> tuple[Architecture, bool, bool]:
    """Transformers in the layout of diffusers, which ComfyUI converts on loading; others have no graph here."""
    if "x_embedder.weight" in shapes and shapes.any("single_transformer_blocks.0."):
        channels = shapes.side("x_embedder.weight", 1)
        if channels in (64, 384):
            return Architecture.FLUX, channels == 384, shapes.any("time_text_embed.guidance_embedder.")
    if "transformer_blocks.0.attn.add_q_proj.weight" in shapes and shapes.side("pos_embed.proj.weight", 1) == 16:
        return Architecture.SD35, False, False
    return Architecture.UNKNOWN, False, False


_INSIDE: Mapping[Architecture, Mapping[Encoder, tuple[str, ...]]] = {
    Architecture.SD15: {Encoder.CLIP_L: ("cond_stage_model.transformer.",)},
    Architecture.SD2: {Encoder.CLIP_H: ("cond_stage_model.model.", "conditioner.embedders.0.model.")},
    Architecture.SDXL: {
        Encoder.CLIP_L: ("conditioner.embedders.0.transformer.text_model.",),
        Encoder.CLIP_G: ("conditioner.embedders.1.model.",),
    },
    Architecture.SDXL_REFINER: {Encoder.CLIP_G: ("conditioner.embedders.0.model.",)},
    Architecture.SD35: {
        Encoder.CLIP_L: ("text_encoders.clip_l.transformer.text_model.",),
        Encoder.CLIP_G: ("text_encoders.clip_g.transformer.text_model.",),
        Encoder.T5: ("text_encoders.t5xxl.transformer.encoder.",),
    },
    Architecture.FLUX: {
        Encoder.CLIP_L: ("text_encoders.clip_l.transformer.text_model.",),
        Encoder.T5: ("text_encoders.t5xxl.transformer.encoder.",),
    },
    Architecture.UNKNOWN: {},
}


def _clips_inside(header: Mapping[str, Any], architecture: Architecture) -> frozenset[Encoder]:
    shapes = _Shapes(header)
    return frozenset(name for name, starts in _INSIDE[architecture].items() if shapes.any(*starts))


_LAYERS = ((30, Encoder.CLIP_G), (22, Encoder.CLIP_H), (0, Encoder.CLIP_L))
"""A layer that only this encoder, and those before it in the list, are deep enough to have."""


def _encoder(shapes: _Shapes) -> Encoder | None:
    """The one text encoder of a file, in the layout of transformers or of OpenCLIP."""
    for layer, encoder in _LAYERS:
        names = f"text_model.encoder.layers.{layer}.mlp.fc1.weight", f"transformer.resblocks.{layer}.mlp.c_fc.weight"
        if any(name in shapes for name in names):
            return encoder
    wide = shapes.shape("encoder.block.23.layer.1.DenseReluDense.wi_1.weight")
    return Encoder.T5 if wide[-1:] == (4096,) else None


def _vae_channels(header: Mapping[str, Any], prefixes: tuple[str, ...]) -> int | None:
    """Latent channels of the VAE below one of the prefixes; None where there is none."""
    for prefix in prefixes:
        shapes = _Shapes(header, prefix)
        found = shapes.side("decoder.conv_in.weight", 1) or shapes.side("taesd_decoder.1.weight", 1)
        if found is not None:
            return found
    return None
