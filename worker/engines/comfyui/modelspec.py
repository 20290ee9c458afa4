"""What a model file says of itself, for a server whose folders this worker cannot read. No I/O.

The ``modelspec.architecture`` that trainers and publishers write names the family, not what else the file holds: a
checkpoint of the older families always is complete, of the newer ones it may lack text encoders and VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.comfyui.architecture import Architecture, Contents, Encoder

_FAMILIES: tuple[tuple[str, Architecture, frozenset[Encoder]], ...] = (
    ("stable-diffusion-xl-v1-refiner", Architecture.SDXL_REFINER, frozenset({Encoder.CLIP_G})),
    ("stable-diffusion-xl", Architecture.SDXL, frozenset({Encoder.CLIP_L, Encoder.CLIP_G})),
    ("stable-diffusion-v1", Architecture.SD15, frozenset({Encoder.CLIP_L})),
    ("stable-diffusion-v2", Architecture.SD2, frozenset({Encoder.CLIP_H})),
    ("stable-diffusion-v3", Architecture.SD35, frozenset()),
    ("stable-diffusion-3", Architecture.SD35, frozenset()),
    ("flux-1", Architecture.FLUX, frozenset()),
    ("flux.1", Architecture.FLUX, frozenset()),
)


def contents_said(metadata: Mapping[str, Any] | None) -> Contents | None:
    """What a file of the checkpoints holds by its own word; None where it says nothing that is known."""
    said = (metadata or {}).get("modelspec.architecture")
    if not isinstance(said, str):
        return None
    family, _, rest = said.lower().partition("/")
    for start, architecture, clips in _FAMILIES:
        if family.startswith(start):
            if "lora" in rest or "lora" in family:
                return Contents(architecture, lora=True)
            return Contents(
                architecture,
                unet=True,
                vae=bool(clips),
                clips=clips,
                inpainting="inpaint" in said.lower(),
                guidance=architecture is Architecture.FLUX and "schnell" not in family,
            )
    return None
