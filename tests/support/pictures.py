"""Pictures for tests: real ones from a seed, and files with metadata as the image servers write them."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

TEXT = "a cat in the snow ☃, 猫\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 64x48"


@dataclass(frozen=True)
class Sent:
    """An image as an engine hands it over."""

    data: bytes
    seed: int | None = 7


def picture(width: int = 64, height: int = 48, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise under a gradient, different for each seed."""
    noise = Image.frombytes("L", (width, height), random.Random(seed).randbytes(width * height))
    bands = [noise, Image.linear_gradient("L").resize((width, height)), noise.rotate(180)]
    return Image.merge("RGB", bands).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", *, text: str | None = None, **options: Any) -> bytes:
    """The file, with the generation's text where the image servers put it."""
    if text is not None and format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("parameters", text)
        options["pnginfo"] = chunks
    elif text is not None:
        options["exif"] = exif(b"UNICODE\0" + text.encode("utf-16-be"))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(comment: bytes | str) -> bytes:
    """EXIF that holds nothing but a UserComment."""
    tags = Image.Exif()
    tags.endian = ">"
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return tags.tobytes()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def text_of(data: bytes) -> str | None:
    """The generation's text as Automatic1111 reads it back from a file."""
    image = opened(data)
    if "parameters" in image.info:
        return str(image.info["parameters"])
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if comment is None:
        return None
    assert comment.startswith(b"UNICODE\0")
    return str(comment[8:].decode("utf-16-be"))
