from __future__ import annotations

from typing import Any

import pytest

from tests.support.pictures import encoded, picture
from worker.engines.sdapi.header import Header, read_header


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_format_and_size_are_read_without_decoding(format: str, options: dict[str, Any]) -> None:
    """The header of every format that servers send tells its size."""
    header = read_header(encoded(picture(72, 40), format, **options))
    assert header == Header(format.lower(), 72, 40)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_metadata_before_the_size_is_passed_over(format: str) -> None:
    """EXIF and extended WebP do not hide the size."""
    assert read_header(encoded(picture(72, 40), format, text="Steps: 3")) == Header(format.lower(), 72, 40)


@pytest.mark.parametrize("data", [b"", b"GIF89a....", b"<html>", b"\x00" * 40])
def test_anything_else_has_no_header(data: bytes) -> None:
    """Other bytes are no image of ours."""
    assert read_header(data) is None


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_cut_header_has_no_size(format: str) -> None:
    """A file that ends inside its header has size 0, at whatever byte it is cut."""
    data = encoded(picture(72, 40), format)
    found = {read_header(data[:n]) for n in range(12, 24)}
    assert {(h.width, h.height) for h in found if h is not None} <= {(0, 0)}


def test_broken_jpeg_segments_have_no_size() -> None:
    """A JPEG whose segments do not follow each other is not searched further; fill bytes and bare markers are."""
    assert read_header(b"\xff\xd8\xff\xe0\x00\x04ab" + b"\x00" * 20) == Header("jpeg", 0, 0)
    frame = b"\xff\xc0\x00\x0b\x08\x00\x28\x00\x48\x01" + b"\x00" * 8
    assert read_header(b"\xff\xd8\xff\xff\x01" + frame) == Header("jpeg", 72, 40)
    assert read_header(b"RIFF\x00\x00\x00\x00WEBPXXXX" + b"\x00" * 20) == Header("webp", 0, 0)
