"""What a server made beside images, told apart by its bytes: videos, animated images, sound, meshes, latents, text.

The bytes decide. A name counts only for what no bytes tell: a format without a signature, or which of several
extensions fits. What shows itself as nothing known is ``bin``. Text is stored as text only: what a browser would
run as a page (HTML, SVG) is never served as one.

Verified is: not empty, unless it is a text, which may say nothing; text decodes as UTF-8; the length that a RIFF,
glTF, safetensors or MP4 file states is there, and an MP4 has its index. Not verified is what it takes a decoder to
see: that a video or sound plays, how long it is, which codec it holds, what a mesh or latent looks like.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Protocol

import pydantic_core

from worker.errors import OutputEmpty, OutputMismatch

JSON_MOST = 64 * 1024 * 1024
"""Bytes of the longest text that is parsed to see whether it is JSON."""

NAME_MOST = 255
"""Characters of the longest file name that is passed on."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is: the ``format`` that a result names, its extension without the dot, its media type."""

    format: str
    extension: str
    media_type: str


MP4 = Kind("mp4", "mp4", "video/mp4")
MOV = Kind("mov", "mov", "video/quicktime")
M4A = Kind("m4a", "m4a", "audio/mp4")
AVIF = Kind("avif", "avif", "image/avif")
HEIF = Kind("heif", "heif", "image/heif")
WEBM = Kind("webm", "webm", "video/webm")
MKV = Kind("mkv", "mkv", "video/x-matroska")
AVI = Kind("avi", "avi", "video/x-msvideo")
GIF = Kind("gif", "gif", "image/gif")
WEBP = Kind("webp", "webp", "image/webp")
PNG = Kind("png", "png", "image/png")
APNG = Kind("apng", "png", "image/apng")
JPEG = Kind("jpeg", "jpg", "image/jpeg")
WAV = Kind("wav", "wav", "audio/wav")
FLAC = Kind("flac", "flac", "audio/flac")
MP3 = Kind("mp3", "mp3", "audio/mpeg")
AAC = Kind("aac", "aac", "audio/aac")
OGG = Kind("ogg", "ogg", "audio/ogg")
OPUS = Kind("opus", "opus", "audio/ogg")
OGV = Kind("ogv", "ogv", "video/ogg")
GLB = Kind("glb", "glb", "model/gltf-binary")
GLTF = Kind("gltf", "gltf", "model/gltf+json")
STL = Kind("stl", "stl", "model/stl")
SAFETENSORS = Kind("safetensors", "safetensors", "application/octet-stream")
LATENT = Kind("safetensors", "latent", "application/octet-stream")
JSON = Kind("json", "json", "application/json")
TEXT = Kind("text", "txt", "text/plain; charset=utf-8")
BINARY = Kind("bin", "bin", "application/octet-stream")

_SIGNATURES: tuple[tuple[bytes, Kind], ...] = (
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"\xff\xd8\xff", JPEG),
    (b"fLaC", FLAC),
    (b"ID3", MP3),
    (b"glTF", GLB),
    (b"ply\n", Kind("ply", "ply", "application/octet-stream")),
    (b"Kaydara FBX Binary", Kind("fbx", "fbx", "application/octet-stream")),
    (b"\x76\x2f\x31\x01", Kind("exr", "exr", "image/x-exr")),
    (b"II*\0", Kind("tiff", "tiff", "image/tiff")),
    (b"MM\0*", Kind("tiff", "tiff", "image/tiff")),
    (b"PK\3\4", Kind("zip", "zip", "application/zip")),
    (b"%PDF-", Kind("pdf", "pdf", "application/pdf")),
)
_BRANDS = {b"qt  ": MOV, b"M4A ": M4A, b"M4B ": M4A, b"avif": AVIF, b"avis": AVIF} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"mif1", b"msf1"), HEIF
)
_RIFFS = {b"WEBP": WEBP, b"WAVE": WAV, b"AVI ": AVI}
_REFINED = {(MP4, "m4a"): M4A, (SAFETENSORS, "latent"): LATENT}
"""What only a name tells about bytes that several kinds share."""

_UNSIGNED = {"mp3": MP3, "aac": AAC, "stl": STL}
"""Binary formats of which some files begin with nothing that tells them."""

_TEXTS = {
    "csv": Kind("csv", "csv", "text/csv; charset=utf-8"),
    "md": Kind("text", "md", "text/plain; charset=utf-8"),
    "srt": Kind("srt", "srt", "text/plain; charset=utf-8"),
    "svg": Kind("svg", "svg", "text/plain; charset=utf-8"),
    "vtt": Kind("vtt", "vtt", "text/vtt; charset=utf-8"),
    "obj": Kind("obj", "obj", "model/obj"),
    "stl": STL,
}
_WITH_INDEX = frozenset({"mp4", "mov", "m4a"})


