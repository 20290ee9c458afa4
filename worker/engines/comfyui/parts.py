"""Which files make the picture: the diffusion model, its text encoders, its VAE. No I/O.

A checkpoint usually holds all three; a file of the folder ``diffusion_models`` holds the first alone, and then the
job names the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.engines.comfyui.architecture import Architecture, Contents, Encoder
from worker.engines.comfyui.defaults import Defaults, defaults
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.naming import SAFE, Naming, find, folder_of, listed, missing
from worker.errors import EngineFault, InvalidJob, ModelNotFound
from worker.job import Job

CHECKPOINTS, UNETS, ENCODERS, VAES = "checkpoints", "diffusion_models", "text_encoders", "vae"


@dataclass(frozen=True, slots=True)
class Parts:
    """The files, as the server lists them; what the checkpoint itself provides is left out. ``field`` named it."""

    folder: str
    name: str
    contents: Contents
    field: str
    known: Defaults
    encoders: tuple[str, ...] = ()
    vae: str | None = None
    warnings: tuple[str, ...] = ()


def key(folder: str, name: str) -> str:
    """Under which a file's `Contents` stand in the mapping that `recipe` takes."""
    return f"{folder}/{name}"


def headers(job: Job, inventory: Inventory) -> tuple[tuple[str, str], ...]:
    """The (folder, name) of each file whose header must be read before `recipe` can decide; none for a workflow.

    One that cannot be read may be left out: `recipe` then says so if the job depends on it. Raises `InvalidJob`,
    and `ModelNotFound` for a checkpoint that the server does not list.
    """
    if job.params is None:
        return ()
    named = _named(job, inventory)
    wanted = [(CHECKPOINTS, name) for name in _checkpoints(inventory)] if named is None else [(named[0], named[1])]
    if job.params.refiner is not None:
        wanted += _listed(inventory, CHECKPOINTS, job.params.refiner.checkpoint, "params.refiner.checkpoint")
    for i, ref in listed(job, "clip", "vae"):
        wanted += _listed(inventory, folder_of(ref.kind), ref.name, f"models.{i}.name")
    if job.params.vae is not None:
        wanted += _listed(inventory, VAES, job.params.vae, "params.vae")
    return tuple(dict.fromkeys((folder, name) for folder, name in wanted if name.lower().endswith(SAFE)))


def _listed(inventory: Inventory, folder: str, name: str, field: str) -> list[tuple[str, str]]:
    found = find(inventory.folders.get(folder, ()), name, field=field)
    return [] if found is None else [(folder, found)]


def _checkpoints(inventory: Inventory) -> list[str]:
    return sorted(inventory.folders.get(CHECKPOINTS, ()))


def _named(job: Job, inventory: Inventory) -> tuple[str, str, str] | None:
    """Folder, name and field of the diffusion model that the job names; None where it leaves that to us.

    It names it as its checkpoint, or by listing just one file of the kinds checkpoint and unet.
    """
    folders: tuple[str, ...]
    if job.checkpoint is not None:
        name, field, folders = job.checkpoint, "checkpoint", (CHECKPOINTS, UNETS)
    else:
        refs = [(i, ref) for i, ref in listed(job, "checkpoint", "unet") if ref.kind != "refiner"]
        if not refs:
            return None
        if len(refs) > 1:
            raise InvalidJob("is missing, and models lists more than one that could be meant", field="checkpoint")
        (place, ref) = refs[0]
        name, field, folders = ref.name, f"models.{place}.name", (folder_of(ref.kind),)
    for folder in folders:
        found = find(inventory.folders.get(folder, ()), name, field=field)
        if found is not None:
            return folder, found, field
    raise missing("checkpoint", name, field)


def parts(job: Job, naming: Naming, contents: Mapping[str, Contents]) -> Parts:
    """The files that a portable job is made with.

    Raises `InvalidJob` naming the field, or every part that is missing; `ModelNotFound` for a file that the server
    does not list; `EngineFault` for one that this node cannot read.
    """
    named = _named(job, naming.inventory)
    if named is not None:
        folder, name, field = named
        held = contents_of(contents, folder, name, field=field)
        _check_usable(held, name, field)
    else:
        folder, field = CHECKPOINTS, "checkpoint"
        name, held = _first_usable(naming.inventory, contents)
    naming.use("checkpoint" if folder == CHECKPOINTS else "unet", name)
    known = defaults(held.architecture, guidance=held.guidance)
    warnings = ("checkpoint_chosen",) if named is None else ()
    return _completed(Parts(folder, name, held, field, known, warnings=warnings), job, naming, contents)


