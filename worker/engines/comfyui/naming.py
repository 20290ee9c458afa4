"""Model names of a job, found among what the server lists: exactly, or by a base name of one file alone. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from worker.engines.comfyui.inventory import Inventory
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job, ModelRef

FOLDERS: Mapping[str, str] = {
    "checkpoint": "checkpoints",
    "refiner": "checkpoints",
    "lora": "loras",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "embedding": "embeddings",
    "unet": "diffusion_models",
    "clip": "text_encoders",
    "clip_vision": "clip_vision",
}
"""Where ComfyUI keeps each portable kind; any other kind is a folder's own name."""

SAFE = (".safetensors", ".sft")
_EXTENSIONS = (*SAFE, ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf")


def folder_of(kind: str) -> str:
    return FOLDERS.get(kind, kind)


def stem(name: str) -> str:
    """The name without the extension of a model file; other dots belong to the name."""
    lower = name.lower()
    return next((name[: -len(e)] for e in _EXTENSIONS if lower.endswith(e) and len(name) > len(e)), name)


def base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def find(names: Iterable[str], wanted: str, *, field: str) -> str | None:
    """The listed name that is meant: the same path, with or without extension, else the same base name.

    Raises `InvalidJob` when it fits several files equally well.
    """
    known = tuple(names)
    slashed = wanted.replace("\\", "/")
    for called in (
        lambda n: n.replace("\\", "/") == slashed,
        lambda n: stem(n.replace("\\", "/")) == slashed,
        lambda n: base(n) == slashed,
        lambda n: stem(base(n)) == slashed,
    ):
        found = [n for n in known if called(n)]
        if len(found) > 1:
            raise InvalidJob("names several models of this server; write the path below the folder", field=field)
        if found:
            return found[0]
    return None


def missing(what: str, name: str, field: str) -> ModelNotFound:
    return ModelNotFound(f"{field}: the server has no {what} {name[:200]!r}")


@dataclass
class Naming:
    """The model files of one job as they are found; ``refs`` are what it needs, each once."""

    inventory: Inventory
    refs: list[ModelRef] = field(default_factory=list)

    def find(self, folder: str, name: str, *, field: str) -> str | None:
        return find(self.inventory.folders.get(folder, ()), name, field=field)

    def use(self, kind: str, name: str) -> str:
        """Note that a listed file is needed."""
        ref = ModelRef(kind=kind, name=name.replace("\\", "/"))
        if ref not in self.refs:
            self.refs.append(ref)
        return name

    def need(self, kind: str, name: str, *, field: str) -> str:
        """The listed name of a file of this kind. Raises `ModelNotFound`."""
        found = self.find(folder_of(kind), name, field=field)
        if found is None:
            raise missing(_WORDS.get(kind, kind), name, field)
        return self.use(kind, found)


_WORDS = {"lora": "LoRA", "vae": "VAE", "clip": "text encoder", "unet": "diffusion model"}


def listed(job: Job, *kinds: str) -> tuple[tuple[int, ModelRef], ...]:
    """The job's own models that lie in the folder of one of these kinds, with their places."""
    folders = {folder_of(kind) for kind in kinds}
    return tuple((i, ref) for i, ref in enumerate(job.models) if folder_of(ref.kind) in folders)


def check_models(job: Job, naming: Naming) -> None:
    """Every model that a job lists must be there, used by a node or not (an embedding is named in the prompt).

    Raises `InvalidJob` for a kind that the server has no folder for, `ModelNotFound` for a file that it lacks.
    """
    for i, ref in enumerate(job.models):
        if folder_of(ref.kind) not in naming.inventory.folders:
            raise InvalidJob("ComfyUI here has no folder for this kind", field=f"models.{i}.kind")
        naming.need(ref.kind, ref.name, field=f"models.{i}.name")
