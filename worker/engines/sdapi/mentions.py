"""Where a job for this family of servers names model files, and which files those are now. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from worker.engines.sdapi.inventory import Inventory
from worker.engines.sdapi.models import (
    LORA_TAG,
    NO_UPSCALER,
    NO_VAE,
    PROMPTS,
    SAME,
    UPSCALERS,
    found_checkpoint,
    found_lora,
    found_vae,
    kind_in,
    listed_controlnet,
    units,
)
from worker.engines.sdapi.names import ModelFile, stem_of
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job, ModelRef, Params
from worker.mentions import Gathering, Mention, Place, is_word_in, place_of

FOLDERS: Mapping[str, frozenset[str]] = {
    "lora": frozenset({"lora", "loras", "lycoris"}),
    "vae": frozenset({"vae", "vaes"}),
    "clip": frozenset({"text_encoder", "text_encoders", "clip"}),
}
"""What the servers call the folders whose files they list without a path below them, in lower case."""

_PROVEN = ("checkpoint", "refiner", "lora", "vae")
_TEXTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt", "refiner_prompt", "refiner_negative")
_OPTIONS = {"checkpoint": "ckpt_dir", "lora": "lora_dir", "vae": "vae_dir"}


def mentions(job: Job, inventory: Inventory) -> tuple[Mention, ...]:
    """Every place of the job's document that names a model file. Raises `InvalidJob`.

    LoRA tags count where the server reads them. Upscalers that the server has without a file, and words such as
    ``Automatic``, are no files.
    """
    gathering = Gathering(job, lambda kind, name, field: known(inventory, kind, name, field=field))
    for i, ref in enumerate(job.models):
        gathering.add(kind_in(inventory, ref.kind, field=f"models.{i}"), ref.name, ("models", i, "name"))
    gathering.add("checkpoint", job.checkpoint, ("checkpoint",))
    if job.params is not None:
        _portable(job.params, gathering)
    elif job.request is not None:
        _native(job.request, gathering, inventory)
    else:
        name = "workflow" if job.workflow is not None else "template"
        raise InvalidJob(f"{inventory.dialect.title} takes params or request", field=name)
    return tuple(gathering.found)


def known(inventory: Inventory, kind: str, name: str, *, field: str) -> Place | None:
    """The file that the server finds under a name. Raises `InvalidJob` for a name that means several.

    Embeddings and ControlNet models are listed without their files: there it is the name itself.
    """
    match place_of(kind, "").kind:
        case "checkpoint":
            return _placed(inventory, kind, found_checkpoint(inventory, name, field=field))
        case "lora":
            return _placed(inventory, kind, found_lora(inventory, name, field=field))
        case "vae" | "clip":
            return _placed(inventory, kind, found_vae(inventory, name, field=field))
        case "embedding":
            return Place("embedding", name) if stem_of(name) in map(stem_of, inventory.embeddings or ()) else None
        case "controlnet":
            return Place("controlnet", name) if listed_controlnet(inventory, name) is not None else None
        case "upscaler":
            return _upscaler(inventory, name)
    return None


def _placed(inventory: Inventory, kind: str, file: ModelFile | None) -> Place | None:
    return place(inventory, kind, file) if file is not None else None


def _upscaler(inventory: Inventory, name: str) -> Place | None:
    """By the name that the server shows, or by the file's, whose stem that is. Those in the code have no file."""
    shown = next((n for n in (name, stem_of(name)) if n in (inventory.upscalers or ())), None)
    if shown is None:
        return None
    return Place("upscaler", PurePosixPath(inventory.upscaler_files.get(shown, name)).name)


def check_present(refs: Iterable[ModelRef], inventory: Inventory) -> None:
    """Raises `ModelNotFound` for what the server does not list any more: it would go on without a word."""
    for ref in refs:
        try:
            gone = ref.kind in _PROVEN and known(inventory, ref.kind, ref.name, field="models") is None
        except InvalidJob:
            continue
        if gone:
            raise ModelNotFound(f"the server no longer has the {ref.kind} {ref.name[:200]}")


