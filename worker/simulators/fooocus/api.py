"""The HTTP face: the server's routes that take and give JSON, its files, and the simulator's own routes.

The older routes that take multipart forms, and the tools beside generation, are left out: the worker uses none.
"""

from __future__ import annotations

import asyncio
import base64
import io
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.simulators import pictures
from worker.simulators.fooocus.catalogue import STYLES, Catalogue
from worker.simulators.fooocus.jobs import TYPES, Job, Picture
from worker.simulators.fooocus.machine import Machine
from worker.simulators.fooocus.schema import CommonRequest, openapi, requests_of
from worker.simulators.state import until

Handler = Callable[[Request], Awaitable[Response]]
_IMAGES = ("input_image", "input_mask", "enhance_input_image")
_DECODING = """Traceback (most recent call last):
  File "/app/fooocusapi/utils/img_utils.py", line 74, in read_input_image
    pil_image = Image.open(BytesIO(input_image_bytes))
PIL.UnidentifiedImageError: cannot identify image file <_io.BytesIO object at 0x7f6d5c1d0a90>"""


@dataclass
class Parts:
    """What the routes work with; ``cut`` ends a client's connection."""

    machine: Machine
    catalogue: Catalogue
    api_key: str | None
    cut: Callable[[tuple[str, int]], None]
    restart: Callable[[float], None]


def application(parts: Parts, own: list[Route]) -> Starlette:
    """The server's ASGI application."""
    series = parts.machine.series
    requests = requests_of(series)
    gets = _gets(parts)
    document = openapi(series, tuple(gets))

    async def description(_: Request) -> Response:
        return JSONResponse(document)

    routes = [Route(path, _guarded(parts, handler), methods=["GET"]) for path, handler in gets.items()]
    for path, model in requests.items():
        routes.append(Route(path, _guarded(parts, _generating(parts, path, model)), methods=["POST"]))
    routes.append(Route("/v1/generation/stop", _guarded(parts, _stopping(parts)), methods=["POST"]))
    routes.append(Route("/openapi.json", _counted(parts, description), methods=["GET"]))
    routes.append(Route("/files/{date}/{name}", _counted(parts, _file(parts)), methods=["GET"]))
    packed = [Middleware(GZipMiddleware, minimum_size=1000)] if series == "0.5" else []
    return Starlette(routes=[*routes, *own], middleware=packed, exception_handlers={HTTPException: _refused})


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return JSONResponse({"detail": error.detail}, status_code=error.status_code)


def _counted(parts: Parts, handler: Handler) -> Handler:
    async def counted(request: Request) -> Response:
        parts.machine.stats.requests[f"{request.method} {request.url.path}"] += 1
        return await handler(request)

    return counted


def _guarded(parts: Parts, handler: Handler) -> Handler:
    """Files and the description need no key."""

    async def guarded(request: Request) -> Response:
        if parts.api_key is not None and not secrets.compare_digest(
            request.headers.get("x-api-key", ""), parts.api_key
        ):
            raise HTTPException(403, "Forbidden")
        return await handler(request)

    return _counted(parts, guarded)


def _gets(parts: Parts) -> dict[str, Handler]:
    async def home(_: Request) -> Response:
        return Response('Swagger-UI to: <a href="/docs">/docs</a>', media_type="text/html")

    async def ping(_: Request) -> Response:
        return JSONResponse("pong")

    return {"/": home, "/ping": ping, **_job_gets(parts), **_engine_gets(parts)}


