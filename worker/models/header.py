"""What a model file shows at its beginning: whether it can be the model that its name says. Reads no tensors.

A safetensors file tells its own length, so one that is cut off shows itself. Of the other formats only the
beginning is known: a cut-off one is found by its size or hash alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import pydantic_core

from worker.errors import ModelCorrupt
from worker.models.identity import is_pickle

SAFETENSORS = (".safetensors", ".sft")
HEADER_MOST = 100_000_000
"""Bytes of the longest header that the format's own library reads."""

HEAD = 512
"""Bytes of a file's beginning that `looks_wrong` wants to see."""

_PARSED_MOST = 32_000_000
"""A longer header is searched and not parsed: its objects would take a gigabyte of memory."""

_PICKLED = (b"PK\x03\x04", *(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5)))
_GGUF = (b"GGUF",)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<error", b"<script", b"<!--")
_DOCUMENTS = (b"{", b"[")
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*(\d{1,18})\s*,\s*(\d{1,18})\s*\]')


def check_model_file(path: Path, name: str) -> None:
    """Raise `ModelCorrupt` when the file cannot be a model of the format that ``name`` ends with.

    ``path`` may have any name. An empty file, a web page or an error document is no model whatever it is called; a
    safetensors file must have its tensors side by side up to its very end. Other formats must begin as they do, and
    an unknown extension may hold any bytes but those of a pickle, which would run code when it is loaded. Raises
    `OSError` for what cannot be read. Reads the header only.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        wrong = looks_wrong(file.read(HEAD), name)
        if not wrong and is_safetensors(name):
            file.seek(0)
            wrong = _tensors_wrong(file, size)
    if wrong:
        raise ModelCorrupt(f"{name} {wrong}")


def looks_wrong(head: bytes, name: str) -> str:
    """Why these first bytes (`HEAD` of them, or all that there are) cannot begin such a file; empty when they can."""
    if not head:
        return "is empty"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return "is a web page and no model"
    if text.startswith(_DOCUMENTS) and b"\0" not in head:
        return "is a JSON document and no model"
    lower = name.lower()
    if lower.endswith(SAFETENSORS):
        length = int.from_bytes(head[:8], "little")
        return "" if head[8:9] == b"{" and length <= HEADER_MOST else "is no safetensors file"
    if lower.endswith(".gguf"):
        return "" if head.startswith(_GGUF) else "is no GGUF file"
    if is_pickle(name):
        return "" if head.startswith(_PICKLED) else "is no file that PyTorch saved"
    return "is a file that PyTorch saved, under another name" if head.startswith(_PICKLED) else ""


def is_safetensors(name: str) -> bool:
    return name.lower().endswith(SAFETENSORS)


def _tensors_wrong(file: BinaryIO, size: int) -> str:
    """What is wrong with a safetensors file of so many bytes: eight of length, a JSON header, then the tensors."""
    length = int.from_bytes(file.read(8), "little")
    if length < 2 or 8 + length > size:
        return f"breaks off in its header: it has {size} bytes"
    header = file.read(length)
    pairs = _parsed(header) if length <= _PARSED_MOST else _searched(header)
    if pairs is None:
        return "has a safetensors header that cannot be read"
    end = _end_of(sorted(pairs))
    if end is None:
        return "has tensors that overlap or leave a gap"
    stated = 8 + length + end
    if stated > size:
        return f"breaks off: it has {size} bytes and states {stated}"
    return f"has {size - stated} bytes behind its last tensor" if stated < size else ""


def _parsed(header: bytes) -> list[tuple[int, int]] | None:
    """The tensors' first byte and the one after their last; None when this is no header."""
    try:
        document = pydantic_core.from_json(header)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    pairs = [_pair(tensor) for name, tensor in document.items() if name != "__metadata__"]
    found = [pair for pair in pairs if pair is not None]
    return found if len(found) == len(pairs) else None


def _pair(tensor: Any) -> tuple[int, int] | None:
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        return None
    return offsets[0], offsets[1]


def _searched(header: bytes) -> list[tuple[int, int]] | None:
    """As `_parsed`, without making objects of all the rest; a quote inside of a text would be escaped."""
    if not header.rstrip().endswith(b"}"):
        return None
    return [(int(found[1]), int(found[2])) for found in _OFFSETS.finditer(header)]


def _end_of(pairs: list[tuple[int, int]]) -> int | None:
    """Where the last tensor ends when each begins where the one before it ended; None when they do not."""
    at = 0
    for begin, end in pairs:
        if begin != at or end < begin:
            return None
        at = end
    return at
