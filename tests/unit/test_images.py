"""Images are what was asked for, and leave in the encoding that was asked for."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import zlib
from typing import Any, Literal

import pytest
from PIL import Image, ImageCms

from tests.support.pictures import TEXT, Sent, encoded, exif, opened, picture, text_of
from worker.errors import InvalidJob, OutputEmpty, OutputMismatch
from worker.images import MAX_PIXELS, Encoding, Picture, verified, verify_all

FORMATS = ("png", "jpeg", "webp")
TARGETS: tuple[Literal["jpeg", "webp"], ...] = ("jpeg", "webp")
LOSSLESS: dict[str, Any] = {"png": {}, "jpeg": {"quality": 95}, "webp": {"lossless": True}}
KEEP = Encoding()
STRIP = Encoding(metadata="strip")


def look(data: bytes, encoding: Encoding = KEEP, *, size: tuple[int | None, int | None] = (64, 48)) -> Picture:
    return verified(Sent(data), 0, width=size[0], height=size[1], encoding=encoding)


def to(format: Literal["keep", "png", "jpeg", "webp"], **options: Any) -> Encoding:
    return Encoding(format=format, **options)


def file(format: str, image: Image.Image | None = None, **options: Any) -> bytes:
    return encoded(image or picture(), format.upper(), **LOSSLESS[format] | options)


@pytest.mark.parametrize("format", FORMATS)
def test_keep_leaves_the_bytes_untouched(format: str) -> None:
    """`keep` stores exactly what the server sent, under the hash of exactly that."""
    data = file(format, text=TEXT)
    found = look(data)
    assert found == Picture(0, data, format, 64, 48, 7, hashlib.sha256(data).hexdigest(), False)  # type: ignore[arg-type]


def test_prompts_stay_out_of_reprs() -> None:
    """Printing a picture prints none of its bytes."""
    assert "data" not in repr(look(file("png", text=TEXT)))


@pytest.mark.parametrize("format", FORMATS)
def test_strip_removes_metadata_and_no_pixel(format: str) -> None:
    """`keep` with `strip` drops the metadata segments and leaves every byte of the pixels as it is."""
    clean, full = file(format), file(format, text=TEXT)
    found = look(full, STRIP)
    assert text_of(full) == TEXT
    assert text_of(found.data) is None
    assert opened(found.data).tobytes() == opened(full).tobytes()
    assert found.sha256 == hashlib.sha256(found.data).hexdigest()
    if format != "webp":
        assert found.data == clean


def test_strip_drops_every_kind_of_text_of_a_png() -> None:
    """All four kinds of chunk that can hold a prompt go, and so does what follows the end of the file."""
    data = file("png", text=TEXT, exif=exif("secret"))
    plain = data[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"secret")) + chunk(b"tEXt", b"k\0secret") + data[33:]
    found = look(plain + b"secret", STRIP).data
    assert [name for name in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"secret") if name in found] == []
    assert opened(found).tobytes() == opened(data).tobytes()


def test_strip_drops_every_kind_of_text_of_a_jpeg() -> None:
    """EXIF, XMP, comments and what follows the end of the file go; the colour profile stays."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = file("jpeg", comment="secret", xmp=b"<x>secret</x>", exif=exif("secret"), icc_profile=profile)
    found = look(data + b"secret", STRIP).data
    assert data.count(b"secret") == 3
    assert b"secret" not in found
    assert opened(found).info["icc_profile"] == profile


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}])
def test_strip_reads_every_kind_of_jpeg(options: dict[str, Any]) -> None:
    """Several scans, restart markers and stuffed bytes are walked over correctly."""
    data = file("jpeg", text=TEXT, **options)
    found = look(data, STRIP).data
    assert text_of(found) is None
    assert opened(found).tobytes() == opened(data).tobytes()


