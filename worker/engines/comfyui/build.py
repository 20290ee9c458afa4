"""A recipe as a graph in ComfyUI's API format. No I/O, no decision.

Node ids are words, which ComfyUI takes as well as numbers, so that an error or a saved picture reads well. The one
output node, ``save``, stands last. Input images stand as slots, ``input:`` and the field of the document; a side that
the input image settles as the slot ``size:width/8`` (the side and its grid), which `sizes.sized` fills.
"""

from __future__ import annotations

from typing import Any

from worker.engines.comfyui.graph import SLOT
from worker.engines.comfyui.ingredients import IMAGE, MASK, Recipe, RefinerStep

SIZE = "size:"
SCALED = "scaled"

Link = list[str | int]


class _Sketch:
    """A graph on its way."""

    def __init__(self) -> None:
        self.graph: dict[str, Any] = {}

    def add(self, name: str, class_type: str, title: str, **inputs: Any) -> str:
        self.graph[name] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}
        return name


def build(recipe: Recipe) -> dict[str, Any]:
    """The graph: loaders, prompts, the latent, one sampler or two, the picture, and the node that saves it."""
    sketch = _Sketch()
    model, clip, vae = _loaded(sketch, recipe)
    model, clip = _patched(sketch, recipe, model, clip)
    positive, negative = _prompts(sketch, recipe, clip)
    scaled = _scaled(sketch, recipe) if recipe.image else None
    positive, negative, latent = _latent(sketch, recipe, vae, positive, negative, scaled)
    sampled = _sampled(sketch, recipe, model, positive, negative, latent)
    decoded = sketch.add("decoded", "VAEDecode", "Decode the picture", samples=sampled, vae=vae)
    picture: Link = [decoded, 0]
    if scaled is not None and recipe.mask:
        picture = _composited(sketch, recipe, scaled, picture)
    sketch.add("save", "SaveImage", "Save the picture", images=picture, filename_prefix="image")
    return sketch.graph


def _loaded(sketch: _Sketch, recipe: Recipe) -> tuple[Link, Link, Link]:
    """Model, text encoders, VAE."""
    if recipe.checkpoint is not None:
        sketch.add("checkpoint", "CheckpointLoaderSimple", "Checkpoint", ckpt_name=recipe.checkpoint)
        model: Link = ["checkpoint", 0]
    else:
        sketch.add("unet", "UNETLoader", "Diffusion model", unet_name=recipe.unet, weight_dtype="default")
        model = ["unet", 0]
    clip: Link = ["checkpoint", 1]
    if recipe.encoders:
        clip = [_encoders(sketch, recipe), 0]
    vae: Link = ["checkpoint", 2]
    if recipe.vae is not None:
        vae = [sketch.add("vae", "VAELoader", "VAE", vae_name=recipe.vae), 0]
    return model, clip, vae


def _encoders(sketch: _Sketch, recipe: Recipe) -> str:
    names = recipe.encoders
    title = "Text encoders"
    match len(names):
        case 1:
            return sketch.add("clip", "CLIPLoader", title, clip_name=names[0], type=recipe.encoder_type)
        case 2:
            pair = {"clip_name1": names[0], "clip_name2": names[1]}
            return sketch.add("clip", "DualCLIPLoader", title, **pair, type=recipe.encoder_type)
        case _:
            triple = {f"clip_name{i}": name for i, name in enumerate(names, start=1)}
            return sketch.add("clip", "TripleCLIPLoader", title, **triple)


def _patched(sketch: _Sketch, recipe: Recipe, model: Link, clip: Link) -> tuple[Link, Link]:
    """Model and text encoders with the LoRAs in their order, the encoders stopped where the job says."""
    for i, lora in enumerate(recipe.loras, start=1):
        name = sketch.add(
            f"lora{i}",
            "LoraLoader",
            f"LoRA {i}",
            model=model,
            clip=clip,
            lora_name=lora.name,
            strength_model=lora.weight,
            strength_clip=lora.weight,
        )
        model, clip = [name, 0], [name, 1]
    return model, _skipped(sketch, recipe, clip, "")


def _skipped(sketch: _Sketch, recipe: Recipe, clip: Link, which: str) -> Link:
    if recipe.clip_skip is None:
        return clip
    stop = -recipe.clip_skip
    name = f"{which}clip_skip"
    return [sketch.add(name, "CLIPSetLastLayer", "Skip layers", clip=clip, stop_at_clip_layer=stop), 0]


def _prompts(sketch: _Sketch, recipe: Recipe, clip: Link) -> tuple[Link, Link]:
    """What the picture should show and what not; a model sampled without the latter gets zeros, which it ignores."""
    sketch.add("positive", "CLIPTextEncode", "Prompt", clip=clip, text=recipe.prompt)
    positive: Link = ["positive", 0]
    if recipe.sampling.negative:
        sketch.add("negative", "CLIPTextEncode", "Negative prompt", clip=clip, text=recipe.negative_prompt)
    else:
        sketch.add("negative", "ConditioningZeroOut", "No negative prompt", conditioning=positive)
    if recipe.sampling.guidance is not None:
        guidance = recipe.sampling.guidance
        sketch.add("guidance", "FluxGuidance", "Guidance", conditioning=positive, guidance=guidance)
        positive = ["guidance", 0]
    return positive, ["negative", 0]


