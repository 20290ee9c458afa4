"""What the nodes of a graph made: found in the history whatever its kind, chosen, ordered, and told apart. No I/O."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from worker.engines.base import RawFile, RawImage

TEXTS = frozenset({"text", "texts", "string"})
"""Kinds whose plain strings are what the node made; elsewhere they are paths or flags."""

PLACES = ("output", "temp", "input")
_PNG = b"\x89PNG\r\n\x1a\n"
_STILL = (".png", ".jpg", ".jpeg", ".webp")
_NUMBERS = re.compile(r"(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Item:
    """A file in one of the server's folders, made by ``node``; equal wherever it is named again."""

    filename: str
    subfolder: str = ""
    type: str = "output"

    def __str__(self) -> str:
        return f"{self.type} file {self.subfolder + '/' if self.subfolder else ''}{self.filename}"


@dataclass(frozen=True, slots=True)
class Made:
    """One thing that a node made: a file, a picture that came by the socket, or a text."""

    node: str
    item: Item | None = None
    text: str | None = None
    data: bytes | None = None


def listed(outputs: Mapping[str, Any], sent: Mapping[str, Sequence[Made]] | None = None) -> tuple[Made, ...]:
    """Everything that the outputs of a history entry name, and what was sent, by the nodes' ids, each file once."""
    found: list[Made] = []
    seen: set[Item] = set()
    sent = sent or {}
    for node in sorted({*outputs, *sent}, key=in_order):
        for made in [*of_node(node, outputs.get(node)), *sent.get(node, ())]:
            if made.item is None or made.item not in seen:
                found.append(made)
            if made.item is not None:
                seen.add(made.item)
    return tuple(found)


def of_node(node: str, output: Any) -> list[Made]:
    """What one node made: dictionaries with a file name under any kind, and texts."""
    found: list[Made] = []
    for kind, values in output.items() if isinstance(output, Mapping) else ():
        for value in values if isinstance(values, list | tuple) else [values]:
            if (item := item_of(value)) is not None:
                found.append(Made(node, item))
            elif isinstance(value, str) and kind in TEXTS:
                found.append(Made(node, text=value))
    return found


def item_of(value: Any) -> Item | None:
    """The file that a dictionary names; None for anything else, as flags and parameters are."""
    if not isinstance(value, Mapping) or not isinstance(value.get("filename"), str) or not value["filename"]:
        return None
    subfolder, place = value.get("subfolder"), value.get("type")
    return Item(
        value["filename"],
        subfolder if isinstance(subfolder, str) else "",
        place if isinstance(place, str) and place in PLACES else "output",
    )


def chosen(made: Sequence[Made], own: Iterable[str]) -> tuple[Made, ...]:
    """What is the result: previews only of our own nodes, or where there is nothing else; never an input file."""
    own = frozenset(own)
    results = [m for m in made if is_result(m, own)]
    return tuple(results or [m for m in made if m.item is None or m.item.type != "input"])


def is_result(made: Made, own: frozenset[str]) -> bool:
    """Whether this goes out whatever else the graph makes."""
    return made.item is None or made.item.type == "output" or (made.item.type == "temp" and made.node in own)


def in_order(node: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts node ids as people count: 9 before 10, 10 before 10:1."""
    parts = [part for part in _NUMBERS.split(node) if part]
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def sorted_out(
    parts: Sequence[tuple[Made, bytes]], seeds: Sequence[int], count: int | None
) -> tuple[tuple[RawImage, ...], tuple[RawFile, ...]]:
    """Still pictures, with their seeds, and everything else as files with names of their own."""
    images: list[bytes] = []
    files: list[RawFile] = []
    taken: set[str] = set()
    for made, data in parts:
        name = named(made)
        if made.text is None and kind_of(data, name) == "image":
            images.append(data)
        else:
            files.append(RawFile(data, unique(name, taken), made.node))
    return tuple(RawImage(d, s) for d, s in zip(images, shared(seeds, len(images), count), strict=True)), tuple(files)


def shared(seeds: Sequence[int], images: int, count: int | None) -> list[int | None]:
    """A seed for each image: one of its own where there are as many, the only one for all, else unknown."""
    if len(seeds) == images and (count is None or count == images):
        return list(seeds)
    only = seeds[0] if len(set(seeds)) == 1 else None
    return [only] * images


def named(made: Made) -> str:
    """A file name; a text and a picture of the socket have none yet."""
    if made.item is not None:
        return _UNSAFE.sub("_", re.split(r"[/\\]", made.item.filename)[-1]).lstrip(".") or "file"
    return f"{_UNSAFE.sub('_', made.node)}.{'txt' if made.text is not None else 'png'}"


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken already; a text always has one."""
    stem, dot, ending = name.rpartition(".")
    stem, ending = (stem, dot + ending) if dot else (name, "")
    tried = f"{stem}-0{ending}" if ending == ".txt" else name
    number = 0
    while tried in taken:
        number += 1
        tried = f"{stem}-{number}{ending}"
    taken.add(tried)
    return tried


def kind_of(data: bytes, name: str) -> Literal["image", "file"]:
    """``image`` for a still PNG, JPEG or WebP, and for what claims to be one by its name and is not."""
    if data.startswith(_PNG):
        head = data[: data.find(b"IDAT") if b"IDAT" in data[:65536] else 65536]
        return "file" if b"acTL" in head else "image"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "file" if data[12:16] == b"VP8X" and len(data) > 20 and data[20] & 0x02 else "image"
    if data.startswith(b"\xff\xd8\xff"):
        return "image"
    return "image" if name.lower().endswith(_STILL) else "file"


def flaw(data: bytes, width: int | None, height: int | None) -> str | None:
    """Why an image cannot be the one that was asked for, by its first bytes; None where they do not speak against it.

    Sizes in pixels, None where the job leaves them open; they are read of PNG alone, which nearly all graphs save.
    """
    if data.startswith(_PNG):
        if len(data) < 24:
            return "an image is cut off in its header"
        found = struct.unpack(">II", data[16:24])
        wanted = (width or found[0], height or found[1])
        said = f"an image has {found[0]}x{found[1]} pixels instead of {wanted[0]}x{wanted[1]}"
        return None if found == wanted else said
    known = data.startswith(b"\xff\xd8\xff") or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    return None if known else "an image is neither PNG nor JPEG nor WebP"


def ending_of(data: bytes) -> str:
    """What a file of these bytes is called, for what the server tells apart by its name; ``png`` for the unknown."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data[:4] == b"RIFF":
        return {b"WEBP": "webp", b"WAVE": "wav"}.get(data[8:12], "avi")
    for at, magic, ending in _MAGIC:
        if data[at : at + len(magic)] == magic:
            return ending
    return "png"


_MAGIC = (
    (0, b"GIF8", "gif"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypM4A", "m4a"),
    (4, b"ftypqt", "mov"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1a\x45\xdf\xa3", "webm"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"BM", "bmp"),
    (0, b"II*\x00", "tiff"),
    (0, b"MM\x00*", "tiff"),
    (0, b"glTF", "glb"),
)
