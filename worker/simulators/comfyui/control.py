"""The simulator's own routes: knobs, statistics, models, release and restart, for tests in other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from worker.simulators.comfyui.api import Api, document
from worker.simulators.comfyui.folders import KINDS
from worker.simulators.comfyui.weights import Architecture


class ModelChange(BaseModel):
    """Body of `POST /simulator/models`: names to add to a folder, with an architecture as real files, or to remove."""

    model_config = ConfigDict(extra="forbid")

    folder: str = "checkpoints"
    add: list[str] = []
    architecture: Architecture | None = None
    remove: list[str] = []


def add_control(api: Api, restart: Callable[[float], None]) -> None:
    """All routes below `/simulator/`."""
    machine = api.machine

    async def stats(_: Request) -> Response:
        left = {kind: machine.folders.files(kind) for kind in KINDS}
        state: dict[str, Any] = {"worker_dead": machine.dead, "hangs": machine.hangs, "files": left}
        return document(machine.stats.document() | state)

    async def release(_: Request) -> Response:
        machine.release()
        return document(None)

    async def go_down(request: Request) -> Response:
        body = await api.json(request) if await request.body() else {}
        restart(float(body.get("seconds", 0.0)))
        return document(None)

    api.own("GET", "/simulator/stats", stats)
    api.own("POST", "/simulator/release", release)
    api.own("POST", "/simulator/restart", go_down)
    _add_turning(api)


def _add_turning(api: Api) -> None:
    machine = api.machine

    async def knobs(_: Request) -> Response:
        return document(machine.knobs.document())

    async def turn(request: Request) -> Response:
        try:
            machine.knobs.turn(await request.json())
        except ValueError as error:
            return document({"detail": str(error)}, 400)
        return document(machine.knobs.document())

    async def models(request: Request) -> Response:
        try:
            wanted = ModelChange.model_validate_json(await request.body())
            for name in wanted.remove:
                machine.folders.remove(wanted.folder, name)
            for name in wanted.add:
                machine.folders.add(wanted.folder, name, wanted.architecture)
            return document({"files": machine.folders.names(wanted.folder)})
        except (ValidationError, KeyError) as error:
            return document({"detail": str(error)}, 400)

    api.own("GET", "/simulator/knobs", knobs)
    api.own("POST", "/simulator/knobs", turn)
    api.own("POST", "/simulator/models", models)
