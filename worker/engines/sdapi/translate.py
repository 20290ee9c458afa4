"""A job as the server will be asked: portable parameters and native bodies become a checked native body. No I/O.

What makes servers lie is settled here: fields and options that they would drop, samplers, schedulers, scripts
and models that they would silently replace, seeds that they would draw, images that they would not send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.engines.base import Expectation, InputRef, Work
from worker.engines.given import decoded, is_url
from worker.engines.sdapi import sizes
from worker.engines.sdapi.inputs import SLOT, taken
from worker.engines.sdapi.inventory import ENDPOINTS, Inventory
from worker.engines.sdapi.models import Naming, check_models, resolve_rest, tags, with_named_checkpoint
from worker.engines.sdapi.names import ModelFile
from worker.engines.sdapi.neutral import is_neutral
from worker.engines.sdapi.overrides import is_ours
from worker.engines.sdapi.samplers import with_scheduler
from worker.engines.sdapi.sizes import Sizes
from worker.errors import InvalidJob
from worker.job import Job, Limits, ModelRef, Params

_REFUSED = {
    "extra": "sets any attribute of the server's job",
    "infotext": "would set models and sizes unchecked; write the parameters themselves",
}
_SAMPLERS = {"sampler_name": (), "hr_sampler_name": ("Use same sampler", "Same as primary"), "sampler_index": ()}
_SCHEDULERS = {"scheduler": (), "hr_scheduler": ("Use same scheduler",)}


@dataclass
class _Draft:
    """A native body on its way."""

    body: dict[str, Any]
    endpoint: str
    root: str
    inputs: tuple[InputRef, ...] = ()
    warnings: list[str] = field(default_factory=list)


def translate(job: Job, inventory: Inventory, limits: Limits) -> Work:
    """The work that a job asks for, its models named as the server wants them.

    Raises `InvalidJob` with the field that is wrong, and `ModelNotFound` for a model that the server does not
    list, which may be cured by having it look again.
    """
    naming = Naming(inventory)
    draft = _portable(job, job.params, naming) if job.params is not None else _native(job, inventory)
    check_models(job, naming)
    if draft.endpoint == "extra-single-image":
        return _single(job, draft, naming, limits)
    draft.body, checkpoint = with_named_checkpoint(draft.body, job, naming)
    resolve_rest(draft.body, draft.endpoint, naming, root=draft.root)
    _check_options(draft, inventory)
    settled = sizes.settle(draft.body, draft.endpoint, inventory.dialect, limits, root=draft.root)
    seeds = _settle_seeds(draft, job, settled)
    _make_honest(draft, inventory)
    return _work(draft, settled, seeds, checkpoint, _merged(job.models, naming.refs))


def _merged(models: tuple[ModelRef, ...], refs: list[ModelRef]) -> tuple[ModelRef, ...]:
    """What the job lists, and what only its body names."""
    known = {(m.kind, m.name.rpartition("/")[2]) for m in models}
    return models + tuple(r for r in refs if (r.kind, r.name) not in known)


def _work(
    draft: _Draft, settled: Sizes, seeds: tuple[int, ...], checkpoint: ModelFile | None, models: tuple[ModelRef, ...]
) -> Work:
    if settled.rounded:
        draft.warnings.append("size_rounded")
    scripted = is_scripted(draft.body)
    return Work(
        request=draft.body,
        endpoint=draft.endpoint,
        expect=Expectation(
            count=settled.count,
            width=None if scripted else settled.width,
            height=None if scripted else settled.height,
            seeds=seeds,
            checkpoint=checkpoint.label if checkpoint is not None else None,
        ),
        models=models,
        inputs=draft.inputs,
        steps=settled.steps,
        warnings=tuple(draft.warnings),
    )


def is_scripted(body: Mapping[str, Any]) -> bool:
    """Whether a selectable script runs, which alone decides how many images come and of which size."""
    return bool(body.get("script_name")) or body.get("xyz") is True


def _portable(job: Job, params: Params, naming: Naming) -> _Draft:
    inv = naming.inventory
    endpoint = "img2img" if params.image is not None else "txt2img"
    prompt = params.prompt + tags(params.loras, naming)
    body: dict[str, Any] = {"prompt": prompt, "negative_prompt": params.negative_prompt}
    plain = {
        "width": params.width,
        "height": params.height,
        "steps": params.steps,
        "cfg_scale": params.cfg,
        "seed": params.seed,
        "denoising_strength": params.denoise,
        "batch_size": params.batch_size,
    }
    body |= {key: value for key, value in plain.items() if value is not None}
    if params.sampler is not None:
        body["sampler_name"] = inv.samplers.portable(params.sampler, field="params.sampler")
    if params.scheduler is not None:
        fields = inv.fields.get(endpoint, frozenset())
        body = with_scheduler(body, inv.samplers, params.scheduler, fields=fields, options=inv.options)
    overrides = dict(body.get("override_settings") or {})
    _portable_models(body, overrides, params, endpoint, naming)
    body["override_settings"] = overrides
    return _Draft(body, endpoint, "params", _portable_inputs(body, params, inv))


def _portable_models(
    body: dict[str, Any], overrides: dict[str, Any], params: Params, endpoint: str, naming: Naming
) -> None:
    inv = naming.inventory
    if params.clip_skip is not None:
        if inv.dialect.engine == "sdnext":
            body["clip_skip"] = params.clip_skip
        elif "CLIP_stop_at_last_layers" in inv.options:
            overrides["CLIP_stop_at_last_layers"] = params.clip_skip
            if "sdxl_clip_l_skip" in inv.options:
                overrides["sdxl_clip_l_skip"] = True
        else:
            raise InvalidJob(f"{inv.dialect.title} here has no such setting", field="params.clip_skip")
    if params.vae is not None:
        vae = naming.vae(params.vae, field="params.vae")
        if "forge_additional_modules" in inv.options:
            overrides["forge_additional_modules"] = [vae.filename]
        elif "sd_vae" in inv.options:
            overrides["sd_vae"] = vae.name
        else:
            raise InvalidJob(f"{inv.dialect.title} here has no such setting", field="params.vae")
    if params.refiner is not None:
        if inv.dialect.engine == "sdnext" or not inv.knows(endpoint, "refiner_checkpoint"):
            raise InvalidJob(f"{inv.dialect.title} cannot switch models at a step", field="params.refiner")
        found = naming.checkpoint(params.refiner.checkpoint, field="params.refiner.checkpoint", kind="refiner")
        body |= {"refiner_checkpoint": found.title, "refiner_switch_at": params.refiner.switch_at}


def _portable_inputs(body: dict[str, Any], params: Params, inv: Inventory) -> tuple[InputRef, ...]:
    """A masked image comes back whole, at the size asked for, on every server."""
    refs = []
    for name in ("image", "mask"):
        value = getattr(params, name)
        if value is not None:
            where = f"params.{name}"
            if not is_url(value):
                decoded(value, field=where)
            refs.append(InputRef(where, value))
    if params.image is not None:
        body["init_images"] = [SLOT + "params.image"]
        body["resize_mode"] = 1 if inv.dialect.engine == "sdnext" else 0
    if params.mask is not None:
        body |= {"mask": SLOT + "params.mask", "inpaint_full_res": False, "inpainting_fill": 1}
    return tuple(refs)


def _native(job: Job, inv: Inventory) -> _Draft:
    if job.request is None:
        name = "workflow" if job.workflow is not None else "template"
        raise InvalidJob(f"{inv.dialect.title} takes params or request", field=name)
    endpoint = job.endpoint or "txt2img"
    if endpoint not in ENDPOINTS:
        raise InvalidJob(f"unknown; known: {', '.join(ENDPOINTS)}", field="endpoint")
    for key, why in _REFUSED.items():
        if job.request.get(key):
            raise InvalidJob(why, field=f"request.{key}")
    body, inputs = taken({k: v for k, v in job.request.items() if k not in _REFUSED})
    body = {key: value for key, value in body.items() if value is not None or not is_neutral(key, value)}
    for key in [key for key in body if not inv.knows(endpoint, key)]:
        if not is_neutral(key, body.pop(key)):
            raise InvalidJob(f"{inv.dialect.title} does not know this field and would drop it", field=f"request.{key}")
    if endpoint == "img2img" and not body.get("init_images"):
        raise InvalidJob("is missing", field="request.init_images")
    draft = _Draft(body, endpoint, "request", inputs)
    if endpoint != "extra-single-image":
        _check_names(draft, inv)
        _check_styles(body.get("styles"), inv)
    return draft


def _check_styles(styles: Any, inv: Inventory) -> None:
    """Prompt styles, which every server drops silently when it does not know them."""
    if not styles:
        return
    if not isinstance(styles, list):
        raise InvalidJob("must be a list of names", field="request.styles")
    for i, style in enumerate(styles):
        if inv.styles is None or style not in inv.styles:
            raise InvalidJob("the server lists no such style and would drop it", field=f"request.styles.{i}")


def _check_names(draft: _Draft, inv: Inventory) -> None:
    """Samplers, schedulers and scripts, which servers replace or skip silently when they do not know them."""
    body, root = draft.body, draft.root
    default = (inv.dialect.sampler, "Default") if inv.dialect.engine == "sdnext" else (inv.dialect.sampler,)
    for key, also in _SAMPLERS.items():
        used = key != "sampler_index" or not body.get("sampler_name")
        if isinstance(body.get(key), str) and body[key] and used:
            body[key] = inv.samplers.canonical(body[key], field=f"{root}.{key}", also=(*also, *default))
    for key, also in _SCHEDULERS.items():
        if isinstance(body.get(key), str) and body[key] and body[key] not in also:
            body[key] = inv.samplers.scheduler(body[key], field=f"{root}.{key}")
    if inv.scripts is None or draft.endpoint not in inv.scripts:
        return
    name = body.get("script_name")
    if isinstance(name, str) and name and not inv.has_script(draft.endpoint, name):
        raise InvalidJob(f"the server has no script {name[:100]!r}", field=f"{root}.script_name")
    scripts = body.get("alwayson_scripts")
    for script in scripts if isinstance(scripts, dict) else ():
        if not inv.has_script(draft.endpoint, script):
            raise InvalidJob("the server has no such script", field=f"{root}.alwayson_scripts.{script}")


def _check_options(draft: _Draft, inv: Inventory) -> None:
    """Overrides must be options that the server knows, and none that the operator or we rely on."""
    for key in draft.body["override_settings"]:
        where = f"{draft.root}.override_settings.{key}"
        if is_ours(key):
            raise InvalidJob("is the operator's to set", field=where)
        if inv.options and key not in inv.options:
            raise InvalidJob(f"{inv.dialect.title} has no such option", field=where)


def _settle_seeds(draft: _Draft, job: Job, settled: Sizes) -> tuple[int, ...]:
    """Seeds that are left open are drawn from the job's id, so that a second run asks for the same pictures."""
    body, root = draft.body, draft.root
    seed = sizes.whole(body, "seed", -1, root=root)
    seed = job.seed if seed == -1 else seed
    if not -(2**63) <= seed < 2**64:
        raise InvalidJob("does not fit into 64 bits", field=f"{root}.seed")
    strength = sizes.number(body, "subseed_strength", 0, root=root)
    body["seed"] = seed
    if strength > 0 and sizes.whole(body, "subseed", -1, root=root) == -1:
        body["subseed"] = job.seed
    if is_scripted(body):
        return ()
    return tuple(seed + (i if strength == 0 else 0) for i in range(settled.count))


