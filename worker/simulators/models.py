"""Model files: what lies on the simulated disk, what the server has listed, and the names that it answers to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from worker.simulators.dialects import Dialect
from worker.simulators.whole import is_whole

Kind = Literal["checkpoint", "lora", "vae", "embedding", "upscaler"]

FOLDERS: dict[Kind, str] = {
    "checkpoint": "Stable-diffusion",
    "lora": "Lora",
    "vae": "VAE",
    "embedding": "embeddings",
    "upscaler": "ESRGAN",
}
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class ModelFile:
    """A file. ``name`` is its path below its folder, with extension; without one it is a diffusers folder."""

    name: str
    kind: Kind = "checkpoint"
    root: str = "/models"
    sha256: str = ""
    load_seconds: float | None = None
    unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.name.encode()).hexdigest())

    @property
    def is_folder(self) -> bool:
        """A model in many files, as the diffusers library keeps them."""
        return not self.name.endswith(_SUFFIXES)

    @property
    def filename(self) -> str:
        """The absolute path."""
        below = self.name if self.is_folder or self.kind == "embedding" else f"{FOLDERS[self.kind]}/{self.name}"
        return f"{self.root}/{below}"

    @property
    def without_extension(self) -> str:
        """The relative path without extension: SD.Next's name for it."""
        return self.name if self.is_folder else self.name.rpartition(".")[0]

    @property
    def stem(self) -> str:
        """The last part of the path without extension: what the result's info names."""
        return PurePosixPath(self.without_extension).name

    @property
    def short_hash(self) -> str:
        """The first ten digits of the SHA-256."""
        return self.sha256[:10]


@dataclass
class Disk:
    """What lies there, and of it what the server has seen at its last refresh.

    ``directory``, if given, is a real models folder whose files are found by a refresh too; Automatic1111 keeps
    embeddings beside it. A file that is cut off cannot be loaded.
    """

    dialect: Dialect
    files: list[ModelFile] = field(default_factory=list)
    directory: Path | None = None
    listed: list[ModelFile] = field(default_factory=list)
    hashed: set[str] = field(default_factory=set)
    hashing: bool = True

    def add(self, model: ModelFile | str, kind: Kind = "checkpoint") -> ModelFile:
        """Put a file there; the server does not know it before a refresh."""
        added = ModelFile(model, kind) if isinstance(model, str) else model
        self.files.append(added)
        return added

    def remove(self, name: str) -> None:
        """Take a file away; the server goes on listing it until a refresh."""
        self.files = [f for f in self.files if f.name != name]

    def exists(self, model: ModelFile) -> bool:
        """Whether the file can be read now: a real one by what lies there by now."""
        if model in self.files:
            return not model.unreadable
        path = Path(model.filename)
        return self.directory is not None and path.is_file() and is_whole(path)

    def present(self) -> list[ModelFile]:
        """All files that lie there."""
        return [*self.files, *(f for kind in FOLDERS for f in _scanned(self._folder(kind), kind))]

    def _folder(self, kind: Kind) -> Path | None:
        if self.directory is None:
            return None
        beside = kind == "embedding" and not self.dialect.sdnext
        return (self.directory.parent if beside else self.directory) / FOLDERS[kind]

    def refresh(self, *kinds: Kind) -> None:
        """Look again for files of these kinds, or all."""
        wanted = kinds or tuple(FOLDERS)
        kept = [f for f in self.listed if f.kind not in wanted]
        self.listed = kept + [f for f in self.present() if f.kind in wanted]

    def of_kind(self, kind: Kind) -> list[ModelFile]:
        """The listed files of a kind, in the server's order."""
        return [f for f in self.listed if f.kind == kind]

    def title(self, model: ModelFile) -> str:
        """The name in lists and options: it gains ``[hash]`` with the first load of a hashing server."""
        base = model.without_extension if self.dialect.sdnext else model.name
        if self.dialect.name == "sdnext-2023" and model.is_folder:
            return f"{base} [{model.filename[:10]}]"
        known = self.known_hash(model)
        return f"{base} [{known}]" if known else base

    def known_hash(self, model: ModelFile) -> str | None:
        """Ten hex digits once the server has hashed the file."""
        return model.short_hash if model.filename in self.hashed and not model.is_folder else None

    def note_loaded(self, model: ModelFile) -> None:
        """A first load hashes the file."""
        if self.hashing:
            self.hashed.add(model.filename)

    def aliases(self, model: ModelFile) -> set[str]:
        """Every name that selects this checkpoint exactly."""
        names = {self.title(model)}
        known = self.known_hash(model)
        if self.dialect.sdnext:
            names |= {model.without_extension, model.filename}
            return names | ({known} if known else set())
        flat = model.without_extension.replace("/", "_")
        names |= {model.name, model.stem, flat}
        return names | ({known, model.sha256, f"{model.stem} [{known}]"} if known else set())

    def find(self, name: str) -> ModelFile | None:
        """The listed checkpoint with exactly this alias."""
        return next((m for m in self.of_kind("checkpoint") if name in self.aliases(m)), None)

    def find_loosely(self, name: str) -> ModelFile | None:
        """The checkpoint that an option of this name selects.

        SD.Next of 2023 takes a part of a title, then the first model of the list; the current one also a base name.
        """
        found = self.find(name)
        models = self.of_kind("checkpoint")
        if found or not self.dialect.sdnext:
            return found
        bare = name.partition(" [")[0]
        if self.dialect.current:
            stems = {PurePosixPath(bare).name, PurePosixPath(bare).stem}
            return next((m for m in models if m.stem in stems), None)
        return next((m for m in models if bare in self.title(m)), models[0] if models else None)

    def listing(self) -> list[dict[str, Any]]:
        """The body of `/sd-models`."""
        return [self._item(m) for m in self.of_kind("checkpoint")]

    def _item(self, model: ModelFile) -> dict[str, Any]:
        hashed = self.known_hash(model) is not None
        item: dict[str, Any] = {"title": self.title(model)}
        if not self.dialect.sdnext:
            item |= {"model_name": model.without_extension.replace("/", "_")}
            item |= {"hash": self.known_hash(model), "sha256": model.sha256 if hashed else None}
            return item | {"filename": model.filename, "config": None}
        item["model_name" if self.dialect.current else "name"] = model.without_extension
        item |= {"filename": model.filename, "type": "diffusers" if model.is_folder else "safetensors"}
        item |= {"sha256": model.sha256 if hashed else None, "hash": self.known_hash(model)}
        if model.is_folder and not self.dialect.current:
            item |= {"sha256": model.filename, "hash": model.filename[:8]}
        return item | {"config": None}


def model_files(names: Iterable[ModelFile | str], kind: Kind = "checkpoint") -> list[ModelFile]:
    """Files from plain names."""
    return [ModelFile(n, kind) if isinstance(n, str) else n for n in names]


def _scanned(base: Path | None, kind: Kind) -> list[ModelFile]:
    """The real files of a folder; their hash is that of their bytes."""
    found: list[ModelFile] = []
    if base is None:
        return found
    for path in sorted(base.rglob("*")):
        if path.suffix in _SUFFIXES and path.is_file():
            name = path.relative_to(base).as_posix()
            root = base if kind == "embedding" else base.parent
            found.append(ModelFile(name, kind, root.as_posix(), _sha256(path, path.stat().st_mtime_ns)))
    return found


_digests: dict[tuple[str, int], str] = {}


def _sha256(path: Path, changed: int) -> str:
    key = (path.as_posix(), changed)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
