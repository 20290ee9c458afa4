"""Automatic1111's, Forge's and SD.Next's own API: their clients work against the worker as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pydantic_core
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from worker.api.answers import document_in, refused
from worker.api.native import RESPONSES, Native, accepted, document_of_request, done, lies_elsewhere, pictures
from worker.api.relay import FORBIDDEN, STOPPING, forbidden, mount
from worker.desk import Ended
from worker.errors import WorkerError

NAMES = ("a1111", "sdnext")
API = "/sdapi/v1"
SINGLE = "extra-single-image"
Write = Callable[[Ended, bool], bytes]
"""The body of an answer; the caller may want no images in it."""


_LISTS = (
    *("sd-models", "sd-vae", "sd-modules", "loras", "loaded-loras", "embeddings", "hypernetworks", "unets"),
    *("samplers", "sampler", "schedulers", "upscalers", "latent-upscale-modes", "face-restorers", "detailers"),
    *("realesrgan-models", "prompt-styles", "scripts", "script-info", "extensions", "controlnets", "control-modes"),
    *("preprocessors", "masking", "ip-adapters", "openclip", "tagger/models", "modules"),
    *("options", "options-info", "cmd-flags", "memory", "checkpoint", "status", "version", "platform", "torch"),
    *("gpu", "gpu-smi"),
)
READINGS: Mapping[str, tuple[str, ...]] = {
    **{f"{API}/{name}": () for name in _LISTS},
    f"{API}/progress": ("skip_current_image",),
    f"{API}/control-models": ("unit_type",),
    f"{API}/lora": ("lora",),
    f"{API}/system-info/status": ("full", "state", "memory"),
    "/controlnet/version": (),
    "/controlnet/model_list": (),
    "/controlnet/module_list": ("alias_names",),
    "/controlnet/control_types": (),
    "/controlnet/settings": (),
}
"""What changes nothing, by all dialects; a server answers 404 for what it has not. Files are not among it."""

WORK: Mapping[str, tuple[str, ...]] = {
    **{f"{API}/{name}": () for name in ("extra-batch-images", "png-info", "interrogate", "process-batch")},
    **{f"{API}/{name}": () for name in ("control", "preprocess", "mask", "detect", "detail", "openclip", "tagger")},
    "/controlnet/detect": (),
}
CHANGES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("POST", f"{API}/options"): (),
    ("POST", f"{API}/checkpoint"): ("sd_model_checkpoint", "dtype", "force"),
    ("POST", f"{API}/reload-checkpoint"): ("force",),
    ("POST", f"{API}/lock-checkpoint"): ("lock",),
    **{("POST", f"{API}/{name}"): () for name in ("unload-checkpoint", "shutdown", "restart", "log")},
    **{("POST", f"{API}/server-{name}"): () for name in ("kill", "restart", "stop")},
    ("GET", f"{API}/log"): ("lines", "clear"),
}
"""The log is among them because it may hold credentials and other callers' prompts, and can be cleared by reading."""

REFRESHES = tuple(f"{API}/refresh-{name}" for name in ("checkpoints", "vae", "vaes", "loras", "embeddings", "unets"))

_EXAMPLE = {"prompt": "a lighthouse at dusk", "width": 512, "height": 512, "steps": 20, "seed": 7}
_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABABAMAAABYR2ztAAAAMFBMVEXe3iKc3mTenCKcnGQ+7sI+zMJcnKQenOLeXCKcXGTeHiKcHmRcXKQeXO"
    "JcHqQeHuLoffSKAAAAp0lEQVR42u3UvQ3DIBCG4ZfIA5BZsnB6ZsgISJkAsQG9JV9S2FaIFd/XR1zDjx5xCA7CCwCsru18p4sMF5xYEOApwIIA"
    "VQBDgCpAwQeGAFWAgg8MAaoABR9Y15/aNre1cwMaYoWrAkQFggLdEicgRAE+SU4vKyoQFNgPwym5qMCaZHLK/gE3DyQgOymS2GTa6yEfnn8+1I"
    "z7ugf4N/Dzf+jG46AG+Io3LjEotd3OWzAAAAAASUVORK5CYII="
)


