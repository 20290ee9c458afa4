"""Image-to-image at the image's own size: known only once the image is there."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.unit.engines.comfyui.supplies import CONTENTS, job, server
from worker.engines.comfyui.build import build
from worker.engines.comfyui.recipe import recipe
from worker.engines.comfyui.sizes import is_open, sized, upright
from worker.errors import InvalidJob
from worker.job import Limits

LIMITS = Limits(max_pixels=1024 * 1024)


def picture(width: int, height: int, *, format: str = "PNG", orientation: int | None = None) -> bytes:
    data = BytesIO()
    extra: dict[str, Any] = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        extra["exif"] = exif
    Image.new("RGB", (width, height), "red").save(data, format, **extra)
    return data.getvalue()


def graph_of(checkpoint: str = "sd15.safetensors", **params: Any) -> dict[str, Any]:
    return build(recipe(job(checkpoint, image="aW1n", **params), server(), CONTENTS))


@pytest.mark.parametrize(
    ("checkpoint", "params", "size"),
    [
        ("sd15.safetensors", {}, (512, 696)),
        ("sd35.safetensors", {}, (512, 688)),
        ("sd15.safetensors", {"width": 640}, (640, 696)),
        ("sd15.safetensors", {"height": 640}, (512, 640)),
    ],
)
def test_open_sides_are_the_images_own(checkpoint: str, params: dict[str, int], size: tuple[int, int]) -> None:
    """Cut down to the grid of the model; a side that the job names stays."""
    graph = graph_of(checkpoint, **params)
    assert is_open(graph)
    made = sized(graph, {"params.image": picture(515, 700)}, LIMITS)
    assert (made["scaled"]["inputs"]["width"], made["scaled"]["inputs"]["height"]) == size
    assert not is_open(made)
    assert is_open(graph)


def test_a_graph_with_its_size_is_left_alone() -> None:
    """Nothing is opened, and nothing copied, where the job settles the size; nor without an image."""
    closed = graph_of(width=512, height=512)
    assert sized(closed, {"params.image": b"never opened"}, LIMITS) is closed
    still_open = graph_of()
    assert sized(still_open, {}, LIMITS) is still_open
    assert not is_open({"scaled": "no node"})


@pytest.mark.parametrize(("size", "why"), [((2048, 1024), "more than"), ((63, 512), "name a size")])
def test_an_image_of_an_impossible_size_is_refused(size: tuple[int, int], why: str) -> None:
    """The limit of a job holds for what its image makes of it, too."""
    with pytest.raises(InvalidJob, match=why) as caught:
        sized(graph_of(), {"params.image": picture(*size)}, LIMITS)
    assert caught.value.errors[0].field == "params.width"


@pytest.mark.parametrize(
    ("format", "orientation", "size"),
    [
        ("JPEG", 6, (48, 64)),
        ("JPEG", 3, (64, 48)),
        ("PNG", 8, (48, 64)),
        ("WEBP", None, (64, 48)),
        ("PNG", None, (64, 48)),
    ],
)
def test_an_image_is_measured_upright(format: str, orientation: int | None, size: tuple[int, int]) -> None:
    """The server turns an image as its EXIF says before it measures it."""
    assert upright(picture(64, 48, format=format, orientation=orientation)) == size


def test_what_is_no_image_is_refused() -> None:
    """By the field that it stands in."""
    with pytest.raises(InvalidJob) as caught:
        upright(b"text")
    assert caught.value.errors[0].field == "params.image"
