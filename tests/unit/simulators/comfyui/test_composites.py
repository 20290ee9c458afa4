"""Nodes that put pictures together."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.comfy import Graph, images_of, node, png, simulated, upload


def composite(source: int, **more: Any) -> Graph:
    """A picture of one colour upon one of another, twice as large."""
    return {
        "1": node("EmptyImage", width=32, height=32, batch_size=1, color=0xFF0000),
        "2": node("EmptyImage", width=source, height=source, batch_size=1, color=0x0000FF),
        "3": node("RepeatImageBatch", image=["1", 0], amount=2),
        "5": node("ImageCompositeMasked", destination=["3", 0], source=["2", 0], x=0, y=0, **more),
        "9": node("SaveImage", images=["5", 0], filename_prefix="lab"),
    }


@pytest.mark.parametrize(("resize", "corner"), [(False, (255, 0, 0)), (True, (0, 0, 255))])
async def test_each_destination_gets_the_source(resize: bool, corner: tuple[int, int, int]) -> None:
    """As many pictures as destinations; the source covers its own size, or all."""
    async with simulated() as c:
        pictures = images_of(await c.run(composite(16, resize_source=resize)))
        assert len(pictures) == 2
        shown = await c.view(pictures[1])
        assert (shown.getpixel((0, 0)), shown.getpixel((31, 31))) == ((0, 0, 255), corner)


@pytest.mark.parametrize(("white", "colour"), [(255, (0, 0, 255)), (0, (255, 0, 0))])
async def test_a_mask_says_where(white: int, colour: tuple[int, int, int]) -> None:
    """White takes the source, black keeps the destination."""
    async with simulated() as c:
        await upload(c, png((white, 0, 0), (8, 8)), "mask.png")
        graph = composite(32, resize_source=False, mask=["4", 0])
        graph["4"] = node("LoadImageMask", image="mask.png", channel="red")
        assert (await c.view(images_of(await c.run(graph))[0])).getpixel((9, 9)) == colour