def contents_of(contents: Mapping[str, Contents], folder: str, name: str, *, field: str) -> Contents:
    """What a file holds, which must be known. Raises `InvalidJob` for a format that does not tell it."""
    found = contents.get(key(folder, name))
    if found is not None:
        return found
    if not name.lower().endswith(SAFE):
        raise InvalidJob(f"{name[:200]} does not tell its architecture; only safetensors files do", field=field)
    raise EngineFault(f"{name[:200]}: its header could not be read on this node")


def _check_usable(held: Contents, name: str, field: str) -> None:
    shown = name[:200]
    if held.lora:
        raise InvalidJob(f"{shown} is a LoRA", field=field)
    if not held.unet:
        raise InvalidJob(f"{shown} holds no diffusion model", field=field)
    if held.architecture is Architecture.SDXL_REFINER:
        raise InvalidJob(f"{shown} is a refiner, which only goes on with another's picture", field=field)
    if not held.usable:
        raise InvalidJob(f"{shown} has an architecture that params have no graph for; send a workflow", field=field)


def _first_usable(inventory: Inventory, contents: Mapping[str, Contents]) -> tuple[str, Contents]:
    """The first checkpoint in sorted order that is complete and of a known architecture."""
    unread = None
    for name in _checkpoints(inventory):
        held = contents.get(key(CHECKPOINTS, name))
        if held is None:
            unread = unread or (name if name.lower().endswith(SAFE) else None)
        elif held.usable and held.clip and held.vae:
            return name, held
    if unread is not None:
        raise EngineFault(f"{unread[:200]}: its header could not be read on this node")
    raise ModelNotFound("checkpoint: is missing, and the server lists none that params have a graph for")


def _completed(start: Parts, job: Job, naming: Naming, contents: Mapping[str, Contents]) -> Parts:
    """With the text encoders and the VAE, of the job where it names them, else of the checkpoint."""
    held, lacks = start.contents, []
    refs = listed(job, "clip")
    encoders = tuple(naming.need("clip", ref.name, field=f"models.{i}.name") for i, ref in refs)
    if encoders or not held.clip:
        lacks += _lacking_encoders(encoders, start.known, contents)
    vae = _vae(start, job, naming, contents)
    if vae is None and not held.vae:
        lacks.append("a VAE (params.vae, or models of kind vae)")
    if lacks:
        raise InvalidJob(f"{start.name[:200]} needs beside it: {', '.join(lacks)}", field=start.field)
    return replace(start, encoders=encoders, vae=vae)


def _lacking_encoders(names: tuple[str, ...], known: Defaults, contents: Mapping[str, Contents]) -> list[str]:
    """What is missing among separate text encoders, in words. Raises `InvalidJob` for one that does not belong.

    A file that does not tell what it holds counts as one of those not seen.
    """
    held = [contents.get(key(ENCODERS, name)) for name in names]
    seen: set[Encoder] = set()
    for name, found in zip(names, held, strict=True):
        if found is None:
            continue
        if len(found.clips) != 1 or not found.clips <= set(known.needs) - seen:
            wanted = " and ".join(known.needs)
            raise InvalidJob(f"{name[:200]} is not what this checkpoint takes once each: {wanted}", field="models")
        seen |= found.clips
    if len(names) > len(known.needs):
        raise InvalidJob(f"takes {len(known.needs)} text encoders, {len(names)} are listed", field="models")
    blind = held.count(None)
    lacking = [e for e in known.needs if e not in seen and e not in known.spare]
    return [f"the text encoder {e} (models of kind clip)" for e in lacking[blind:]]


def _vae(start: Parts, job: Job, naming: Naming, contents: Mapping[str, Contents]) -> str | None:
    """The separate VAE; None where the checkpoint's own is used, or there is none at all."""
    params = job.params
    if params is not None and params.vae is not None:
        name, field = naming.need("vae", params.vae, field="params.vae"), "params.vae"
    else:
        refs = listed(job, "vae")
        if start.contents.vae or not refs:
            return None
        if len(refs) > 1:
            raise InvalidJob("is missing, and models lists more than one that could be meant", field="params.vae")
        (place, ref) = refs[0]
        name, field = naming.need("vae", ref.name, field=f"models.{place}.name"), f"models.{place}.name"
    held = contents.get(key(VAES, name))
    if held is not None and not held.vae:
        raise InvalidJob(f"{name[:200]} is no VAE", field=field)
    if held is not None and held.latent_channels not in (None, start.known.channels):
        raise InvalidJob(
            f"{name[:200]} is for latents of {held.latent_channels} channels, this model's have {start.known.channels}",
            field=field,
        )
    return name
