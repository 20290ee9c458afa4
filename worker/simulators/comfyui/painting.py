"""From latent pictures to pictures, and what faults make of them."""

from __future__ import annotations

import asyncio

from PIL import Image

from worker.simulators import pictures
from worker.simulators.comfyui.knobs import Fault
from worker.simulators.comfyui.values import Images, Latent, Weights


async def painted(latent: Latent, vae: Weights, fault: Fault | None) -> Images:
    """The pictures of a latent batch, the same for the same key and place in the batch."""
    return await asyncio.to_thread(_all, latent, vae, fault)


def _all(latent: Latent, vae: Weights, fault: Fault | None) -> Images:
    return tuple(_spoilt(_one(latent, vae, n), fault) for n in range(latent.count))


def _one(latent: Latent, vae: Weights, n: int) -> Image.Image:
    init = latent.images[n % len(latent.images)] if latent.images else None
    size = (latent.width, latent.height)
    if init is not None and latent.strength == 0:
        return init.convert("RGB").resize(size)
    picture = pictures.draw(f"{latent.key}|{vae.key}|{n}", *size, init, latent.strength).resize(size)
    if latent.mask is None or init is None:
        return picture
    return Image.composite(picture, init.convert("RGB").resize(size), latent.mask.convert("L").resize(size))


def _spoilt(picture: Image.Image, fault: Fault | None) -> Image.Image:
    match fault.kind if fault else None:
        case "black":
            return pictures.flat(*picture.size, (0, 0, 0))
        case "flat":
            return pictures.flat(*picture.size, (127, 127, 127))
        case "wrong_size":
            return picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)))
        case _:
            return picture
