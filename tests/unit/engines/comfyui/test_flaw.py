"""What the first bytes of an image say against it."""

from __future__ import annotations

import pytest

from tests.support.pictures import encoded, picture
from worker.engines.comfyui.outputs import flaw


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_a_known_kind_passes(kind: str) -> None:
    """Sizes left open, or right."""
    data = encoded(picture(64, 48), kind)
    assert flaw(data, None, None) is None
    assert flaw(data, 64, 48) is None


@pytest.mark.parametrize(("width", "height"), [(32, 48), (64, 96), (None, 96), (32, None)])
def test_another_size_is_told(width: int | None, height: int | None) -> None:
    """Each side that the job names counts."""
    said = flaw(encoded(picture(64, 48)), width, height)
    assert said == f"an image has 64x48 pixels instead of {width or 64}x{height or 48}"


@pytest.mark.parametrize("data", [b"", b"<html></html>", b"RIFF\0\0\0\0WAVE", b"\x89PNG\r\n"])
def test_what_is_no_image_is_told(data: bytes) -> None:
    """Whatever its name was."""
    assert flaw(data, None, None) == "an image is neither PNG nor JPEG nor WebP"


def test_a_header_cut_off_is_told() -> None:
    """A PNG that ends before its size."""
    assert flaw(encoded(picture())[:20], 64, 48) == "an image is cut off in its header"
