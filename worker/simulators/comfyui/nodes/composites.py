"""Nodes that put pictures together."""

from __future__ import annotations

from typing import Any

from PIL import Image

from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import MAX_RESOLUTION, InputSpec, NodeSpec, integer, link
from worker.simulators.comfyui.values import Images, Result


async def _composite(_: NodeCall, inputs: dict[str, Any]) -> Result:
    """As many pictures as there are destinations, each with a source, from the first one on again."""
    destinations: Images = inputs["destination"]
    sources: Images = inputs["source"]
    masks: tuple[Image.Image, ...] = inputs.get("mask") or ()
    made = []
    for n, destination in enumerate(destinations):
        source = sources[n % len(sources)]
        if inputs["resize_source"]:
            source = source.resize(destination.size)
        mask = masks[n % len(masks)].convert("L").resize(source.size) if masks else None
        picture = destination.copy()
        picture.paste(source, (inputs["x"], inputs["y"]), mask)
        made.append(picture)
    return Result((tuple(made),))


async def _repeat(_: NodeCall, inputs: dict[str, Any]) -> Result:
    images: Images = inputs["image"]
    return Result((images * inputs["amount"],))


COMPOSITES = (
    NodeSpec(
        "ImageCompositeMasked",
        _composite,
        {
            "destination": link("IMAGE"),
            "source": link("IMAGE"),
            "x": integer(0, 0, MAX_RESOLUTION),
            "y": integer(0, 0, MAX_RESOLUTION),
            "resize_source": InputSpec("BOOLEAN", {"default": False}),
        },
        {"mask": link("MASK")},
        outputs=("IMAGE",),
        category="image",
        module="comfy_extras.nodes_mask",
    ),
    NodeSpec(
        "RepeatImageBatch",
        _repeat,
        {"image": link("IMAGE"), "amount": integer(1, 1, 4096, None)},
        outputs=("IMAGE",),
        category="image/batch",
        module="comfy_extras.nodes_images",
    ),
)
