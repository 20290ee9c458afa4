"""Where images stand in a native body: taken out of it at admission, put back before it is sent. No I/O.

A URL is never left to the server, which would fetch it from inside the node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pybase64

from worker.engines.base import InputRef
from worker.engines.given import decoded, is_url, provided
from worker.errors import InvalidJob

SLOT = "input:"
_SINGLES = ("mask", "image", "firstpass_image", "latent_mask", "mask_for_overlay")
_LISTS = ("init_images", "init_control")
_UNIT_IMAGES = ("image", "input_image", "mask", "mask_image")
_ADAPTER_IMAGES = ("images", "masks")

Replace = Callable[[str, str], str]


def taken(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[InputRef, ...]]:
    """The body with a slot for each image, and the images as they were given. Raises `InvalidJob`."""
    refs: list[InputRef] = []

    def take(field: str, value: str) -> str:
        if value.startswith(SLOT):
            raise InvalidJob("is neither base64 nor an http(s) URL", field=field)
        refs.append(InputRef(field, value))
        if not is_url(value):
            decoded(value, field=field)
        return SLOT + field

    return _replaced(body, take), tuple(refs)


def filled(body: Mapping[str, Any], images: Mapping[str, bytes], refs: tuple[InputRef, ...]) -> dict[str, Any]:
    """The body with the images in it as plain base64, which every server takes.

    An image that nobody provided is taken from the job itself where it stands there as base64.
    """
    found = provided(refs, images)

    def put(field: str, value: str) -> str:
        if not value.startswith(SLOT):
            return value
        return pybase64.b64encode(found[value.removeprefix(SLOT)]).decode("ascii")

    return _replaced(body, put)


def first_image(body: Mapping[str, Any]) -> str | None:
    """The input that settles the size, as base64, once the body is filled."""
    images = body.get("init_images")
    found = images[0] if isinstance(images, list) and images else body.get("image")
    return found if isinstance(found, str) else None


def _replaced(body: Mapping[str, Any], replace: Replace) -> dict[str, Any]:
    """A copy of the body in which each image that it names went through ``replace(field, value)``."""
    copy = dict(body)
    for key in _SINGLES:
        if copy.get(key) is not None:
            copy[key] = _one(f"request.{key}", copy[key], replace)
    for key in _LISTS:
        if copy.get(key) is not None:
            copy[key] = _many(f"request.{key}", copy[key], replace)
    if isinstance(copy.get("alwayson_scripts"), dict):
        copy["alwayson_scripts"] = {n: _script(n, s, replace) for n, s in copy["alwayson_scripts"].items()}
    for key in ("control_units", "ip_adapter"):
        if isinstance(copy.get(key), list):
            copy[key] = [_unit(f"request.{key}.{i}", unit, replace) for i, unit in enumerate(copy[key])]
    for key in ("face", "face_id"):
        face = copy.get(key)
        if isinstance(face, dict) and face.get("source_images") is not None:
            images = _many(f"request.{key}.source_images", face["source_images"], replace)
            copy[key] = {**face, "source_images": images}
    return copy


def _one(field: str, value: Any, replace: Replace) -> str:
    if not isinstance(value, str):
        raise InvalidJob("must be base64 or a URL", field=field)
    return replace(field, value)


def _many(field: str, values: Any, replace: Replace) -> list[str]:
    if not isinstance(values, list):
        raise InvalidJob("must be a list of base64 or URLs", field=field)
    return [_one(f"{field}.{i}", value, replace) for i, value in enumerate(values)]


def _script(name: str, script: Any, replace: Replace) -> Any:
    args = script.get("args") if isinstance(script, dict) else None
    if not isinstance(args, list):
        return script
    return {
        **script,
        "args": [_unit(f"request.alwayson_scripts.{name}.args.{i}", a, replace) for i, a in enumerate(args)],
    }


def _unit(field: str, unit: Any, replace: Replace) -> Any:
    """A ControlNet unit, an IP adapter: objects that hold images under known names."""
    if not isinstance(unit, dict):
        return unit
    copy = dict(unit)
    for key in _UNIT_IMAGES:
        if isinstance(copy.get(key), str) and copy[key]:
            copy[key] = replace(f"{field}.{key}", copy[key])
    for key in _ADAPTER_IMAGES:
        if isinstance(copy.get(key), list):
            copy[key] = _many(f"{field}.{key}", copy[key], replace)
    return copy