@pytest.mark.parametrize("lossless", [True, False])
def test_strip_leaves_a_valid_webp(lossless: bool) -> None:
    """Without EXIF and XMP the header claims neither, and its length is right."""
    image = picture(mode="RGBA")
    data = encoded(image, "WEBP", lossless=lossless, exif=exif("secret"), xmp=b"<x>secret</x>")
    found = look(data, STRIP).data
    assert b"secret" not in found
    assert struct.unpack_from("<I", found, 4)[0] == len(found) - 8
    assert found[20] & 0b1100 == 0
    assert opened(found).tobytes() == opened(data).tobytes()


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_converting_keeps_the_generation_text(source: str, target: Literal["png", "jpeg", "webp"]) -> None:
    """The text that Automatic1111 reads back survives each conversion, and `strip` takes it away."""
    data = file(source, text=TEXT)
    kept, stripped = look(data, to(target)), look(data, to(target, metadata="strip"))
    assert kept.format == stripped.format == target
    assert opened(kept.data).format == target.upper()
    assert opened(kept.data).size == (kept.width, kept.height) == (64, 48)
    assert text_of(kept.data) == TEXT
    assert text_of(stripped.data) is None
    assert "comment" not in opened(stripped.data).info


def test_png_as_png_is_kept() -> None:
    """A PNG that is wanted as PNG is not encoded again."""
    data = file("png", text=TEXT)
    assert look(data, to("png")).data == data
    assert look(data, to("png", metadata="strip")).data == file("png")


def test_lossless_webp_holds_every_pixel() -> None:
    """`lossless` keeps the very colours, those under transparent pixels too."""
    image = picture(mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    found = look(file("png", image), to("webp", lossless=True))
    assert opened(found.data).tobytes() == image.tobytes()


def test_quality_makes_smaller_files() -> None:
    """`quality` reaches the encoder, from a file of the same format too."""
    data = file("jpeg")
    for target in TARGETS:
        sizes = [len(look(data, to(target, quality=quality)).data) for quality in (10, 50, 95)]
        assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("target", ["jpeg", "webp"])
def test_every_kind_of_png_converts(mode: str, target: Literal["jpeg", "webp"]) -> None:
    """Grey, palette, deep and transparent pictures come out looking the same."""
    grey = Image.linear_gradient("L").resize((64, 48))
    if mode == "I;16":
        image = Image.frombytes("I;16", grey.size, b"".join(struct.pack("<H", v * 257) for v in grey.tobytes()))
    else:
        image = grey.convert("RGB").convert(mode)
    found = opened(look(file("png", image), to(target, quality=95)).data).convert("L")
    pairs = zip(found.tobytes(), image.convert("L").tobytes() if mode in ("1", "P") else grey.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= (60 if mode == "1" else 12)


def test_cmyk_jpeg_converts() -> None:
    """The colours of print become those of a screen."""
    data = encoded(picture().convert("CMYK"), "JPEG")
    assert [opened(look(data, to(f)).data).mode for f in ("png", "webp", "jpeg")] == ["RGB"] * 3


def test_transparency_becomes_white_in_a_jpeg() -> None:
    """JPEG has no alpha: what one would see through is white."""
    image = picture(mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 48))
    found = opened(look(file("png", image), to("jpeg", quality=95)).data)
    assert min(found.getpixel((4, 4))) > 245  # type: ignore[arg-type]


def test_fitting_profiles_stay() -> None:
    """A colour profile is kept where it describes the stored colours, and dropped where it does not."""
    colour = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for target in TARGETS:
        kept = look(file("png", icc_profile=colour), to(target, metadata="strip"))
        assert opened(kept.data).info["icc_profile"] == colour
    grey = bytes(16) + b"GRAY" + bytes(108)
    of_grey = file("png", picture(mode="L"), icc_profile=grey)
    assert opened(look(of_grey, to("jpeg")).data).info["icc_profile"] == grey
    assert "icc_profile" not in opened(look(of_grey, to("webp")).data).info


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "cat ☃".encode("utf-16-be"), "cat ☃"),
        (b"UNICODE\0" + "cat ☃".encode("utf-16-le"), "cat ☃"),
        (b"ASCII\0\0\0cat", "cat"),
        (bytes(8) + b"cat\0\0", "cat"),
        (b"plain cat", "plain cat"),
        ("cat", "cat"),
        (b"UNICODE\0", None),
    ],
)
def test_comments_of_all_writers_are_read(comment: bytes | str, text: str | None) -> None:
    """Whatever program wrote a UserComment, its text goes over into the PNG."""
    assert text_of(look(file("jpeg", exif=exif(comment)), to("png")).data) == text


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_costs_only_itself() -> None:
    """A picture whose EXIF cannot be read is a good picture without text."""
    data = file("jpeg", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    assert text_of(look(data, to("png")).data) is None


def test_text_too_long_for_a_jpeg_is_cut() -> None:
    """A JPEG segment holds 64 KB: a longer text loses its end, no more."""
    text = "abcd" * 25_000
    found = text_of(look(file("png", text=text), to("jpeg")).data)
    assert found
    assert len(found) == 32_500
    assert text.startswith(found)
    assert text_of(look(file("png", text=text), to("webp")).data) == text


@pytest.mark.parametrize("target", ["jpeg", "webp"])
def test_pictures_too_wide_for_a_format_are_refused(target: Literal["jpeg", "webp"]) -> None:
    """What a format cannot hold is the job's mistake, named by field."""
    data = file("png", Image.linear_gradient("L").resize((70_000, 1)))
    with pytest.raises(InvalidJob, match=f"cannot be stored as {target}") as caught:
        look(data, to(target), size=(None, None))
    assert caught.value.errors[0].field == "output.format"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(64, 49), (63, 48), (None, 49), (63, None)])
