"""Which kind of model a folder, a URL or a hub's own word means. No I/O."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from worker.errors import InvalidJob
from worker.models.base import Wanted
from worker.models.identity import CivitaiFile, reference_of

KINDS = (
    *("checkpoint", "lora", "vae", "controlnet", "upscaler", "embedding", "unet", "clip", "clip_vision", "refiner"),
)
"""Those of the job document; any other name is that of a folder."""

FOLDERS: Mapping[str, str] = {kind: kind for kind in KINDS} | {
    "checkpoints": "checkpoint",
    "stable-diffusion": "checkpoint",
    "loras": "lora",
    "lycoris": "lora",
    "control": "controlnet",
    "controlnets": "controlnet",
    "upscale_models": "upscaler",
    "upscalers": "upscaler",
    "esrgan": "upscaler",
    "embeddings": "embedding",
    "diffusion_models": "unet",
    "text_encoders": "clip",
    "text_encoder": "clip",
    "text-encoder": "clip",
}
"""Folders of the image servers, and the scheduling API's categories, in lower case."""

_TYPES: Mapping[str, str] = {
    "checkpoint": "checkpoint",
    "lora": "lora",
    "locon": "lora",
    "dora": "lora",
    "lycoris": "lora",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscaler",
    "textualinversion": "embedding",
    "embedding": "embedding",
    "unet": "unet",
    "textencoder": "clip",
}
"""Civitai's types of models, in its API and in AIR names, in lower case."""

_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")
_AIR_TYPE = re.compile(r"(?:urn:)?air:[^:]+:([^:]+):", re.IGNORECASE)


def kind_of_folder(folder: str) -> str | None:
    """The kind whose models lie in a folder of this name; None where the name can be no kind."""
    known = FOLDERS.get(folder.lower())
    return known or (folder if _KIND.fullmatch(folder) else None)


def kind_of_type(word: str) -> str | None:
    """The kind that Civitai calls by this word; None for one that is no single model file of an image server."""
    return _TYPES.get(word.lower())


def kind_of_url(url: str) -> str | None:
    """The kind that the URL itself tells: an AIR name's type, or a folder of its path that is known for one.

    None where it tells none. Raises `ValueError` for a URL that belongs to a hub but names no file.
    """
    if found := _AIR_TYPE.match(url):
        return kind_of_type(found[1])
    if is_told_by_hub(url):
        return None
    folders = unquote(urlsplit(url).path).split("/")[:-1]
    return next((FOLDERS[f.lower()] for f in reversed(folders) if f.lower() in FOLDERS), None)


async def typed(wanted: Wanted, type_of: Callable[[CivitaiFile], Awaitable[str]]) -> Wanted:
    """The same with its kind, by Civitai's word where it has none.

    Raises what ``type_of`` raises, and `InvalidJob` for a type that is no model file of an image server.
    """
    reference = reference_of(wanted.url or "")
    if wanted.kind or not isinstance(reference, CivitaiFile):
        return wanted
    word = await type_of(reference)
    kind = kind_of_type(word)
    if kind is None:
        raise InvalidJob(f"{reference} has the type {word!r}, whose kind must be named", field=wanted.field)
    return replace(wanted, kind=kind)


def is_told_by_hub(url: str) -> bool:
    """Whether Civitai knows the kind of what this URL stands for. Raises `ValueError` as `kind_of_url`."""
    return isinstance(reference_of(url), CivitaiFile)
