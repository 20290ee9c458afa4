"""No bytes of any server break the telling of what they are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.support.made import glb, matroska, mp4, ogg, riff, safetensors, wav
from worker.engines.base import RawFile
from worker.errors import OutputEmpty, OutputMismatch
from worker.files import kind_of, made

WHOLE = (mp4(), mp4(b"qt  "), riff(b"WEBP"), wav(), ogg(b"OpusHead"), matroska(b"webm"), glb(), safetensors())
NAMES = st.text(max_size=40) | st.sampled_from(["a.mp4", "a.json", "a.stl", "a.latent", "a.svg"])


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A real file with some of its bytes replaced, and cut somewhere."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.binary(max_size=200) | mangled(), NAMES)
def test_any_bytes_are_a_file_or_refused(data: bytes, name: str) -> None:
    """Never another error; what is taken is what was given, under an extension that is safe in a key."""
    try:
        file = made(RawFile(data, name), 0)
    except (OutputEmpty, OutputMismatch):
        return
    assert file.data == data
    assert file.kind.extension.isalnum()
    assert file.name
    assert "/" not in file.name


@given(st.binary(max_size=60), NAMES)
def test_text_is_what_decodes(data: bytes, name: str) -> None:
    """What is served as text can be read as text."""
    if kind_of(data, name).media_type.startswith("text/"):
        assert "\0" not in data.decode()
