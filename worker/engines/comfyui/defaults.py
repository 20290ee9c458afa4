"""What is used for a portable field that a job leaves out, and what each architecture can honour. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.engines.comfyui.architecture import Architecture, Encoder

DENOISE = 0.75
"""Of image-to-image, as on the other servers."""

SWITCHABLE = (Architecture.SDXL,)
"""Architectures that a refiner exists for."""

SKIPPABLE = (Architecture.SD15, Architecture.SDXL)
"""Architectures whose text encoders may stop before their last layer."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """Steps, cfg (the guidance where that takes its place), names as ComfyUI has them, and the side in pixels.

    ``grid``: sides must be multiples of it. ``needs`` are the text encoders, of which ``spare`` may be missing.
    ``channels`` are those of the latents, ``encoder_type`` is what ComfyUI's loaders of encoders are told.
    """

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    side: int
    grid: int
    channels: int
    encoder_type: str
    needs: tuple[Encoder, ...]
    spare: tuple[Encoder, ...] = ()


_L, _G, _H, _T5 = Encoder.CLIP_L, Encoder.CLIP_G, Encoder.CLIP_H, Encoder.T5

DEFAULTS: Mapping[Architecture, Defaults] = {
    Architecture.SD15: Defaults(20, 7.0, "dpmpp_2m", "karras", 512, 8, 4, "stable_diffusion", (_L,)),
    Architecture.SD2: Defaults(20, 7.0, "dpmpp_2m", "karras", 768, 8, 4, "stable_diffusion", (_H,)),
    Architecture.SDXL: Defaults(25, 6.0, "dpmpp_2m", "karras", 1024, 8, 4, "sdxl", (_L, _G)),
    Architecture.SD35: Defaults(28, 4.5, "euler", "sgm_uniform", 1024, 16, 16, "sd3", (_L, _G, _T5), spare=(_T5,)),
    Architecture.FLUX: Defaults(20, 3.5, "euler", "simple", 1024, 16, 16, "flux", (_L, _T5)),
}

SCHNELL_STEPS = 4
"""Of a Flux model that takes no guidance: it was distilled to make a picture in so few steps."""


def defaults(architecture: Architecture, *, guidance: bool) -> Defaults:
    """The defaults of a model that can make pictures from the start; raises KeyError for any other."""
    found = DEFAULTS[architecture]
    if architecture is Architecture.FLUX and not guidance:
        return replace(found, steps=SCHNELL_STEPS, cfg=1.0)
    return found
