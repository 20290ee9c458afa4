"""What a ComfyUI server can do: its node classes, and the model files it lists. No I/O.

``/object_info`` is megabytes long; only what decides about a job is kept of it, and equal lists of choices once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from sys import intern
from types import MappingProxyType
from typing import Any, Literal

Upload = Literal["image", "mask", "video", "audio", "file"]

MODEL_EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx")
"""What model files end with; the server's own lists hold no others but those of custom nodes."""

_UPLOADS: Mapping[str, Upload] = {
    "image_upload": "image",
    "animated_image_upload": "image",
    "video_upload": "video",
    "audio_upload": "audio",
    "file_upload": "file",
}
_NO_MODELS = frozenset({"custom_nodes", "datasets", "fonts"})
_CONVENTIONS = tuple(
    (re.compile(pattern, re.IGNORECASE), folder)
    for pattern, folder in (
        (r"clip_?vision", "clip_vision"),
        (r"latent_?upscale.*\.model_name", "latent_upscale_models"),
        (r"upscale.*\.model_name|\.upscale_model", "upscale_models"),
        (r"\.style_model", "style_models"),
        (r"\.gligen", "gligen"),
        (r"\.hypernetwork", "hypernetworks"),
        (r"\.photomaker", "photomaker"),
        (r"\.audio_encoder", "audio_encoders"),
        (r"model_?patch.*\.name", "model_patches"),
        (r"\.config_name", "configs"),
        (r"\.(ckpt|checkpoint)", "checkpoints"),
        (r"\.lora", "loras"),
        (r"\.vae", "vae"),
        (r"\.control_?net", "controlnet"),
        (r"\.(unet|diffusion_model)", "diffusion_models"),
        (r"\.(clip|text_encoder)", "text_encoders"),
        (r"\.embedding", "embeddings"),
    )
)
"""What ``class.input`` is called by convention: decides only between folders that their lists cannot tell apart."""

_WORD = re.compile(r"\W*(none|pixel_space|tae[a-z0-9_]+|auto|automatic|default|disabled?|baked.vae)\W*", re.IGNORECASE)
"""What loaders offer beside files."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a node class.

    ``kind`` is the server's type: ``INT``, ``STRING``, ``MODEL``, ...; ``COMBO`` for a choice among ``options``.
    ``folder`` is the model folder whose files are the choices, where that could be told. ``seed``: the input is
    drawn where the job leaves it open. ``low`` and ``high`` bound a number, both inclusive.
    """

    name: str
    kind: str
    required: bool
    options: tuple[str, ...] = ()
    default: Any = None
    folder: str | None = None
    upload: Upload | None = None
    seed: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class NodeClass:
    """A class of nodes; ``outputs`` are the types that its nodes give, by slot."""

    name: str
    inputs: Mapping[str, Input]
    output_node: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """``folders`` are the model files by folder as ``/models/{folder}`` lists them, subfolders in the name."""

    version: str | None = None
    argv: tuple[str, ...] = ()
    nodes: Mapping[str, NodeClass] = field(default_factory=dict, repr=False)
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def input(self, class_type: Any, name: str) -> Input | None:
        """An input by the class of its node; None where the server has no such class or input."""
        node = self.nodes.get(class_type) if isinstance(class_type, str) else None
        return node.inputs.get(name) if node is not None else None

    @property
    def samplers(self) -> tuple[str, ...]:
        return self._choices("KSampler", "sampler_name")

    @property
    def schedulers(self) -> tuple[str, ...]:
        return self._choices("KSampler", "scheduler")

    def _choices(self, class_type: str, name: str) -> tuple[str, ...]:
        found = self.input(class_type, name)
        return found.options if found is not None else ()


def inventory(object_info: Any, folders: Mapping[str, Iterable[Any]], stats: Any) -> Inventory:
    """The digest of ``/object_info``, of each ``/models/{folder}`` and of ``/system_stats``. Never raises.

    What is not shaped as the server documents it is left out.
    """
    digest = _Digest({name: texts(files) for name, files in folders.items()})
    system = _object(_object(stats).get("system"))
    version = system.get("comfyui_version")
    return Inventory(
        version=version if isinstance(version, str) else None,
        argv=texts(system.get("argv")),
        nodes=MappingProxyType({name: digest.node(name, info) for name, info in _object(object_info).items()}),
        folders=MappingProxyType(digest.folders),
    )


