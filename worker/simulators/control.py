"""The simulator's own routes: knobs, statistics, model files, release and restart, for tests in other processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from worker.simulators.app import Api, Reply
from worker.simulators.models import Kind, ModelFile


class ModelChange(BaseModel):
    """Body of `POST /simulator/models`: files to put on the disk and names to take away."""

    model_config = ConfigDict(extra="forbid")

    add: list[dict[str, Any] | str] = []
    remove: list[str] = []
    kind: Kind = "checkpoint"


def add_control(api: Api, restart: Callable[[float], None]) -> None:
    """All routes below `/simulator/`."""
    machine = api.machine

    async def stats(_: Request) -> Reply:
        return Reply(machine.stats.document())

    async def release(_: Request) -> Reply:
        machine.release()
        return Reply(None)

    async def go_down(request: Request) -> Reply:
        document = await request.json() if await request.body() else {}
        restart(float(document.get("seconds", 0.0)))
        return Reply(None)

    api.own("GET", "/simulator/stats", stats)
    api.own("POST", "/simulator/release", release)
    api.own("POST", "/simulator/restart", go_down)
    _add_knobs(api)
    _add_models(api)


def _add_knobs(api: Api) -> None:
    knobs = api.machine.knobs

    async def read(_: Request) -> Reply:
        return Reply(knobs.document())

    async def turn(request: Request) -> Reply:
        try:
            knobs.turn(await request.json())
        except ValueError as error:
            return Reply({"detail": str(error)}, status=400)
        return Reply(knobs.document())

    api.own("GET", "/simulator/knobs", read)
    api.own("POST", "/simulator/knobs", turn)


def _add_models(api: Api) -> None:
    disk = api.machine.disk

    async def change(request: Request) -> Reply:
        try:
            wanted = ModelChange.model_validate_json(await request.body())
            added = [ModelFile(**m) if isinstance(m, dict) else ModelFile(m, wanted.kind) for m in wanted.add]
        except (ValidationError, TypeError) as error:
            return Reply({"detail": str(error)}, status=400)
        for name in wanted.remove:
            disk.remove(name)
        for model in added:
            disk.add(model)
        return Reply({"files": [m.filename for m in disk.present()]})

    api.own("POST", "/simulator/models", change)
