"""The routes that generate and tell of it: txt2img, img2img, progress, status, interrupt, skip."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request

from worker.simulators import pictures
from worker.simulators.app import Api, Reply
from worker.simulators.errors import HttpError, ServerError
from worker.simulators.generate import Generator
from worker.simulators.state import stamp
from worker.simulators.validation import checked, json_body


def add_generation(api: Api) -> None:
    """`/txt2img` and `/img2img`."""

    async def txt2img(request: Request) -> Reply:
        return await _generate(api, request, "txt2img")

    async def img2img(request: Request) -> Reply:
        return await _generate(api, request, "img2img")

    api.post("/sdapi/v1/txt2img", txt2img)
    api.post("/sdapi/v1/img2img", img2img)


async def _generate(api: Api, request: Request, endpoint: str) -> Reply:
    machine = api.machine
    document = checked(machine.dialect, await json_body(request, machine.dialect), image=endpoint == "img2img")
    stats = machine.stats
    stats.in_flight += 1
    stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
    try:
        body, fault = await Generator(machine, endpoint, document).answer()
    finally:
        stats.in_flight -= 1
    if fault and fault.kind == "rate_limited":
        raise HttpError(429, f"{_client(request)}:{request.url.path}: rate limit exceeded")
    return Reply(body, cut=fault is not None and fault.kind == "crash_mid_body")


def _client(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def add_state(api: Api) -> None:
    """What tells of the running job and what stops it."""
    machine = api.machine
    empty = Reply(None, status=204)

    async def progress(request: Request) -> Reply:
        if machine.knobs.take("", progress=True):
            raise ServerError("RuntimeError", "Expected all tensors to be on the same device")
        skip_image = request.query_params.get("skip_current_image", "").lower() in ("1", "true", "yes", "on")
        if machine.state.sampling:
            machine.state.preview = True
        return Reply(await _progress(api, skip_image))

    async def interrupt(_: Request) -> Reply:
        machine.stats.interrupts += 1
        machine.state.interrupted = True
        return empty if machine.dialect.current else Reply({})

    async def skip(_: Request) -> Reply:
        machine.state.skipped = True
        return empty if machine.dialect.current else Reply(None)

    async def status(_: Request) -> Reply:
        return Reply(_status(api))

    api.get("/sdapi/v1/progress", progress)
    api.post("/sdapi/v1/interrupt", interrupt)
    api.post("/sdapi/v1/skip", skip)
    if machine.dialect.current:
        api.get("/sdapi/v1/status", status)


async def _progress(api: Api, skip_image: bool) -> dict[str, Any]:
    state, dialect = api.machine.state, api.machine.dialect
    loading = dialect.sdnext and _first_load(api)
    fraction, eta = state.fraction(), state.eta()
    inner: dict[str, Any] = {"skipped": state.skipped, "interrupted": state.interrupted}
    if not dialect.sdnext:
        inner["stopping_generation"] = False
    inner |= {"job": "Load model" if loading else state.job, "job_count": 1 if loading else state.job_count}
    inner |= {"job_timestamp": state.job_timestamp}
    inner |= {"job_no": state.job_no, "sampling_step": state.sampling_step, "sampling_steps": state.sampling_steps}
    image = None
    if state.sampling and not skip_image and api.machine.options["live_previews_enable"]:
        kind = "jpeg" if dialect.sdnext else "png"
        picture = await asyncio.to_thread(pictures.draw, state.id, 64, 64)
        image = pictures.to_base64(pictures.encode(picture, kind, 80, ""))
    body: dict[str, Any] = {"id": state.id} if dialect.current else {}
    rounded = round(fraction, 2) if dialect.current else fraction
    return body | {
        "progress": rounded,
        "eta_relative": round(eta, 2),
        "state": inner,
        "current_image": image,
        "textinfo": None,
    }


def _first_load(api: Api) -> bool:
    """The load at start shows until any job has begun, however early it came."""
    return not api.machine.booted and api.machine.state.total == 0


def _status(api: Api) -> dict[str, Any]:
    machine = api.machine
    state = machine.state
    loading = _first_load(api)
    word = "running" if state.job_count or loading else "idle"
    word = "interrupted" if state.interrupted else "skipped" if state.skipped else word
    return {
        "status": word,
        "task": "Load model" if loading else state.job,
        "timestamp": state.job_timestamp if state.total else stamp(),
        "current": "",
        "id": state.id,
        "job": state.job_no,
        "jobs": 1 if loading else state.job_count,
        "total": state.total,
        "step": state.sampling_steps * state.job_no + state.sampling_step,
        "steps": state.sampling_steps * state.job_count,
        "queued": 0,
        "uptime": int(machine.uptime),
        "elapsed": round(time.monotonic() - state.began, 2) if state.job_count else None,
        "eta": round(state.eta(), 2),
        "progress": round(state.fraction(), 2),
    }