class _Digest:
    """Reads node classes; keeps every list of choices once, and learns once which folder it comes from."""

    def __init__(self, folders: dict[str, tuple[str, ...]]) -> None:
        self.folders = folders
        self._lists: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._sources: dict[tuple[str, ...], tuple[bool, tuple[str, ...]]] = {}

    def node(self, name: str, info: Any) -> NodeClass:
        info = _object(info)
        spec = _object(info.get("input"))
        outputs = tuple(intern(o) if isinstance(o, str) else "COMBO" for o in _list(info.get("output")))
        inputs: dict[str, Input] = {}
        for section in ("optional", "required"):
            for key, declared in _object(spec.get(section)).items():
                inputs[intern(key)] = self._input(name, key, declared, outputs, required=section == "required")
        return NodeClass(intern(name), inputs, info.get("output_node") is True, outputs)

    def _input(self, node: str, name: str, declared: Any, outputs: tuple[str, ...], *, required: bool) -> Input:
        """An input as declared: ``[type, extra]``, where a list as type holds the choices, or ``extra.options``."""
        parts = _list(declared)
        extra = _object(parts[1]) if len(parts) > 1 else {}
        head = parts[0] if parts else None
        combo = isinstance(head, list) or head == "COMBO"
        kind = "COMBO" if combo else intern(head) if isinstance(head, str) else "*"
        options = self._once(texts(head if isinstance(head, list) else extra.get("options"))) if combo else ()
        upload = next((kind for flag, kind in _UPLOADS.items() if extra.get(flag)), None)
        low, high = _number(extra.get("min")), _number(extra.get("max"))
        return Input(
            name=intern(name),
            kind=kind,
            required=required,
            options=options,
            default=_short(extra.get("default")),
            folder=self._folder(node, name, options) if combo and upload is None else None,
            upload="mask" if upload == "image" and outputs == ("MASK",) else upload,
            seed=kind == "INT" and _is_seed(name, extra, low),
            low=low,
            high=high,
        )

    def _once(self, options: tuple[str, ...]) -> tuple[str, ...]:
        return self._lists.setdefault(options, options)

    def _folder(self, node: str, name: str, options: tuple[str, ...]) -> str | None:
        """The folder whose files these choices are.

        Certain where one folder alone lists exactly these files, or, beside words of the node's own such as
        ``None`` or ``pixel_space``, exactly the files among them. Convention decides between equal lists, between
        several folders that were joined, and where the folder is empty.
        """
        if options not in self._sources:
            self._sources[options] = self._candidates(options)
        certain, candidates = self._sources[options]
        if certain and len(candidates) == 1:
            return candidates[0]
        usual = next((f for pattern, f in _CONVENTIONS if pattern.search(f"{node}.{name}")), None)
        if candidates:
            return usual if usual in candidates else None
        is_empty = usual is not None and self.folders.get(usual) == () and all(map(_WORD.fullmatch, options))
        return usual if is_empty else None

    def _candidates(self, options: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
        """The folders all of whose files are among the choices; certain where that explains every file there."""
        choices = frozenset(options)
        within = [f for f, files in self.folders.items() if f not in _NO_MODELS and files and choices.issuperset(files)]
        exact = tuple(f for f in within if choices.issubset(self.folders[f]))
        files = frozenset(filter(is_model_file, choices))
        covering = exact or tuple(f for f in within if files.issubset(self.folders[f]))
        return bool(covering), covering or tuple(within)


def is_model_file(name: str) -> bool:
    return name.lower().endswith(MODEL_EXTENSIONS)


def texts(values: Any) -> tuple[str, ...]:
    """The strings of a list, numbers as their text."""
    return tuple(str(v) for v in values if isinstance(v, str | int | float)) if isinstance(values, list | tuple) else ()


def _is_seed(name: str, extra: Mapping[str, Any], low: float | None) -> bool:
    """By its name; or marked to change after each run, and unable to be -1 of its own, unlike a plain number."""
    return name in ("seed", "noise_seed") or (bool(extra.get("control_after_generate")) and (low is None or low >= 0))


def _short(default: Any) -> Any:
    """Defaults that decide something are short; whole prompts and lists are not kept."""
    return (
        default
        if isinstance(default, bool | int | float) or (isinstance(default, str) and len(default) <= 200)
        else None
    )


def _number(value: Any) -> float | None:
    """Finite numbers as they are: 64-bit bounds must not become floats."""
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else []
