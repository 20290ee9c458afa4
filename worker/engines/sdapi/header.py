"""Format and size of an image by its first bytes, without decoding it. No I/O."""

from __future__ import annotations

import struct
from typing import NamedTuple

_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})


class Header(NamedTuple):
    """Sizes in pixels; 0 where the header is cut off."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header | None:
    """What the magic bytes say: png, jpeg or webp; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if data[12:16] != b"IHDR" or len(data) < 24:
            return Header("png", 0, 0)
        return Header("png", *struct.unpack(">II", data[16:24]))
    if data.startswith(b"\xff\xd8\xff"):
        return Header("jpeg", *_jpeg(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Header("webp", *_webp(data))
    return None


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return 0, 0
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker in _SOF:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        else:
            at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return 0, 0


def _webp(data: bytes) -> tuple[int, int]:
    kind, rest = data[12:16], data[20:]
    if kind == b"VP8X" and len(rest) >= 10:
        return int.from_bytes(rest[4:7], "little") + 1, int.from_bytes(rest[7:10], "little") + 1
    if kind == b"VP8 " and len(rest) >= 10:
        width, height = struct.unpack("<HH", rest[6:10])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(rest) >= 5:
        bits = int.from_bytes(rest[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return 0, 0
