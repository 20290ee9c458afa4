"""The server's folders: models, virtual by name or real, and the input, output and temp files, which are real."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from worker.simulators.comfyui.weights import Architecture, write_checkpoint

FileType = Literal["output", "input", "temp"]
KINDS: tuple[FileType, ...] = ("output", "input", "temp")
MODEL_SUFFIXES = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})

FOLDERS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints", "../output/checkpoints"),
    "configs": ("configs",),
    "loras": ("loras", "../output/loras"),
    "vae": ("vae", "../output/vae"),
    "text_encoders": ("text_encoders", "clip", "../output/clip"),
    "diffusion_models": ("unet", "diffusion_models", "../output/diffusion_models"),
    "clip_vision": ("clip_vision",),
    "style_models": ("style_models",),
    "embeddings": ("embeddings",),
    "diffusers": ("diffusers",),
    "vae_approx": ("vae_approx",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "gligen": ("gligen",),
    "upscale_models": ("upscale_models",),
    "custom_nodes": ("../custom_nodes",),
    "hypernetworks": ("hypernetworks",),
    "photomaker": ("photomaker",),
    "classifiers": ("classifiers",),
    "model_patches": ("model_patches",),
    "audio_encoders": ("audio_encoders",),
    "ipadapter": ("ipadapter",),
}
"""Names as `GET /models` lists them, with the folders below `models`; the last one comes from a custom node."""

_ODD_SUFFIXES = {"configs": frozenset({".yaml"}), "diffusers": frozenset({"folder"}), "classifiers": frozenset({""})}

Models = Mapping[str, Iterable[str] | Mapping[str, Architecture]]
"""File names by folder; a mapping to an architecture has real files written."""


class Folders:
    """All folders below one base directory."""

    def __init__(self, base: Path, models: Models) -> None:
        self.base = base.resolve()
        self._virtual: dict[str, set[str]] = {folder: set() for folder in FOLDERS}
        for places in FOLDERS.values():
            for place in places:
                if not place.startswith("../output"):
                    (self.base / "models" / place).resolve().mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            (self.base / kind).mkdir(exist_ok=True)
        for folder, names in models.items():
            architectures = names if isinstance(names, Mapping) else {}
            for name in names:
                self.add(folder, name, architectures.get(name))

    def paths(self, folder: str) -> list[Path]:
        """Where the files of a folder are looked for, first match first."""
        return [(self.base / "models" / place).resolve() for place in FOLDERS[folder]]

    def names(self, folder: str) -> list[str]:
        """The files that the server lists, by their path below the folder. Raises `KeyError` for other folders."""
        found = set(self._virtual[folder])
        suffixes = _ODD_SUFFIXES.get(folder, MODEL_SUFFIXES)
        for root in self.paths(folder):
            found |= {name for name in _below(root) if Path(name).suffix.lower() in suffixes}
        return sorted(found)

    def real(self, folder: str, name: str) -> Path | None:
        """The file of a name, None when it is virtual or not there."""
        for root in self.paths(folder):
            if (path := root / os.path.relpath(f"/{name}", "/")).is_file():
                return path
        return None

    def has(self, folder: str, name: str) -> bool:
        """Whether a loader finds the file."""
        return name in self._virtual[folder] or self.real(folder, name) is not None

    def add(self, folder: str, name: str, architecture: Architecture | None = None) -> None:
        """Put a model there: a real file when an architecture is given, else a name alone."""
        if architecture is None:
            self._virtual[folder].add(name)
        else:
            write_checkpoint(self.paths(folder)[0] / name, architecture)

    def remove(self, folder: str, name: str) -> None:
        """Take a model away."""
        self._virtual[folder].discard(name)
        if path := self.real(folder, name):
            path.unlink()

    def directory(self, kind: str | None) -> Path | None:
        """The folder of a file type, None for other words."""
        return self.base / kind if kind in KINDS else None

    def files(self, kind: FileType) -> list[str]:
        """The files that lie there, subfolders included, as relative paths."""
        return sorted(_below(self.base / kind))

    def annotated(self, name: str, default: FileType = "input") -> Path:
        """The path that a file name of a graph stands for; a suffix like ` [output]` beats the default folder."""
        name, kind = split_annotation(name)
        return self.base / (kind or default) / name

    def escapes(self, name: str) -> bool:
        """Whether the file that a name of a graph stands for really lies outside its folder."""
        _, kind = split_annotation(name)
        return self.base / (kind or "input") not in self.annotated(name).resolve().parents

    def wipe_temp(self) -> None:
        """As at each start."""
        shutil.rmtree(self.base / "temp", ignore_errors=True)
        (self.base / "temp").mkdir()


def split_annotation(name: str) -> tuple[str, str | None]:
    """A file name and the folder that its suffix names, if it has one."""
    for kind in KINDS:
        if name.endswith(f"[{kind}]"):
            return name[: -len(kind) - 3], kind
    return name, None


def _below(root: Path) -> list[str]:
    found = []
    for directory, folders, files in os.walk(root, followlinks=True):
        folders[:] = [f for f in folders if f != ".git"]
        found += [str((Path(directory) / file).relative_to(root)) for file in files]
    return found