def test_another_size_is_a_mismatch(format: str, size: tuple[int | None, int | None]) -> None:
    """Each side that the request settles must be as asked; the message says both."""
    with pytest.raises(OutputMismatch, match="image 0 has 64x48 pixels instead of"):
        look(file(format), size=size)


@pytest.mark.parametrize("size", [(64, 48), (64, None), (None, 48), (None, None)])
def test_unsettled_sides_may_be_anything(size: tuple[int | None, int | None]) -> None:
    """None expects nothing."""
    assert look(file("png"), size=size).width == 64


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_truncated_files_are_mismatches(format: str, options: dict[str, Any]) -> None:
    """However little of the end is missing, the picture does not count."""
    data = file(format, **options if format == "jpeg" else {})
    for cut in {1, 2, 3, 4, 8, 11, 12, 13, 50, len(data) // 2, len(data) - 13, len(data) - 30}:
        with pytest.raises(OutputMismatch, match="image 0 "):
            look(data[:-cut])


def test_flipped_bits_of_a_png_are_found() -> None:
    """Every byte of a PNG is covered by a checksum."""
    data = file("png")
    for at in range(8, len(data), 97):
        with pytest.raises(OutputMismatch):
            look(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"<html>",
        encoded(picture(), "GIF"),
        encoded(picture(), "BMP"),
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\0",
        b"RIFF\x04\0\0\0WEBP",
        b"RIFF\x10\0\0\0WEBPABCD\x04\0\0\0abcd",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\x3f\0\0\x2f\0\0",
    ],
)
def test_what_is_no_picture_is_a_mismatch(data: bytes) -> None:
    """HTML, JSON, other formats and bare headers are refused by our own error."""
    with pytest.raises(OutputMismatch):
        look(data)


