"""The HTTP application: which routes there are."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse

from dispatcher.api import fleet, jobs, models, nodes, problems, state
from dispatcher.api.shortcut import Shortcut
from dispatcher.view import View
from worker import __version__
from worker.web import docs
from worker.web.body import BodyLimit
from worker.web.problems import described


def create_app(view: View) -> FastAPI:
    """The ASGI application of one process."""
    app = FastAPI(
        title="sd-dispatcher",
        version=__version__,
        summary="Gives each node the job whose model it already has.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )

    async def user(request: Request) -> None:
        view.access.user(request.headers)

    guarded = APIRouter(dependencies=[Depends(user)], responses=problems.answers(401, 403, 503))
    for part in (jobs, fleet, models, state):
        guarded.include_router(part.routes(view))

    @guarded.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(described(app.openapi()))

    @guarded.get("/docs", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(docs.page("sd-dispatcher"), headers={"content-security-policy": docs.POLICY})

    of_nodes = nodes.routes(view)
    app.include_router(of_nodes)
    app.include_router(state.probes(view))
    app.include_router(guarded)
    app.add_middleware(Shortcut, router=of_nodes, on_bug=view.metrics.bug)
    app.add_middleware(BodyLimit, max_body=view.settings.serve.max_body)
    problems.install(app, view.metrics.bug)
    return app
