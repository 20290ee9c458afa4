"""The models that a document names, wherever it does.

As far as that can be told without the server which will run it: which input of a graph is a file's name is known from
the loaders' usual inputs and from how model files end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dispatcher.needs.catalogue import Catalogue
from dispatcher.words import Key, Need, key_of
from worker.mentions import file_of, is_source, place_of, stem_of

INPUTS: Mapping[str, str] = {
    "ckpt_name": "checkpoint",
    "base_ckpt_name": "checkpoint",
    "refiner_ckpt_name": "refiner",
    "unet_name": "unet",
    "lora_name": "lora",
    "vae_name": "vae",
    "clip_name": "clip",
    "clip_name1": "clip",
    "clip_name2": "clip",
    "clip_name3": "clip",
    "clip_name4": "clip",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "photomaker_model_name": "photomaker",
}
"""Inputs of ComfyUI's loaders, and the kind of what they load. Whatever they hold is a file's name."""

LOADERS: Mapping[str, str] = {
    "UpscaleModelLoader": "upscaler",
    "CLIPVisionLoader": "clip_vision",
    "ControlNetLoader": "controlnet",
    "DiffControlNetLoader": "controlnet",
    "IPAdapterModelLoader": "ipadapter",
    "InstantIDModelLoader": "instantid",
    "PulidModelLoader": "pulid",
}
"""Classes whose input has no name of its own: what ends like a model file there is one of this kind."""

_LORA_TAG = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::[^<>]*)?>", re.IGNORECASE)
_EMBEDDING = re.compile(r"embedding:([^\s,:()<>\[\]]+)")
_HASH = re.compile(r" \[[0-9a-fA-F]{8,64}\]$")
_PROMPTS = ("prompt", "hr_prompt", "refiner_prompt")
_NOTHING = frozenset({"", "none", "automatic", "default", "default (model)", "use same checkpoint", "use same vae"})
_BUILT_IN = frozenset({"pixel_space", "taesd", "taesdxl", "taesd3", "taef1"})
_NATIVE: Mapping[str, str] = {
    "sd_model_checkpoint": "checkpoint",
    "hr_checkpoint_name": "refiner",
    "refiner_checkpoint": "refiner",
    "base_model_name": "checkpoint",
    "refiner_model_name": "refiner",
}
_OVERRIDES: Mapping[str, str] = {
    "sd_model_checkpoint": "checkpoint",
    "sd_model_refiner": "refiner",
    "sd_vae": "vae",
    "sd_unet": "unet",
}
_FIRST = ("checkpoint", "checkpoints", "unet", "diffusion_models")


@dataclass(frozen=True, slots=True)
class _Named:
    """A model as a document names it: ``kind`` as there, ``refiner`` included."""

    kind: str
    name: str
    url: str | None = None
    sha256: str | None = None
    size: int | None = None


def needs_of(document: Mapping[str, Any], catalogue: Catalogue) -> tuple[Need, ...]:
    """What a job needs, each file once, the one that takes the memory first.

    What the document tells of a file (URL, digest, size) counts before what the catalogue has of it. Anything in the
    document that is not as it should be is passed over: to refuse it is for `worker.job.parse` and the server.
    """
    listed = list(_listed(document.get("models")))
    found = [_with_list(named, listed) for named in _mentioned(document)]
    ordered = sorted((*found, *listed), key=lambda named: named.kind not in _FIRST)
    unique: dict[Key, Need] = {}
    for named in ordered:
        need = _need(named, catalogue)
        unique.setdefault(need.key, need)
    return tuple(unique.values())


def _listed(models: Any) -> Iterator[_Named]:
    for ref in _dicts(models):
        kind, name = ref.get("kind"), ref.get("name")
        if isinstance(kind, str) and isinstance(name, str) and kind and name:
            size = ref.get("size")
            yield _Named(kind, name, _text(ref, "url"), _text(ref, "sha256"), size if isinstance(size, int) else None)


def _with_list(named: _Named, listed: Iterable[_Named]) -> _Named:
    """With what the job's own list tells of the same file; a checkpoint may turn out to be a diffusion model there."""
    place = place_of(named.kind, named.name)
    for ref in listed:
        other = place_of(ref.kind, ref.name)
        same = other.kind == place.kind or (place.kind == "checkpoint" and other.kind == "unet")
        called = _is_called(ref.name, named.name) or (named.url is not None and named.url == ref.url)
        if same and called:
            return replace(ref, kind=named.kind if other.kind == place.kind else ref.kind)
    return named


