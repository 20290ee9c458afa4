"""The probes, the metrics and the page: how the service is."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel

from dispatcher.api import page
from dispatcher.view import View
from worker.metrics import CONTENT_TYPE


class ProbeAnswer(BaseModel):
    """``reasons`` says why the answer is 503."""

    status: str
    reasons: list[str]


def probes(view: View) -> APIRouter:
    router = APIRouter(
        tags=["state"],
        responses={
            200: {"model": ProbeAnswer, "description": "Yes"},
            503: {"model": ProbeAnswer, "description": "No, for these reasons"},
        },
    )

    @router.get("/live", summary="Whether the process itself works")
    async def live() -> JSONResponse:
        return _probe([])

    @router.get("/ready", summary="Whether requests can be served")
    async def ready() -> JSONResponse:
        return _probe(view.upkeep.health.reasons)

    return router


def routes(view: View) -> APIRouter:
    router = APIRouter(tags=["state"])

    @router.get(
        "/metrics",
        summary="Everything counted, in Prometheus's text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(view.metrics.text(), media_type=CONTENT_TYPE)

    @router.get("/", include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page.PAGE, headers={"content-security-policy": page.POLICY})

    return router


def _probe(reasons: list[str]) -> JSONResponse:
    return JSONResponse(
        {"status": "failing" if reasons else "ok", "reasons": reasons},
        503 if reasons else 200,
        {"cache-control": "no-store"},
    )
