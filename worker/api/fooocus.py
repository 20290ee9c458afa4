"""Fooocus-API's own API: its clients work against the worker as they are.

What the peer gets wrong is right here: a job that failed is a problem that says why, never a 200 or an empty list, and
webhooks are ours, signed and repeated.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pybase64
import pydantic_core
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from worker.api.answers import document_in, refused
from worker.api.native import (
    RESPONSES,
    Native,
    as_the_caller_wrote,
    document_of_request,
    done,
    lies_elsewhere,
    pictures,
    told_to_the_caller,
)
from worker.api.relay import FORBIDDEN, STOPPING, forbidden, mount
from worker.desk import Ended, Ticket
from worker.errors import WorkerError
from worker.live import Hop, LiveJob
from worker.web.inside import is_patient

NAMES = ("fooocus",)
KEPT = 1000
PNG = "image/png"

TYPES: Mapping[str, tuple[str, str]] = {
    "/v1/generation/text-to-image": ("text-to-image", "Text to Image"),
    "/v2/generation/text-to-image-with-ip": ("text-to-image-with-ip", "Text to Image"),
    "/v2/generation/image-upscale-vary": ("image-upscale-vary", "Image Upscale or Variation"),
    "/v2/generation/image-inpaint-outpaint": ("image-inpaint-outpaint", "Image Inpaint or Outpaint"),
    "/v2/generation/image-prompt": ("image-prompt", "Image Prompt"),
    "/v2/generation/image-enhance": ("image-enhance", "Image Enhancement"),
}
"""By path, the endpoint and what the server calls such jobs. Its older routes take forms, and are not served."""

READINGS: Mapping[str, tuple[str, ...]] = {
    "/v1/engines/all-models": (),
    "/v1/engines/styles": (),
    "/ping": (),
}
CHANGES: Mapping[tuple[str, str], tuple[str, ...]] = {("GET", "/v1/engines/clean_vram"): ()}
_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
_EXAMPLE = {"prompt": "a lighthouse at dusk", "performance_selection": "Speed", "require_base64": True}


@dataclass(frozen=True, slots=True)
class Wish:
    """How the caller wants to be answered. ``picture``: the first one itself, instead of a document."""

    kind: str
    base64: bool
    waits: bool
    picture: bool


class Asked:
    """What was wished for with each of the latest jobs whose callers do not wait, by its id."""

    def __init__(self, most: int = KEPT) -> None:
        self._wishes: OrderedDict[str, Wish] = OrderedDict()
        self._most = most

    def note(self, job_id: str, wish: Wish) -> None:
        self._wishes[job_id] = wish
        while len(self._wishes) > self._most:
            self._wishes.popitem(last=False)

    def find(self, job_id: str) -> Wish | None:
        return self._wishes.get(job_id)

    @property
    def ids(self) -> tuple[str, ...]:
        """In the order of their coming."""
        return tuple(self._wishes)


def routes(native: Native) -> APIRouter:
    router = APIRouter(tags=["Fooocus-API"], dependencies=[Depends(native.speaks(*NAMES))])
    asked = Asked()
    for path in TYPES:
        _add_generation(router, native, asked, path)
    _add_jobs(router, native, asked)
    mount(router, native.relay, readings=READINGS, work={}, changes=CHANGES)
    return router


def _add_generation(router: APIRouter, native: Native, asked: Asked, path: str) -> None:
    endpoint, kind = TYPES[path]

    async def generate(request: Request) -> Response:
        try:
            body = await document_in(request, max_body=native.desk.rules.limits.max_body)
        except WorkerError as error:
            return refused(error)
        accept = request.query_params.get("accept") or request.headers.get("accept", "")
        wish = wish_of(body, kind, accept, stays=is_patient(request.scope))
        document = job_of(body, endpoint, wish)
        if not wish.waits:
            return await _begun(request, native, asked, document, wish)
        answer = done(request, native, document, made_here="webhook" not in document)
        del body, document
        end = await answer
        return end if isinstance(end, Response) else await answered(end, wish)

    router.add_api_route(
        path,
        generate,
        methods=["POST"],
        name=f"post_{endpoint.replace('-', '_')}",
        summary=kind,
        responses=RESPONSES,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"type": "object"}, "example": _EXAMPLE}},
            },
            "parameters": [{"name": "accept", "in": "query", "schema": {"type": "string"}}],
        },
    )


def wish_of(body: Mapping[str, Any], kind: str, accept: str, *, stays: bool = False) -> Wish:
    """As the server reads it: a caller who accepts a PNG and nothing else gets the first picture itself.

    Who ``stays`` waits for the end whatever he asks for.
    """
    waits = stays or body.get("async_process") is not True
    return Wish(kind, body.get("require_base64") is True, waits, waits and accept == PNG)


def job_of(body: Mapping[str, Any], endpoint: str, wish: Wish) -> dict[str, Any]:
    """The job document. The server's own ways to answer, to save and to tell are replaced by ours."""
    document = document_of_request(body, endpoint)
    native: dict[str, Any] = document["request"]
    hook = native.pop("webhook_url", None)
    if hook and "webhook" not in document:
        document["webhook"] = hook
    wanted = _FORMATS.get(str(native.get("save_extension", "png")))
    if wish.picture:
        native["image_number"], wanted = 1, "png"
    output = document.get("output", {})
    if wanted not in (None, "png") or wish.picture:
        output = {"format": wanted, **output} if isinstance(output, dict) else output
        document["output"] = output
    return document


