"""How a node class is described: inputs, outputs, and the words that `GET /object_info` finds for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.simulators.comfyui.folders import Folders
from worker.simulators.comfyui.values import Result

MAX_RESOLUTION = 16384
MAX_SEED = 0xFFFFFFFFFFFFFFFF
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tiff")


@dataclass(frozen=True)
class Files:
    """A choice among the model files of a folder; ``extra`` are built-in words after them."""

    folder: str
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Uploads:
    """A choice among the files of the input folder, which is not what the server checks the value against."""

    images_only: bool = True


Kind = str | tuple[str, ...] | Files | Uploads


@dataclass(frozen=True)
class InputSpec:
    """One input: a type's name or a choice, and its options (None where the class gives none)."""

    kind: Kind
    options: Mapping[str, Any] | None = None

    def resolved(self, folders: Folders) -> str | list[str]:
        """The type as the server holds it at this moment: a name, or a list of choices."""
        match self.kind:
            case str():
                return self.kind
            case Files(folder, extra):
                return [*folders.names(folder), *extra]
            case Uploads(images_only):
                top = [name for name in folders.files("input") if "/" not in name]
                return [name for name in top if not images_only or name.lower().endswith(_IMAGE_SUFFIXES)]
            case choices:
                return list(choices)


Function = Callable[[Any, dict[str, Any]], Awaitable[Result]]


@dataclass(frozen=True)
class NodeSpec:
    """One node class. ``modern`` ones are declared by the newer schema, which words choices otherwise."""

    name: str
    run: Function
    required: Mapping[str, InputSpec] = field(default_factory=dict)
    optional: Mapping[str, InputSpec] = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] | None = None
    output_node: bool = False
    category: str = "sd"
    title: str | None = None
    module: str = "nodes"
    modern: bool = False
    changing: bool = False
    """Runs again each time, whatever its inputs."""

    @property
    def inputs(self) -> dict[str, tuple[InputSpec, bool]]:
        """All inputs that a graph may give, with whether they are required."""
        required = {name: (spec, True) for name, spec in self.required.items()}
        return required | {name: (spec, False) for name, spec in self.optional.items()}

    def typed(self, spec: InputSpec, folders: Folders) -> tuple[str | list[str], dict[str, Any]]:
        """Type and options as the validation sees them, and as errors quote them."""
        kind, options = spec.resolved(folders), dict(spec.options or {})
        if self.modern and isinstance(kind, list):
            return "COMBO", {"multiselect": False, "options": kind, **options}
        return kind, options

    def described(self, folders: Folders) -> dict[str, Any]:
        """The class as `GET /object_info` words it."""
        inputs: dict[str, dict[str, Any]] = {"required": self._worded(self.required, folders)}
        if self.optional:
            inputs["optional"] = self._worded(self.optional, folders)
        if self.hidden:
            inputs["hidden"] = {k: [v] if self.modern else v for k, v in self.hidden.items()}
        document: dict[str, Any] = {
            "input": inputs,
            "input_order": {group: list(names) for group, names in inputs.items()},
            "output": list(self.outputs),
            "output_is_list": [False] * len(self.outputs),
            "output_name": list(self.output_names or self.outputs),
            "name": self.name,
            "display_name": self.title or (None if self.modern else self.name),
            "description": "",
            "python_module": self.module,
            "category": self.category,
            "output_node": self.output_node,
        }
        if self.modern:
            document |= {"output_tooltips": [None] * len(self.outputs)}
            document |= {"deprecated": False, "experimental": False, "api_node": False}
        return document

    def _worded(self, specs: Mapping[str, InputSpec], folders: Folders) -> dict[str, Any]:
        worded: dict[str, Any] = {}
        for name, spec in specs.items():
            kind, options = self.typed(spec, folders)
            worded[name] = [kind] if spec.options is None and not self.modern else [kind, options]
        return worded


def link(kind: str, **options: Any) -> InputSpec:
    """An input that another node gives."""
    return InputSpec(kind, options or None)


def integer(default: int, low: int, high: int, step: int | None = 1, **more: Any) -> InputSpec:
    """A whole number."""
    return InputSpec("INT", {"default": default, "min": low, "max": high, **({"step": step} if step else {}), **more})


def number(default: float, low: float, high: float, step: float = 0.01, **more: Any) -> InputSpec:
    """A number."""
    return InputSpec("FLOAT", {"default": default, "min": low, "max": high, "step": step, **more})


def seed() -> InputSpec:
    """A seed, which the web page draws anew after each run and the server never does."""
    return integer(0, 0, MAX_SEED, None, control_after_generate=True)


def text(default: str | None = None, **more: Any) -> InputSpec:
    """A string."""
    return InputSpec("STRING", ({} if default is None else {"default": default}) | more)


def prompt() -> InputSpec:
    """A string of many lines with the page's dynamic prompts."""
    return text(multiline=True, dynamicPrompts=True)


def choice(*words: str, **options: Any) -> InputSpec:
    """One of these words."""
    return InputSpec(words, options or None)


def files(folder: str, *extra: str, **options: Any) -> InputSpec:
    """A model file of a folder, or one of some built-in words."""
    return InputSpec(Files(folder, extra), options or None)


HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
