"""Names and files of outputs: prefixes, counters, PNG chunks, and the other kinds of media."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.simulators.comfyui.values import NodeFailed


@dataclass(frozen=True)
class Place:
    """Where the next file of a prefix goes."""

    folder: Path
    name: str
    counter: int
    subfolder: str

    def file(self, suffix: str, offset: int = 0, batch: int = 0) -> str:
        """The file's name: prefix, five digits, underscore."""
        return f"{self.name.replace('%batch_num%', str(batch))}_{self.counter + offset:05}_{suffix}"

    def entry(self, file: str, kind: str) -> dict[str, Any]:
        """The file as outputs name it."""
        return {"filename": file, "subfolder": self.subfolder, "type": kind}


def _filled(prefix: str, width: int, height: int) -> str:
    now = time.localtime()
    words = {
        "width": str(width),
        "height": str(height),
        "year": str(now.tm_year),
        "month": f"{now.tm_mon:02}",
        "day": f"{now.tm_mday:02}",
        "hour": f"{now.tm_hour:02}",
        "minute": f"{now.tm_min:02}",
        "second": f"{now.tm_sec:02}",
    }
    return re.sub(r"%(\w+)%", lambda found: words.get(found[1], found[0]), prefix)


def placed(prefix: str, root: Path, size: tuple[int, int] = (0, 0)) -> Place:
    """The next name of a prefix: one more than the highest number that lies there, so numbers of deleted files return.

    Raises `NodeFailed` when the prefix leaves the folder.
    """
    whole = os.path.normpath(_filled(prefix, *size))
    subfolder, name = os.path.dirname(whole), os.path.basename(whole)  # noqa: PTH119, PTH120
    folder = Path(os.path.abspath(root / subfolder))  # noqa: PTH100
    if folder != root and root not in folder.parents:
        message = "**** ERROR: Saving image outside the output folder is not allowed."
        message += f"\n full_output_folder: {folder}\n         output_dir: {root}"
        raise NodeFailed("Exception", f"{message}\n         commonpath: {os.path.commonpath((root, folder))}")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [_number(file.name, name) for file in folder.iterdir()]
    return Place(folder, name, max((n for n in numbers if n is not None), default=0) + 1, subfolder)


def _number(file: str, name: str) -> int | None:
    if not file.startswith(f"{name}_"):
        return None
    digits = file[len(name) + 1 :].partition("_")[0]
    return int(digits) if digits.isdecimal() else 0


def png(image: Image.Image, level: int, texts: Mapping[str, Any]) -> bytes:
    """A PNG with JSON text chunks."""
    info = PngInfo()
    for name, document in texts.items():
        info.add_text(name, json.dumps(document))
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info, compress_level=level)
    return out.getvalue()


def animation(images: Sequence[Image.Image], fmt: str, fps: float, **options: Any) -> bytes:
    """A moving picture in GIF or WEBP."""
    out = io.BytesIO()
    duration = int(1000 / fps)
    images[0].save(out, fmt, save_all=True, append_images=list(images[1:]), duration=duration, **options)
    return out.getvalue()


def video(images: Sequence[Image.Image]) -> bytes:
    """An MP4 container, whose only track data are the frames as JPEG files."""
    data = b"".join(jpeg(image) for image in images)
    kind = b"isom" + struct.pack(">I", 512) + b"isomiso2mp41"
    boxes = ((b"ftyp", kind), (b"mdat", data), (b"moov", b""))
    return b"".join(struct.pack(">I4s", len(body) + 8, name) + body for name, body in boxes)


def flac(seconds: float, rate: int) -> bytes:
    """A FLAC stream header of so long a sound, without frames."""
    samples = int(seconds * rate)
    packed = (rate << 44) | (1 << 41) | (15 << 36) | samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC" + b"\x80" + len(info).to_bytes(3, "big") + info


def latent_file(key: str, texts: Mapping[str, Any]) -> bytes:
    """A safetensors file of one tensor made from the key."""
    data = key.encode()[:64].ljust(64, b"\0")
    header: dict[str, Any] = {"latent_tensor": {"dtype": "F16", "shape": [1, 4, 2, 4], "data_offsets": [0, 64]}}
    if texts:
        header["__metadata__"] = {name: json.dumps(document) for name, document in texts.items()}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def jpeg(image: Image.Image) -> bytes:
    """A preview's encoding."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()
