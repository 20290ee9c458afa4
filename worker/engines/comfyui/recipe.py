"""A portable job decided: names resolved, what is left out filled in, what cannot be honoured refused. No I/O.

ComfyUI takes any graph, so nothing here depends on what a server would silently drop: each field either shows in the
graph that `build` makes of the recipe, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from worker.engines.comfyui.architecture import Architecture, Contents
from worker.engines.comfyui.build import build
from worker.engines.comfyui.defaults import DENOISE, SKIPPABLE, SWITCHABLE
from worker.engines.comfyui.ingredients import LoraStep, Recipe, RefinerStep, Sampling
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.naming import Naming, check_models
from worker.engines.comfyui.parts import CHECKPOINTS, Parts, contents_of, headers, key, parts
from worker.errors import InvalidJob
from worker.job import Job, Params

__all__ = ["Recipe", "headers", "key", "recipe"]

MAX_REPEAT = 64
"""What the node that repeats latents takes at most."""

MAX_SCHEDULE = 10_000
"""Steps that a sampler node takes at most."""

_FIELDS = {
    "UNETLoader": "checkpoint",
    "CLIPLoader": "models",
    "DualCLIPLoader": "models",
    "TripleCLIPLoader": "models",
    "VAELoader": "params.vae",
    "LoraLoader": "params.loras",
    "CLIPSetLastLayer": "params.clip_skip",
    "FluxGuidance": "checkpoint",
    "ConditioningZeroOut": "checkpoint",
    "EmptySD3LatentImage": "checkpoint",
    "KSamplerAdvanced": "params.refiner",
    "LoadImage": "params.image",
    "ImageScale": "params.image",
    "VAEEncode": "params.image",
    "RepeatLatentBatch": "params.batch_size",
    "RepeatImageBatch": "params.batch_size",
    "LoadImageMask": "params.mask",
    "SetLatentNoiseMask": "params.mask",
    "InpaintModelConditioning": "params.mask",
    "ImageCompositeMasked": "params.mask",
}


def recipe(job: Job, inventory: Inventory, contents: Mapping[str, Contents]) -> Recipe:
    """What a job's ``params`` become; ``contents`` by `key` for the files that `headers` asked for.

    Raises `InvalidJob` with the field that is wrong or cannot be honoured, `ModelNotFound` for a file that the server
    does not list, `EngineFault` for one that this node cannot read.
    """
    params = job.params
    if params is None:
        raise InvalidJob("is missing", field="params")
    naming = Naming(inventory)
    check_models(job, naming)
    found = parts(job, naming, contents)
    held, known = found.contents, found.known
    _check_honoured(params, found)
    sampling = _sampling(job, params, found, inventory)
    width, height, rounded = _sizes(params, found)
    decided = Recipe(
        architecture=held.architecture,
        sampling=sampling,
        prompt=params.prompt,
        negative_prompt=params.negative_prompt,
        checkpoint=found.name if found.folder == CHECKPOINTS else None,
        unet=None if found.folder == CHECKPOINTS else found.name,
        encoders=found.encoders,
        encoder_type=known.encoder_type,
        vae=found.vae,
        loras=tuple(
            LoraStep(naming.need("lora", lora.name, field=f"params.loras.{i}.name"), lora.weight)
            for i, lora in enumerate(params.loras)
        ),
        clip_skip=params.clip_skip,
        refiner=_refiner(params, sampling, naming, contents),
        width=width,
        height=height,
        grid=known.grid,
        batch_size=params.batch_size,
        image=params.image is not None,
        mask=params.mask is not None,
        inpainting=held.inpainting,
        models=tuple(naming.refs),
        warnings=found.warnings + (("size_rounded",) if rounded else ()),
    )
    _check_classes(decided, inventory)
    return decided


def _check_honoured(params: Params, found: Parts) -> None:
    """The fields that have no meaning for this architecture."""
    architecture, name = found.contents.architecture, found.name[:200]
    if params.clip_skip is not None and architecture not in SKIPPABLE:
        raise InvalidJob(f"{name} ({architecture}) cannot skip layers of its text encoders", field="params.clip_skip")
    if params.refiner is not None and architecture not in SWITCHABLE:
        raise InvalidJob(f"{name} ({architecture}) has no refiner", field="params.refiner")
    if params.image is not None and params.batch_size > MAX_REPEAT:
        raise InvalidJob(f"at most {MAX_REPEAT} with an image", field="params.batch_size")
    if architecture is not Architecture.FLUX:
        return
    if params.negative_prompt.strip():
        raise InvalidJob(
            f"{name} ({architecture}) is sampled without one and cannot honour it", field="params.negative_prompt"
        )
    if not found.contents.guidance and params.cfg not in (None, 1):
        raise InvalidJob(f"{name} takes no guidance: only 1 can be honoured", field="params.cfg")


def _sampling(job: Job, params: Params, found: Parts, inventory: Inventory) -> Sampling:
    known, held = found.known, found.contents
    cfg = known.cfg if params.cfg is None else params.cfg
    flux = held.architecture is Architecture.FLUX
    return Sampling(
        steps=params.steps or known.steps,
        cfg=1.0 if flux else cfg,
        sampler=_listed(params.sampler, known.sampler, inventory.samplers, "params.sampler"),
        scheduler=_listed(params.scheduler, known.scheduler, inventory.schedulers, "params.scheduler"),
        seed=job.seed if params.seed in (None, -1) else params.seed,
        denoise=_denoise(params),
        guidance=cfg if flux and held.guidance else None,
        negative=not flux,
    )


def _denoise(params: Params) -> float:
    if params.image is None:
        return 1.0
    return DENOISE if params.denoise is None else params.denoise


def _listed(wanted: str | None, default: str, names: Iterable[str], field: str) -> str:
    """A sampler or scheduler by the server's own name, letter for letter, since those are the portable ones."""
    known = tuple(names)
    name = default if wanted is None else wanted
    if name in known:
        return name
    if wanted is None:
        raise InvalidJob(f"is missing, and the server has not the default {default!r}", field=field)
    plain = {n.replace("_", "").lower(): n for n in known}
    near = get_close_matches("".join(c for c in wanted.lower() if c.isalnum()), plain, n=3, cutoff=0.5)
    hint = f"; close: {', '.join(plain[n] for n in near)}" if near else f"; known: {', '.join(known)}"
    raise InvalidJob(f"ComfyUI here has no {wanted[:100]!r}{hint}", field=field)


