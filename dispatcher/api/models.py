"""The catalogue: where the operator's models are to be had."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from dispatcher.api import shown
from dispatcher.api.examples import CATALOGUE
from dispatcher.api.problems import Missing, Unreadable, answers, taking
from dispatcher.view import View
from dispatcher.words import Source
from worker.job import ModelRef, field_errors

ENTRIES_MOST = 100_000


class ModelEntry(ModelRef):
    """Where a model is to be had. ``base``: the family of its architecture."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base: Annotated[str, Field(max_length=64)] | None = None

    @property
    def source(self) -> Source:
        return Source(self.kind, self.name, self.url, self.sha256, self.size, self.base)


ENTRIES: TypeAdapter[list[ModelEntry]] = TypeAdapter(Annotated[list[ModelEntry], Field(max_length=ENTRIES_MOST)])


def routes(view: View) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="The catalogue: where each model is to be had")
    async def listed() -> JSONResponse:
        return JSONResponse({"models": [shown.source(one) for one in await view.store.models()]})

    @router.put(
        "/models",
        summary="Add entries to the catalogue, replacing those of the same kind and name",
        status_code=204,
        openapi_extra=taking(ENTRIES.json_schema(), CATALOGUE),
        responses=answers(413, 422),
    )
    async def put(request: Request) -> Response:
        try:
            entries = ENTRIES.validate_json(await request.body())
        except ValidationError as error:
            raise Unreadable(*field_errors(error)) from None
        await view.store.put_models([entry.source for entry in entries])
        await view.upkeep.read_catalogue()
        return Response(status_code=204)

    @router.delete(
        "/models/{kind}/{name:path}",
        summary="Take an entry out of the catalogue",
        status_code=204,
        responses=answers(404),
    )
    async def remove(kind: str, name: str) -> Response:
        if not await view.store.remove_model(kind, name):
            raise Missing("no such entry")
        await view.upkeep.read_catalogue()
        return Response(status_code=204)

    return router
