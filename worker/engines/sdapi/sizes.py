"""Numbers of a native body: how many images of which size come out of it, and whether that is allowed. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.engines.sdapi.dialects import Dialect
from worker.engines.sdapi.header import Header
from worker.errors import InvalidJob
from worker.job import Limits

LEAST = 64
GRID = 8
"""All servers give sides that are multiples of this, rounding down without a word."""

_STEPS = ("hr_second_pass_steps", "refiner_steps", "detailer_steps")
_RESIZES = ("_before", "_after", "_mask")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What will come: None where only the input image settles it. ``rounded``: a side was no multiple of 8."""

    count: int
    width: int | None
    height: int | None
    steps: int
    rounded: bool = False


def whole(body: Mapping[str, Any], key: str, default: int, *, root: str, least: int | None = None) -> int:
    """A whole number of the body, its default where it is absent or null; `InvalidJob` for anything else."""
    value = body.get(key)
    if value is None:
        return default
    field = f"{root}.{key}"
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value
        or value in (math.inf, -math.inf)
    ):
        raise InvalidJob("must be a whole number", field=field)
    if int(value) != value:
        raise InvalidJob("must be a whole number", field=field)
    if least is not None and value < least:
        raise InvalidJob(f"must be at least {least}", field=field)
    return int(value)


