"""Where images stand in a native body: taken out of it at admission, put back before it is sent.

A URL is never left to the server, which would fetch it from inside the node.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pybase64

from worker.engines.base import InputRef
from worker.engines.given import decoded, is_url
from worker.errors import InvalidJob

SLOT = "input:"
_SINGLES = ("input_image", "input_mask", "enhance_input_image")
_NONE = (None, "")

Replace = Callable[[str, str], str]


def taken(body: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[InputRef, ...]]:
    """The body with a slot for each image, and the images as they were given. Raises `InvalidJob`."""
    refs: list[InputRef] = []

    def take(field: str, value: str) -> str:
        refs.append(checked_ref(field, value))
        return SLOT + field

    return _replaced(body, take), tuple(refs)


def checked_ref(field: str, value: str) -> InputRef:
    """The reference to an image; base64 that is none is refused right away. Raises `InvalidJob`."""
    if not is_url(value):
        decoded(value, field=field)
    return InputRef(field, value)


def filled(body: Mapping[str, Any], images: Mapping[str, bytes]) -> dict[str, Any]:
    """The body with the images in it as plain base64, which every version takes."""

    def put(_: str, value: str) -> str:
        return pybase64.b64encode(images[value.removeprefix(SLOT)]).decode("ascii")

    return _replaced(body, put)


def size_of(data: bytes, *, field: str) -> tuple[int, int]:
    """Width and height in pixels by the header. Raises `InvalidJob`."""
    from PIL import Image

    from worker.images import BROKEN

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except BROKEN:
        raise InvalidJob("is not an image that can be read", field=field) from None


def as_rgb(data: bytes, size: tuple[int, int], *, field: str) -> bytes:
    """A PNG of exactly this size without transparency: the servers stumble over grey and palette images."""
    from PIL import Image

    from worker.images import BROKEN

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            shown = picture.convert("RGB")
            shown = shown if shown.size == size else shown.resize(size, Image.Resampling.LANCZOS)
            shown.save(out, "PNG", compress_level=1)
    except BROKEN:
        raise InvalidJob("is not an image that can be read", field=field) from None
    return out.getvalue()


def check_mask(data: bytes, *, inverted: bool, field: str) -> None:
    """Raises `InvalidJob` for a mask that selects nothing: then the servers ignore image and mask alike."""
    from PIL import Image

    from worker.images import BROKEN

    try:
        with Image.open(io.BytesIO(data)) as picture:
            low, high = picture.convert("L").getextrema()
    except BROKEN:
        raise InvalidJob("is not an image that can be read", field=field) from None
    if (not inverted and float(high) <= 127) or (inverted and float(low) > 127):  # type: ignore[arg-type]
        raise InvalidJob("selects nothing; what is white is painted anew", field=field)


def _replaced(body: Mapping[str, Any], replace: Replace) -> dict[str, Any]:
    """A copy of the body in which each image that it names went through ``replace(field, value)``."""
    copy = dict(body)
    for key in _SINGLES:
        if copy.get(key) not in _NONE:
            copy[key] = _one(f"request.{key}", copy[key], replace)
    prompts = copy.get("image_prompts")
    if isinstance(prompts, list):
        copy["image_prompts"] = [_prompt(f"request.image_prompts.{i}", p, replace) for i, p in enumerate(prompts)]
    return copy


def _prompt(field: str, prompt: Any, replace: Replace) -> Any:
    """0.4 falls over null where it takes the empty text for no image."""
    if not isinstance(prompt, dict):
        return prompt
    if prompt.get("cn_img") in _NONE:
        return {**prompt, "cn_img": ""}
    return {**prompt, "cn_img": _one(f"{field}.cn_img", prompt["cn_img"], replace)}


def _one(field: str, value: Any, replace: Replace) -> str:
    if not isinstance(value, str):
        raise InvalidJob("must be base64 or a URL", field=field)
    return replace(field, value)
