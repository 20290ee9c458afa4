"""Variables of other images that the worker understands, so that their users can move without changing a thing.

Each has a ``WORKER_`` twin; where that is set, it alone counts. comfyui-api reads a manifest of models and the size
of its cache; the ``*-dynamic`` images of SD.Next, Automatic1111 and ComfyUI read lists of model URLs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from worker.errors import FieldError

MANIFEST_TWIN = "WORKER_MODELS_MANIFEST"
SIZE_TWIN = "WORKER_MODELS_MAX_SIZE"
_GB = 1_000_000_000

MANIFESTS = ("MANIFEST_JSON", "MANIFEST")
"""A manifest as text, and the path of one; comfyui-api takes the first of them that is set."""

LISTS = ("CIVITAI_MODEL_VERSION_IDS", "CKPT_URLS", "VAE_URLS", "LORA_URLS", "CONTROLNET_URLS")
SWITCHES = ("LOAD_SDXL_BASE", "LOAD_REFINER")
CACHE_SIZE = "LRU_CACHE_SIZE_GB"
NOT_DONE = {"EXTENSION_URLS": "has no effect: the worker installs no extensions; put them into the image"}

_TWINS = dict.fromkeys((*MANIFESTS, *LISTS, *SWITCHES), MANIFEST_TWIN) | {CACHE_SIZE: SIZE_TWIN}


@dataclass(frozen=True, slots=True)
class Inherited:
    """A variable of another image that is set here; ``note`` says what becomes of it.

    ``value`` is empty where it has no effect; a URL in it may hold a token, so it is never printed.
    """

    variable: str
    note: str
    value: str = field(default="", repr=False)

    @property
    def honoured(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        return f"{self.variable}: {self.note}"


def inherited(environ: Mapping[str, str]) -> tuple[Inherited, ...]:
    """What is set of other images' variables, in the order of the tables above."""
    found = {name: value.strip() for name, value in environ.items() if value.strip()}
    return tuple(_judged(name, found) for name in (*_TWINS, *NOT_DONE) if name in found)


def _judged(name: str, found: Mapping[str, str]) -> Inherited:
    if name in NOT_DONE:
        return Inherited(name, NOT_DONE[name])
    if _TWINS[name] in found:
        return Inherited(name, f"has no effect beside {_TWINS[name]}")
    if name == "MANIFEST" and "MANIFEST_JSON" in found:
        return Inherited(name, "has no effect beside MANIFEST_JSON")
    if name in SWITCHES and found[name] != "1":
        return Inherited(name, "has no effect unless it is 1")
    if name == CACHE_SIZE and _bytes(found[name]) == 0:
        return Inherited(name, f"has no effect: the cache is always bounded, by {SIZE_TWIN}")
    return Inherited(name, f"is honoured; {_TWINS[name]} is its name here", found[name])


def mistakes(found: tuple[Inherited, ...]) -> Iterator[FieldError]:
    """What is wrong with the values that are honoured."""
    for one in found:
        if one.variable == CACHE_SIZE and one.honoured and _bytes(one.value) is None:
            yield FieldError(CACHE_SIZE, "is no size in GB")
        if one.variable == LISTS[0] and not all(word.isdecimal() and word.isascii() for word in words(one.value)):
            yield FieldError(LISTS[0], "must be ids of model versions, separated by commas")


def defaults(found: tuple[Inherited, ...]) -> dict[str, dict[str, Any]]:
    """What the honoured ones come to in the tree of settings, where they have a field of their own there."""
    sizes = [_bytes(one.value) for one in found if one.variable == CACHE_SIZE and one.honoured]
    return {"models": {"max_size": sizes[0]}} if sizes and sizes[0] else {}


def words(value: str) -> tuple[str, ...]:
    """The items of a comma list, without the empty ones, each once."""
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def _bytes(value: str) -> int | None:
    try:
        size = Decimal(value)
    except InvalidOperation:
        return None
    return int(size * _GB) if size.is_finite() and 0 <= size < 10**9 else None