async def _begun(request: Request, native: Native, asked: Asked, document: Mapping[str, Any], wish: Wish) -> Response:
    """The job is held here, and its state with it, as the server itself has it."""
    key = request.headers.get("idempotency-key")
    try:
        ticket = await native.desk.take(document, waits=False, native="webhook" not in document, key=key)
    except WorkerError as error:
        return refused(as_the_caller_wrote(error))
    asked.note(ticket.id, wish)
    return JSONResponse(await _state(native, ticket, wish))


async def answered(end: Ended, wish: Wish) -> Response:
    if wish.picture:
        elsewhere = lies_elsewhere(end)
        if elsewhere is not None:
            return elsewhere
        first = await asyncio.to_thread(lambda: pictures(end)[:1])
        data = await asyncio.to_thread(pybase64.b64decode, b"".join(first))
        return Response(data, media_type=PNG)
    body = await asyncio.to_thread(lambda: pydantic_core.to_json(results_of(end, wish)))
    return Response(body, media_type="application/json")


def results_of(end: Ended, wish: Wish) -> list[dict[str, Any]]:
    """One object a picture. What no URL leads to is given as base64, asked for or not: there is no other way to it.

    The current version puts a data-URI before it. To be called in a thread.
    """
    version = end.result.engine.version if end.result.engine is not None else None
    found = []
    for image, encoded in zip(end.result.images, pictures(end), strict=True):
        text, url = None, image.url if image.url is not None and image.url.startswith(("http://", "https://")) else None
        if wish.base64 or url is None:
            text = encoded.decode("ascii")
            extension = "jpg" if image.format == "jpeg" else image.format
            text = f"data:image/{extension};base64,{text}" if version == "0.5" and text else text
        seed = "" if image.seed is None else str(image.seed)
        found.append({"base64": text or None, "url": url, "seed": seed, "finish_reason": "SUCCESS"})
    return found


def _add_jobs(router: APIRouter, native: Native, asked: Asked) -> None:
    @router.get(
        "/v1/generation/query-job",
        summary="How a job goes that was begun with async_process",
        responses={404: {"description": "There is no such job", "content": {"application/json": {}}}},
    )
    async def query(job_id: str = Query(max_length=256), require_step_preview: bool = False) -> Response:
        wish, ticket = asked.find(job_id), native.desk.tickets.find(job_id)
        if wish is None or ticket is None:
            return JSONResponse(_UNKNOWN, 404)
        state = await _state(native, ticket, wish)
        return Response(await asyncio.to_thread(pydantic_core.to_json, state), media_type="application/json")

    @router.get("/v1/generation/job-queue", summary="How many jobs wait here or run")
    async def queue() -> Response:
        waiting = len(tuple(native.desk.tickets))
        ended = [one for one in asked.ids if (t := native.desk.tickets.find(one)) is not None and t.ended is not None]
        last = asked.ids[-1] if asked.ids else None
        return JSONResponse({"running_size": waiting, "finished_size": len(ended), "last_job_id": last})

    @router.post(
        "/v1/generation/stop",
        summary="Cancel the HTTP job that generates now; refused unless WORKER_ENGINE_OPTIONS=allow",
        responses=FORBIDDEN,
    )
    async def stop() -> Response:
        if not native.relay.options_allowed:
            return forbidden(STOPPING)
        await native.stop_running()
        return JSONResponse({"msg": "success"})


_UNKNOWN = {
    "job_id": "",
    "job_type": "Not Found",
    "job_stage": "ERROR",
    "job_progress": 0,
    "job_status": "Job not found",
    "job_step_preview": None,
    "job_result": None,
}


async def _state(native: Native, ticket: Ticket, wish: Wish) -> dict[str, Any]:
    """The job as ``query-job`` tells it."""
    told: dict[str, Any] = {"job_id": ticket.id, "job_type": wish.kind}
    end = ticket.ended
    if end is None:
        stage, progress, status = underway(native.desk.held(ticket.id))
        results = None
    elif end.result.status == "succeeded":
        stage, progress, status = "SUCCESS", 100, "Finished"
        results = await asyncio.to_thread(results_of, end, wish)
    else:
        error = told_to_the_caller(end.result).error
        stage, progress, status = "ERROR", 0, error.message if error is not None else end.result.status
        results = None
    told |= {"job_stage": stage, "job_progress": progress, "job_status": status}
    return {**told, "job_step_preview": None, "job_result": results}


def underway(held: LiveJob | None) -> tuple[str, int, str | None]:
    """Stage, progress of 100 and words for a job that has not ended."""
    if held is None:
        return "WAITING", 0, None
    if held.hop is Hop.GENERATE:
        return "RUNNING", round(100 * (held.progress or 0.0)), str(held.hop)
    return ("RUNNING", 99, str(held.hop)) if held.hop.is_past_engine else ("WAITING", 0, str(held.hop))
