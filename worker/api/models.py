"""The models of the node: what is loaded, on disk and on its way, and having one fetched or removed.

URLs that are named here are the caller's: they are guarded, and limited to the operator's hosts, like those of a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from worker.api.fetches import Fetches, Shelf, TooManyFetches
from worker.errors import (
    Fault,
    FieldError,
    InvalidJob,
    JobRefused,
    ModelForbidden,
    ModelInUse,
    ModelNotFound,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.job import Int, Name, Url, field_errors
from worker.mentions import Place, place_of
from worker.models.base import Entry, InFlight, Wanted
from worker.models.folders import wrong_name
from worker.models.kinds import is_told_by_hub, kind_of_url
from worker.models.manifest import checked_url
from worker.web import problems
from worker.web.problems import problem

BODY_MOST = 65_536
LOOK_S = 2.0
"""How long the image server has to tell what it has loaded."""

RETRY_AFTER_S = 30


@dataclass(frozen=True, slots=True)
class Shown:
    """The cache as HTTP sees it, and what was asked for over HTTP."""

    models: Shelf
    fetches: Fetches


class PlaceAnswer(BaseModel):
    kind: str
    name: str


class ModelAnswer(PlaceAnswer):
    """A file on disk: ``size`` in bytes. A ``baked`` one came with the image and counts against no cap."""

    size: int
    sha256: str | None
    baked: bool


class TransferAnswer(PlaceAnswer):
    """A file on its way: ``done`` of ``size`` bytes, which may grow where the source does not tell it."""

    done: int
    size: int
    source: str
    priority: str


class FailureAnswer(PlaceAnswer):
    """What was asked for here and did not come."""

    code: str
    detail: str


class ModelsAnswer(BaseModel):
    """``on_disk`` the most recently used first. ``loaded`` is null when the image server does not tell.

    In bytes: ``used`` of the ``cap``, transfers included, and ``free``, which is what more models may take.
    """

    folder: str | None
    used: int
    cap: int
    free: int | None
    loaded: list[PlaceAnswer] | None
    on_disk: list[ModelAnswer]
    downloading: list[TransferAnswer]
    failed: list[FailureAnswer]


class StateAnswer(PlaceAnswer):
    """``state`` is ``on_disk`` or ``downloading``; a file on disk may have another name than it was asked for by."""

    state: str
    size: int | None = None
    sha256: str | None = None


def _named(name: str) -> str:
    if wrong := wrong_name(name):
        raise ValueError(wrong)
    return name


FileName = Annotated[Name, AfterValidator(_named)]
"""Of a file below a folder of models."""


class Order(BaseModel):
    """A model to be fetched. Without a URL it comes from the operator's sources, by its name.

    The kind may be left out where the URL tells it, or Civitai does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")] | None = None
    name: FileName | None = None
    url: Annotated[Url, AfterValidator(checked_url)] | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    size: Int | None = Field(None, gt=0)
    wait: bool = Field(default=False, description="answer when the file is there, or no answer may take longer")

    def wanted(self) -> Wanted:
        """Raises `InvalidJob` where it does not say enough."""
        if self.name is None and self.url is None:
            raise InvalidJob("is needed where there is no url", field="name")
        kind = self.kind or (kind_of_url(self.url) if self.url is not None else None)
        if kind is None and not (self.url is not None and is_told_by_hub(self.url)):
            raise InvalidJob("is needed: checkpoint, lora, vae ...", field="kind")
        field = "name" if self.url is None else "url"
        return Wanted(kind or "", self.name or "", self.url, self.sha256, self.size, Owner.JOB, field)


_ORDER_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": Order.model_json_schema(),
                "example": {"kind": "lora", "url": "https://huggingface.co/org/repo/resolve/main/ink.safetensors"},
            }
        },
    }
}


