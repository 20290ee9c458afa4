"""Jobs, as users put them there, see what becomes of them, and withdraw them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import pydantic_core
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from dispatcher.api import shown
from dispatcher.api.examples import SUBMITTED
from dispatcher.api.problems import Conflict, Missing, answers, taking
from dispatcher.auth import User
from dispatcher.documents import new_job
from dispatcher.needs import Catalogue
from dispatcher.store.base import NewJob
from dispatcher.view import View
from worker.errors import FieldError, InvalidJob
from worker.job import Job, Limits

JOBS_MOST = 10_000
IN_THREAD = 32
LIST_MOST = 1000
SCHEMA: dict[str, Any] = {"anyOf": [Job.model_json_schema(), {"type": "array", "items": {"type": "object"}}]}

Status = Literal["waiting", "delayed", "leased", "done", "dead"]
Id = Annotated[str, Path(max_length=256)]


class Submitted(BaseModel):
    """``created``: whether the job is new; else the very same document stood there already."""

    id: str
    created: bool


def routes(view: View) -> APIRouter:
    router = APIRouter(tags=["jobs"])
    _add_submission(router, view)
    _add_reading(router, view)

    @router.delete("/jobs/{id}", summary="Cancel a job, at any stage", status_code=204, responses=answers(404, 409))
    async def cancel(id: Id) -> Response:
        if not await view.store.cancel(id):
            raise await _why_not(view, id, "the job is over")
        await _cancelled(view, id)
        return Response(status_code=204)

    @router.post(
        "/jobs/{id}/requeue",
        summary="Have a dead letter run again, its counts begun anew",
        status_code=204,
        responses=answers(404, 409),
    )
    async def requeue(id: Id) -> Response:
        if not await view.store.requeue(id):
            raise await _why_not(view, id, "the job is no dead letter")
        row = await view.store.job(id)
        if row is not None and row.status == "waiting":
            view.desk.back(row)
        return Response(status_code=204)

    return router


def _add_submission(router: APIRouter, view: View) -> None:
    @router.post(
        "/jobs",
        summary="Submit a job document, or a list of them: all or none",
        status_code=201,
        response_model=Submitted | list[Submitted],
        openapi_extra=taking(SCHEMA, SUBMITTED),
        responses={**answers(409, 413, 422), 200: {"description": "All of them stood there already"}},
    )
    async def submit(request: Request) -> Response:
        documents = _json(await request.body())
        several = isinstance(documents, list)
        user = view.access.user(request.headers)
        jobs = await _new_jobs(documents if several else [documents], view, user, several=several)
        created = await view.store.submit(jobs)
        _came([job for job, new in zip(jobs, created, strict=True) if new], view)
        told = [{"id": job.id, "created": new} for job, new in zip(jobs, created, strict=True)]
        return JSONResponse(told if several else told[0], 201 if any(created) else 200)


def _add_reading(router: APIRouter, view: View) -> None:
    @router.get("/jobs", summary="Jobs in the order of their turn, then those that are over; without results")
    async def listed(
        status: Status | None = None,
        limit: Annotated[int, Query(ge=1, le=LIST_MOST)] = 100,
        after: Annotated[str | None, Query(max_length=256)] = None,
    ) -> JSONResponse:
        rows = await view.store.jobs(status=status, limit=limit, after=after)
        return JSONResponse({"jobs": [shown.job(row, result=False) for row in rows]})

    @router.get("/jobs/{id}", summary="One job, with its result", responses=answers(404))
    async def one(id: Id) -> JSONResponse:
        row = await view.store.job(id)
        if row is None:
            raise Missing("no such job")
        return JSONResponse(shown.job(row))


def _json(body: bytes) -> Any:
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJob(f"not JSON: {error}", field="") from None


async def _new_jobs(documents: list[Any], view: View, user: User, *, several: bool) -> list[NewJob]:
    """The jobs that are submitted; many are checked in a thread, so that nodes are answered meanwhile."""
    if len(documents) > JOBS_MOST:
        raise InvalidJob(f"{len(documents)} jobs at once are more than {JOBS_MOST}", field="")
    limits, catalogue = view.settings.limits, view.upkeep.catalogue
    if len(documents) <= IN_THREAD:
        return checked(documents, catalogue, limits, user, several=several)
    return await asyncio.to_thread(checked, documents, catalogue, limits, user, several=several)


def checked(documents: list[Any], catalogue: Catalogue, limits: Limits, user: User, *, several: bool) -> list[NewJob]:
    """Every document as a job. `InvalidJob` holds the mistakes of all, each with its place where there are several."""
    jobs: list[NewJob] = []
    mistakes: list[FieldError] = []
    for at, document in enumerate(documents):
        try:
            jobs.append(new_job(document, catalogue, limits, user=user.name))
        except InvalidJob as error:
            place = f"{at}." if several else ""
            mistakes += (FieldError((place + one.field).rstrip("."), one.message) for one in error.errors)
    if mistakes:
        raise InvalidJob(errors=tuple(mistakes))
    return jobs


def _came(jobs: list[NewJob], view: View) -> None:
    """New jobs wait: nodes that have to do with them are asked at once."""
    if jobs:
        view.metrics.submitted(len(jobs))
        keys = [job.needs[0].key if job.needs else "" for job in jobs]
        view.demands.came((key, job.work_s) for key, job in zip(keys, jobs, strict=True))
        view.desk.wake(keys)


async def _cancelled(view: View, job_id: str) -> None:
    """The holder of a job that is cancelled hears of it at once where its request is held here."""
    row = await view.store.job(job_id)
    if row is not None and row.cancelling and row.node is not None:
        view.heartbeats.cancel([job_id])
        view.desk.nudge(row.node)


async def _why_not(view: View, job_id: str, otherwise: str) -> Missing | Conflict:
    return Missing("no such job") if await view.store.job(job_id) is None else Conflict(otherwise)
