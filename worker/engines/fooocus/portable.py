"""Portable parameters as a native body. No I/O.

No style is chosen, since Fooocus's styles and its prompt expansion rewrite the prompt; what else it would do to a
prompt (wildcards, lists of words) is refused, and its line breaks, at which it would begin another prompt, become
blanks. A field left out takes the server's own default, but for LoRAs and the refiner, of which there are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from worker.engines.base import InputRef
from worker.engines.fooocus import sizes
from worker.engines.fooocus.dialects import SCHEDULERS
from worker.engines.fooocus.inputs import SLOT, checked_ref
from worker.engines.fooocus.inventory import Inventory, find, one_of
from worker.errors import InvalidJob
from worker.job import Lora, Params, Refiner

LORA_MOST = 2.0
_WILDCARD = re.compile(r"__[\w-]+__")
_WORDS = re.compile(r"\[\[.*?\]\]")


@dataclass
class Draft:
    """A native body on its way; ``size`` is what was asked for, where a portable image is to have it."""

    body: dict[str, Any]
    endpoint: str
    root: str
    inputs: tuple[InputRef, ...] = ()
    size: sizes.Size | None = None
    warnings: list[str] = field(default_factory=list)


def portable(params: Params, inventory: Inventory) -> Draft:
    """Raises `InvalidJob` and `ModelNotFound` with the portable field that is wrong."""
    advanced = _advanced(params, inventory)
    body: dict[str, Any] = {
        "prompt": _plain(params.prompt, "params.prompt"),
        "negative_prompt": _plain(params.negative_prompt, "params.negative_prompt"),
        "style_selections": [],
        "performance_selection": "Speed",
        "image_number": params.batch_size,
        "loras": [_lora(lora, i, inventory) for i, lora in enumerate(params.loras)],
        "refiner_model_name": "None",
        "advanced_params": advanced,
    }
    if params.seed is not None:
        body["image_seed"] = params.seed
    if params.cfg is not None:
        if not 1 <= params.cfg <= 30:
            raise InvalidJob(f"{inventory.dialect.title} takes 1 to 30", field="params.cfg")
        body["guidance_scale"] = params.cfg
    if params.refiner is not None:
        body |= _refiner(params.refiner, inventory)
    draft = Draft(body, "text-to-image", "params")
    if params.image is None:
        _sized(draft, params, inventory)
    else:
        _from_image(draft, params, inventory)
    return draft


def _plain(text: str, field: str) -> str:
    if _WILDCARD.search(text):
        raise InvalidJob("Fooocus would put a line of a file of its own for __words__ like these", field=field)
    if _WORDS.search(text):
        raise InvalidJob("Fooocus would choose one of the words between [[ and ]]", field=field)
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _advanced(params: Params, inventory: Inventory) -> dict[str, Any]:
    dialect = inventory.dialect
    advanced: dict[str, Any] = {}
    if params.steps is not None:
        advanced["overwrite_step"] = params.steps
    if params.sampler is not None:
        one_of(dialect.samplers, params.sampler, field="params.sampler", what="sampler")
        advanced["sampler_name"] = params.sampler
    if params.scheduler is not None:
        one_of(SCHEDULERS, params.scheduler, field="params.scheduler", what="scheduler")
        advanced["scheduler_name"] = params.scheduler
    if params.clip_skip is not None:
        advanced["clip_skip"] = params.clip_skip
    if params.vae is not None:
        if not dialect.uses_vae:
            raise InvalidJob(f"{dialect.title} takes a VAE's name and does not load it", field="params.vae")
        advanced["vae_name"] = params.vae
    return advanced


def _lora(lora: Lora, index: int, inventory: Inventory) -> dict[str, Any]:
    where = f"params.loras.{index}"
    if abs(lora.weight) > LORA_MOST:
        raise InvalidJob(f"{inventory.dialect.title} takes -2 to 2", field=f"{where}.weight")
    name = find(inventory.loras, lora.name, field=f"{where}.name", what="LoRA")
    return {"enabled": True, "model_name": name, "weight": lora.weight}


def _refiner(refiner: Refiner, inventory: Inventory) -> dict[str, Any]:
    if refiner.switch_at < 0.1:
        raise InvalidJob(f"{inventory.dialect.title} takes 0.1 to 1", field="params.refiner.switch_at")
    where = "params.refiner.checkpoint"
    name = find(inventory.models, refiner.checkpoint, field=where, what="checkpoint")
    return {"refiner_model_name": name, "refiner_switch": refiner.switch_at}


def _sized(draft: Draft, params: Params, inventory: Inventory) -> None:
    """Any size goes, written as an aspect ratio; only its overwriting parameters end at 2048."""
    own = sizes.aspect(inventory.default("aspect_ratios_selection")) or (1152, 896)
    asked = params.width or own[0], params.height or own[1]
    width, height = sizes.floored(asked)
    if (width, height) != asked:
        draft.warnings.append("size_rounded")
    draft.body["aspect_ratios_selection"] = f"{width}*{height}"


def _from_image(draft: Draft, params: Params, inventory: Inventory) -> None:
    """A variation of the image, or with a mask the painting anew of what is white in it.

    Both sample at exactly ``denoise``. Fooocus's own patch for inpainting, which it would download, stays out.
    """
    if params.denoise == 0:
        raise InvalidJob(f"{inventory.dialect.title} takes 0 for not given", field="params.denoise")
    if params.image is None:
        return
    inputs = [checked_ref("params.image", params.image)]
    draft.body["input_image"] = SLOT + "params.image"
    draft.size = _wanted_size(draft, params)
    advanced = draft.body["advanced_params"]
    if params.mask is None:
        draft.endpoint = "image-upscale-vary"
        draft.body["uov_method"] = "Vary (Subtle)"
        if params.denoise is not None:
            advanced["overwrite_vary_strength"] = params.denoise
        if draft.size is not None and not sizes.VARY_LEAST <= sizes.ceil(draft.size) <= sizes.VARY_MOST:
            least, most = sizes.VARY_LEAST, sizes.VARY_MOST
            raise InvalidJob(
                f"Fooocus varies images of the area of {least}x{least} to {most}x{most}", field="params.width"
            )
    else:
        draft.endpoint = "image-inpaint-outpaint"
        inputs.append(checked_ref("params.mask", params.mask))
        draft.body |= {"input_mask": SLOT + "params.mask", "outpaint_selections": [], "inpaint_additional_prompt": ""}
        strength = params.denoise if params.denoise is not None else 1.0
        advanced |= {"inpaint_engine": "None", "inpaint_strength": strength, "inpaint_respective_field": 1.0}
    draft.inputs = tuple(inputs)


def _wanted_size(draft: Draft, params: Params) -> sizes.Size | None:
    """What the image is brought to before it is sent; None: it keeps its size as far as the server leaves it."""
    if params.width is None and params.height is None:
        return None
    if params.width is None or params.height is None:
        missing = "params.width" if params.width is None else "params.height"
        raise InvalidJob("width and height go together where an image is given", field=missing)
    size = sizes.floored((params.width, params.height))
    if size != (params.width, params.height):
        draft.warnings.append("size_rounded")
    return size
