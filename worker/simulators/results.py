"""From the job to the answer: the pictures, what faults make of them, the encoding, the document."""

from __future__ import annotations

import asyncio
from typing import Any

from PIL import Image

from worker.simulators import pictures
from worker.simulators.errors import HttpError
from worker.simulators.info import Job, info_document, infotext
from worker.simulators.knobs import Fault
from worker.simulators.machine import Machine


def drawn(job: Job) -> list[Image.Image]:
    """All pictures of a job, the same for the same request and models."""
    return [_drawn(job, n) for n in range(len(job.seeds))]


def _drawn(job: Job, n: int) -> Image.Image:
    key = f"{job.key}|{job.seeds[n]}"
    if job.request["subseed_strength"]:
        key += f"|{job.subseeds[n]}"
    if job.inputs is None:
        return pictures.draw(key, job.width, job.height)
    init = job.inputs.image.convert("RGB").resize((job.width, job.height))
    picture = pictures.draw(key, job.width, job.height, init, float(job.request["denoising_strength"] or 0.0))
    if job.inputs.mask is None:
        return picture
    return Image.composite(picture, init, job.inputs.mask.resize(picture.size))


def spoilt(job: Job, images: list[Image.Image], fault: Fault | None) -> list[Image.Image]:
    """The pictures after a fault of their content."""
    match fault.kind if fault else "":
        case "black" | "nan":
            return [pictures.flat(job.width, job.height, (0, 0, 0)) for _ in images]
        case "flat":
            return [pictures.flat(job.width, job.height, (127, 127, 127)) for _ in images]
        case "preview":
            small = (max(job.width // 8, 1), max(job.height // 8, 1))
            return [pictures.blurred(i).resize(small) for i in images[:1]]
        case "empty":
            return []
        case "short_count":
            return images[:-1]
        case "wrong_size":
            return [i.resize((max(i.width // 2, 1), max(i.height // 2, 1))) for i in images]
        case _:
            return images


async def document(machine: Machine, job: Job, images: list[Image.Image], fault: Fault | None) -> dict[str, Any]:
    """Encode by the global format, which is in force again by now, and word the answer. Raises `HttpError`."""
    request, made = job.request, len(images)
    if request["save_images"] and made > 1 and machine.option_for(request, "return_grid"):
        images = [pictures.grid(images), *images]
        job.first = 1
    encoded = await asyncio.to_thread(_encoded, machine, job, images)
    if fault and fault.kind == "truncated_image":
        encoded = [data[: len(data) // 2] for data in encoded]
    if fault and fault.kind == "not_an_image":
        encoded = [b"<html><body>Bad Gateway</body></html>" for _ in encoded]
    return {
        "images": [pictures.to_base64(data) for data in encoded] if request["send_images"] else [],
        "parameters": echo(machine, request),
        "info": info_document(machine.dialect, job, made),
    }


def _encoded(machine: Machine, job: Job, images: list[Image.Image]) -> list[bytes]:
    options = machine.options
    kind, quality = str(options["samples_format"]), int(options["jpeg_quality"])
    if kind.lower() not in pictures.FORMATS:
        raise HttpError(500, "Invalid image format")
    noted = options.get("enable_pnginfo", options.get("image_metadata"))
    encoded = []
    for n, image in enumerate(images):
        text = infotext(machine.dialect, job, max(n - job.first, 0)) if noted else ""
        encoded.append(pictures.encode(image, kind, quality, text))
    return encoded


def echo(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """The request with its defaults; input images are left out unless asked for."""
    shown = dict(request)
    if not request.get("include_init_images"):
        shown |= {name: None for name in ("init_images", "mask") if name in request}
    if machine.dialect.current:
        for name in ("ip_adapter", "face", "face_id", "control_units", "init_control", "extra"):
            shown.pop(name, None)
    return shown
