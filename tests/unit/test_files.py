"""Files are what their bytes show, whatever they are called, and whole as far as they say it themselves."""

from __future__ import annotations

import hashlib
import struct

import pytest

from tests.support.made import (
    a_text,
    a_video,
    animated,
    box,
    glb,
    matroska,
    mp4,
    ogg,
    riff,
    safetensors,
    still,
    wav,
)
from worker import files
from worker.engines.base import RawFile
from worker.errors import OutputEmpty, OutputMismatch
from worker.files import BINARY, NAME_MOST, TEXT, bare, kind_of, made, verify_files

SHOWN: dict[str, tuple[bytes, str, str]] = {
    "mp4": (mp4(), "mp4", "video/mp4"),
    "mov": (mp4(b"qt  "), "mov", "video/quicktime"),
    "old-mov": (box(b"moov", bytes(8)), "mov", "video/quicktime"),
    "m4a": (mp4(b"M4A "), "m4a", "audio/mp4"),
    "avif": (box(b"ftyp", b"avif" + bytes(4)), "avif", "image/avif"),
    "heif": (box(b"ftyp", b"heic" + bytes(4)), "heif", "image/heif"),
    "webm": (matroska(b"webm"), "webm", "video/webm"),
    "mkv": (matroska(b"matroska"), "mkv", "video/x-matroska"),
    "avi": (riff(b"AVI "), "avi", "video/x-msvideo"),
    "gif": (animated("GIF"), "gif", "image/gif"),
    "animated-webp": (animated("WEBP"), "webp", "image/webp"),
    "animated-png": (animated("PNG"), "png", "image/apng"),
    "png": (still("PNG"), "png", "image/png"),
    "jpeg": (still("JPEG"), "jpg", "image/jpeg"),
    "tiff": (still("TIFF"), "tiff", "image/tiff"),
    "wav": (wav(), "wav", "audio/wav"),
    "flac": (b"fLaC\0\0\0\x22", "flac", "audio/flac"),
    "mp3-tagged": (b"ID3\4\0\0", "mp3", "audio/mpeg"),
    "mp3": (b"\xff\xfb\x90\x64" + bytes(9), "mp3", "audio/mpeg"),
    "aac": (b"\xff\xf1\x50\x80" + bytes(9), "aac", "audio/aac"),
    "opus": (ogg(b"OpusHead\1\2"), "opus", "audio/ogg"),
    "vorbis": (ogg(b"\1vorbis"), "ogg", "audio/ogg"),
    "theora": (ogg(b"\x80theora"), "ogv", "video/ogg"),
    "glb": (glb(), "glb", "model/gltf-binary"),
    "gltf": (b' {"asset": {"version": "2.0"}}', "gltf", "model/gltf+json"),
    "safetensors": (safetensors(), "safetensors", "application/octet-stream"),
    "zip": (b"PK\3\4rest", "zip", "application/zip"),
    "json-object": (b'{"tags": [1, NaN]}', "json", "application/json"),
    "json-list": (b"\n [1, 2]", "json", "application/json"),
    "text": ("ein Hündchen".encode(), "txt", "text/plain; charset=utf-8"),
}


@pytest.mark.parametrize("case", SHOWN)
@pytest.mark.parametrize("name", ["output", "output.xyz", "output.exe.mp4"])
def test_the_bytes_decide_and_not_the_name(case: str, name: str) -> None:
    """Whatever a server calls it; a finished file is also taken as whole."""
    data, extension, media_type = SHOWN[case]
    file = made(RawFile(data, name), 0)
    assert (file.kind.extension, file.kind.media_type) == (extension, media_type)


@pytest.mark.parametrize(
    ("data", "name", "extension", "format"),
    [
        (mp4(), "sound.m4a", "m4a", "m4a"),
        (safetensors(), "ComfyUI_00001_.latent", "latent", "safetensors"),
        (b"\0\1 begins with padding", "song.mp3", "mp3", "mp3"),
        (b"\0binary solid", "part.STL", "stl", "stl"),
        (b"1,2\n3,4\n", "table.csv", "csv", "csv"),
        (b"v 1 2 3\n", "mesh.obj", "obj", "obj"),
        (b"12.5", "value.json", "json", "json"),
        (b"# Title", "notes.md", "md", "text"),
    ],
)
def test_a_name_tells_what_bytes_do_not(data: bytes, name: str, extension: str, format: str) -> None:
    """Which of several kinds with the same bytes it is, and what has no signature."""
    kind = kind_of(data, name)
    assert (kind.extension, kind.format) == (extension, format)


