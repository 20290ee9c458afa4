"""The server's `openapi.json`: its paths, and the schemas of its generation requests."""

from __future__ import annotations

from functools import cache
from typing import Any

from starlette.requests import Request

from worker.simulators.app import Api, Reply
from worker.simulators.validation import request_model


def add_openapi(api: Api) -> None:
    """The route that describes all others."""

    async def openapi(_: Request) -> Reply:
        return Reply(_document(api.machine.dialect.name, api.paths()))

    api.get("/openapi.json", openapi, guarded=False)


def _document(name: str, paths: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": {path: {m.lower(): _operation(path) for m in methods} for path, methods in paths.items()},
        "components": {"schemas": _schemas(name)},
    }


@cache
def _schemas(name: str) -> dict[str, Any]:
    """Generating them takes as long as fifty requests."""
    return {
        model.__name__: model.model_json_schema(ref_template="#/components/schemas/{model}")
        for model in (request_model(name, image=False), request_model(name, image=True))
    }


def _operation(path: str) -> dict[str, Any]:
    operation: dict[str, Any] = {"responses": {"200": {"description": "Successful Response"}}}
    kinds = {"/sdapi/v1/txt2img": "Txt2Img", "/sdapi/v1/img2img": "Img2Img"}
    if kind := kinds.get(path):
        schema = {"$ref": f"#/components/schemas/StableDiffusionProcessing{kind}"}
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}, "required": True}
    return operation
