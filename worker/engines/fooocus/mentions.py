"""Where a job for Fooocus-API names model files, and which files those are now. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.fooocus.dialects import DEFAULT_VAE
from worker.engines.fooocus.inventory import Inventory, found
from worker.engines.fooocus.names import LORA_TAG, NONE, kind_in
from worker.errors import InvalidJob
from worker.job import Job, Params
from worker.mentions import Gathering, Mention, Place, is_word_in, place_of, stem_of


def mentions(job: Job, inventory: Inventory) -> tuple[Mention, ...]:
    """Every place of the job's document that names a model file. Raises `InvalidJob`.

    VAEs and embeddings are not listed by the server: what of them is there nobody can tell.
    """
    gathering = Gathering(job, lambda kind, name, field: known(inventory, kind, name, field=field))
    for i, ref in enumerate(job.models):
        gathering.add(kind_in(inventory, ref.kind, field=f"models.{i}.kind"), ref.name, ("models", i, "name"))
    gathering.add("checkpoint", job.checkpoint, ("checkpoint",))
    if job.params is not None:
        _portable(job.params, gathering, inventory)
    elif job.request is not None:
        _native(job.request, gathering, inventory)
    else:
        name = "workflow" if job.workflow is not None else "template"
        raise InvalidJob(f"{inventory.dialect.title} takes params or request", field=name)
    return tuple(gathering.found)


def known(inventory: Inventory, kind: str, name: str, *, field: str) -> Place | None:
    """The listed file that a name means; the server lists files by their paths below their folders."""
    same = place_of(kind, "").kind
    files = {"checkpoint": inventory.models, "lora": inventory.loras}.get(same, ())
    listed = found(files, name, field=field)
    return Place(same, listed.replace("\\", "/")) if listed is not None else None


def _portable(params: Params, gathering: Gathering, inventory: Inventory) -> None:
    _prompts({"prompt": params.prompt, "negative_prompt": params.negative_prompt}, "params", gathering)
    for i, lora in enumerate(params.loras):
        gathering.add("lora", lora.name, ("params", "loras", i, "name"))
    if inventory.dialect.uses_vae:
        gathering.add("vae", params.vae, ("params", "vae"))
    if params.refiner is not None:
        gathering.add("refiner", params.refiner.checkpoint, ("params", "refiner", "checkpoint"))


def _native(body: Mapping[str, Any], gathering: Gathering, inventory: Inventory) -> None:
    gathering.add("checkpoint", body.get("base_model_name"), ("request", "base_model_name"))
    if body.get("refiner_model_name") not in NONE:
        gathering.add("refiner", body.get("refiner_model_name"), ("request", "refiner_model_name"))
    advanced = body.get("advanced_params")
    vae = advanced.get("vae_name") if isinstance(advanced, Mapping) else None
    if vae != DEFAULT_VAE and inventory.dialect.uses_vae:
        gathering.add("vae", vae, ("request", "advanced_params", "vae_name"))
    loras = body.get("loras")
    for i, lora in enumerate(loras if isinstance(loras, list) else ()):
        if isinstance(lora, Mapping) and lora.get("enabled") is not False and lora.get("model_name") not in NONE:
            gathering.add("lora", lora.get("model_name"), ("request", "loras", i, "model_name"))
    _prompts(body, "request", gathering)


def _prompts(texts: Mapping[str, Any], root: str, gathering: Gathering) -> None:
    """LoRAs that the prompt names, and those of the job's embeddings that a prompt does."""
    stems = [stem_of(ref.name) for ref in gathering.job.models if place_of(ref.kind, "").kind == "embedding"]
    for key in ("prompt", "negative_prompt"):
        text = texts.get(key)
        for name in LORA_TAG.findall(text) if isinstance(text, str) and key == "prompt" else ():
            gathering.add("lora", name, (root, key), tag=True)
        for stem in stems:
            if is_word_in(text, f"embedding:{stem}"):
                gathering.add("embedding", stem, (root, key), tag=True)
