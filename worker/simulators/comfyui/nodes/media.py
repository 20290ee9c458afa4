"""Nodes that read pictures, change them, and put out pictures, sounds and other files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from worker.simulators.comfyui import saving
from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import (
    HIDDEN,
    MAX_RESOLUTION,
    MAX_SEED,
    InputSpec,
    NodeSpec,
    Uploads,
    choice,
    integer,
    link,
    number,
    text,
)
from worker.simulators.comfyui.values import Audio, Images, Latent, NodeFailed, Result

_UPLOAD = InputSpec(Uploads(), {"image_upload": True})
_SCALES = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
_RESAMPLING = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise NodeFailed("FileNotFoundError", f"[Errno 2] No such file or directory: '{path}'") from error
    except UnidentifiedImageError as error:
        raise NodeFailed("PIL.UnidentifiedImageError", f"cannot identify image file '{path}'") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise NodeFailed(type(error).__name__, str(error)) from error


async def _read(call: NodeCall, name: str) -> Image.Image:
    await call.pause(call.knobs.encode_seconds)
    return await asyncio.to_thread(_opened, call.folders.annotated(name))


async def _load_image(call: NodeCall, inputs: dict[str, Any]) -> Result:
    image = await _read(call, inputs["image"])
    mask = ImageOps.invert(image.getchannel("A")) if "A" in image.getbands() else Image.new("L", (64, 64), 0)
    return Result(((image.convert("RGB"),), (mask,)))


async def _load_mask(call: NodeCall, inputs: dict[str, Any]) -> Result:
    image = (await _read(call, inputs["image"])).convert("RGBA")
    channel = image.getchannel(inputs["channel"][0].upper())
    return Result(((ImageOps.invert(channel) if inputs["channel"] == "alpha" else channel,),))


async def _to_mask(_: NodeCall, inputs: dict[str, Any]) -> Result:
    band = inputs["channel"][0].upper()
    return Result((tuple(image.convert("RGBA").getchannel(band) for image in inputs["image"]),))


async def _scale(_: NodeCall, inputs: dict[str, Any]) -> Result:
    images: Images = inputs["image"]
    width, height = inputs["width"], inputs["height"]
    if width == 0 and height == 0:
        return Result((images,))
    width = width or max(1, round(images[0].width * height / images[0].height))
    height = height or max(1, round(images[0].height * width / images[0].width))
    how = _RESAMPLING[inputs["upscale_method"]]
    if inputs["crop"] == "center":
        return Result((tuple(ImageOps.fit(image, (width, height), how) for image in images),))
    return Result((tuple(image.resize((width, height), how) for image in images),))


async def _upscale(call: NodeCall, inputs: dict[str, Any]) -> Result:
    images: Images = inputs["image"]
    await call.progress(0, 1)
    await call.pause(call.knobs.step_seconds)
    call.must_fit(sum(image.width * image.height * 16 for image in images))
    await call.progress(1, 1)
    return Result((tuple(image.resize((image.width * 4, image.height * 4)) for image in images),))


async def _empty_image(_: NodeCall, inputs: dict[str, Any]) -> Result:
    colour = inputs["color"]
    rgb = (colour >> 16 & 255, colour >> 8 & 255, colour & 255)
    return Result(((Image.new("RGB", (inputs["width"], inputs["height"]), rgb),) * inputs["batch_size"],))


async def _empty_audio(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((Audio(inputs["duration"], inputs["sample_rate"]),))


def _written(call: NodeCall, path: Path, data: bytes) -> None:
    if call.fault and call.fault.kind == "truncated_image":
        data = data[: len(data) // 2]
    if call.fault and call.fault.kind == "not_an_image":
        data = b"<html><body>Bad Gateway</body></html>"
    if not (call.end_fault and call.end_fault.kind == "missing_file"):
        path.write_bytes(data)


async def _save(call: NodeCall, images: Images, prefix: str, kind: str, level: int) -> Result:
    await call.pause(call.knobs.save_seconds)
    place = saving.placed(prefix, call.folders.base / kind, images[0].size)
    entries = []
    short = call.fault is not None and call.fault.kind == "short_count"
    for n, image in enumerate(images[:-1] if short else images):
        file = place.file(".png", n, n)
        data = await asyncio.to_thread(saving.png, image, level, call.texts)
        _written(call, place.folder / file, data)
        entries.append(place.entry(file, kind))
    return Result((images,), {"images": entries})


async def _save_image(call: NodeCall, inputs: dict[str, Any]) -> Result:
    return await _save(call, inputs["images"], inputs.get("filename_prefix", "ComfyUI"), "output", 4)


async def _preview_image(call: NodeCall, inputs: dict[str, Any]) -> Result:
    return await _save(call, inputs["images"], f"ComfyUI_temp_{call.letters}", "temp", 1)


async def _websocket(call: NodeCall, inputs: dict[str, Any]) -> Result:
    images: Images = inputs["images"]
    await call.pause(call.knobs.save_seconds)
    for n, image in enumerate(images):
        data = await asyncio.to_thread(saving.png, image, 1, {})
        await call.progress(n, len(images), ("PNG", data))
    return Result()


async def _one_file(
    call: NodeCall, prefix: str, suffix: str, make: Callable[[], bytes], kind: str = "output"
) -> dict[str, Any]:
    await call.pause(call.knobs.save_seconds)
    place = saving.placed(prefix, call.folders.base / kind)
    file = place.file(suffix)
    _written(call, place.folder / file, await asyncio.to_thread(make))
    return place.entry(file, kind)


async def _animated(call: NodeCall, inputs: dict[str, Any]) -> Result:
    images, options = inputs["images"], {"lossless": inputs["lossless"], "quality": inputs["quality"]}

    def make() -> bytes:
        return saving.animation(images, "WEBP", inputs["fps"], **options)

    entry = await _one_file(call, inputs["filename_prefix"], ".webp", make)
    return Result(ui={"images": [entry], "animated": [len(images) != 1]})


async def _combine(call: NodeCall, inputs: dict[str, Any]) -> Result:
    images, fps, fmt = inputs["images"], inputs["frame_rate"], inputs["format"]

    def make() -> bytes:
        if fmt.startswith("video/"):
            return saving.video(images)
        return saving.animation(images, fmt.removeprefix("image/").upper(), fps)

    suffix = ".mp4" if fmt.startswith("video/") else f".{fmt.removeprefix('image/')}"
    kind = "output" if inputs["save_output"] else "temp"
    entry = await _one_file(call, inputs["filename_prefix"], suffix, make, kind)
    workflow = entry["filename"].removesuffix(suffix) + ".png"
    path = call.folders.base / kind / entry["subfolder"]
    _written(call, path / workflow, saving.png(images[0], 4, call.texts))
    more = {"format": fmt, "frame_rate": fps, "workflow": workflow, "fullpath": str(path / entry["filename"])}
    return Result(outputs=((bool(inputs["save_output"]), [more["fullpath"]]),), ui={"gifs": [entry | more]})


async def _audio(call: NodeCall, inputs: dict[str, Any]) -> Result:
    audio: Audio = inputs["audio"]
    entry = await _one_file(call, inputs["filename_prefix"], ".flac", lambda: saving.flac(audio.seconds, audio.rate))
    return Result(ui={"audio": [entry]})


async def _latent(call: NodeCall, inputs: dict[str, Any]) -> Result:
    samples: Latent = inputs["samples"]
    entry = await _one_file(
        call, inputs["filename_prefix"], ".latent", lambda: saving.latent_file(samples.key, call.texts)
    )
    return Result(ui={"latents": [entry]})


async def _any(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result(ui={"text": [str(inputs["source"])]})


def file_digest(call_path: Path) -> str:
    """What the loaders of pictures compare to see that a file has changed. Raises `OSError`."""
    return hashlib.sha256(call_path.read_bytes()).hexdigest()


READS_FILE = frozenset({"LoadImage", "LoadImageMask"})
"""Classes whose results depend on the contents of the file that their input `image` names."""

_OUT: dict[str, Any] = {"hidden": HIDDEN, "output_node": True}

MEDIA = (
    NodeSpec(
        "LoadImage",
        _load_image,
        {"image": _UPLOAD},
        outputs=("IMAGE", "MASK"),
        category="image",
        title="Load Image",
    ),
    NodeSpec(
        "LoadImageMask",
        _load_mask,
        {
            "image": InputSpec(Uploads(images_only=False), {"image_upload": True}),
            "channel": choice("alpha", "red", "green", "blue"),
        },
        outputs=("MASK",),
        category="mask",
        title="Load Image (as Mask)",
    ),
    NodeSpec(
        "ImageToMask",
        _to_mask,
        {"image": link("IMAGE"), "channel": choice("red", "green", "blue", "alpha")},
        outputs=("MASK",),
        category="mask",
        title="Convert Image to Mask",
        module="comfy_extras.nodes_mask",
    ),
    NodeSpec(
        "ImageScale",
        _scale,
        {
            "image": link("IMAGE"),
            "upscale_method": choice(*_SCALES),
            "width": integer(512, 0, MAX_RESOLUTION),
            "height": integer(512, 0, MAX_RESOLUTION),
            "crop": choice("disabled", "center"),
        },
        outputs=("IMAGE",),
        category="image/upscaling",
        title="Upscale Image",
    ),
    NodeSpec(
        "ImageUpscaleWithModel",
        _upscale,
        {"upscale_model": link("UPSCALE_MODEL"), "image": link("IMAGE")},
        outputs=("IMAGE",),
        category="image/upscaling",
        title="Upscale Image (using Model)",
        module="comfy_extras.nodes_upscale_model",
        modern=True,
    ),
    NodeSpec(
        "EmptyImage",
        _empty_image,
        {
            "width": integer(512, 1, MAX_RESOLUTION),
            "height": integer(512, 1, MAX_RESOLUTION),
            "batch_size": integer(1, 1, 4096, None),
            "color": integer(0, 0, 0xFFFFFF, display="color"),
        },
        outputs=("IMAGE",),
        category="image",
    ),
    NodeSpec(
        "EmptyAudio",
        _empty_audio,
        {
            "duration": number(60.0, 0.0, float(MAX_SEED)),
            "sample_rate": InputSpec("INT", {"default": 44100}),
            "channels": integer(2, 1, 2, None),
        },
        outputs=("AUDIO",),
        category="audio",
        title="Empty Audio",
        module="comfy_extras.nodes_audio",
    ),
    NodeSpec(
        "SaveImage",
        _save_image,
        {"images": link("IMAGE", tooltip="The pictures to save."), "filename_prefix": text("ComfyUI")},
        category="image",
        title="Save Image",
        **_OUT,
    ),
    NodeSpec(
        "PreviewImage", _preview_image, {"images": link("IMAGE")}, category="image", title="Preview Image", **_OUT
    ),
    NodeSpec(
        "SaveImageWebsocket",
        _websocket,
        {"images": link("IMAGE")},
        output_node=True,
        category="api/image",
        module="custom_nodes.websocket_image_save",
        changing=True,
    ),
    NodeSpec(
        "SaveAnimatedWEBP",
        _animated,
        {
            "images": link("IMAGE"),
            "filename_prefix": text("ComfyUI"),
            "fps": number(6.0, 0.01, 1000.0),
            "lossless": InputSpec("BOOLEAN", {"default": True}),
            "quality": integer(80, 0, 100, None),
            "method": choice("default", "fastest", "slowest"),
        },
        category="image/animation",
        module="comfy_extras.nodes_images",
        **_OUT,
    ),
    NodeSpec(
        "SaveAudio",
        _audio,
        {"audio": link("AUDIO"), "filename_prefix": text("audio/ComfyUI")},
        category="audio",
        title="Save Audio (FLAC)",
        module="comfy_extras.nodes_audio",
        **_OUT,
    ),
    NodeSpec(
        "PreviewAny",
        _any,
        {"source": InputSpec("*", {})},
        output_node=True,
        category="utils",
        title="Preview Any",
        module="comfy_extras.nodes_preview_any",
    ),
    NodeSpec(
        "SaveLatent",
        _latent,
        {"samples": link("LATENT"), "filename_prefix": text("latents/ComfyUI")},
        category="_for_testing",
        **_OUT,
    ),
    NodeSpec(
        "VHS_VideoCombine",
        _combine,
        {
            "images": link("IMAGE"),
            "frame_rate": number(8.0, 1.0, 1000.0, 1.0),
            "loop_count": integer(0, 0, 100),
            "filename_prefix": text("AnimateDiff"),
            "format": choice("image/gif", "image/webp", "video/h264-mp4"),
            "pingpong": InputSpec("BOOLEAN", {"default": False}),
            "save_output": InputSpec("BOOLEAN", {"default": True}),
        },
        {"audio": link("AUDIO"), "vae": link("VAE")},
        outputs=("VHS_FILENAMES",),
        output_names=("Filenames",),
        category="Video Helper Suite",
        title="Video Combine",
        module="custom_nodes.ComfyUI-VideoHelperSuite",
        **_OUT,
    ),
)
