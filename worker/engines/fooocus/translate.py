"""A job as the server will be asked: portable parameters and native bodies become a checked native body. No I/O.

What makes the server lie is settled here: fields that it would drop, names that it would silently replace by its
defaults, LoRAs that it would use although they are switched off, seeds that it would draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from worker.engines.base import Expectation, Work
from worker.engines.fooocus import sizes
from worker.engines.fooocus.dialects import SEED_MOST
from worker.engines.fooocus.inputs import taken
from worker.engines.fooocus.inventory import Inventory, find
from worker.engines.fooocus.names import check_names, check_prompts, kind_in, settle_loras
from worker.engines.fooocus.portable import Draft, portable
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job, Limits, ModelRef

STEPS = {"Speed": 30, "Quality": 60, "Extreme Speed": 8, "Lightning": 4, "Hyper-SD": 4}
STEPS_UPSCALING = {"Speed": 18, "Quality": 36, "Extreme Speed": 8, "Lightning": 4, "Hyper-SD": 4}
_OURS: Mapping[str, Any] = {
    "async_process": True,
    "require_base64": False,
    "webhook_url": "",
    "save_name": "",
    "save_extension": "png",
}
"""Set whatever a native body says. A name of its own would have two jobs of a day write the same file; a picture
as base64 is encoded once more and loses what tells of its model; a JPEG has lost that too."""

_DEBUGGING = ("debugging_cn_preprocessor", "debugging_inpaint_preprocessor")


def translate(job: Job, inventory: Inventory, limits: Limits) -> Work:
    """The work that a job asks for, its models named as the server lists them.

    Raises `InvalidJob` with the field that is wrong, and `ModelNotFound` for a model that the server does not list.
    """
    draft = portable(job.params, inventory) if job.params is not None else _native(job, inventory)
    models = _check_models(job, inventory)
    checkpoint = _settle_checkpoint(draft, job, inventory)
    check_prompts(draft, inventory)
    advanced = dict(draft.body.get("advanced_params") or {})
    draft.body["advanced_params"] = {"disable_preview": True} | advanced
    draft.body |= _OURS
    steps = _steps(draft)
    limits.check_steps(steps, field=_field(draft, "steps", "advanced_params.overwrite_step"))
    pictures = _pictures(draft)
    limits.check_images(pictures, field=_field(draft, "batch_size", "image_number"))
    expect = replace(_sized(draft, inventory, limits), checkpoint=checkpoint, seeds=_settle_seeds(draft, job, pictures))
    if draft.endpoint == "image-enhance" or _uncountable(draft.body):
        expect = replace(expect, count=1 if "Fast" in str(draft.body.get("uov_method")) else None, seeds=())
    else:
        expect = replace(expect, count=pictures)
    return Work(
        request=draft.body,
        endpoint=draft.endpoint,
        expect=expect,
        models=_with(models, checkpoint, draft.body),
        inputs=draft.inputs,
        steps=steps,
        warnings=tuple(draft.warnings),
    )


def _field(draft: Draft, ours: str, theirs: str) -> str:
    return f"{draft.root}.{ours if draft.root == 'params' else theirs}"


def _native(job: Job, inventory: Inventory) -> Draft:
    if job.request is None:
        name = "workflow" if job.workflow is not None else "template"
        raise InvalidJob(f"{inventory.dialect.title} takes params or request", field=name)
    endpoint = job.endpoint or "text-to-image"
    if endpoint not in inventory.endpoints:
        raise InvalidJob(f"unknown; known: {', '.join(inventory.endpoints)}", field="endpoint")
    inventory.check_fields(endpoint, job.request)
    if job.request.get("webhook_url"):
        raise InvalidJob(
            "the server's webhook is not used; name one as the job's own `webhook`", field="request.webhook_url"
        )
    advanced = job.request.get("advanced_params")
    if not isinstance(advanced, (dict, type(None))):
        raise InvalidJob("must be an object", field="request.advanced_params")
    for name in _DEBUGGING:
        if (advanced or {}).get(name):
            raise InvalidJob("would end the job without a result, or never", field=f"request.advanced_params.{name}")
    body, inputs = taken(job.request)
    if endpoint == "image-upscale-vary":
        default = inventory.default("uov_method", of="ImgUpscaleOrVaryRequestJson")
        body.setdefault("uov_method", default or "Upscale (2x)")
    draft = Draft(body, endpoint, "request", inputs)
    _need_inputs(draft)
    check_names(draft, inventory)
    settle_loras(draft, inventory)
    return draft


def _need_inputs(draft: Draft) -> None:
    """Without its image, or anything to paint, a job silently becomes another: text to image."""
    body = draft.body
    image = {"image-upscale-vary": "input_image", "image-inpaint-outpaint": "input_image"}
    needed = image.get(draft.endpoint, "enhance_input_image" if draft.endpoint == "image-enhance" else None)
    if needed is not None and not body.get(needed):
        raise InvalidJob("is missing", field=f"request.{needed}")
    inpaints = draft.endpoint == "image-inpaint-outpaint"
    sides = body.get("outpaint_selections")
    if not isinstance(sides, (list, type(None))):
        raise InvalidJob("must be a list of sides", field="request.outpaint_selections")
    if inpaints and not body.get("input_mask") and not body.get("outpaint_selections"):
        raise InvalidJob("neither a mask nor sides to paint on are given", field="request.input_mask")


def _settle_checkpoint(draft: Draft, job: Job, inventory: Inventory) -> str:
    """The one checkpoint that the job or its body names, else the server's default, always sent by name."""
    named = {"checkpoint": job.checkpoint, "request.base_model_name": draft.body.get("base_model_name")}
    found: str | None = None
    for where, name in named.items():
        if name is None:
            continue
        if not isinstance(name, str):
            raise InvalidJob("must be a name", field=where)
        other = find(inventory.models, name, field=where, what="checkpoint")
        if found is not None and other != found:
            raise InvalidJob(f"names another model than another field: {other}", field=where)
        found = other
    if found is None:
        default = inventory.default("base_model_name")
        if not inventory.models:
            raise ModelNotFound("the server has no checkpoint at all")
        found = default if default in inventory.models else inventory.models[0]
    draft.body["base_model_name"] = found
    if draft.body.get("refiner_model_name") == found:
        where = _field(draft, "refiner.checkpoint", "refiner_model_name")
        raise InvalidJob("is the base model itself, with which the server would leave it out", field=where)
    return found