def bomb(format: str) -> bytes:
    """A small file that claims 16000x16000 pixels."""
    if format == "png":
        header = struct.pack(">IIBBBBB", 16_000, 16_000, 8, 2, 0, 0, 0)
        scan = zlib.compress(bytes(1000))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", scan) + chunk(b"IEND", b"")
    if format == "jpeg":
        data = bytearray(file("jpeg"))
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", 16_000, 16_000)
        return bytes(data)
    side = (15_999).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + side + side


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("size", "message"), [((64, 48), "instead of"), ((None, None), "more than"), ((None, 16_000), "more than")]
)
def test_bombs_are_never_decoded(format: str, size: tuple[int | None, int | None], message: str) -> None:
    """A file that claims more pixels than expected is refused by its header, before memory is taken."""
    assert MAX_PIXELS < 16_000**2
    with pytest.raises(OutputMismatch, match=message):
        look(bomb(format), size=size)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (127, 20, 200)])
def test_one_colour_is_flat(format: str, colour: tuple[int, int, int]) -> None:
    """Black as after NaN, or any other single colour, in every format."""
    assert look(file(format, Image.new("RGB", (64, 48), colour))).flat


def flat(image: Image.Image) -> bool:
    return look(encoded(image), size=image.size).flat


def test_dark_pictures_are_not_flat() -> None:
    """A night sky of levels 0 to 5 is a picture, and so is a single star."""
    assert not flat(picture().point(lambda level: level // 50))
    star = Image.new("RGB", (512, 512))
    star.putpixel((100, 100), (9, 9, 9))
    assert not flat(star)


def test_the_tolerance_is_two_levels() -> None:
    """Two levels of difference are the encoder's, three are a picture's."""
    for level, expected in ((2, True), (3, False)):
        image = Image.new("RGB", (64, 48))
        image.putpixel((0, 0), (0, level, 0))
        assert flat(image) is expected


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_flatness_in_every_mode(mode: str) -> None:
    """Grey, palette and deep pictures are judged as well."""
    assert flat(Image.new(mode, (64, 48), 1))
    image = Image.new(mode, (64, 48), 0)
    image.putpixel((1, 1), {"1": 1, "I;16": 600}.get(mode, 200))
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    assert not flat(image)


def test_alpha_counts() -> None:
    """Nothing to see is flat whatever lies beneath; a shape drawn by transparency alone is a picture."""
    hidden = picture(mode="RGBA")
    hidden.putalpha(0)
    assert flat(hidden)
    shape = Image.new("RGBA", (64, 48), (10, 10, 10, 255))
    assert flat(shape)
    shape.paste((10, 10, 10, 0), (0, 0, 9, 9))
    assert not flat(shape)
    palette = Image.new("P", (64, 48), 0)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putpixel((3, 3), 1)
    assert flat(opened(encoded(palette, transparency=b"\0\0")))
    assert not flat(opened(encoded(palette, transparency=b"\xff\xff")))


async def test_all_images_of_a_job() -> None:
    """Pictures come in the order of the images, with their index and seed."""
    raws = [Sent(file("png", picture(seed=seed)), seed) for seed in range(3)]
    found = await verify_all(raws, count=3, width=64, height=48, encoding=Encoding())
    assert [(p.index, p.seed, p.data) for p in found] == [(i, i, raw.data) for i, raw in enumerate(raws)]


async def test_the_count_is_verified() -> None:
    """Fewer images than asked for are an empty output, more are another output than asked for."""
    raws = [Sent(file("png"))] * 2
    with pytest.raises(OutputEmpty, match="2 images instead of 3"):
        await verify_all(raws, count=3, width=64, height=48, encoding=Encoding())
    with pytest.raises(OutputMismatch, match="2 images instead of 1"):
        await verify_all(raws, count=1, width=64, height=48, encoding=Encoding())


async def test_the_message_names_the_image() -> None:
    """Of several images the one that is wrong is named."""
    raws = [Sent(file("png")), Sent(b"<html>")]
    with pytest.raises(OutputMismatch, match="image 1 is not a PNG, JPEG or WebP"):
        await verify_all(raws, count=2, width=64, height=48, encoding=Encoding())


def test_pillow_is_loaded_at_the_first_picture() -> None:
    """Importing the module costs no codec."""
    script = "import sys, worker.images; sys.exit(any(name.startswith('PIL') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
