"""What the servers offer beside generating: lists that clients ask for first, and tools that work on pictures."""

from __future__ import annotations

from typing import Any

from PIL import Image
from starlette.requests import Request

from worker.simulators import pictures
from worker.simulators.app import Api, Reply
from worker.simulators.errors import HttpError
from worker.simulators.validation import json_body

_LATENT = ("Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (nearest)", "Latent (nearest-exact)")


def add_extras(api: Api) -> None:
    """Forge and Automatic1111 have all of them, SD.Next some."""
    _add_lists(api)
    _add_tools(api)
    if not api.machine.dialect.sdnext:
        _add_controlnet(api)


def _add_lists(api: Api) -> None:
    knobs, dialect = api.machine.knobs, api.machine.dialect

    def listed(path: str, items: list[Any]) -> None:
        async def reply(_: Request) -> Reply:
            return Reply(items)

        api.get(f"/sdapi/v1/{path}", reply)

    async def info(_: Request) -> Reply:
        rest = {"is_alwayson": True, "is_img2img": False, "args": []}
        return Reply([{"name": name.lower(), **rest} for name in knobs.scripts])

    api.get("/sdapi/v1/script-info", info)
    listed("extensions", [{"name": "Lora", "remote": None, "branch": "None", "version": "", "enabled": True}])
    listed("face-restorers", [{"name": name, "cmd_dir": None} for name in ("CodeFormer", "GFPGAN")])
    if not dialect.sdnext:
        listed("latent-upscale-modes", [{"name": name} for name in _LATENT])
        listed("hypernetworks", [])
        listed("realesrgan-models", [{"name": "R-ESRGAN 4x+", "path": None, "scale": 4}])


def _add_tools(api: Api) -> None:
    """Each takes the lock, as a generation does."""
    machine, dialect = api.machine, api.machine.dialect

    async def png_info(request: Request) -> Reply:
        picture = _picture((await json_body(request, dialect)).get("image"))
        async with machine.lock:
            text = picture.info.get("parameters", "")
            return Reply({"info": text, "items": {"parameters": text} if text else {}, "parameters": {}})

    async def batch(request: Request) -> Reply:
        document = await json_body(request, dialect)
        factor = float(document.get("upscaling_resize") or 2)
        async with machine.lock:
            found = [_picture(item.get("data")) for item in document.get("imageList") or ()]
            grown = [p.convert("RGB").resize((round(p.width * factor), round(p.height * factor))) for p in found]
            return Reply({"html_info": "", "images": [_encoded(picture) for picture in grown]})

    async def interrogate(request: Request) -> Reply:
        document = await json_body(request, dialect)
        if not document.get("image"):
            raise HttpError(404, "Image not found")
        if document.get("model") not in ("clip", "deepdanbooru", "deepbooru"):
            raise HttpError(404, "Model not found")
        picture = _picture(document["image"])
        async with machine.lock:
            return Reply({"caption": f"a picture of {picture.width} by {picture.height} pixels"})

    api.post("/sdapi/v1/png-info", png_info)
    api.post("/sdapi/v1/extra-batch-images", batch)
    if not dialect.current:
        api.post("/sdapi/v1/interrogate", interrogate)


def _add_controlnet(api: Api) -> None:
    machine, dialect = api.machine, api.machine.dialect

    async def version(_: Request) -> Reply:
        return Reply({"version": 3})

    async def modules(_: Request) -> Reply:
        return Reply({"module_list": ["none", "invert"], "module_detail": {}})

    async def detect(request: Request) -> Reply:
        document = await json_body(request, dialect)
        images = document.get("controlnet_input_images") or document.get("controlnet_images") or []
        if not images:
            raise HttpError(422, "No image selected")
        async with machine.lock:
            return Reply({"images": [_encoded(_picture(image).convert("L")) for image in images], "info": "Success"})

    api.get("/controlnet/version", version)
    api.get("/controlnet/module_list", modules)
    api.post("/controlnet/detect", detect)


def _picture(text: Any) -> Image.Image:
    try:
        return pictures.decode_base64_image(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise HttpError(500, "Invalid encoded image") from error


def _encoded(picture: Image.Image) -> str:
    return pictures.to_base64(pictures.encode(picture, "png", 80, ""))