@pytest.mark.parametrize("name", ["clip.mp4", "page.html", "sound.wav", "tensor.safetensors", "anything"])
@pytest.mark.parametrize("data", [b"\0\xff\x00\x01 nothing known", b"\xc3\x28 is no UTF-8", b"\xff\xfe\0h"])
def test_what_shows_itself_as_nothing_known_is_binary(name: str, data: bytes) -> None:
    """A format whose files always tell is not believed to a name."""
    assert kind_of(data, name) is BINARY


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\x90\x64",  # layer I
        b"\xff\xeb\x90\x64",  # a version that there is not
        b"\xff\xfb\xf0\x64",  # a bit rate that there is not
        b"\xff\xf1\x7c\x80",  # a sample rate that there is not
        b"\xff",
        b"OggS\0",
        b"RIFF\4\0\0\0ABCD\xff",
        struct.pack("<Q", 4) + b"{\xff\xff}",
        struct.pack("<Q", 400) + b"{}\xff",
        struct.pack("<Q", 3) + b"{1}\xff",
    ],
)
def test_what_only_begins_like_a_format_is_none(data: bytes) -> None:
    """A few bytes that happen to fit are not enough."""
    assert kind_of(data, "x") is BINARY


@pytest.mark.parametrize(("name", "extension"), [("page.html", "txt"), ("icon.svg", "svg"), ("evil.xhtml", "txt")])
def test_no_page_is_served_from_the_store(name: str, extension: str) -> None:
    """A browser shows its source instead of running what a job wrote."""
    kind = kind_of(b"<svg onload='alert(1)'></svg>", name)
    assert (kind.extension, kind.media_type) == (extension, "text/plain; charset=utf-8")


def test_text_that_only_looks_like_json_is_text() -> None:
    """Lines of it, and what is cut off."""
    assert kind_of(b'{"a": 1}\n{"b": 2}', "log") is TEXT
    assert kind_of(b"[half", "log") is TEXT
    assert kind_of(b'"a string"', "caption") is TEXT
    assert kind_of(b"no value", "answer.json") is TEXT


def test_long_text_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its beginning and its name must agree."""
    monkeypatch.setattr(files, "JSON_MOST", 10)
    text = b'{"prompt": "a lighthouse"}'
    assert kind_of(text, "a.json").extension == "json"
    assert kind_of(text, "a.log") is TEXT
    assert kind_of(b"a lighthouse", "a.json") is TEXT


@pytest.mark.parametrize("case", ["mp4", "m4a", "mov", "avi", "animated-webp", "wav", "glb", "safetensors"])
def test_a_file_that_breaks_off_is_refused(case: str) -> None:
    """By the length that it states itself, one byte short."""
    with pytest.raises(OutputMismatch, match=r"file 3 \(x\) breaks off"):
        made(RawFile(SHOWN[case][0][:-1], "x"), 3)


def test_a_video_without_its_index_is_refused() -> None:
    """Its encoder was ended before it wrote where the frames are: no player opens that."""
    with pytest.raises(OutputMismatch, match="no index"):
        made(RawFile(box(b"ftyp", b"isom" + bytes(4)) + box(b"mdat", b"frames"), "x.mp4"), 0)


@pytest.mark.parametrize(
    "data",
    [
        b"RF64" + b"\xff" * 4 + b"WAVE" + b"data",
        b"RIFF" + b"\xff" * 4 + b"WAVE" + b"data",
        box(b"ftyp", b"isom" + bytes(4)) + box(b"moov") + struct.pack(">I4s", 0, b"mdat") + b"to the end",
        box(b"ftyp", b"isom" + bytes(4)) + box(b"moov") + struct.pack(">I4sQ", 1, b"mdat", 20) + b"four",
        mp4() + b"odd",
        box(b"ftyp", b"isom" + bytes(4)) + box(b"moov") + struct.pack(">I4s", 3, b"junk"),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 40) + b'{"a": {"data_offsets": ["x"]}, "b": [1]}',
    ],
)
def test_what_states_no_length_is_not_held_to_one(data: bytes) -> None:
    """Streams, boxes up to the end and of 64 bits, and bytes after the last box."""
    assert made(RawFile(data, "x"), 0).data == data


def test_a_file_without_a_byte_is_empty() -> None:
    """A server that lists a file may not have written it."""
    with pytest.raises(OutputEmpty, match=r"file 2 \(clip\.mp4\) is empty"):
        made(RawFile(b"", "sub/clip.mp4"), 2)


def test_a_text_may_say_nothing() -> None:
    """What a node shows may be empty, which says as much."""
    file = made(RawFile(b"", "9-0.txt"), 0)
    assert (file.kind, file.data) == (TEXT, b"")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\out\\clip.mp4", "clip.mp4"),
        ("a\nb\x00\ud800.txt", "a_b__.txt"),
        ("x" * 300 + ".mp4", "x" * (NAME_MOST - 4) + ".mp4"),
        ("sub/", ""),
    ],
)
def test_a_name_is_no_path_and_prints(name: str, shown: str) -> None:
    """It comes from a server and goes into documents and logs."""
    assert bare(name) == shown


async def test_files_are_numbered_after_the_images() -> None:
    """With the hash of what they hold; one without a name is called by its number."""
    video, text = await verify_files([a_video(), a_text(name="")], first=2)
    assert (video.index, video.name, video.node) == (2, "clip_00001_.mp4", "9")
    assert video.sha256 == hashlib.sha256(video.data).hexdigest()
    assert (text.index, text.name, text.node) == (3, "3.txt", None)
