"""The simulator's own routes below ``/simulator/``, for tests in other processes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.simulators.fooocus.api import Parts


class ModelChange(BaseModel):
    """Body of `POST /simulator/models`: file names to put on the disk and to take away."""

    model_config = ConfigDict(extra="forbid")

    add: list[str] = []
    remove: list[str] = []
    kind: Literal["checkpoint", "lora"] = "checkpoint"


def control(parts: Parts) -> list[Route]:
    """Statistics, knobs, model files, the log, release and restart."""
    machine, knobs = parts.machine, parts.machine.knobs

    async def stats(_: Request) -> Response:
        return JSONResponse(machine.stats.document())

    async def journal(_: Request) -> Response:
        return JSONResponse(list(machine.journal.lines))

    async def release(_: Request) -> Response:
        machine.release()
        return JSONResponse(None)

    async def go_down(request: Request) -> Response:
        document = await request.json() if await request.body() else {}
        parts.restart(float(document.get("seconds", 0.0)))
        return JSONResponse(None)

    async def read(_: Request) -> Response:
        return JSONResponse(knobs.document())

    async def turn(request: Request) -> Response:
        try:
            knobs.turn(await request.json())
        except ValueError as error:
            return JSONResponse({"detail": str(error)}, status_code=400)
        machine.journal.silent = not knobs.printing
        return JSONResponse(knobs.document())

    async def change(request: Request) -> Response:
        try:
            wanted = ModelChange.model_validate_json(await request.body())
        except ValidationError as error:
            return JSONResponse({"detail": str(error)}, status_code=400)
        names = parts.catalogue.models if wanted.kind == "checkpoint" else parts.catalogue.loras
        names[:] = [name for name in names if name not in wanted.remove] + wanted.add
        return JSONResponse({"files": names})

    return [
        Route("/simulator/stats", stats),
        Route("/simulator/log", journal),
        Route("/simulator/release", release, methods=["POST"]),
        Route("/simulator/restart", go_down, methods=["POST"]),
        Route("/simulator/knobs", read, methods=["GET"]),
        Route("/simulator/knobs", turn, methods=["POST"]),
        Route("/simulator/models", change, methods=["POST"]),
    ]
