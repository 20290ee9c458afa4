"""Model files for tests: a real safetensors header with the tensors that tell the architecture, and no data on disk."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Architecture = Literal[
    "sd15",
    "sdxl",
    "sdxl-refiner",
    "sd35",
    "flux",
    "flux-schnell",
    "sd35-unet",
    "flux-unet",
    "vae",
    "vae-16",
    "clip-l",
    "clip-g",
    "t5",
    "lora",
    "other",
]
Part = Literal["unet", "clip", "vae"]
Shapes = Mapping[str, tuple[int, ...]]

_HEADER_LIMIT = 100_000_000


class BadWeights(Exception):
    """The file is not a whole safetensors file; the message is the library's."""


@dataclass(frozen=True)
class Contents:
    """What a loader finds in a file."""

    unet: bool
    clip: bool
    vae: bool


def _prefixed(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


def _clip_layers(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.final_layer_norm.weight": (width,),
    }
    for layer in range(layers):
        shapes[f"text_model.encoder.layers.{layer}.mlp.fc1.weight"] = (4 * width, width)
        shapes[f"text_model.encoder.layers.{layer}.self_attn.q_proj.weight"] = (width, width)
    return shapes


_CLIP_L = _clip_layers(12, 768)
_CLIP_G = _clip_layers(32, 1280) | {"text_projection.weight": (1280, 1280)}
_T5: Shapes = {"shared.weight": (32128, 4096)} | {
    f"encoder.block.{n}.layer.1.DenseReluDense.wi_1.weight": (10240, 4096) for n in range(24)
}
_OPEN_CLIP_G: Shapes = {
    "positional_embedding": (77, 1280),
    "token_embedding.weight": (49408, 1280),
    "text_projection": (1280, 1280),
} | {f"transformer.resblocks.{n}.mlp.c_fc.weight": (5120, 1280) for n in range(32)}


def _vae(channels: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.conv_out.weight": (2 * channels, 512, 3, 3),
        "decoder.conv_in.weight": (512, channels, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    if channels == 4:
        shapes |= {"quant_conv.weight": (8, 8, 1, 1), "post_quant_conv.weight": (4, 4, 1, 1)}
    return shapes


_SD15_UNET: Shapes = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 768),
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
    "time_embed.0.weight": (1280, 320),
    "out.2.weight": (4, 320, 3, 3),
}
_SDXL_UNET: Shapes = {
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.4.1.proj_in.weight": (640, 640),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
    "input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    "label_emb.0.0.weight": (1280, 2816),
    "time_embed.0.weight": (1280, 320),
    "out.2.weight": (4, 320, 3, 3),
}
_REFINER_UNET: Shapes = {
    "input_blocks.0.0.weight": (384, 4, 3, 3),
    "input_blocks.4.1.proj_in.weight": (768, 768),
    "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (768, 1280),
    "label_emb.0.0.weight": (1536, 2560),
    "time_embed.0.weight": (1536, 384),
    "out.2.weight": (4, 384, 3, 3),
}
_SD35_UNET: dict[str, tuple[int, ...]] = {
    "x_embedder.proj.weight": (2432, 16, 2, 2),
    "pos_embed": (1, 36864, 2432),
    "context_embedder.weight": (2432, 4096),
    "y_embedder.mlp.0.weight": (2432, 2048),
    "final_layer.linear.weight": (64, 2432),
}
for _n in range(38):
    _SD35_UNET |= {
        f"joint_blocks.{_n}.x_block.attn.qkv.weight": (7296, 2432),
        f"joint_blocks.{_n}.x_block.attn.ln_q.weight": (64,),
        f"joint_blocks.{_n}.context_block.attn.qkv.weight": (7296, 2432),
    }
_SCHNELL_UNET: dict[str, tuple[int, ...]] = {
    "img_in.weight": (3072, 64),
    "txt_in.weight": (3072, 4096),
    "vector_in.in_layer.weight": (3072, 768),
    "final_layer.linear.weight": (64, 3072),
}
for _n in range(19):
    _SCHNELL_UNET |= {
        f"double_blocks.{_n}.img_attn.qkv.weight": (9216, 3072),
        f"double_blocks.{_n}.img_attn.norm.key_norm.scale": (128,),
    }
_SCHNELL_UNET |= {f"single_blocks.{_n}.linear1.weight": (21504, 3072) for _n in range(38)}
_FLUX_UNET = _SCHNELL_UNET | {"guidance_in.in_layer.weight": (3072, 256)}

_SPREAD_CLIP = (
    _prefixed("text_encoders.clip_l.transformer.", _CLIP_L)
    | _prefixed("text_encoders.clip_g.transformer.", _CLIP_G)
    | _prefixed("text_encoders.t5xxl.transformer.", _T5)
)
_FLUX_CLIP = _prefixed("text_encoders.clip_l.transformer.", _CLIP_L) | _prefixed(
    "text_encoders.t5xxl.transformer.", _T5
)
_SDXL_CLIP = _prefixed("conditioner.embedders.0.transformer.", _CLIP_L) | _prefixed(
    "conditioner.embedders.1.model.", _OPEN_CLIP_G
)

_CHECKPOINTS: dict[str, dict[Part, Shapes]] = {
    "sd15": {"unet": _SD15_UNET, "clip": _prefixed("cond_stage_model.transformer.", _CLIP_L), "vae": _vae(4)},
    "sdxl": {"unet": _SDXL_UNET, "clip": _SDXL_CLIP, "vae": _vae(4)},
    "sdxl-refiner": {
        "unet": _REFINER_UNET,
        "clip": _prefixed("conditioner.embedders.0.model.", _OPEN_CLIP_G),
        "vae": _vae(4),
    },
    "sd35": {"unet": _SD35_UNET, "clip": _SPREAD_CLIP, "vae": _vae(16)},
    "flux": {"unet": _FLUX_UNET, "clip": _FLUX_CLIP, "vae": _vae(16)},
    "flux-schnell": {"unet": _SCHNELL_UNET, "clip": _FLUX_CLIP, "vae": _vae(16)},
}
_SINGLE: dict[str, Shapes] = {
    "sd35-unet": _SD35_UNET,
    "flux-unet": _FLUX_UNET,
    "vae": _vae(4),
    "vae-16": _vae(16),
    "clip-l": _CLIP_L,
    "clip-g": _CLIP_G,
    "t5": _T5,
    "lora": {
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (16, 320),
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": (320, 16),
    },
    "other": {"weight": (8, 8)},
}
_UNET_PREFIX = "model.diffusion_model."
_VAE_PREFIX = "first_stage_model."
_CLIP_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.")


def tensors(architecture: Architecture, parts: Iterable[Part] = ("unet", "clip", "vae")) -> Shapes:
    """The names and shapes by which an architecture is recognised; ``parts`` count for checkpoints alone."""
    if architecture in _SINGLE:
        return _SINGLE[architecture]
    found: dict[str, tuple[int, ...]] = {}
    prefixes: dict[Part, str] = {"unet": _UNET_PREFIX, "clip": "", "vae": _VAE_PREFIX}
    for part in parts:
        found |= _prefixed(prefixes[part], _CHECKPOINTS[architecture][part])
    return found


def write_checkpoint(
    path: Path,
    architecture: Architecture,
    *,
    parts: Iterable[Part] = ("unet", "clip", "vae"),
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["F16", "F32", "BF16"] = "F16",
) -> Path:
    """Write a safetensors file whose header is true and whose data is a hole; folders are made.

    The sizes agree with the header, so that every check but a look at the numbers holds.
    """
    width = 4 if dtype == "F32" else 2
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in tensors(architecture, parts).items():
        size = width
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def header_of(path: Path, limit: int = _HEADER_LIMIT) -> dict[str, Any]:
    """The header of a safetensors file. Raises `BadWeights` for a file that is not whole, `OSError` if unreadable."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not start or len(start) < 8:
            raise BadWeights("Error while deserializing header: header too small")
        if length > min(limit, size - 8):
            raise BadWeights("Error while deserializing header: invalid header length")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError as error:
            raise BadWeights("Error while deserializing header: invalid JSON in header") from error
    if 8 + length + max(_ends(header), default=0) > size:
        raise BadWeights("Error while deserializing header: incomplete metadata, file not fully covered")
    return header


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    for name, tensor in header.items():
        if name != "__metadata__":
            yield int(tensor["data_offsets"][1])


def contents(header: Mapping[str, Any]) -> Contents:
    """Which parts of a pipeline a file has."""
    names = [name for name in header if name != "__metadata__"]
    bare = ("joint_blocks.0.x_block.attn.qkv.weight", "double_blocks.0.img_attn.norm.key_norm.scale")
    return Contents(
        unet=any(n.startswith(_UNET_PREFIX) for n in names) or any(n in header for n in bare),
        clip=any(n.startswith(_CLIP_PREFIXES) for n in names),
        vae=any(n.startswith(_VAE_PREFIX) for n in names),
    )
