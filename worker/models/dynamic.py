"""The variables by which the ``*-dynamic`` images name models, as a manifest. No I/O.

Those images of SD.Next, Automatic1111 and ComfyUI fetch, one after the other and before their server starts, the
versions at Civitai that ``CIVITAI_MODEL_VERSION_IDS`` lists, the URLs that lists by kind hold, and SDXL from Hugging
Face when a switch is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from worker.errors import ConfigError, FieldError, Owner
from worker.models.base import Wanted
from worker.models.identity import name_of
from worker.models.manifest import Item, Manifest, checked_url, joined

KINDS: Mapping[str, str] = {
    "CKPT_URLS": "checkpoint",
    "VAE_URLS": "vae",
    "LORA_URLS": "lora",
    "CONTROLNET_URLS": "controlnet",
}
VERSIONS = "CIVITAI_MODEL_VERSION_IDS"
SWITCHES: Mapping[str, str] = {
    "LOAD_SDXL_BASE": "hf://stabilityai/stable-diffusion-xl-base-1.0/sd_xl_base_1.0.safetensors",
    "LOAD_REFINER": "hf://stabilityai/stable-diffusion-xl-refiner-1.0/sd_xl_refiner_1.0.safetensors",
}


def listed(variables: Mapping[str, str]) -> Manifest:
    """The models that these variables name; others are passed over. Raises `ConfigError` with every mistake."""
    mistakes: list[FieldError] = []
    items = tuple(
        item
        for name, value in variables.items()
        for index, url in enumerate(_urls(name, value))
        for item in _item(KINDS.get(name, "" if name == VERSIONS else "checkpoint"), url, f"{name}[{index}]", mistakes)
    )
    if mistakes:
        raise ConfigError(tuple(mistakes))
    return joined((Manifest(items),))


def _urls(name: str, value: str) -> Iterator[str]:
    words = [word.strip() for word in value.split(",") if word.strip()]
    if name == VERSIONS:
        yield from (f"civitai://{word}" for word in words)
    elif name in KINDS:
        yield from words
    elif name in SWITCHES and value.strip() == "1":
        yield SWITCHES[name]


def _item(kind: str, url: str, field: str, mistakes: list[FieldError]) -> Iterator[Item]:
    try:
        yield Item(Wanted(kind, name_of(url), checked_url(url), owner=Owner.OPERATOR, field=field))
    except ValueError as error:
        mistakes.append(FieldError(field, str(error)))
