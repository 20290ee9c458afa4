"""Where each image server keeps which kind of model, below the folder of its models. No I/O.

Sources are the servers' own programs: the paths that they build from their data or models folder, and the lists of
extensions by which they find files. All of them find files by extension, so that a name that ends otherwise is
hidden from them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from worker.errors import ConfigError, InvalidJob
from worker.mentions import SAME_FOLDER

Family = Literal["a1111", "sdnext", "comfyui", "fooocus"]
FAMILIES: tuple[Family, ...] = get_args(Family)

MODEL_EXTENSIONS = frozenset(
    {".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".patch"}
)
"""What is taken for a model file where a server keeps models; ``.patch`` is how Fooocus names its inpaint models."""

WHOLE_FOLDERS = frozenset({"config.json", "model_index.json", "refs", "blobs"})
"""Names that show a folder below a kind's to be one model of many files, or a cache of such."""

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")
_TORCH = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_COMFYUI = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl")
_FOOOCUS = (".safetensors", ".ckpt", ".pth", ".bin", ".fooocus.patch")
_VAES = (".vae.safetensors", ".vae.ckpt")

_ALIASES: Mapping[str, str] = {
    **SAME_FOLDER,
    "checkpoints": "checkpoint",
    "loras": "lora",
    "upscale_models": "upscaler",
    "upscalers": "upscaler",
    "embeddings": "embedding",
    "diffusion_models": "unet",
    "text_encoders": "clip",
}
"""Names of folders, and of the scheduling API's categories, for the kinds of a job document."""


@dataclass(frozen=True, slots=True)
class Shelving:
    """The folders of one kind in the order in which the server looks, and the extensions that it lists there.

    New files go to ``into``, the first folder unless it says otherwise. ``passed_over`` are endings that the server
    leaves out although they have such an extension.
    """

    folders: tuple[str, ...]
    extensions: tuple[str, ...]
    into: str = ""
    passed_over: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        return self.into or self.folders[0]


@dataclass(frozen=True, slots=True)
class Layout:
    """One family's folders. ``written`` are the other folders that the server fills; all are relative to the folder
    of the models unless they begin with ``/`` or ``~``.

    ``also`` are further names of kinds in this family. An ``open`` one takes any other kind as the name of a folder.
    """

    family: Family
    home: PurePosixPath
    kinds: Mapping[str, Shelving]
    written: tuple[str, ...]
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    open: bool = False
    closed_to: frozenset[str] = frozenset()
    """Folders that an open layout does not take for kinds, since what lies there is no model of one file."""

    def kind(self, kind: str) -> str:
        """The one name under which a kind is known here.

        Raises `InvalidJob` for one that the server has no folder for.
        """
        known = _ALIASES.get(kind, kind)
        known = self.also.get(known, known)
        if known in self.kinds or (self.open and known not in self.closed_to and _is_folder_name(known)):
            return known
        raise InvalidJob(f"{self.family} has no folder for models of the kind {kind!r}", field="models")

    def shelving(self, kind: str) -> Shelving:
        """Raises `InvalidJob` as `kind`."""
        known = self.kind(kind)
        return self.kinds.get(known) or Shelving((known,), tuple(sorted(MODEL_EXTENSIONS)))

    def lists(self, kind: str, name: str) -> bool:
        """Whether the server would find a file of this name among those of the kind. Raises `InvalidJob` as `kind`."""
        shelving = self.shelving(kind)
        return name.lower().endswith(shelving.extensions) and not name.lower().endswith(shelving.passed_over)


def _is_folder_name(kind: str) -> bool:
    return _FOLDER_NAME.fullmatch(kind) is not None


def is_model_name(name: str) -> bool:
    """Whether a file is looked at as a model at all."""
    return PurePosixPath(name).suffix.lower() in MODEL_EXTENSIONS


_CACHES = ("~/.cache/huggingface", "~/.cache/torch")

_A1111 = Layout(
    "a1111",
    PurePosixPath("/data/models"),
    {
        "checkpoint": Shelving(("Stable-diffusion",), (".safetensors", ".ckpt", ".gguf"), passed_over=_VAES),
        "lora": Shelving(("Lora", "LyCORIS"), (".safetensors", ".ckpt", ".pt")),
        "vae": Shelving(("VAE",), (".safetensors", ".ckpt", ".pt")),
        "controlnet": Shelving(("ControlNet",), _TORCH),
        "upscaler": Shelving(("ESRGAN",), (".pth", ".pt", ".safetensors")),
        "embedding": Shelving(("../embeddings",), (".safetensors", ".pt", ".bin")),
        "clip": Shelving(("text_encoder",), (*_TORCH, ".gguf")),
        "hypernetworks": Shelving(("hypernetworks",), (".pt",)),
    },
    ("../outputs", "../output", "../log", "../cache", "../tmp", "/tmp/gradio", *_CACHES),  # noqa: S108
    also={"unet": "checkpoint"},
)
"""Forge, which lists diffusion models among the checkpoints and keeps text encoders apart, has the same folders."""