def place(inventory: Inventory, kind: str, file: ModelFile) -> Place:
    """Where a listed file lies.

    Checkpoints are listed by their path below their folder, with or without its extension; of other files the
    servers tell the whole path, in which the folder is known by an option that names it or by its usual name.
    A file of none of these folders has its own name alone.
    """
    path = PurePosixPath(file.filename.replace("\\", "/"))
    if kind in ("vae", "clip"):
        kind = "clip" if any(part.lower() in FOLDERS["clip"] for part in path.parts[:-1]) else "vae"
    same = place_of(kind, "").kind
    if not file.filename:
        return Place(same, file.label)
    root = inventory.options.get(_OPTIONS.get(same, ""))
    if isinstance(root, str) and root and path.is_relative_to(root):
        return Place(same, path.relative_to(root).as_posix())
    if same == "checkpoint":
        return Place(same, _below_as_titled(path, file.label))
    at = [i for i, part in enumerate(path.parts[:-1]) if part.lower() in FOLDERS.get(same, ())]
    return Place(same, "/".join(path.parts[at[-1] + 1 :]) if at else path.name)


def _below_as_titled(path: PurePosixPath, label: str) -> str:
    """The end of a path that a title names; the title itself for folders, which the servers name otherwise."""
    parts = PurePosixPath(label).parts
    tail = "/".join(path.parts[-len(parts) :])
    same = tail == label or tail == f"{label}{path.suffix}"
    return tail if same else label


def _portable(params: Params, gathering: Gathering) -> None:
    _tags(params.prompt, ("params", "prompt"), gathering)
    _embeddings({key: getattr(params, key) for key in _TEXTS[:2]}, "params", gathering)
    for i, lora in enumerate(params.loras):
        gathering.add("lora", lora.name, ("params", "loras", i, "name"))
    gathering.add("vae", params.vae, ("params", "vae"))
    if params.refiner is not None:
        gathering.add("refiner", params.refiner.checkpoint, ("params", "refiner", "checkpoint"))


def _native(body: Mapping[str, Any], gathering: Gathering, inventory: Inventory) -> None:
    root = "request"
    gathering.add("checkpoint", body.get("sd_model_checkpoint"), (root, "sd_model_checkpoint"))
    for key, kind in (("refiner_checkpoint", "refiner"), ("hr_checkpoint_name", "checkpoint")):
        if body.get(key) not in SAME:
            gathering.add(kind, body.get(key), (root, key))
    for key in UPSCALERS:
        if not _is_built_in(body.get(key), inventory):
            gathering.add("upscaler", body.get(key), (root, key))
    overrides = body.get("override_settings")
    if isinstance(overrides, Mapping):
        _overrides(overrides, gathering)
    if not body.get("disable_extra_networks"):
        for key in PROMPTS:
            _tags(body.get(key), (root, key), gathering)
    _embeddings(body, root, gathering)
    for path, name in units(body):
        gathering.add("controlnet", name, (root, *path))


def _is_built_in(name: Any, inventory: Inventory) -> bool:
    """Whether this upscaler is part of the server's program, or none; where there is no list, nobody can tell."""
    if not isinstance(name, str) or inventory.upscalers is None:
        return True
    listed = name in inventory.upscalers and name not in inventory.upscaler_files
    return name in NO_UPSCALER or name.startswith("Latent") or listed


def _overrides(overrides: Mapping[str, Any], gathering: Gathering) -> None:
    root = ("request", "override_settings")
    gathering.add("checkpoint", overrides.get("sd_model_checkpoint"), (*root, "sd_model_checkpoint"))
    if overrides.get("sd_vae") not in NO_VAE:
        gathering.add("vae", overrides.get("sd_vae"), (*root, "sd_vae"))
    if overrides.get("sd_model_refiner") not in SAME:
        gathering.add("refiner", overrides.get("sd_model_refiner"), (*root, "sd_model_refiner"))
    modules = overrides.get("forge_additional_modules")
    for i, module in enumerate(modules if isinstance(modules, list) else ()):
        gathering.add("vae", module, (*root, "forge_additional_modules", i))


def _embeddings(texts: Mapping[str, Any], root: str, gathering: Gathering) -> None:
    """Those that the job lists, where a prompt has their name as a word: such a word need not be an embedding."""
    stems = [stem_of(ref.name) for ref in gathering.job.models if place_of(ref.kind, "").kind == "embedding"]
    for key in _TEXTS:
        for stem in stems:
            if is_word_in(texts.get(key), stem):
                gathering.add("embedding", stem, (root, key), tag=True)


def _tags(prompt: Any, path: tuple[str | int, ...], gathering: Gathering) -> None:
    for found in LORA_TAG.finditer(prompt) if isinstance(prompt, str) else ():
        gathering.add("lora", found[1].strip(), path, tag=True)
