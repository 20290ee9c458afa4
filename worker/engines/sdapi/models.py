"""Every model that a native body names: resolved to a listed file by exact identity, and named as the server wants.

No I/O. A name that the server does not list is `ModelNotFound`, because all of them silently go on without it:
with the model already loaded, without the LoRA, without the VAE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from worker.engines.sdapi.inventory import Inventory
from worker.engines.sdapi.names import ModelFile, find, stem_of, without_extension
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job, Lora, ModelRef
from worker.mentions import place_of

LORA_TAG = re.compile(r"<(?:lora|lyco):([^:<>]+)(:[^<>]*)?>", re.IGNORECASE)
PROMPTS = ("prompt", "hr_prompt", "refiner_prompt")
SAME = ("Use same checkpoint", "None", "")
NO_VAE = ("Automatic", "automatic", "None", "none", "Default", "")
NO_UPSCALER = ("None", "")
KINDS = ("checkpoint", "lora", "vae", "upscaler", "embedding", "controlnet")
AT_START = "; it looks for new ones only when it starts"
UPSCALERS = ("hr_upscaler", "upscaler_1", "upscaler_2")


@dataclass
class Naming:
    """The models of one job as they are found; ``refs`` are what the job needs, each once."""

    inventory: Inventory
    refs: list[ModelRef] = field(default_factory=list)

    def need(self, kind: str, file: ModelFile) -> ModelFile:
        name = PurePosixPath(file.filename or file.name).name
        ref = ModelRef(kind=kind, name=name) if name and "\\" not in name else None
        if ref is not None and ref not in self.refs:
            self.refs.append(ref)
        return file

    def checkpoint(self, name: str, *, field: str, kind: str = "checkpoint") -> ModelFile:
        found = found_checkpoint(self.inventory, name, field=field)
        if found is None:
            raise missing("checkpoint", name, field)
        return self.need(kind, found)

    def lora(self, name: str, *, field: str) -> ModelFile:
        found = found_lora(self.inventory, name, field=field)
        if found is None:
            raise missing("LoRA", name, field)
        return self.need("lora", found)

    def vae(self, name: str, *, field: str) -> ModelFile:
        found = found_vae(self.inventory, name, field=field)
        if found is None:
            raise missing("VAE", name, field)
        return self.need("vae", found)

    def upscaler(self, name: str, *, field: str) -> str:
        known = self.inventory.upscalers
        if known is None or name in known or name in NO_UPSCALER or name.startswith("Latent"):
            return name
        found = next((k for k in known if k == without_extension(PurePosixPath(name).name)), None)
        if found is None:
            raise missing("upscaler", name, field, hint=AT_START)
        return found


def found_checkpoint(inventory: Inventory, name: str, *, field: str) -> ModelFile | None:
    return find(inventory.checkpoints, name, field=field)


def found_lora(inventory: Inventory, name: str, *, field: str) -> ModelFile | None:
    """SD.Next writes an underscore for each dot of a LoRA's name, its path keeps them."""
    known = inventory.loras or ()
    return find(known, name, field=field) or find(known, name.replace(".", "_"), field=field)


def found_vae(inventory: Inventory, name: str, *, field: str) -> ModelFile | None:
    """A VAE, or on Forge any of its modules."""
    known = inventory.vaes or ()
    return find(known, name, field=field) or next((v for v in known if stem_of(v.name) == name), None)


def missing(what: str, name: str, field: str, *, hint: str = "") -> ModelNotFound:
    return ModelNotFound(f"{field}: the server has no {what} {name[:200]!r}{hint}")


def controlnet_hint(inventory: Inventory) -> str:
    return "" if inventory.dialect.rescans_controlnets else AT_START


def with_named_checkpoint(body: dict[str, Any], job: Job, naming: Naming) -> tuple[dict[str, Any], ModelFile | None]:
    """The body with its one checkpoint as an override that stays, and that checkpoint; None where none is named.

    It may be named by the job, by ``override_settings`` or, for the current SD.Next, at the top of the body. The
    override is always sent, and never restored: SD.Next would load the old model again before it answers.
    """
    overrides = dict(_overrides(body))
    named = {
        "checkpoint": job.checkpoint,
        "request.override_settings.sd_model_checkpoint": overrides.pop("sd_model_checkpoint", None),
        "request.sd_model_checkpoint": body.get("sd_model_checkpoint"),
    }
    found: ModelFile | None = None
    for where, name in named.items():
        if name in (None, ""):
            continue
        if not isinstance(name, str):
            raise InvalidJob("must be a name", field=where)
        other = naming.checkpoint(name, field=where)
        if found is not None and other != found:
            raise InvalidJob(f"names another model than another field: {other.title}", field=where)
        found = other
    rest = {k: v for k, v in body.items() if k != "sd_model_checkpoint"}
    if found is not None:
        overrides["sd_model_checkpoint"] = found.title
    return {**rest, "override_settings": overrides, "override_settings_restore_afterwards": False}, found


def _overrides(body: dict[str, Any]) -> dict[str, Any]:
    overrides = body.get("override_settings")
    if overrides is None:
        return {}
    if not isinstance(overrides, dict):
        raise InvalidJob("must be an object", field="request.override_settings")
    return overrides


