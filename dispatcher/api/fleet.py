"""The nodes as users see them, and why each job goes where it goes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from dispatcher import explain
from dispatcher.api import shown
from dispatcher.api.jobs import Id
from dispatcher.api.problems import Missing, answers
from dispatcher.view import View


def routes(view: View) -> APIRouter:
    router = APIRouter(tags=["fleet"])

    @router.get("/fleet", summary="All nodes, and the models that are most in want of one")
    async def fleet() -> JSONResponse:
        return JSONResponse(shown.fleet(view))

    @router.get(
        "/nodes/{id}/explain", summary="What the node would get now, and why nothing else", responses=answers(404)
    )
    async def explain_node(id: Id) -> JSONResponse:
        if id not in view.fleet:
            raise Missing("no such node was heard of")
        return JSONResponse(await explain.node(view.fleet[id], view))

    @router.get(
        "/jobs/{id}/explain",
        summary="Why the job is where it is, and what it would cost on each node",
        responses=answers(404),
    )
    async def explain_job(id: Id) -> JSONResponse:
        row = await view.store.job(id)
        if row is None:
            raise Missing("no such job")
        return JSONResponse(await explain.job(row, view))

    return router