def _job_gets(parts: Parts) -> dict[str, Handler]:
    machine = parts.machine
    timed = machine.series == "0.5"

    async def query(request: Request) -> Response:
        if machine.knobs.at_query() is not None:
            return Response("Internal Server Error", status_code=500, media_type="text/plain")
        job = machine.find(request.query_params.get("job_id", ""))
        if job is None:
            return JSONResponse(_document(parts, None), status_code=404)
        look = request.query_params.get("require_step_preview", "").lower() == "true"
        return JSONResponse(await asyncio.to_thread(_document, parts, job, look=look))

    async def queue(_: Request) -> Response:
        waiting, finished = len(machine.queue), len(machine.history)
        return JSONResponse({"running_size": waiting, "finished_size": finished, "last_job_id": machine.last_job_id})

    async def history(request: Request) -> Response:
        wanted = request.query_params.get("job_id") if timed else None
        if timed and wanted and request.query_params.get("delete", "").lower() == "true":
            return _deleted(machine, wanted)
        listed = {
            name: [job.brief(timed=timed) for job in jobs if wanted in (None, "", job.id)]
            for name, jobs in (("queue", machine.queue), ("history", machine.history))
        }
        return JSONResponse(listed)

    below = "/v1/generation"
    return {f"{below}/query-job": query, f"{below}/job-queue": queue, f"{below}/job-history": history}


def _engine_gets(parts: Parts) -> dict[str, Handler]:
    machine, catalogue = parts.machine, parts.catalogue

    async def models(_: Request) -> Response:
        names = {"model_filenames": catalogue.listed("checkpoints"), "lora_filenames": catalogue.listed("loras")}
        return JSONResponse(names)

    async def styles(_: Request) -> Response:
        return JSONResponse(list(STYLES))

    async def clean(_: Request) -> Response:
        machine.loaded = None
        return JSONResponse({"message": "ok"})

    found: dict[str, Handler] = {"/v1/engines/all-models": models, "/v1/engines/styles": styles}
    return {**found, "/v1/engines/clean_vram": clean} if machine.series == "0.5" else found


def _deleted(machine: Machine, job_id: str) -> Response:
    """The files go, then the server looks for its database and fails, unless it was started with one."""
    for job in list(machine.history):
        if job.id == job_id and job.pictures:
            machine.delete(job)
            machine.history.remove(job)
    if machine.knobs.persistent:
        return JSONResponse({"message": "Deleted"})
    machine.journal.raw("NameError: name 'query_history' is not defined")
    return Response("Internal Server Error", status_code=500, media_type="text/plain")


def _stopping(parts: Parts) -> Handler:
    async def stop(_: Request) -> Response:
        """A flag that stays up until a step falls over it."""
        parts.machine.interrupt = True
        parts.machine.stats.interrupts += 1
        return JSONResponse({"msg": "success"})

    return stop


def _file(parts: Parts) -> Handler:
    async def serve(request: Request) -> Response:
        name = f"{request.path_params['date']}/{request.path_params['name']}"
        path = parts.machine.outputs / name
        if ".." in name or not await asyncio.to_thread(path.is_file):
            raise HTTPException(404, "Not Found")
        return Response(await asyncio.to_thread(path.read_bytes), media_type="image/png")

    return serve


def _generating(parts: Parts, path: str, model: type[CommonRequest]) -> Handler:
    machine, endpoint = parts.machine, path.rpartition("/")[2]

    async def generate(request: Request) -> Response:
        raw = await request.body()
        try:
            body = await asyncio.to_thread(model.model_validate_json, raw)
        except ValidationError as error:
            detail = [{**item, "loc": ["body", *item["loc"]]} for item in error.errors(include_context=False)]
            return JSONResponse({"detail": detail}, status_code=422)
        fault = machine.knobs.at_submit(body.prompt)
        kind = fault.kind if fault is not None else None
        if kind == "lost_request":
            return _lost(parts, request)
        try:
            images = await asyncio.to_thread(_images, body)
        except ValueError:
            images, kind = {}, "error_500"
        if kind == "error_500":
            machine.journal.raw(_DECODING)
            return Response("Internal Server Error", status_code=500, media_type="text/plain")
        parts.catalogue.replace(body, machine.journal, machine.series)
        seed = body.image_seed if 0 <= body.image_seed < 2**63 else secrets.randbits(62)
        job = Job(endpoint, body, seed, images=images)
        if kind == "queue_full" or not machine.add(job):
            return _full(job)
        if kind == "vanish":
            machine.queue.remove(job)
        if kind == "lost_answer":
            return _lost(parts, request)
        if body.async_process:
            return JSONResponse(_document(parts, job))
        await until(lambda: job.finished)
        return await _synchronous(parts, job, request)

    return generate


