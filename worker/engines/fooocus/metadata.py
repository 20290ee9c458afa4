"""Size and generation metadata of a PNG, read without decoding it. No I/O."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

from worker.engines.answer import parsed

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MODEL = re.compile(r"(?:^|, )Model: ([^,\n]*)")
_MODEL_HASH = re.compile(r"(?:^|, )Model hash: ([0-9a-f]{10})")
_HASH10 = re.compile(r"[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class Saved:
    """What a saved file tells: size in pixels (0 where the header is cut off), and what made it, if it says so."""

    width: int
    height: int
    model: str | None = None
    hash10: str | None = None
    version: str | None = None
    info: Any = None


def saved(data: bytes) -> Saved | None:
    """None for anything but a PNG."""
    if not data.startswith(_SIGNATURE):
        return None
    if data[12:16] != b"IHDR" or len(data) < 24:
        return Saved(0, 0)
    width, height = struct.unpack(">II", data[16:24])
    text = _text(data)
    if text is None:
        return Saved(width, height)
    info = parsed(text)
    if isinstance(info, dict):
        hashed = _string(info.get("base_model_hash"))
        known = hashed if hashed is not None and _HASH10.fullmatch(hashed) else None
        return Saved(width, height, _string(info.get("base_model")), known, _string(info.get("version")), info)
    line = ("\n" + text.decode("utf-8", "replace")).rpartition("\nSteps: ")[2].split("\n", 1)[0]
    model, hashed_too = _MODEL.search(line), _MODEL_HASH.search(line)
    return Saved(width, height, model[1].strip() if model else None, hashed_too[1] if hashed_too else None)


def _text(data: bytes) -> bytes | None:
    """The chunk ``parameters``, which stands before the pixels."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IDAT":
            return None
        if kind == b"tEXt" and body.startswith(b"parameters\0"):
            return body[11:].decode("latin-1").encode()
        if kind == b"iTXt" and body.startswith(b"parameters\0\0\0"):
            return body[13:].split(b"\0", 2)[-1]
        at += 12 + length
    return None


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