def routes(shown: Shown, longest: timedelta | None = None) -> APIRouter:
    """``longest``: no answer is waited for any longer."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="What is loaded, on disk and on its way", response_model=ModelsAnswer)
    async def every() -> Response:
        return JSONResponse(await _listed(shown))

    @router.post(
        "",
        summary="Have a model fetched",
        response_model=StateAnswer,
        openapi_extra=_ORDER_SCHEMA,
        responses={
            200: {"description": "It is on disk"},
            202: {"model": StateAnswer, "description": "It is on its way"},
            **problems.answers(
                _413="The body is too large",
                _422="The order cannot be carried out",
                _429="Too many are being fetched",
                _503="A source, the network or the disk is in the way now",
            ),
        },
    )
    async def fetch(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return problem(413, f"the body has more than {BODY_MOST} bytes")
        try:
            order = _order(body)
            wanted = order.wanted()
            return _state(wanted, await shown.fetches.fetched(wanted, wait=order.wait, longest=longest))
        except WorkerError as error:
            return refusal(error)

    @router.delete(
        "/{kind}/{name:path}",
        summary="Remove a model from the disk",
        status_code=204,
        responses=problems.answers(
            _404="There is no such model", _409="A job or the image server uses it", _422="There can be no such model"
        ),
    )
    async def remove(kind: str, name: str) -> Response:
        try:
            await shown.models.remove(place_of(kind, name))
        except ModelNotFound as error:
            return problem(404, error.message, code=error.code)
        except WorkerError as error:
            return refusal(error)
        return Response(status_code=204)

    return router


def described(models: Shelf) -> dict[str, Any]:
    """The cache for the status page: bytes, the number of files, and what is on its way. Answers at once."""
    return {**_measures(models), "entries": len(models.entries()), "transfers": _transfers(models.transfers())}


def refusal(error: WorkerError) -> JSONResponse:
    """The problem that an error is, with the field where one is at fault. Raises what is a bug."""
    if isinstance(error, ModelInUse):
        return problem(409, error.message, code=error.code)
    if isinstance(error, JobRefused):
        return problem(422, error.message, code=error.code, errors=_fields(error))
    if error.fault is Fault.BUG:
        raise error
    status = 429 if isinstance(error, TooManyFetches) else 503
    wait = error.retry_after.total_seconds() if error.retry_after else RETRY_AFTER_S
    return problem(status, error.message, code=error.code, headers={"retry-after": str(max(1, round(wait)))})


def _fields(error: JobRefused) -> Iterable[FieldError]:
    """The fields that an error names; what it says of a job's ``models`` is about the kind."""
    if isinstance(error, InvalidJob):
        return [FieldError("kind" if one.field == "models" else one.field, one.message) for one in error.errors]
    field, colon, said = error.message.partition(": ")
    if colon and field in ("url", "name"):
        return [FieldError(field, said)]
    return [FieldError("url", error.message)] if isinstance(error, UrlForbidden | ModelForbidden) else []


async def _body(request: Request) -> bytes | None:
    """The whole body, or None when it is larger than any order."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MOST:
            return None
    return bytes(body)


def _order(body: bytes) -> Order:
    try:
        return Order.model_validate_json(body)
    except ValidationError as error:
        raise InvalidJob(errors=tuple(field_errors(error))) from None


def _state(wanted: Wanted, entry: Entry | None) -> JSONResponse:
    if entry is None:
        state = StateAnswer(**wanted.place._asdict(), state="downloading", size=wanted.size, sha256=wanted.sha256)
        return JSONResponse(state.model_dump(), 202)
    state = StateAnswer(**entry.place._asdict(), state="on_disk", size=entry.size, sha256=entry.sha256)
    return JSONResponse(state.model_dump())


async def _listed(shown: Shown) -> dict[str, Any]:
    models = shown.models
    loaded = await _loaded(models)
    return {
        "folder": None if models.folder is None else str(models.folder),
        **_measures(models),
        "loaded": None if loaded is None else [place._asdict() for place in sorted(loaded)],
        "on_disk": [_entry(entry) for entry in reversed(models.entries())],
        "downloading": _transfers(models.transfers()),
        "failed": [
            {**place._asdict(), "code": error.code, "detail": error.message}
            for place, error in shown.fetches.failed.items()
        ],
    }


async def _loaded(models: Shelf) -> frozenset[Place] | None:
    try:
        async with asyncio.timeout(LOOK_S):
            return await models.loaded()
    except (TimeoutError, WorkerError):
        return None


def _measures(models: Shelf) -> dict[str, int | None]:
    free: int | None = None
    with suppress(WorkerError):
        free = models.free
    return {"used": models.bytes, "cap": models.cap, "free": free}


def _entry(entry: Entry) -> dict[str, Any]:
    return {**entry.place._asdict(), "size": entry.size, "sha256": entry.sha256, "baked": entry.baked}


def _transfers(transfers: Iterable[InFlight]) -> list[dict[str, Any]]:
    return [
        {
            **one.place._asdict(),
            "done": one.done,
            "size": one.reserved,
            "source": one.source,
            "priority": str(one.priority),
        }
        for one in transfers
    ]