def _lost(parts: Parts, request: Request) -> Response:
    if request.client is not None:
        parts.cut((request.client.host, request.client.port))
    return Response(status_code=500)


def _images(body: CommonRequest) -> dict[str, Any]:
    """All images of a request, decoded. Raises `ValueError`."""
    found: dict[str, Any] = {}
    for name in _IMAGES:
        if value := getattr(body, name, None):
            found[name] = pictures.decode_base64_image(value)
    for i, prompt in enumerate(getattr(body, "image_prompts", ())):
        if prompt.cn_img:
            found[f"image_prompts.{i}"] = pictures.decode_base64_image(prompt.cn_img)
    return found


def _full(job: Job) -> Response:
    reason = {"base64": None, "url": None, "seed": "", "finish_reason": "QUEUE_IS_FULL"}
    if not job.body.async_process:
        return JSONResponse([reason])
    answer = {"job_id": "", "job_type": TYPES[job.endpoint], "job_stage": "ERROR", "job_progress": 0}
    return JSONResponse({**answer, "job_status": None, "job_step_preview": None, "job_result": [reason]})


def _document(parts: Parts, job: Job | None, *, look: bool = False) -> dict[str, Any]:
    """What ``query-job`` answers; of a failed job nothing but that it failed."""
    if job is None:
        unknown = {"job_id": "", "job_type": "Not Found", "job_stage": "ERROR", "job_progress": 0}
        return {**unknown, "job_status": "Job not found", "job_step_preview": None, "job_result": None}
    done = job.stage == "SUCCESS"
    return {
        "job_id": job.id,
        "job_type": TYPES[job.endpoint],
        "job_stage": job.stage,
        "job_progress": job.progress,
        "job_status": job.status,
        "job_step_preview": _look(job) if look and not job.finished else None,
        "job_result": [_result(parts, job, p) for p in job.pictures or ()] if done else None,
    }


def _look(job: Job) -> str | None:
    """A small picture of the step, unless the job was told to make none."""
    if job.body.advanced_params.disable_preview or "Step " not in (job.status or ""):
        return None
    return pictures.to_base64(pictures.encode(pictures.draw(job.id, 64, 64), "png", 80, ""))


def _result(parts: Parts, job: Job, picture: Picture) -> dict[str, Any]:
    machine = parts.machine
    wanted = job.body.require_base64 and picture.file is not None
    return {
        "base64": _base64(machine, str(picture.file)) if wanted else None,
        "url": f"{machine.knobs.base_url}/files/{picture.file}" if picture.file is not None else None,
        "seed": picture.seed,
        "finish_reason": picture.finish_reason,
    }


def _base64(machine: Machine, name: str) -> str:
    """Encoded once more, without metadata; 0.5 puts a data-URI before it."""
    extension = name.rpartition(".")[2] if machine.series == "0.5" else "png"
    out = io.BytesIO()
    with Image.open(machine.outputs / name) as picture:
        picture.save(out, pictures.FORMATS[extension])
    text = base64.b64encode(out.getvalue()).decode("ascii")
    return f"data:image/{extension};base64,{text}" if machine.series == "0.5" else text


async def _synchronous(parts: Parts, job: Job, request: Request) -> Response:
    """A list of results, or with ``Accept: image/png`` the first picture itself."""
    wanted = request.query_params.get("accept") or request.headers.get("accept")
    results = job.pictures or []
    if wanted != "image/png":
        return JSONResponse(await asyncio.to_thread(lambda: [_result(parts, job, p) for p in results]))
    first = results[0] if results else None
    if first is None or first.file is None:
        reason = first.finish_reason if first is not None else ""
        return Response(reason, status_code=400 if reason == "USER_CANCEL" else 500)
    data = await asyncio.to_thread((parts.machine.outputs / first.file).read_bytes)
    return Response(data, media_type="image/png")