def _make_honest(draft: _Draft, inv: Inventory) -> None:
    """What every request needs, so that images are sent, nothing fills the disk, and nothing leaks between jobs."""
    body = draft.body
    body |= {"send_images": True, "save_images": False}
    for key, value in (
        ("do_not_save_samples", True),
        ("do_not_save_grid", True),
        ("return_grid", False),
        ("keep_incomplete", False),
    ):
        if inv.has(draft.endpoint, key):
            body[key] = value
    scripts = body.get("alwayson_scripts")
    if scripts is not None and not isinstance(scripts, dict):
        raise InvalidJob("must be an object", field=f"{draft.root}.alwayson_scripts")
    if inv.has_script(draft.endpoint, "controlnet") and "controlnet" not in {s.lower() for s in scripts or ()}:
        body["alwayson_scripts"] = {**(scripts or {}), "ControlNet": {"args": []}}


def _single(job: Job, draft: _Draft, naming: Naming, limits: Limits) -> Work:
    """One image made larger; no model, no seed, and no proof of either."""
    if job.checkpoint is not None:
        raise InvalidJob("extra-single-image uses no checkpoint", field="checkpoint")
    if not draft.body.get("image"):
        raise InvalidJob("is missing", field="request.image")
    for key in ("upscaler_1", "upscaler_2"):
        if isinstance(draft.body.get(key), str):
            draft.body[key] = naming.upscaler(draft.body[key], field=f"request.{key}")
    size = sizes.settle_single(draft.body, limits, root="request")
    width, height = size or (None, None)
    return Work(
        request=draft.body,
        endpoint=draft.endpoint,
        expect=Expectation(1, width, height, ()),
        models=_merged(job.models, naming.refs),
        inputs=draft.inputs,
    )
