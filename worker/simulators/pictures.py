"""Pictures that cost little and look like much: drawn from a key, as heavy as photographs, with metadata."""

from __future__ import annotations

import base64
import binascii
import io
import random

from PIL import Image, ImageDraw, ImageFilter
from PIL.PngImagePlugin import PngInfo

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286


def draw(key: str, width: int, height: int, init: Image.Image | None = None, strength: float = 1.0) -> Image.Image:
    """The picture of this key, the same for ever: soft colours and shapes under a grain.

    ``init`` shines through as far as ``strength`` is below 1.
    """
    rng = random.Random(key)
    size = (max(width, 8), max(height, 8))
    small = Image.frombytes("RGB", (5, 5), rng.randbytes(75)).resize((192, 192), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(small)
    for _ in range(4):
        x, y, r = rng.randrange(192), rng.randrange(192), rng.randrange(12, 54)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    scene = small.filter(ImageFilter.GaussianBlur(1.5)).resize(size, Image.Resampling.BICUBIC)
    if init is not None:
        scene = Image.blend(init.convert("RGB").resize(size), scene, min(max(strength, 0.0), 1.0))
    grain_size = (max(size[0] // 2, 1), max(size[1] // 2, 1))
    grain = Image.frombytes("L", grain_size, rng.randbytes(grain_size[0] * grain_size[1]))
    grain = grain.resize(size, Image.Resampling.BILINEAR)
    return Image.blend(scene, Image.merge("RGB", (grain, grain, grain)), 0.18)


def blurred(picture: Image.Image) -> Image.Image:
    """What the picture looks like when its denoising was cut short."""
    small = picture.resize((max(picture.width // 16, 1), max(picture.height // 16, 1)))
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def flat(width: int, height: int, colour: tuple[int, int, int]) -> Image.Image:
    """One colour everywhere."""
    return Image.new("RGB", (width, height), colour)


def grid(pictures: list[Image.Image]) -> Image.Image:
    """All pictures side by side."""
    sheet = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet


def encode(picture: Image.Image, samples_format: str, quality: int, text: str) -> bytes:
    """File bytes with ``text`` as generation metadata; empty text leaves none. Raises `KeyError` for other formats."""
    out = io.BytesIO()
    match FORMATS[samples_format.lower()]:
        case "PNG":
            info = PngInfo()
            if text:
                info.add_text("parameters", text)
            picture.save(out, "PNG", pnginfo=info, compress_level=1)
        case kind:
            picture.save(out, kind, quality=quality, exif=_exif(text))
    return out.getvalue()


def _exif(text: str) -> bytes:
    exif = Image.Exif()
    if text:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def metadata(data: bytes) -> str:
    """The generation metadata of a file, empty where there is none."""
    with Image.open(io.BytesIO(data)) as picture:
        if "parameters" in picture.info:
            return str(picture.info["parameters"])
        comment = picture.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"")
    return bytes(comment).removeprefix(b"UNICODE\0").decode("utf-16-be")


def decode_base64_image(value: str) -> Image.Image:
    """An image from base64, with or without a data-URI prefix. Raises `ValueError` for anything else."""
    if value.startswith("data:image/"):
        value = value.partition(",")[2]
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(value)))
        picture.load()
    except (binascii.Error, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image: {error}") from error
    return picture


def to_base64(data: bytes) -> str:
    """Bare base64, no data-URI prefix."""
    return base64.b64encode(data).decode("ascii")