def _is_called(listed: str, name: str) -> bool:
    """Whether a name means a listed file: its path, or its own name, with or without the extension."""
    path, wanted = stem_of(listed), stem_of(name.replace("\\", "/"))
    return wanted in (path, path.rpartition("/")[2]) or wanted.rpartition("/")[2] == path


def _need(named: _Named, catalogue: Catalogue) -> Need:
    kind = place_of(named.kind, "").kind
    source = catalogue.find(kind, named.name, named.sha256)
    if source is None and kind == "checkpoint" and named.sha256 is None:
        source = catalogue.find("unet", named.name)
        kind = "unet" if source is not None else kind
    if source is None:
        key = key_of(kind, named.name, named.sha256)
        return Need(key, kind, named.name, named.size, named.url, named.sha256)
    sha256 = named.sha256 or source.sha256
    name = named.name if stem_of(named.name) != named.name else source.name
    key = key_of(kind, source.name, sha256)
    return Need(key, kind, name, named.size or source.size, named.url or source.url, sha256)


def _mentioned(document: Mapping[str, Any]) -> Iterator[_Named]:
    """In the order in which they matter; what stands for none is left out."""
    for kind, value in _places(document):
        if not isinstance(value, str) or value.strip().lower() in _NOTHING:
            continue
        if is_source(value):
            yield _Named(kind, file_of(value) or value, value)
        else:
            yield _Named(kind, _HASH.sub("", value.strip()).replace("\\", "/"))


def _places(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Kinds and what stands where they are named."""
    yield "checkpoint", document.get("checkpoint")
    params, request, workflow = (document.get(key) for key in ("params", "request", "workflow"))
    if isinstance(params, Mapping):
        yield from _portable(params)
    if isinstance(request, Mapping):
        yield from _native(request)
    if isinstance(workflow, Mapping):
        for node in workflow.values():
            if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping):
                yield from _node(str(node.get("class_type")), node["inputs"])


def _portable(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    refiner = params.get("refiner")
    yield "refiner", refiner.get("checkpoint") if isinstance(refiner, Mapping) else None
    yield "vae", params.get("vae")
    for lora in _dicts(params.get("loras")):
        yield "lora", lora.get("name")
    yield from _tags(params.get("prompt"))


def _native(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    overrides, advanced = body.get("override_settings"), body.get("advanced_params")
    settings = overrides if isinstance(overrides, Mapping) else {}
    yield from ((kind, settings.get(key)) for key, kind in _OVERRIDES.items())
    yield from ((kind, body.get(key)) for key, kind in _NATIVE.items())
    yield "vae", advanced.get("vae_name") if isinstance(advanced, Mapping) else None
    for module in _list(settings.get("forge_additional_modules")):
        yield "vae", module
    for lora in _dicts(body.get("loras")):
        if lora.get("enabled") is not False:
            yield "lora", lora.get("model_name")
    if not body.get("disable_extra_networks"):
        for key in _PROMPTS:
            yield from _tags(body.get(key))
    yield from _units(body.get("alwayson_scripts"))


def _units(scripts: Any) -> Iterator[tuple[str, Any]]:
    """The models of ControlNet units that are switched on, without the hash that the server adds to their names."""
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        if str(name).lower() == "controlnet" and isinstance(script, Mapping):
            for unit in _dicts(script.get("args")):
                if unit.get("enabled", True):
                    yield "controlnet", unit.get("model")


def _tags(prompt: Any) -> Iterator[tuple[str, Any]]:
    for found in _LORA_TAG.finditer(prompt) if isinstance(prompt, str) else ():
        yield "lora", found[1].strip()


def _node(class_type: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items():
        if not isinstance(value, str):
            continue
        kind = INPUTS.get(name)
        if kind is not None and value not in _BUILT_IN:
            yield kind, value
        elif kind is None and class_type in LOADERS and stem_of(value) != value:
            yield LOADERS[class_type], value
        elif kind is None and name.startswith("lora") and stem_of(value) != value:
            yield "lora", value
        elif kind is None:
            yield from (("embedding", found) for found in _EMBEDDING.findall(value))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, Mapping)]


def _text(ref: Mapping[str, Any], key: str) -> str | None:
    value = ref.get(key)
    return value if isinstance(value, str) and value else None
