"""Sizes, pictures and their metadata, as the server would make them."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.simulators import pictures
from worker.simulators.fooocus.jobs import Job

Size = tuple[int, int]
STRENGTHS = {"Vary (Subtle)": 0.5, "Vary (Strong)": 0.85}


@dataclass
class Plan:
    """What a job will make; ``steps`` of one picture, 0 where nothing is sampled."""

    size: Size
    steps: int
    count: int
    strength: float = 1.0
    image: Image.Image | None = None
    seeded: bool = True


def ceil(width: float, height: float) -> int:
    """The side of a square of this area, in steps of 64."""
    return math.ceil(math.sqrt(width * height) / 64) * 64


def set_ceil(size: Size, side: int) -> Size:
    """The size brought to that area, as Fooocus does."""
    width, height = size
    for _ in range(256):
        now = ceil(width, height)
        if now == side:
            break
        height, width = round(height * side / now / 64) * 64, round(width * side / now / 64) * 64
    return width, height


def eighths(size: Size) -> Size:
    """What a VAE leaves of it."""
    return size[0] // 8 * 8, size[1] // 8 * 8


def plan(job: Job, series: str, steps: int, steps_upscaling: int) -> Plan:
    """Raises `ValueError` for a size that is none, as the server does within its job."""
    body, adp = job.body, job.body.advanced_params
    parts = body.aspect_ratios_selection.replace("×", "*").split("*")
    width, height = int(parts[0]), int(parts[1])
    if adp.overwrite_width > 0:
        width = adp.overwrite_width
    if adp.overwrite_height > 0:
        height = adp.overwrite_height
    if adp.overwrite_step > 0:
        steps = steps_upscaling = adp.overwrite_step
    image, mask = job.images.get("input_image"), job.images.get("input_mask")
    count = body.image_number
    if job.endpoint == "image-enhance":
        shown = job.images["enhance_input_image"]
        return Plan(eighths(shown.size), steps, 1, 0.85, shown)
    if job.endpoint == "image-upscale-vary" and image is not None:
        return _uov(job, image, series, steps, steps_upscaling)
    if job.endpoint == "image-inpaint-outpaint" and image is not None:
        grown = _outpainted(job, image.size)
        if grown != image.size or (mask is not None and _selects(mask, adp.invert_mask_checkbox)):
            return Plan(grown, steps, count, adp.inpaint_strength, image)
    return Plan(eighths((width, height)), steps, count)


def _uov(job: Job, image: Image.Image, series: str, steps: int, steps_upscaling: int) -> Plan:
    body: Any = job.body
    method, value = body.uov_method.value, body.upscale_value or 1.0
    if method.startswith("Vary"):
        own = body.advanced_params.overwrite_vary_strength
        side = min(max(ceil(*image.size), 1024), 2048)
        size = eighths(set_ceil(image.size, side))
        return Plan(size, steps, body.image_number, own if own > 0 else STRENGTHS[method], image)
    counts = value > 1 and (series == "0.4" or method == "Upscale (Custom)")
    factor = value if counts else 1.5 if "1.5x" in method else 2.0 if "2x" in method else 1.0
    grown = image.width * factor, image.height * factor
    side = ceil(*grown)
    size = set_ceil((image.width * 4, image.height * 4), 1024) if side < 1024 else (int(grown[0]), int(grown[1]))
    if "Fast" in method or side > 2800:
        return Plan(size, 0, 1, 0.0, image, seeded=series == "0.5")
    return Plan(eighths(size), steps_upscaling, body.image_number, 0.382, image)


def _outpainted(job: Job, size: Size) -> Size:
    body: Any = job.body
    width, height = size
    for side in body.outpaint_selections:
        across = side.value in ("Left", "Right")
        given = getattr(body, f"outpaint_distance_{side.value.lower()}")
        by = given if given and given > 0 else int((size[0] if across else size[1]) * 0.3)
        width, height = (width + by, height) if across else (width, height + by)
    return width, height


def _selects(mask: Image.Image, inverted: bool) -> bool:
    low, high = mask.convert("L").getextrema()
    return low <= 127 if inverted else high > 127  # type: ignore[operator]


def key(job: Job, model: str, seed: int, size: Size, strength: float) -> str:
    """Everything that would change the picture."""
    body = job.body.model_dump(
        mode="json",
        exclude={"image_number", "image_seed", "save_name", "save_meta", "webhook_url", "require_base64"}
        | {"async_process", "save_extension", "meta_scheme", "input_image", "input_mask", "image_prompts"}
        | {"enhance_input_image", "base_model_name"},
    )
    body["advanced_params"].pop("disable_preview", None)
    seen = {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in sorted(job.images.items())}
    return json.dumps([body, model, seed, size, strength, seen], sort_keys=True)


def drawn(job: Job, model: str, seed: int, made: Plan) -> Image.Image:
    """The picture; what a mask does not select stays as it was, where nothing was painted on."""
    picture = pictures.draw(key(job, model, seed, made.size, made.strength), *made.size, made.image, made.strength)
    mask = job.images.get("input_mask")
    if job.endpoint != "image-inpaint-outpaint" or mask is None or made.image is None:
        return picture
    if made.image.size != picture.size or not _selects(mask, job.body.advanced_params.invert_mask_checkbox):
        return picture
    white = mask.convert("L").resize(picture.size).point(lambda level: 255 * (level > 127))
    kept, painted = made.image.convert("RGB"), picture
    if job.body.advanced_params.invert_mask_checkbox:
        kept, painted = painted, kept
    return Image.composite(painted, kept, white)


def metadata(job: Job, series: str, model: str, sha256: str, seed: int, size: Size) -> dict[str, Any]:
    """What is saved with it: 0.4 names the model by path, 0.5 by its stem and its hash."""
    body, adp = job.body, job.body.advanced_params
    shared = {
        "prompt": body.prompt,
        "negative_prompt": body.negative_prompt,
        "performance": body.performance_selection.value,
        "guidance_scale": body.guidance_scale,
        "sharpness": body.sharpness,
        "sampler": adp.sampler_name,
        "scheduler": adp.scheduler_name,
        "resolution": str(size),
        "seed": str(seed),
        "metadata_scheme": body.meta_scheme,
    }
    stem = model.rpartition(".")[0]
    if series == "0.4":
        return {**shared, "base_model": stem, "base_model_hash": "", "steps": -1, "version": "2.4.3"}
    name = PurePosixPath(stem).name
    return {**shared, "base_model": name, "base_model_hash": sha256[:10], "steps": 30, "version": "Fooocus v2.5.5"}


def encoded(picture: Image.Image, extension: str, info: dict[str, Any] | None) -> bytes:
    """The file's bytes; only PNG has the metadata."""
    out = io.BytesIO()
    if extension != "png":
        picture.save(out, pictures.FORMATS[extension], quality=95)
        return out.getvalue()
    chunks = PngInfo()
    if info is not None:
        text = json.dumps(info)
        if info["metadata_scheme"] in ("a111", "a1111") and "steps" in info and info["version"].startswith("Fooocus"):
            text = f"{info['prompt']}\nSteps: {info['steps']}, Model: {info['base_model']}, Version: {info['version']}"
        chunks.add_text("parameters", text)
        chunks.add_text("fooocus_scheme", info["metadata_scheme"])
    picture.save(out, "PNG", pnginfo=chunks, compress_level=1)
    return out.getvalue()