def _sizes(params: Params, found: Parts) -> tuple[int | None, int | None, bool]:
    """Sides rounded up to what the model can make, and whether that changed one; None: the input image's side."""
    grid = found.known.grid
    default = found.known.side if params.image is None else None
    asked = (params.width or default, params.height or default)
    width, height = (None if side is None else -(-side // grid) * grid for side in asked)
    return width, height, (width, height) != asked


def _refiner(
    params: Params, sampling: Sampling, naming: Naming, contents: Mapping[str, Contents]
) -> RefinerStep | None:
    """The refiner and its steps, of the schedule that the plain sampler node would use for this denoise."""
    if params.refiner is None:
        return None
    field = "params.refiner.checkpoint"
    name = naming.need("refiner", params.refiner.checkpoint, field=field)
    held = contents_of(contents, CHECKPOINTS, name, field=field)
    fits = held.architecture in (Architecture.SDXL, Architecture.SDXL_REFINER)
    if not fits or not held.clip:
        raise InvalidJob(f"{name[:200]} is neither an SDXL refiner nor a full SDXL checkpoint", field=field)
    if sampling.steps < 2 or sampling.denoise == 0:
        raise InvalidJob("needs two steps at least, one for each model", field="params.refiner")
    total = int(sampling.steps / sampling.denoise)
    if total > MAX_SCHEDULE:
        raise InvalidJob("is too small for a refiner", field="params.denoise")
    start = total - sampling.steps
    first = min(max(round(sampling.steps * params.refiner.switch_at), 1), sampling.steps - 1)
    return RefinerStep(name, start, start + first, total)


def _check_classes(decided: Recipe, inventory: Inventory) -> None:
    """The server must know every class of the graph, and each choice that depends on its version."""
    for node in build(decided).values():
        name = node["class_type"]
        known = inventory.nodes.get(name)
        field = _FIELDS.get(name, "params")
        if known is None:
            raise InvalidJob(f"this version of ComfyUI has no {name}", field=field)
        wanted, kind = node["inputs"].get("type"), known.inputs.get("type")
        if wanted is not None and kind is not None and kind.options and wanted not in kind.options:
            raise InvalidJob(f"this version's {name} knows no text encoders of type {wanted}", field=field)
