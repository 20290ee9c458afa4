"""What HTTP says while no worker can be put together: probes, state and metrics, and that no job can be taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse

from worker.api.answers import RETRY_AFTER_S
from worker.api.app import View, create_app
from worker.api.auth import KeyCheck
from worker.desk.refusals import NotReady
from worker.live import Live
from worker.metrics import Metrics, Observed
from worker.node import Identity
from worker.settings.http import HttpSettings
from worker.status import Phase, Status
from worker.web.problems import problem

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def blocked_app(
    status: Status, identity: Identity, settings: HttpSettings, extras: Callable[[], dict[str, Any]]
) -> FastAPI:
    """The application of a worker that has nothing but its phase.

    Every other request is answered 503 with the reasons: what is missing now may be there in a minute.
    """
    metrics = Metrics(Observed(phases=tuple(map(str, Phase)), phase=lambda: str(status.phase)))
    app = create_app(View(status, Live(), metrics, identity, extras=extras), settings)
    key = [Depends(KeyCheck(settings.api_key))]

    @app.api_route("/{path:path}", methods=METHODS, include_in_schema=False, dependencies=key)
    async def refused() -> JSONResponse:
        reasons = "; ".join(status.reasons) or str(status.phase)
        retry = {"retry-after": str(RETRY_AFTER_S)}
        return problem(503, f"this worker takes no jobs now: {reasons}", code=NotReady.code, headers=retry)

    return app
