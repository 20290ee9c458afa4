"""What may be passed on to the image server, and what its refusals say. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from worker.errors import FieldError, InvalidJob
from worker.job import Limits

_REFUSED = {
    "extra": "sets any attribute of the server's job",
    "infotext": "would set models and sizes unchecked",
    "override_settings": "would change the server's settings for everybody",
    "sd_model_checkpoint": "would change the server's model for everybody",
}
_REACHING = ("http://", "https://", "file:", "upload:")
"""What servers take for an image that they are to fetch from where they are."""

_SCALES = ("upscaling_resize", "hr_scale", "scale_by", "scale_by_before", "scale_by_after", "scale_by_mask")
SCALE_MOST = 8
_SIDES = (
    *((f"width{which}", f"height{which}") for which in ("", "_before", "_after", "_mask")),
    ("upscaling_resize_w", "upscaling_resize_h"),
    ("hr_resize_x", "hr_resize_y"),
)
_COUNTS = ("batch_size", "batch_count", "n_iter")
_MANY = ("imageList", "controlnet_images", "inputs", "inits")


def checked_work(document: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """The document that may be passed on. Raises `InvalidJob` with every field that keeps it from that.

    What has the wrong type is left for the server to refuse.
    """
    mistakes = [FieldError(key, why) for key, why in _REFUSED.items() if document.get(key)]
    mistakes += [FieldError(field, "must be base64; a URL is not followed") for field in _reaching(document, "")]
    mistakes += _beyond(document, limits)
    if mistakes:
        raise InvalidJob(errors=tuple(mistakes))
    passed = {key: value for key, value in document.items() if key not in _REFUSED}
    return {**passed, "save_images": False} if "save_images" in passed else passed


def _reaching(value: Any, field: str) -> Iterator[str]:
    """The fields that hold a place instead of an image; a prompt may hold anything."""
    if isinstance(value, str):
        if value[:10].lower().startswith(_REACHING):
            yield field
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if "prompt" not in str(key):
                yield from _reaching(inner, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _reaching(inner, f"{field}.{i}")


def _beyond(document: Mapping[str, Any], limits: Limits) -> Iterator[FieldError]:
    """What asks for more than a job may."""
    for width, height in _SIDES:
        if _number(document, width) * _number(document, height) > limits.max_pixels:
            yield FieldError(width, f"is more than {limits.max_pixels} pixels")
    most = {key: limits.max_steps for key in document if key.endswith("steps")} | dict.fromkeys(_SCALES, SCALE_MOST)
    for key, value in most.items():
        if _number(document, key) > value:
            yield FieldError(key, f"is more than {value}")
    if math.prod(max(1.0, _number(document, key)) for key in _COUNTS) > limits.max_images:
        yield FieldError("batch_size", f"asks for more than {limits.max_images} images")
    for key in _MANY:
        listed = document.get(key)
        if isinstance(listed, list) and len(listed) > limits.max_images:
            yield FieldError(key, f"holds more than {limits.max_images} images")


def _number(document: Mapping[str, Any], key: str) -> float:
    value = document.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def error_text(document: Any) -> str:
    """What a server says went wrong: ``detail`` (a text or FastAPI's list), else its other words for it."""
    if not isinstance(document, dict):
        return ""
    detail = document.get("detail")
    if isinstance(detail, list):
        return "; ".join(_mistake(one) for one in detail if isinstance(one, dict))[:500]
    texts = (detail, *(document.get(key) for key in ("errors", "message", "error")))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")[:500]


def _mistake(item: Mapping[str, Any]) -> str:
    """One of FastAPI's, without the value, which holds the caller's words."""
    place = item.get("loc")
    where = ".".join(str(part)[:100] for part in place if part != "body") if isinstance(place, list) else ""
    return f"{where}: {str(item.get('msg', ''))[:200]}".removeprefix(": ")
