"""What a server sent, verified to be the picture that was asked for, and encoded as it is wanted.

Everything here but `verify_all` blocks and belongs in a thread; pillow is loaded at the first picture. Whatever
the bytes are, nothing but the errors of `worker.errors` is raised. Metadata is written where the image servers
write it themselves: a PNG's text `parameters`, and the EXIF UserComment of JPEG and WebP.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, Protocol

from worker.errors import InvalidJob, OutputEmpty, OutputMismatch
from worker.job import EncoderSpec, ImageFormat

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Format = Literal["png", "jpeg", "webp"]

MAX_PIXELS = 8192 * 8192
"""The largest picture that is decoded where the request does not settle the size."""

FLAT_TOLERANCE = 2
"""Levels of 255 by which the pixels of a flat image may differ: what lossy compression makes of one colour. A
dark picture has a wider range, since it takes a single pixel of it to count as a picture."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PRIVATE: dict[Format, frozenset[bytes]] = {
    "png": frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf"}),
    "jpeg": frozenset({b"\xe1", b"\xed", b"\xfe"}),  # APP1 (EXIF, XMP), APP13 (IPTC), COM
    "webp": frozenset({b"EXIF", b"XMP "}),
}
_WEBP_EXIF_AND_XMP = 0b1100
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_JPEG_BARE = frozenset(bytes([marker]) for marker in (0x01, *range(0xD0, 0xD8)))
_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_JPEG_COMMENT_MAX = 65_000
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)
"""What pillow's decoders raise for broken files."""


