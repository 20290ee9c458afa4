"""The probes: 200 or 503 from what the worker already knows, without a key, a thread or a wait."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from worker.status import Answer, Status


class ProbeAnswer(BaseModel):
    """``status`` is the phase; ``reasons`` says why the answer is 503."""

    status: str
    reasons: list[str]


def routes(status: Status, full: Callable[[], tuple[str, ...]] = tuple) -> APIRouter:
    """``full`` says why no further job may come, though the worker is ready."""
    router = APIRouter(
        tags=["probes"],
        responses={
            200: {"model": ProbeAnswer, "description": "Yes"},
            503: {"model": ProbeAnswer, "description": "No, for these reasons"},
        },
    )

    @router.get("/startup", summary="Whether the worker was ready at least once")
    async def startup() -> JSONResponse:
        return _response(status.startup())

    @router.get("/live", summary="Whether the process itself works")
    async def live() -> JSONResponse:
        return _response(status.live())

    @router.get("/ready", summary="Whether the worker takes jobs")
    async def ready() -> JSONResponse:
        answer, reasons = status.ready(), full()
        return _response(Answer(False, answer.status, reasons) if answer.ok and reasons else answer)

    @router.get("/health", summary="The same as /startup")
    async def health() -> JSONResponse:
        return _response(status.startup())

    return router


def _response(answer: Answer) -> JSONResponse:
    return JSONResponse(
        {"status": answer.status, "reasons": list(answer.reasons)},
        status_code=200 if answer.ok else 503,
        headers={"cache-control": "no-store"},
    )