def _scaled(sketch: _Sketch, recipe: Recipe) -> Link:
    """The input image at the size asked for, its ratio not kept, as the other servers do."""
    sketch.add("image", "LoadImage", "Input image", image=SLOT + IMAGE)
    sketch.add(
        SCALED,
        "ImageScale",
        "Input image at the size asked for",
        image=["image", 0],
        upscale_method="lanczos",
        width=f"{SIZE}width/{recipe.grid}" if recipe.width is None else recipe.width,
        height=f"{SIZE}height/{recipe.grid}" if recipe.height is None else recipe.height,
        crop="disabled",
    )
    return [SCALED, 0]


def _latent(
    sketch: _Sketch, recipe: Recipe, vae: Link, positive: Link, negative: Link, scaled: Link | None
) -> tuple[Link, Link, Link]:
    """Conditionings and the latents to start from, a whole batch of them."""
    if scaled is None:
        name = "EmptySD3LatentImage" if recipe.grid == 16 else "EmptyLatentImage"
        size = {"width": recipe.width, "height": recipe.height, "batch_size": recipe.batch_size}
        return positive, negative, [sketch.add("latent", name, "Empty latents", **size), 0]
    if not recipe.mask:
        latent: Link = [sketch.add("encoded", "VAEEncode", "Encode the image", pixels=scaled, vae=vae), 0]
        return positive, negative, _repeated(sketch, recipe, latent)
    sketch.add("mask", "LoadImageMask", "Mask: white is painted anew", image=SLOT + MASK, channel="red")
    mask: Link = ["mask", 0]
    if recipe.inpainting:
        inputs = {"positive": positive, "negative": negative, "vae": vae, "pixels": scaled, "mask": mask}
        sketch.add("inpaint", "InpaintModelConditioning", "Image and mask", **inputs, noise_mask=True)
        return ["inpaint", 0], ["inpaint", 1], _repeated(sketch, recipe, ["inpaint", 2])
    sketch.add("encoded", "VAEEncode", "Encode the image", pixels=scaled, vae=vae)
    sketch.add("masked", "SetLatentNoiseMask", "Keep what is not masked", samples=["encoded", 0], mask=mask)
    return positive, negative, _repeated(sketch, recipe, ["masked", 0])


def _repeated(sketch: _Sketch, recipe: Recipe, latent: Link) -> Link:
    if recipe.batch_size == 1:
        return latent
    amount = recipe.batch_size
    return [sketch.add("latent", "RepeatLatentBatch", "A batch of it", samples=latent, amount=amount), 0]


def _sampled(sketch: _Sketch, recipe: Recipe, model: Link, positive: Link, negative: Link, latent: Link) -> Link:
    told = recipe.sampling
    shared = {"cfg": told.cfg, "sampler_name": told.sampler, "scheduler": told.scheduler}
    if recipe.refiner is None:
        name = sketch.add(
            "sampler",
            "KSampler",
            "Sampler",
            model=model,
            positive=positive,
            negative=negative,
            latent_image=latent,
            seed=told.seed,
            steps=told.steps,
            denoise=told.denoise,
            **shared,
        )
        return [name, 0]
    refiner = recipe.refiner
    shared |= {"noise_seed": told.seed, "steps": refiner.total}
    sketch.add(
        "sampler",
        "KSamplerAdvanced",
        "Sampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=latent,
        add_noise="enable",
        start_at_step=refiner.start,
        end_at_step=refiner.switch,
        return_with_leftover_noise="enable",
        **shared,
    )
    return _refined(sketch, recipe, refiner, shared)


def _refined(sketch: _Sketch, recipe: Recipe, refiner: RefinerStep, shared: dict[str, Any]) -> Link:
    """The refiner goes on from the noise that is left, with its own reading of the prompts."""
    sketch.add("refiner", "CheckpointLoaderSimple", "Refiner", ckpt_name=refiner.checkpoint)
    clip: Link = ["refiner", 1]
    sketch.add("refiner_positive", "CLIPTextEncode", "Prompt, for the refiner", clip=clip, text=recipe.prompt)
    negative = recipe.negative_prompt
    sketch.add("refiner_negative", "CLIPTextEncode", "Negative prompt, for the refiner", clip=clip, text=negative)
    name = sketch.add(
        "refiner_sampler",
        "KSamplerAdvanced",
        "Sampler of the refiner",
        model=["refiner", 0],
        positive=["refiner_positive", 0],
        negative=["refiner_negative", 0],
        latent_image=["sampler", 0],
        add_noise="disable",
        start_at_step=refiner.switch,
        end_at_step=10_000,
        return_with_leftover_noise="disable",
        **shared,
    )
    return [name, 0]


def _composited(sketch: _Sketch, recipe: Recipe, scaled: Link, picture: Link) -> Link:
    """The new picture where the mask is white, the input image's own pixels elsewhere.

    The node makes as many pictures as it has destinations, so that a batch needs as many of them.
    """
    destination = scaled
    if recipe.batch_size > 1:
        amount = recipe.batch_size
        repeated = sketch.add("originals", "RepeatImageBatch", "A batch of the input", image=scaled, amount=amount)
        destination = [repeated, 0]
    inputs = {"destination": destination, "source": picture, "mask": ["mask", 0], "x": 0, "y": 0}
    title = "Keep what is not masked"
    return [sketch.add("composited", "ImageCompositeMasked", title, **inputs, resize_source=False), 0]
