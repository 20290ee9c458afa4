"""The size of an image-to-image job that leaves it to its input, known only when the image is there. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from worker.engines.comfyui.build import SCALED, SIZE
from worker.engines.comfyui.ingredients import IMAGE
from worker.errors import InvalidJob
from worker.images import BROKEN
from worker.job import Limits

LEAST = 64
"""Pixels of the smallest side, as a job may name it."""

_SLOT = re.compile(re.escape(SIZE) + r"(width|height)/(\d+)")
_ORIENTATION = 0x0112
_TURNED = range(5, 9)


def is_open(graph: Mapping[str, Any]) -> bool:
    """Whether a side of the graph that `build` made is left to the input image."""
    return bool(_open_sides(graph))


def sized(graph: Mapping[str, Any], images: Mapping[str, bytes], limits: Limits) -> Mapping[str, Any]:
    """The graph with the input image's own sides where the job names none, cut down to what the model can make.

    ``images`` by `InputRef.field`. A graph without such a side comes back as it is; the argument stays unchanged.
    Raises `InvalidJob` when the picture would be larger than is allowed, or too small to be one.
    """
    sides = _open_sides(graph)
    if not sides or IMAGE not in images:
        return graph
    natural = dict(zip(("width", "height"), upright(images[IMAGE]), strict=True))
    node = graph[SCALED]
    inputs = {**node["inputs"], **{side: natural[side] // grid * grid for side, grid in sides.items()}}
    if min(inputs["width"], inputs["height"]) < LEAST:
        shown = f"{natural['width']}x{natural['height']}"
        raise InvalidJob(f"the image has {shown} pixels; name a size", field="params.width")
    limits.check_size(inputs["width"], inputs["height"], field="params.width")
    return {**graph, SCALED: {**node, "inputs": inputs}}


def _open_sides(graph: Mapping[str, Any]) -> dict[str, int]:
    """The open sides and the grid of each."""
    node = graph.get(SCALED)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    texts = [inputs.get(side) for side in ("width", "height")] if isinstance(inputs, Mapping) else []
    found = (_SLOT.fullmatch(text) for text in texts if isinstance(text, str))
    return {match[1]: int(match[2]) for match in found if match}


def upright(data: bytes) -> tuple[int, int]:
    """Width and height of an image as the server loads it: turned as its EXIF says. No pixel is decoded.

    Raises `InvalidJob` for what is no image.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            at_start = image.format != "PNG" or "exif" in image.info
            turned = at_start and image.getexif().get(_ORIENTATION) in _TURNED
    except BROKEN:
        raise InvalidJob("is no image", field=IMAGE) from None
    return (height, width) if turned else (width, height)