class Raw(Protocol):
    """An image as an engine hands it over."""

    @property
    def data(self) -> bytes: ...
    @property
    def seed(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are to be stored. ``keep`` leaves the server's bytes as they are; ``quality`` is of jpeg and
    webp, ``lossless`` of webp alone. ``strip`` removes the metadata, without touching the pixels of a kept file.
    ``encoder`` counts where a picture is encoded anew.
    """

    format: ImageFormat = "keep"
    quality: int = 90
    lossless: bool = False
    metadata: Literal["keep", "strip"] = "keep"
    encoder: EncoderSpec = field(default_factory=EncoderSpec)


@dataclass(frozen=True, slots=True)
class Picture:
    """A verified image in its final encoding; sizes in pixels, ``sha256`` of ``data``, ``flat``: of one colour."""

    index: int
    data: bytes = field(repr=False)
    format: Format
    width: int
    height: int
    seed: int | None
    sha256: str
    flat: bool


async def verify_all(
    raws: Sequence[Raw], *, count: int | None, width: int | None, height: int | None, encoding: Encoding
) -> list[Picture]:
    """Verify and encode all images of a job, one after the other in a thread, so that others get their share.

    Raises `OutputEmpty` for fewer images than ``count`` (None: any number is right), `OutputMismatch` for more,
    and what `verified` raises.
    """
    if count is not None and len(raws) < count:
        raise OutputEmpty(f"{len(raws)} images instead of {count}")
    if count is not None and len(raws) > count:
        raise OutputMismatch(f"{len(raws)} images instead of {count}")
    return [
        await asyncio.to_thread(verified, raw, index, width=width, height=height, encoding=encoding)
        for index, raw in enumerate(raws)
    ]


def verified(raw: Raw, index: int, *, width: int | None, height: int | None, encoding: Encoding) -> Picture:
    """The picture in these bytes, fully decoded, of the size expected (None: any), encoded as wanted.

    No more memory is taken than the expected size needs, `MAX_PIXELS` where it is unknown. Raises
    `OutputMismatch` for what is no complete PNG, JPEG or WebP of that size, `InvalidJob` for a picture that the
    wanted format cannot hold.
    """
    try:
        found = sniffed(raw.data)
        parts = list(_parts(raw.data, found))
        image = _decoded(raw.data, found, width, height)
        flat = _is_flat(image)
    except BROKEN as error:
        raise OutputMismatch(f"image {index} cannot be decoded: {type(error).__name__}: {error}") from None
    except OutputMismatch as error:
        raise OutputMismatch(f"image {index} {error}") from None
    stored, data = _encoded(raw.data, found, parts, image, encoding)
    digest = hashlib.sha256(data).hexdigest()
    return Picture(index, data, stored, image.width, image.height, raw.seed, digest, flat)


def sniffed(data: bytes) -> Format:
    """The format that the bytes themselves show; `OutputMismatch` for any other."""
    if data.startswith(_PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise OutputMismatch("is not a PNG, JPEG or WebP")


def _decoded(data: bytes, format: Format, width: int | None, height: int | None) -> Image:
    """The picture with all its pixels; its size is checked before any memory is taken for them."""
    if format == "webp":
        _check_size(_webp_size(data), width, height)
    image = _opened(data, format)
    _check_size(image.size, width, height)
    image.load()
    return image


def _opened(data: bytes, format: Format) -> ImageFile:
    """By the one plugin that is needed: `PIL.Image.open` would load several."""
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    match format:
        case "png":
            return PngImagePlugin.PngImageFile(BytesIO(data))
        case "jpeg":
            return JpegImagePlugin.JpegImageFile(BytesIO(data))
        case "webp":
            return WebPImagePlugin.WebPImageFile(BytesIO(data))


def _check_size(size: tuple[int, int], width: int | None, height: int | None) -> None:
    expected = (width or size[0], height or size[1])
    if size != expected:
        raise OutputMismatch(f"has {size[0]}x{size[1]} pixels instead of {expected[0]}x{expected[1]}")
    if not (width and height) and size[0] * size[1] > MAX_PIXELS:
        raise OutputMismatch(f"has {size[0]}x{size[1]} pixels, more than the {MAX_PIXELS} that are decoded")


def _is_flat(image: Image) -> bool:
    """Whether one would see one colour all over: colours weigh as much as they are opaque, and a shape that is
    drawn by transparency alone is not flat."""
    seen = image
    if image.has_transparency_data:
        seen = image.convert("RGBA").convert("RGBa")
    elif image.mode == "P":
        seen = image.convert("RGB")
    tolerance = FLAT_TOLERANCE * 257 if seen.mode.startswith("I") else FLAT_TOLERANCE
    extrema: Any = seen.getextrema()
    ranges = [extrema] if len(seen.getbands()) == 1 else extrema
    return all(highest - lowest <= tolerance for lowest, highest in ranges)


Part = tuple[bytes, int, int]
"""A chunk or segment of a file: its name, and where it begins and ends."""


def _parts(data: bytes, format: Format) -> Iterator[Part]:
    """The parts of a file up to its end, what follows left out; `OutputMismatch` where it breaks off."""
    match format:
        case "png":
            return _png_parts(data)
        case "jpeg":
            return _jpeg_parts(data)
        case "webp":
            return _webp_parts(data)


def _png_parts(data: bytes) -> Iterator[Part]:
    yield b"", 0, len(_PNG_SIGNATURE)
    at, name, view = len(_PNG_SIGNATURE), b"", memoryview(data)
    while name != b"IEND":
        if at + 12 > len(data):
            raise OutputMismatch("is truncated")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise OutputMismatch("is truncated")
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise OutputMismatch("is corrupt: a checksum is wrong")
        yield name, at, end
        at = end


def _jpeg_parts(data: bytes) -> Iterator[Part]:
    yield b"", 0, 2
    at, name = 2, b""
    while name != b"\xd9":
        marker = _JPEG_MARKER.match(data, at)
        if marker is None:
            raise OutputMismatch("is truncated" if at >= len(data) - 1 else "is corrupt: a segment is missing")
        name, end = marker[1], marker.end()
        if name not in _JPEG_BARE and name != b"\xd9":
            end += struct.unpack_from(">H", data, end)[0]
        if name == b"\xda":
            scan_end = _JPEG_MARKER.search(data, end)
            if scan_end is None:
                raise OutputMismatch("is truncated")
            end = scan_end.start()
        yield name, at, end
        at = end


def _webp_parts(data: bytes) -> Iterator[Part]:
    file_end = 8 + struct.unpack_from("<I", data, 4)[0]
    if file_end > len(data):
        raise OutputMismatch("is truncated")
    yield b"", 0, 12
    at = 12
    while at + 8 <= file_end:
        name, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > file_end:
            raise OutputMismatch("is truncated")
        end = min(at + 8 + length + length % 2, file_end)
        yield name, at, end
        at = end


def _webp_size(data: bytes) -> tuple[int, int]:
    """From the header: pillow takes memory for the canvas as soon as it opens the file."""
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
        case _:
            raise OutputMismatch("is corrupt: a WebP without a picture")


def _stripped(data: bytes, format: Format, parts: list[Part]) -> bytes:
    """The file without its metadata and without what follows its end; the pixels' bytes stay as they are."""
    kept = [data[start:end] for name, start, end in parts if name not in _PRIVATE[format]]
    if format != "webp":
        return b"".join(kept)
    body = bytearray(b"".join(kept))
    struct.pack_into("<I", body, 4, len(body) - 8)
    if body[12:16] == b"VP8X":
        body[20] &= ~_WEBP_EXIF_AND_XMP
    return bytes(body)


def _encoded(data: bytes, found: Format, parts: list[Part], image: Image, encoding: Encoding) -> tuple[Format, bytes]:
    """The file in the wanted format. A PNG wanted as PNG is kept; jpeg and webp get the wanted quality."""
    if encoding.format == "keep" or encoding.format == found == "png":
        return found, data if encoding.metadata == "keep" else _stripped(data, found, parts)
    text = _generation_text(image) if encoding.metadata == "keep" else None
    try:
        return encoding.format, _saved(image, encoding.format, encoding, text)
    except BROKEN as error:
        message = f"an image of {image.width}x{image.height} pixels cannot be stored as {encoding.format}: {error}"
        raise InvalidJob(message, field="output.format") from None


def _saved(image: Image, format: Format, encoding: Encoding, text: str | None) -> bytes:
    from PIL import PngImagePlugin

    shown = _converted(image, format)
    options: dict[str, Any] = {"icc_profile": _fitting_profile(image, shown)}
    if format == "png":
        options["pnginfo"] = chunks = PngImagePlugin.PngInfo()
        if text:
            chunks.add_text("parameters", text)
    else:
        options |= {"quality": encoding.quality, "exif": _exif(text, format) if text else b""}
    options |= _encoder_options(format, encoding)
    shown.info = {}
    file = BytesIO()
    shown.save(file, format=format.upper(), **options)
    return file.getvalue()


def _encoder_options(format: Format, encoding: Encoding) -> dict[str, Any]:
    """The options by pillow's names."""
    spec = encoding.encoder
    match format:
        case "jpeg":
            return {"progressive": spec.progressive, "subsampling": spec.subsampling, "optimize": spec.optimize}
        case "webp":
            told = {"alpha_quality": spec.alpha_quality, "method": spec.effort}
            return {**told, "lossless": encoding.lossless, "exact": encoding.lossless}
    return {}


def _converted(image: Image, format: Format) -> Image:
    """A copy in a mode that the format has; for jpeg, what is transparent becomes white."""
    from PIL.Image import alpha_composite, new

    if image.has_transparency_data:
        full = image.convert("RGBA")
        if format != "jpeg":
            return full
        return alpha_composite(new("RGBA", image.size, "white"), full).convert("RGB")
    if image.mode.startswith("I"):
        return image.point(lambda level: level / 257).convert("L").convert("RGB" if format == "webp" else "L")
    if image.mode in ("1", "L"):
        return image.convert("RGB" if format == "webp" else "L")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _fitting_profile(image: Image, shown: Image) -> bytes | None:
    """The colour profile, where it describes the colours that are stored."""
    profile = image.info.get("icc_profile")
    space = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY"}.get(shown.mode)
    return profile if isinstance(profile, bytes) and profile[16:20] == space else None


def _generation_text(image: Image) -> str | None:
    """The generation's parameters as the server wrote them into the file."""
    text = image.info.get("parameters")
    if isinstance(text, str) and text:
        return str(text)
    try:
        comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except BROKEN:
        return None
    return _comment_text(comment) if isinstance(comment, bytes) else comment if isinstance(comment, str) else None


def _comment_text(comment: bytes) -> str | None:
    """A UserComment's text; UNICODE is big-endian as the image servers write it, unless its zeros say otherwise."""
    kind, body = comment[:8], comment[8:]
    if kind == b"UNICODE\0":
        little = body[1::2].count(0) > body[::2].count(0)
        text = body.decode("utf-16-le" if little else "utf-16-be", "replace").removeprefix("\ufeff")
    elif kind in (b"ASCII\0\0\0", bytes(8)):
        text = body.decode("utf-8", "replace")
    else:
        text = comment.decode("utf-8", "replace")
    return text.rstrip("\0") or None


def _exif(text: str, format: Format) -> bytes:
    """EXIF with the text as Automatic1111 writes it; cut where it exceeds what a JPEG segment holds."""
    from PIL.Image import Exif

    body = text.encode("utf-16-be", "replace")
    if format == "jpeg":
        body = body[:_JPEG_COMMENT_MAX]
    exif = Exif()
    exif.endian = ">"
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + body
    return exif.tobytes()
