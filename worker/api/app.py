"""The HTTP application: which routes there are, and what they may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse

from worker.api import comfyui, examples, fooocus, jobs, page, previews, probes, sdapi, status, workflows
from worker.api.auth import KeyCheck, not_from_another_site
from worker.api.models import Shown, described
from worker.api.models import routes as models_routes
from worker.api.native import Native
from worker.live import Live
from worker.metrics import Metrics
from worker.node import Identity, Report
from worker.settings.http import HttpSettings
from worker.status import Status
from worker.web import docs, problems
from worker.web.body import BodyLimit
from worker.web.turns import Turns
from worker.workflows import Workflows


@dataclass(frozen=True, slots=True)
class View:
    """What HTTP may see of the worker.

    ``engine`` says what is known of the image server, ``report`` what a scheduler is told of the node, ``extras`` what
    else belongs on the status page; all answer at once and hold no secrets. Who has the API key may have ``models``
    fetched and removed, and jobs done by ``native``; None where HTTP takes none.
    """

    status: Status
    live: Live
    metrics: Metrics
    identity: Identity
    engine: Callable[[], dict[str, Any]] = dict
    extras: Callable[[], dict[str, Any]] = dict
    models: Shown | None = None
    report: Callable[[], Report] = Report
    native: Native | None = None
    workflows: Workflows = field(default_factory=Workflows)
    comfyui: comfyui.Means | None = None

    def additions(self) -> dict[str, Any]:
        """What the status page tells beside the worker's own state."""
        cache = {"cache": described(self.models.models)} if self.models is not None else {}
        desk = {"desk": status.described(self.native.desk)} if self.native is not None else {}
        return self.extras() | cache | desk


def create_app(view: View, settings: HttpSettings) -> FastAPI:
    """The ASGI application; nothing in it leaves the event loop, so it answers while a generation runs."""
    app = FastAPI(
        title="sd-worker",
        version=view.identity.version,
        summary="Jobs, models, probes, state and metrics of one image-generating worker.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    checks = [Depends(not_from_another_site), Depends(KeyCheck(settings.api_key))]
    guarded = APIRouter(dependencies=checks, responses=problems.UNAUTHORIZED)
    guarded.include_router(
        status.routes(view.status, view.live, view.metrics, view.identity, view.engine, view.additions, view.report)
    )
    guarded.include_router(previews.routes(view.live))
    guarded.include_router(page.routes())
    native = view.native
    if native is not None:
        prompts = None if view.comfyui is None else comfyui.Prompts(native.desk, view.comfyui)
        language = partial(_spoken, native, prompts)
        guarded.include_router(jobs.routes(native.desk))
        guarded.include_router(workflows.routes(native.desk, view.workflows, language))
        if native.may_be(*sdapi.NAMES):
            guarded.include_router(sdapi.routes(native))
        if prompts is not None and native.may_be(comfyui.NAME):
            guarded.include_router(comfyui.routes(native, prompts, view.models))
        if native.may_be(*fooocus.NAMES):
            guarded.include_router(fooocus.routes(native))
    if view.models is not None:
        guarded.include_router(models_routes(view.models, settings.timeout))

    @guarded.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        document = problems.described(app.openapi())
        if native is None:
            return JSONResponse(document)
        document = workflows.described(document, view.workflows)
        document = examples.exemplified(document, native.engine.name, await examples.graph_of(native))
        return JSONResponse(document if language() is None else comfyui.described(document))

    @guarded.get("/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return HTMLResponse(docs.page("sd-worker"), headers={"content-security-policy": docs.POLICY})

    app.include_router(probes.routes(view.status, native.desk.full if native is not None else tuple))
    app.include_router(guarded)
    app.add_middleware(Turns)
    app.add_middleware(BodyLimit, max_body=settings.max_body)
    problems.install(app, view.metrics.bug)
    return app


def _spoken(native: Native, prompts: comfyui.Prompts | None) -> workflows.Language | None:
    """In whose language workflows are asked for and answered: on a ComfyUI in comfyui-api's, else in our own."""
    return prompts.of_workflow if prompts is not None and native.engine.name == comfyui.NAME else None