_SDNEXT = Layout(
    "sdnext",
    PurePosixPath("/webui/data/models"),
    {
        "checkpoint": Shelving(("Stable-diffusion",), (".safetensors", ".ckpt"), passed_over=_VAES),
        "lora": Shelving(("Lora", "LyCORIS"), (".safetensors", ".ckpt", ".pt")),
        "vae": Shelving(("VAE",), (".safetensors", ".ckpt", ".pt")),
        "controlnet": Shelving(("control/controlnet",), (".safetensors",)),
        "upscaler": Shelving(("ESRGAN",), (".pth", ".pt", ".safetensors")),
        "embedding": Shelving(("embeddings",), (".safetensors", ".pt", ".bin")),
        "unet": Shelving(("UNET",), (".safetensors", ".gguf", ".pth")),
        "clip": Shelving(("Text-encoder",), (".safetensors", ".gguf")),
    },
    ("../outputs", "../output", "../cache", "../tmp", "/tmp/gradio", *_CACHES),  # noqa: S108
)
"""Before 2024 SD.Next listed ``.ckpt`` checkpoints as well; its diffusers mode lists safetensors alone."""

_COMFYUI_LAYOUT = Layout(
    "comfyui",
    PurePosixPath("/opt/ComfyUI/models"),
    {
        "checkpoint": Shelving(("checkpoints",), _COMFYUI),
        "lora": Shelving(("loras",), _COMFYUI),
        "vae": Shelving(("vae",), _COMFYUI),
        "controlnet": Shelving(("controlnet", "t2i_adapter"), _COMFYUI),
        "upscaler": Shelving(("upscale_models",), _COMFYUI),
        "embedding": Shelving(("embeddings",), _COMFYUI),
        "unet": Shelving(("unet", "diffusion_models"), (*_COMFYUI, ".gguf"), into="diffusion_models"),
        "clip": Shelving(("text_encoders", "clip"), (*_COMFYUI, ".gguf")),
        "clip_vision": Shelving(("clip_vision",), _COMFYUI),
    },
    ("../output", "../temp", "../input", "../user", *_CACHES),
    also={"t2i_adapter": "controlnet"},
    open=True,
    closed_to=frozenset({"configs", "diffusers", "custom_nodes"}),
)
"""``unet`` stands before ``diffusion_models`` since ComfyUI looks there first; GGUF is for custom loaders."""

_FOOOCUS_LAYOUT = Layout(
    "fooocus",
    PurePosixPath("/app/repositories/Fooocus/models"),
    {
        "checkpoint": Shelving(("checkpoints",), _FOOOCUS),
        "lora": Shelving(("loras",), _FOOOCUS),
        "embedding": Shelving(("embeddings",), (".safetensors", ".pt", ".bin")),
        "vae": Shelving(("vae",), _FOOOCUS),
        "upscaler": Shelving(("upscale_models",), _FOOOCUS),
        "controlnet": Shelving(("controlnet",), _FOOOCUS),
        "clip_vision": Shelving(("clip_vision",), _FOOOCUS),
        "inpaint": Shelving(("inpaint",), _FOOOCUS),
        "vae_approx": Shelving(("vae_approx",), _FOOOCUS),
        "safety_checker": Shelving(("safety_checker",), _FOOOCUS),
        "sam": Shelving(("sam",), _FOOOCUS),
    },
    ("../outputs", "../../../outputs", "/tmp/fooocus", "/tmp/gradio", *_CACHES),  # noqa: S108
)

LAYOUTS: Mapping[Family, Layout] = {
    layout.family: layout for layout in (_A1111, _SDNEXT, _COMFYUI_LAYOUT, _FOOOCUS_LAYOUT)
}

_SHOWING: tuple[tuple[Family, frozenset[str], frozenset[str]], ...] = (
    ("fooocus", frozenset({"checkpoints", "prompt_expansion"}), frozenset()),
    ("comfyui", frozenset({"checkpoints"}), frozenset({"diffusion_models", "text_encoders", "unet", "clip_vision"})),
    ("sdnext", frozenset({"Stable-diffusion"}), frozenset({"Diffusers", "UNET", "Text-encoder", "control"})),
    (
        "a1111",
        frozenset({"Stable-diffusion"}),
        frozenset({"ControlNet", "VAE-approx", "hypernetworks", "text_encoder", "deepbooru", "torch_deepdanbooru"}),
    ),
)
"""Folders that a family's models folder has, all of the first and one of the second."""


def family_of(folder: str, holds: Collection[str]) -> Family:
    """Whose folder of models this is, by the names in it.

    Raises `ConfigError` when they do not tell, or tell of several.
    """
    names = set(holds)
    shown = [family for family, all_of, one_of in _SHOWING if all_of <= names and (not one_of or one_of & names)]
    if "fooocus" in shown:
        return "fooocus"
    if len(shown) == 1:
        return shown[0]
    raise ConfigError(f"{folder} does not show which server's folder of models it is: set WORKER_ENGINE")
