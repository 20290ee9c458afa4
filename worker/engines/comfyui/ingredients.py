"""What a portable job is made of on ComfyUI, once everything is decided. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engines.comfyui.architecture import Architecture
from worker.job import ModelRef

IMAGE = "params.image"
MASK = "params.mask"


@dataclass(frozen=True, slots=True)
class LoraStep:
    """A LoRA on both the diffusion model and the text encoders."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class RefinerStep:
    """A second checkpoint that takes over at step ``switch`` of ``total``; the first one begins at ``start``."""

    checkpoint: str
    start: int
    switch: int
    total: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the sampler is told. ``guidance`` is the number that a guidance-distilled model takes in place of cfg."""

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    seed: int
    denoise: float = 1.0
    guidance: float | None = None
    negative: bool = True
    """Whether a negative prompt is encoded at all."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the graph of a portable job follows from; names as the server lists them.

    ``checkpoint`` or ``unet`` holds the diffusion model; ``encoders`` and ``vae`` are separate files where given,
    else the checkpoint's own are used. ``width`` and ``height`` are multiples of ``grid``; None, possible only with
    an input image, for a side that the image settles (`sizes.sized`). ``models`` are the files that it needs.
    """

    architecture: Architecture
    sampling: Sampling
    prompt: str = field(repr=False)
    negative_prompt: str = field(default="", repr=False)
    checkpoint: str | None = None
    unet: str | None = None
    encoders: tuple[str, ...] = ()
    encoder_type: str = ""
    vae: str | None = None
    loras: tuple[LoraStep, ...] = ()
    clip_skip: int | None = None
    refiner: RefinerStep | None = None
    width: int | None = None
    height: int | None = None
    grid: int = 8
    batch_size: int = 1
    image: bool = False
    mask: bool = False
    inpainting: bool = False
    models: tuple[ModelRef, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def main(self) -> str:
        """The file that holds the diffusion model."""
        return self.checkpoint or self.unet or ""