def routes(native: Native) -> APIRouter:
    router = APIRouter(tags=["Automatic1111, SD.Next"], dependencies=[Depends(native.speaks(*NAMES))])
    _add_images(router, native)
    _add_stops(router, native)
    mount(router, native.relay, readings=READINGS, work=WORK, changes=CHANGES, refreshes=REFRESHES)
    return router


def _body(example: Mapping[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def _add_images(router: APIRouter, native: Native) -> None:
    """What has a job done, each with how its answer is written."""
    image = {**_EXAMPLE, "init_images": [_PICTURE], "denoising_strength": 0.5}
    larger = {"image": _PICTURE, "upscaling_resize": 2, "upscaler_1": "Lanczos"}
    for name, endpoint, summary, example, write in (
        ("txt2img", "txt2img", "Text to images", _EXAMPLE, images_document),
        ("img2img", "img2img", "Images to images", image, images_document),
        ("extra-single-image", SINGLE, "One image made larger", larger, single_document),
        ("process", SINGLE, "One image made larger, by SD.Next's other name for it", larger, single_document),
    ):
        router.add_api_route(
            f"{API}/{name}",
            _generating(native, endpoint, write),
            methods=["POST"],
            name=f"post_{name.replace('-', '_')}",
            summary=summary,
            responses=RESPONSES,
            openapi_extra=_body(example),
        )


def _generating(native: Native, endpoint: str, write: Write) -> Callable[[Request], Awaitable[Response]]:
    async def generate(request: Request) -> Response:
        try:
            body = await document_in(request, max_body=native.desk.rules.limits.max_body)
        except WorkerError as error:
            return refused(error)
        document = document_of_request(body, endpoint)
        if document.get("webhook") is not None:
            return await accepted(request, native, document)
        shows, answer = body.get("send_images") is not False, done(request, native, document)
        del body, document
        end = await answer
        if isinstance(end, Response):
            return end
        elsewhere = lies_elsewhere(end)
        if elsewhere is not None:
            return elsewhere
        return Response(await asyncio.to_thread(write, end, shows), media_type="application/json")

    return generate


def images_document(end: Ended, shows: bool) -> bytes:
    """``images``, ``parameters`` and ``info`` as the server gives them; the images are the ones that were verified.

    Pictures that the server gave beside, such as ControlNet's maps, come after them. A caller may want none.
    """
    said = end.made.output.native if end.made is not None else {}
    listed: list[bytes] = []
    if shows:
        listed += [b'"%b"' % picture for picture in pictures(end)]
        listed += [pydantic_core.to_json(picture) for picture in said.get("images_beside", ())]
    parameters, info = pydantic_core.to_json(said.get("parameters", {})), pydantic_core.to_json(said.get("info", ""))
    return b'{"images":[%b],"parameters":%b,"info":%b}' % (b",".join(listed), parameters, info)


def single_document(end: Ended, _: bool) -> bytes:
    """``html_info`` and ``image``."""
    said = end.made.output.native if end.made is not None else {}
    html = pydantic_core.to_json(said.get("html_info", ""))
    return b'{"html_info":%b,"image":"%b"}' % (html, b"".join(pictures(end)[:1]))


def _add_stops(router: APIRouter, native: Native) -> None:
    """SD.Next says nothing, Automatic1111 an empty object or null."""

    async def stop(request: Request) -> Response:
        if not native.relay.options_allowed:
            return forbidden(STOPPING)
        await native.stop_running()
        if native.engine.name == "sdnext":
            return Response(status_code=204)
        return JSONResponse(None if request.url.path.endswith("skip") else {})

    for name in ("interrupt", "skip"):
        router.add_api_route(
            f"{API}/{name}",
            stop,
            methods=["POST"],
            name=f"post_{name}",
            summary="Cancel the HTTP job that generates now; refused unless WORKER_ENGINE_OPTIONS=allow",
            responses=FORBIDDEN,
        )
