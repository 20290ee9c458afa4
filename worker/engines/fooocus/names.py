"""Names in a native body that the server would silently replace, and LoRAs as it would really use them. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from worker.engines.fooocus.dialects import DEFAULT_VAE, INPAINT_ENGINES, LORAS_MOST, SCHEDULERS, SWAP_METHODS
from worker.engines.fooocus.inventory import Inventory, find, one_of
from worker.engines.fooocus.portable import Draft
from worker.errors import InvalidJob, ModelNotFound
from worker.mentions import place_of

LORA_TAG = re.compile(r"<lora:([^:]+):[+-]?(?:\d+(?:\.\d*)?|\.\d+)>")
NONE = ("None", "")


def kind_in(inventory: Inventory, kind: str, *, field: str) -> str:
    """The kind as the server's folders have it. Raises `InvalidJob` for one whose files a job cannot name."""
    same = place_of(kind, "").kind
    if same in ("checkpoint", "lora", "embedding") or (same == "vae" and inventory.dialect.uses_vae):
        return same
    raise InvalidJob(f"{inventory.dialect.title} does not take such models", field=field)


def check_names(draft: Draft, inventory: Inventory) -> None:
    """Raises `InvalidJob` and `ModelNotFound` with the field of a name that the server does not list."""
    body, dialect = draft.body, inventory.dialect
    advanced = body.get("advanced_params") or {}
    lists: dict[str, tuple[Sequence[str], str]] = {
        "sampler_name": (dialect.samplers, "sampler"),
        "scheduler_name": (SCHEDULERS, "scheduler"),
        "inpaint_engine": (INPAINT_ENGINES, "inpaint engine"),
        "refiner_swap_method": (SWAP_METHODS, "swap method"),
    }
    for key, (known, what) in lists.items():
        if key in advanced:
            one_of(known, advanced[key], field=f"request.advanced_params.{key}", what=what)
    for i, style in enumerate(_list(body, "style_selections")):
        one_of(inventory.styles, style, field=f"request.style_selections.{i}", what="style")
    if "meta_scheme" in body:
        one_of(dialect.schemes, body["meta_scheme"], field="request.meta_scheme", what="metadata scheme")
    for i, unit in enumerate(_list(body, "enhance_ctrlnets")):
        if isinstance(unit, dict) and "enhance_inpaint_engine" in unit:
            where = f"request.enhance_ctrlnets.{i}.enhance_inpaint_engine"
            one_of(INPAINT_ENGINES, unit["enhance_inpaint_engine"], field=where, what="inpaint engine")
    refiner = body.get("refiner_model_name")
    if isinstance(refiner, str):
        where = "request.refiner_model_name"
        named = refiner not in NONE
        body["refiner_model_name"] = (
            find(inventory.models, refiner, field=where, what="checkpoint") if named else "None"
        )
    vae = advanced.get("vae_name", DEFAULT_VAE)
    if vae != DEFAULT_VAE and not dialect.uses_vae:
        said = f"{dialect.title} takes a VAE's name and does not load it"
        raise InvalidJob(said, field="request.advanced_params.vae_name")


def settle_loras(draft: Draft, inventory: Inventory) -> None:
    """Switched-off LoRAs go, since 0.4 uses them all the same; the others are named as the server lists them."""
    if "loras" not in draft.body:
        return
    kept = []
    for i, lora in enumerate(_list(draft.body, "loras")):
        if not isinstance(lora, dict):
            raise InvalidJob("must be an object", field=f"request.loras.{i}")
        name = lora.get("model_name")
        if lora.get("enabled") is False or name in NONE:
            continue
        if isinstance(name, str):
            name = find(inventory.loras, name, field=f"request.loras.{i}.model_name", what="LoRA")
        kept.append({**lora, "model_name": name})
    draft.body["loras"] = kept


def check_prompts(draft: Draft, inventory: Inventory) -> None:
    """LoRAs that the prompt names: an unknown one would be dropped, and so would be all beyond the server's most."""
    prompt = draft.body.get("prompt")
    tags = LORA_TAG.findall(prompt) if isinstance(prompt, str) else []
    stems = {PurePosixPath(name.replace("\\", "/")).stem for name in inventory.loras}
    for tag in tags:
        if tag not in stems:
            raise ModelNotFound(f"{draft.root}.prompt: the server has no LoRA {tag[:200]!r} and would drop it")
    count = len(draft.body.get("loras") or ()) + len(tags)
    if count > LORAS_MOST and (tags or inventory.dialect.cuts_loras):
        said = f"{inventory.dialect.title} keeps {LORAS_MOST} LoRAs and would drop the rest"
        raise InvalidJob(said, field=f"{draft.root}.loras")


def _list(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidJob("must be a list", field=f"request.{key}")
    return value