def number(body: Mapping[str, Any], key: str, default: float, *, root: str) -> float:
    """A finite number of the body, its default where it is absent or null; `InvalidJob` for anything else."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise InvalidJob("must be a number", field=f"{root}.{key}")
    return float(value)


def floor8(side: float) -> int:
    return int(side) // GRID * GRID


def settle(body: dict[str, Any], endpoint: str, dialect: Dialect, limits: Limits, *, root: str) -> Sizes:
    """Check the numbers of a body and set its sides to what the server will make of them.

    A side of None in the body is left for `from_input`. Raises `InvalidJob`.
    """
    steps = whole(body, "steps", dialect.steps, root=root, least=1)
    limits.check_steps(steps, field=f"{root}.steps")
    for key in _STEPS:
        limits.check_steps(whole(body, key, 0, root=root, least=0), field=f"{root}.{key}")
    batch = whole(body, "batch_size", 1, root=root, least=1)
    count = batch * whole(body, "n_iter", 1, root=root, least=1)
    limits.check_images(count, field=f"{root}.{'batch_size' if batch == count else 'n_iter'}")
    open_ended = root == "params" and endpoint == "img2img"
    sides, rounded = {}, False
    for key, default in (("width", dialect.width), ("height", dialect.height)):
        if open_ended and body.get(key) is None:
            body[key] = None
            continue
        asked = whole(body, key, default, root=root, least=LEAST)
        body[key] = sides[key] = floor8(asked)
        rounded = rounded or asked != sides[key]
    if len(sides) < 2:
        for side in sides.values():
            limits.check_size(side, LEAST, field=f"{root}.width")
        return Sizes(count, None, None, steps, rounded)
    width, height = sides["width"], sides["height"]
    limits.check_size(width, height, field=f"{root}.width")
    final = _final(body, endpoint, dialect, limits, width, height, root=root)
    return Sizes(count, final[0] if final else None, final[1] if final else None, steps, rounded)


def _final(
    body: dict[str, Any], endpoint: str, dialect: Dialect, limits: Limits, width: int, height: int, *, root: str
) -> tuple[int, int] | None:
    """The size of the images that come back; None where the request alone does not settle it."""
    settled = not _resized(body, limits, width, height, root=root)
    if body.get("enable_hr"):
        if dialect.engine == "sdnext" and body.get("hr_upscaler") in (None, "", "None"):
            raise InvalidJob("is missing, and the server skips the second pass without it", field=f"{root}.hr_upscaler")
        exact = _hires(body, width, height, root=root)
        target = floor8(exact[0]), floor8(exact[1])
        for name, value in dialect.hires.items():
            body.setdefault(name, value)
        if "hr_resize_mode" in dialect.hires:
            if not body["hr_resize_mode"]:
                target = exact = width, height
            settled = settled and target == exact
        limits.check_size(*target, field=f"{root}.{'hr_resize_x' if body.get('hr_resize_x') else 'hr_scale'}")
        return target if endpoint == "txt2img" and settled else None
    if endpoint == "img2img":
        full = body.get("inpaint_full_res")
        pasted = bool(body.get("mask")) and (dialect.inpaints_full if full is None else bool(full))
        free = dialect.engine == "sdnext" and not body.get("resize_mode")
        settled = settled and not pasted and not free
    return (width, height) if settled else None


def _hires(body: Mapping[str, Any], width: int, height: int, *, root: str) -> tuple[int, int]:
    """The size after the second pass, as Automatic1111 reckons it: one side alone keeps the ratio."""
    x = whole(body, "hr_resize_x", 0, root=root, least=0)
    y = whole(body, "hr_resize_y", 0, root=root, least=0)
    if whole(body, "firstphase_width", 0, root=root, least=0) or whole(
        body, "firstphase_height", 0, root=root, least=0
    ):
        return width, height
    if not x and not y:
        scale = number(body, "hr_scale", 2.0, root=root)
        if not 1 <= scale <= 16:
            raise InvalidJob("must be from 1 to 16", field=f"{root}.hr_scale")
        return int(width * scale), int(height * scale)
    return x or y * width // height, y or x * height // width


def _resized(body: Mapping[str, Any], limits: Limits, width: int, height: int, *, root: str) -> bool:
    """Whether SD.Next resizes before or after; the limit holds for that too."""
    found = False
    for suffix in _RESIZES:
        if not body.get(f"resize_mode{suffix}"):
            continue
        found = True
        scale = number(body, f"scale_by{suffix}", 1, root=root)
        limits.check_size(floor8(width * scale), floor8(height * scale), field=f"{root}.scale_by{suffix}")
        sides = [whole(body, f"{side}{suffix}", 0, root=root, least=0) for side in ("width", "height")]
        limits.check_size(sides[0], sides[1], field=f"{root}.width{suffix}")
    return found


def settle_single(body: Mapping[str, Any], limits: Limits, *, root: str) -> tuple[int, int] | None:
    """The size that ``extra-single-image`` gives; None where it follows from the input image."""
    factor = number(body, "upscaling_resize", 2, root=root)
    if not 0 < factor <= 16:
        raise InvalidJob("must be above 0 and at most 16", field=f"{root}.upscaling_resize")
    if whole(body, "resize_mode", 0, root=root) == 0:
        return None
    width = whole(body, "upscaling_resize_w", 512, root=root, least=1)
    height = whole(body, "upscaling_resize_h", 512, root=root, least=1)
    limits.check_size(width, height, field=f"{root}.upscaling_resize_w")
    return (width, height) if body.get("upscaling_crop", True) else None


def from_input(
    body: Mapping[str, Any], endpoint: str, image: Header | None, limits: Limits
) -> tuple[dict[str, Any], frozenset[tuple[int, int]]]:
    """The body with its open sides set by the input image, and the sizes of result that are right; empty: any.

    Raises `InvalidJob` when the image would make a larger result than is allowed.
    """
    filled = dict(body)
    if image is None or not image.width or not image.height:
        return {k: v for k, v in filled.items() if v is not None or k not in ("width", "height")}, frozenset()
    if endpoint == "extra-single-image":
        return filled, _enlarged(filled, image, limits)
    natural = floor8(image.width), floor8(image.height)
    open_sides = [k for k in ("width", "height") if filled.get(k) is None]
    for key, side in zip(("width", "height"), natural, strict=True):
        filled[key] = side if filled.get(key) is None else filled[key]
    if open_sides and (filled["width"] < LEAST or filled["height"] < LEAST):
        raise InvalidJob(f"the image has {image.width}x{image.height} pixels; name a size", field="params.width")
    limits.check_size(filled["width"], filled["height"], field="params.width")
    asked = (filled["width"], filled["height"])
    if open_sides:
        return filled, frozenset({asked})
    settled = not filled.get("enable_hr") and not any(filled.get(f"resize_mode{s}") for s in _RESIZES)
    return filled, frozenset({asked, natural, (image.width, image.height)}) if settled else frozenset()


def _enlarged(body: Mapping[str, Any], image: Header, limits: Limits) -> frozenset[tuple[int, int]]:
    if body.get("resize_mode"):
        return frozenset()
    factor = float(body.get("upscaling_resize") or 2)
    size = int(image.width * factor), int(image.height * factor)
    limits.check_size(*size, field="request.upscaling_resize")
    near = range(-1, 2)
    return frozenset((size[0] + dx, size[1] + dy) for dx in near for dy in near)