class Raw(Protocol):
    """A file as an engine hands it over."""

    @property
    def data(self) -> bytes: ...
    @property
    def name(self) -> str: ...
    @property
    def node(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A verified file; ``index`` among all that a job made, ``name`` a bare file name, ``sha256`` of ``data``."""

    index: int
    data: bytes = field(repr=False)
    name: str
    kind: Kind
    sha256: str
    node: str | None = None


async def verify_files(raws: Sequence[Raw], *, first: int) -> list[MadeFile]:
    """Verify the files of a job, one after the other in a thread; the first gets this index. Raises as `made`."""
    return [await asyncio.to_thread(made, raw, index) for index, raw in enumerate(raws, first)]


def made(raw: Raw, index: int) -> MadeFile:
    """The file with what it is.

    Raises `OutputEmpty` for one without a byte that is no text, `OutputMismatch` for one that is incomplete.
    """
    if not raw.data and not raw.name.lower().endswith(".txt"):
        raise OutputEmpty(f"file {index} ({bare(raw.name)}) is empty")
    kind = kind_of(raw.data, raw.name)
    lack = missing(raw.data, kind)
    if lack:
        raise OutputMismatch(f"file {index} ({bare(raw.name)}) {lack}")
    name = bare(raw.name) or f"{index}.{kind.extension}"
    return MadeFile(index, raw.data, name, kind, hashlib.sha256(raw.data).hexdigest(), raw.node)


def bare(name: str) -> str:
    """The last part of a path, with nothing in it that does not print."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c if c.isprintable() else "_" for c in last)[-NAME_MOST:]


def kind_of(data: bytes, name: str) -> Kind:
    """What these bytes are; the name helps only where they do not tell."""
    extension = PurePosixPath(name).suffix[1:].lower()
    shown = _by_bytes(data)
    if shown is not None:
        return _REFINED.get((shown, extension), shown)
    if is_text(data):
        return _json(data, extension) or _TEXTS.get(extension, TEXT)
    return _UNSIGNED.get(extension, BINARY)


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8 without a null character."""
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def missing(data: bytes, kind: Kind) -> str:
    """What a file lacks by its own account, in words; empty when nothing that is looked at."""
    if kind in (WAV, WEBP, AVI):
        return _lacking(data, _riff_length(data))
    if kind is GLB:
        return _lacking(data, int.from_bytes(data[8:12], "little"))
    if kind.format == "safetensors":
        return _lacking(data, _tensors_end(data))
    if kind.format in _WITH_INDEX:
        names, end = _boxes(data)
        return _lacking(data, end) or ("" if b"moov" in names else "has no index: its encoder did not finish")
    return ""


def _lacking(data: bytes, length: int) -> str:
    return f"breaks off: it has {len(data)} bytes and states {length}" if length > len(data) else ""


def _by_bytes(data: bytes) -> Kind | None:
    for signature, kind in _SIGNATURES:
        if data.startswith(signature):
            return kind
    for look in (_png, _riff, _iso_media, _matroska, _ogg, _mpeg_audio, _safetensors):
        found = look(data)
        if found is not None:
            return found
    return None


def _png(data: bytes) -> Kind | None:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return APNG if 0 < data.find(b"acTL") < data.find(b"IDAT") else PNG


def _riff(data: bytes) -> Kind | None:
    return _RIFFS.get(data[8:12]) if data[:4] in (b"RIFF", b"RF64") else None


def _riff_length(data: bytes) -> int:
    """0 where the writer did not know it: 64-bit files, and those that were written into a pipe."""
    length = int.from_bytes(data[4:8], "little")
    return 0 if data[:4] == b"RF64" or length == 0xFFFFFFFF else 8 + length


def _iso_media(data: bytes) -> Kind | None:
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], MP4)
    return MOV if data[4:8] in (b"moov", b"mdat", b"wide") else None


def _boxes(data: bytes) -> tuple[set[bytes], int]:
    """The names of the outermost boxes of an MP4 or QuickTime file, and where the last one ends."""
    names: set[bytes] = set()
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names.add(name)
        if size == 1 and at + 16 <= len(data):
            size = struct.unpack_from(">Q", data, at + 8)[0]
        if size == 0:
            return names, len(data)
        at += max(size, 8)
    return names, at


def _matroska(data: bytes) -> Kind | None:
    if not data.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    return WEBM if b"\x42\x82\x84webm" in data[:64] else MKV


def _ogg(data: bytes) -> Kind | None:
    """By the first packet, which follows a page header of 27 bytes and its table of segments."""
    if not data.startswith(b"OggS") or len(data) < 27:
        return None
    packet = data[27 + data[26] :][:8]
    return OPUS if packet == b"OpusHead" else OGV if packet[:7] == b"\x80theora" else OGG


def _mpeg_audio(data: bytes) -> Kind | None:
    """A frame's header: eleven set bits, then version, layer, bit rate and sample rate that there are."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    if data[1] & 0xF6 == 0xF0:
        return AAC if data[2] >> 2 & 0xF < 13 else None
    version, layer, rate, samples = data[1] >> 3 & 3, data[1] >> 1 & 3, data[2] >> 4, data[2] >> 2 & 3
    return MP3 if version != 1 and layer == 1 and 0 < rate < 15 and samples < 3 else None


def _safetensors(data: bytes) -> Kind | None:
    return SAFETENSORS if _tensors(data) is not None else None


def _tensors(data: bytes) -> Mapping[str, Any] | None:
    """The header of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or not 2 <= length <= min(len(data) - 8, JSON_MOST):
        return None
    try:
        header = pydantic_core.from_json(data[8 : 8 + length])
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _tensors_end(data: bytes) -> int:
    tensors = (_tensors(data) or {}).values()
    offsets = [one["data_offsets"] for one in tensors if isinstance(one, dict) and "data_offsets" in one]
    ends = [pair[-1] for pair in offsets if isinstance(pair, list) and pair and isinstance(pair[-1], int)]
    return 8 + int.from_bytes(data[:8], "little") + max(ends, default=0)


def _json(data: bytes, extension: str) -> Kind | None:
    """An object or a list, or any value where the name says that it is JSON; glTF has its version in it."""
    begins = data[:64].lstrip()[:1] in (b"{", b"[")
    if len(data) > JSON_MOST:
        return JSON if begins and extension == "json" else None
    if not begins and extension != "json":
        return None
    try:
        document = pydantic_core.from_json(data)
    except ValueError:
        return None
    asset = document.get("asset") if isinstance(document, dict) else None
    return GLTF if isinstance(asset, dict) and "version" in asset else JSON
