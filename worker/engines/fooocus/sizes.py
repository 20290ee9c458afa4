"""How many pixels come out, as the servers reckon it. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from worker.engines.fooocus.dialects import Dialect

Size = tuple[int, int]
VARY_LEAST, VARY_MOST = 1024, 2048
"""What is to be varied is brought between these sides of a square of the same area."""

_ASPECT = re.compile(r"(\d{2,5})[*×](\d{2,5})(?: .*)?")
_SUPER = 2800


def aspect(value: Any) -> Size | None:
    """``1152*896``, as ``aspect_ratios_selection`` has it; any numbers are taken, not only those of the list."""
    found = _ASPECT.fullmatch(value) if isinstance(value, str) else None
    return (int(found[1]), int(found[2])) if found else None


def floored(size: Size) -> Size:
    """A picture is made of latents of 8x8 pixels; what is left over is cut off."""
    return size[0] // 8 * 8, size[1] // 8 * 8


def ceil(size: Size) -> int:
    """The side of a square of this area, in steps of 64."""
    return math.ceil(math.sqrt(size[0] * size[1]) / 64) * 64


def varied(size: Size) -> Size:
    """What a variation of an image of this size measures."""
    return floored(_brought_to(size, min(max(ceil(size), VARY_LEAST), VARY_MOST)))


def _brought_to(size: Size, wanted: int) -> Size:
    width, height = size
    for _ in range(256):
        now = ceil((width, height))
        if now == wanted:
            break
        factor = wanted / now
        height, width = round(height * factor / 64) * 64, round(width * factor / 64) * 64
    return width, height


def upscaled(size: Size, method: str, value: float | None, dialect: Dialect) -> Size:
    """What an upscaled image of this size measures. A version's own quirks decide whether ``value`` counts."""
    custom = value is not None and (method == "Upscale (Custom)" or not dialect.custom_only) and value > 1
    factor = value if custom and value is not None else 1.5 if "1.5x" in method else 2.0 if "2x" in method else 1.0
    if method == "Upscale (Custom)" and not custom and dialect.custom_only:
        factor = value if value is not None and value > 0 else 2.0
    grown = size[0] * factor, size[1] * factor
    side = math.ceil(math.sqrt(grown[0] * grown[1]) / 64) * 64
    out = _brought_to((size[0] * 4, size[1] * 4), 1024) if side < 1024 else (int(grown[0]), int(grown[1]))
    return out if "Fast" in method or side > _SUPER else floored(out)


def outpainted(size: Size, body: Mapping[str, Any]) -> Size:
    """An image with the borders that are to be painted: three tenths of it on each side that gives no distance."""
    width, height = size
    chosen = {str(s).lower() for s in body.get("outpaint_selections") or ()}
    for side in ("left", "right", "top", "bottom"):
        if side in chosen:
            given = body.get(f"outpaint_distance_{side}")
            own = int((size[0] if side in ("left", "right") else size[1]) * 0.3)
            by = given if isinstance(given, int) and given > 0 else own
            width, height = (width + by, height) if side in ("left", "right") else (width, height + by)
    return width, height
