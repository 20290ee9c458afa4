"""Whatever bytes a server sends: a verified picture, or one of our own errors."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.support.pictures import TEXT, Sent, encoded, opened, picture, text_of
from worker.errors import WorkerError
from worker.images import FLAT_TOLERANCE, Encoding, Picture, verified

FILES = {
    ("png", ""): encoded(picture(), text=TEXT),
    ("png", "palette"): encoded(picture(mode="P"), transparency=b"\0\7"),
    ("jpeg", ""): encoded(picture(), "JPEG", text=TEXT),
    ("jpeg", "progressive"): encoded(picture(), "JPEG", progressive=True, comment=TEXT.encode()),
    ("webp", ""): encoded(picture(), "WEBP", text=TEXT),
    ("webp", "lossless"): encoded(picture(mode="RGBA"), "WEBP", lossless=True),
}
formats = st.sampled_from(["keep", "png", "jpeg", "webp"])
encodings = st.builds(Encoding, formats, st.integers(1, 100), st.booleans(), st.sampled_from(["keep", "strip"]))


def outcome(data: bytes, encoding: Encoding) -> Picture | WorkerError:
    try:
        return verified(Sent(data), 0, width=64, height=48, encoding=encoding)
    except WorkerError as error:
        return error


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(FILES)), encodings, st.data())
def test_damaged_files_end_in_a_picture_or_our_error(
    kind: tuple[str, str], encoding: Encoding, data: st.DataObject
) -> None:
    """Bytes overwritten, taken out or cut off anywhere never raise anything foreign, and never change the size."""
    whole = FILES[kind]
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 60))
    until = at + data.draw(st.integers(0, 40) | st.just(len(whole)))
    damaged = whole[:at] + data.draw(st.binary(max_size=20)) + whole[until:]
    found = outcome(damaged, encoding)
    if isinstance(found, Picture):
        assert opened(found.data).size == (found.width, found.height) == (64, 48)
        assert found.sha256 == hashlib.sha256(found.data).hexdigest()


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=100)
@given(st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP"]), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(signature: bytes, rest: bytes) -> None:
    """Bytes that merely begin like a picture are an error of ours."""
    assert isinstance(outcome(signature + rest, Encoding()), WorkerError)


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1, max_size=300),
    st.lists(st.sampled_from(["png", "jpeg", "webp"]), min_size=1, max_size=4),
)
def test_generation_text_survives_every_chain_of_conversions(text: str, chain: list[Any]) -> None:
    """Prompts in any script come through any number of conversions unchanged."""
    data = encoded(picture(8, 8), text=text)
    for target in chain:
        data = verified(Sent(data), 0, width=8, height=8, encoding=Encoding(target)).data
    assert text_of(data) == text


@settings(deadline=None, max_examples=100)
@given(
    st.tuples(*[st.integers(0, 255)] * 3),
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 11), st.integers(0, 2), st.integers(-9, 9)), max_size=6),
)
def test_flat_is_exactly_a_range_within_the_tolerance(
    colour: tuple[int, int, int], changes: list[tuple[int, int, int, int]]
) -> None:
    """A picture is flat exactly when in each band the brightest and the darkest pixel are that close."""
    image = Image.new("RGB", (16, 12), colour)
    for x, y, band, change in changes:
        pixel: Any = list(image.getpixel((x, y)))  # type: ignore[arg-type]
        pixel[band] = min(255, max(0, pixel[band] + change))
        image.putpixel((x, y), tuple(pixel))
    bands = [band.tobytes() for band in image.split()]
    expected = all(max(band) - min(band) <= FLAT_TOLERANCE for band in bands)
    assert verified(Sent(encoded(image)), 0, width=16, height=12, encoding=Encoding()).flat is expected


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(FILES)), st.sampled_from(["png", "jpeg", "webp"]))
def test_strip_leaves_no_prompt(kind: tuple[str, str], target: Literal["png", "jpeg", "webp"]) -> None:
    """No encoding of the prompt is left in a stripped file, converted or not."""
    for encoding in (Encoding(metadata="strip"), Encoding(target, metadata="strip")):
        found = verified(Sent(FILES[kind]), 0, width=64, height=48, encoding=encoding).data
        assert not [name for name in ("utf-8", "utf-16-be", "utf-16-le") if "Negative".encode(name) in found]