def resolve_rest(body: dict[str, Any], endpoint: str, naming: Naming, *, root: str) -> None:
    """Resolve in place: refiner, hires checkpoint, upscalers, VAE, modules, LoRAs of the prompts, ControlNet's."""
    for key, kind in (("refiner_checkpoint", "refiner"), ("hr_checkpoint_name", "checkpoint")):
        name = _name(body, key, root=root)
        if name and name not in SAME:
            body[key] = naming.checkpoint(name, field=f"{root}.{key}", kind=kind).title
    for key in UPSCALERS:
        name = _name(body, key, root=root)
        if name:
            body[key] = naming.upscaler(name, field=f"{root}.{key}")
    override_models(body["override_settings"], naming, root=f"{root}.override_settings.")
    if not body.get("disable_extra_networks"):
        for key in PROMPTS:
            _check_tags(_name(body, key, root=root), naming, field=f"{root}.{key}")
    _resolve_units(body, naming, root=root)


def override_models(overrides: dict[str, Any], naming: Naming, *, root: str) -> None:
    """Resolve in place what options name beside the checkpoint; ``root`` is what comes before their names."""
    vae = overrides.get("sd_vae")
    if isinstance(vae, str) and vae not in NO_VAE:
        overrides["sd_vae"] = naming.vae(vae, field=f"{root}sd_vae").name
    refiner = overrides.get("sd_model_refiner")
    if isinstance(refiner, str) and refiner not in SAME:
        found = naming.checkpoint(refiner, field=f"{root}sd_model_refiner", kind="refiner")
        overrides["sd_model_refiner"] = found.title
    modules = overrides.get("forge_additional_modules")
    if isinstance(modules, list):
        where = f"{root}forge_additional_modules"
        overrides["forge_additional_modules"] = [naming.vae(str(m), field=where).filename for m in modules]


def _name(body: dict[str, Any], key: str, *, root: str) -> str:
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidJob("must be text", field=f"{root}.{key}")
    return value or ""


def _check_tags(prompt: str, naming: Naming, *, field: str) -> None:
    for tag in LORA_TAG.finditer(prompt):
        naming.lora(tag[1].strip(), field=field)


def tags(loras: Iterable[Lora], naming: Naming) -> str:
    """What the portable LoRAs add to a prompt."""
    return "".join(
        f" <lora:{naming.lora(lora.name, field=f'params.loras.{i}').name}:{lora.weight:g}>"
        for i, lora in enumerate(loras)
    )


def units(body: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Where ControlNet units that are switched on name a model, and which."""
    scripts = body.get("alwayson_scripts")
    for name, script in scripts.items() if isinstance(scripts, dict) else ():
        args = script.get("args") if isinstance(script, dict) and name.lower() == "controlnet" else None
        for i, unit in enumerate(args if isinstance(args, list) else ()):
            model = unit.get("model") if isinstance(unit, dict) and unit.get("enabled", True) else None
            if isinstance(model, str) and model.lower() not in ("none", ""):
                yield ("alwayson_scripts", name, "args", i, "model"), model


def listed_controlnet(inventory: Inventory, name: str) -> str | None:
    """A ControlNet model by the server's own name, to which Automatic1111 adds a hash in brackets."""
    known = inventory.controlnets or ()
    return name if name in known else next((k for k in sorted(known) if stem_of(k) == stem_of(name)), None)


def _resolve_units(body: dict[str, Any], naming: Naming, *, root: str) -> None:
    """Each unit's model by its listed name, in copies of what holds it."""
    if naming.inventory.controlnets is None:
        return
    for (scripts, script, args, at, key), name in list(units(body)):
        listed = listed_controlnet(naming.inventory, name)
        if listed is None:
            where = f"{root}.{scripts}.{script}.{args}.{at}.{key}"
            raise missing("ControlNet model", name, where, hint=controlnet_hint(naming.inventory))
        held = body[str(scripts)][script]
        renamed = [{**unit, key: listed} if i == at else unit for i, unit in enumerate(held[args])]
        body[str(scripts)] = {**body[str(scripts)], script: {**held, args: renamed}}


def kind_in(inventory: Inventory, kind: str, *, field: str) -> str:
    """The kind as this server keeps it: the checkpoints of the family of Automatic1111 include diffusion models alone.

    Raises `InvalidJob` for one that it tells nothing of.
    """
    same = place_of(kind, "").kind
    if same == "unet" and inventory.dialect.engine == "a1111":
        return "checkpoint"
    if same in KINDS or (same == "clip" and inventory.dialect.vaes == "sd-modules"):
        return same
    raise InvalidJob(f"{inventory.dialect.title} does not tell which of these it has", field=f"{field}.kind")


def check_models(job: Job, naming: Naming) -> None:
    """The models that a job lists must be there, and be the ones: a known hash that differs is another file."""
    for i, ref in enumerate(job.models):
        where, inv = f"models.{i}", naming.inventory
        match kind_in(inv, ref.kind, field=where):
            case "checkpoint":
                file = naming.checkpoint(ref.name, field=where, kind=ref.kind)
                if ref.sha256 and file.hash10 and not ref.sha256.startswith(file.sha256 or file.hash10):
                    raise ModelNotFound(f"{where}: the server's {file.title} is another file than the one asked for")
            case "lora":
                naming.lora(ref.name, field=where)
            case "upscaler":
                naming.upscaler(ref.name, field=where)
            case "controlnet":
                if listed_controlnet(inv, ref.name) is None:
                    raise missing("controlnet", ref.name, where, hint=controlnet_hint(inv))
            case "embedding":
                if inv.dialect.lists_embeddings and stem_of(ref.name) not in map(stem_of, inv.embeddings or ()):
                    raise missing("embedding", ref.name, where)
            case _:
                naming.vae(ref.name, field=where)