def _check_models(job: Job, inventory: Inventory) -> tuple[ModelRef, ...]:
    """The models that a job lists must be there, as far as the server tells what it has."""
    for i, ref in enumerate(job.models):
        match kind_in(inventory, ref.kind, field=f"models.{i}.kind"):
            case "checkpoint":
                find(inventory.models, ref.name, field=f"models.{i}", what="checkpoint")
            case "lora":
                find(inventory.loras, ref.name, field=f"models.{i}", what="LoRA")
            case _:
                pass
    return job.models


def _with(models: tuple[ModelRef, ...], checkpoint: str, body: Mapping[str, Any]) -> tuple[ModelRef, ...]:
    """What the job lists, and what only its body names."""
    known = {(m.kind, PurePosixPath(m.name).name) for m in models}
    named = [("checkpoint", checkpoint), ("refiner", body.get("refiner_model_name"))]
    named += [("lora", lora.get("model_name")) for lora in body.get("loras") or () if isinstance(lora, dict)]
    added = []
    for kind, name in named:
        if not isinstance(name, str) or name in ("", "None") or "\\" in name:
            continue
        if (kind, PurePosixPath(name).name) not in known:
            known.add((kind, PurePosixPath(name).name))
            added.append(ModelRef(kind=kind, name=name))
    return (*models, *added)


def _pictures(draft: Draft) -> int:
    number = draft.body.get("image_number", 1)
    if type(number) is not int or number < 1:
        raise InvalidJob("must be a whole number from 1", field=_field(draft, "batch_size", "image_number"))
    return number


def _steps(draft: Draft) -> int:
    own = draft.body["advanced_params"].get("overwrite_step")
    if type(own) is int and own > 0:
        return own
    upscales = str(draft.body.get("uov_method", "")).startswith("Upscale")
    known = STEPS_UPSCALING if upscales else STEPS
    return known.get(str(draft.body.get("performance_selection")), known["Speed"])


def _settle_seeds(draft: Draft, job: Job, pictures: int) -> tuple[int, ...]:
    """The seed of each picture; one left to us is drawn from the job's id."""
    seed, where = draft.body.get("image_seed", -1), _field(draft, "seed", "image_seed")
    if type(seed) is not int or not -1 <= seed <= SEED_MOST:
        raise InvalidJob(f"must be a whole number from -1 to {SEED_MOST}: another would be replaced", field=where)
    first = job.seed if seed == -1 else seed
    draft.body["image_seed"] = first
    step = 0 if draft.body["advanced_params"].get("disable_seed_increment") is True else 1
    return tuple((first + i * step) % (SEED_MOST + 1) for i in range(pictures))


def _uncountable(body: Mapping[str, Any]) -> bool:
    """Upscaling ends without sampling where the result is large: with one picture, whatever number was asked for."""
    return str(body.get("uov_method", "")).startswith("Upscale")


def _sized(draft: Draft, inventory: Inventory, limits: Limits) -> Expectation:
    """The size of the pictures. Where an image is given it is settled once that is there."""
    if draft.body.get("input_image") or draft.endpoint == "image-enhance":
        size = draft.size
        if size is not None:
            limits.check_size(*size, field="params.width")
        return Expectation(None, size[0] if size else None, size[1] if size else None, ())
    advanced, where = draft.body["advanced_params"], "aspect_ratios_selection"
    written = draft.body.get(where, inventory.default(where))
    asked = sizes.aspect(written) if written is not None else None
    if written is not None and asked is None:
        raise InvalidJob("must be width*height", field=_field(draft, "width", where))
    over = [advanced.get(f"overwrite_{side}") for side in ("width", "height")]
    known = [o if type(o) is int and o > 0 else asked[i] if asked else None for i, o in enumerate(over)]
    if known[0] is None or known[1] is None:
        return Expectation(None, None, None, ())
    limits.check_size(known[0], known[1], field=_field(draft, "width", where))
    width, height = sizes.floored((known[0], known[1]))
    if (width, height) != (known[0], known[1]):
        draft.warnings.append("size_rounded")
    return Expectation(None, width, height, ())
