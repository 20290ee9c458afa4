"""`GET /models` and `POST /download`: the server's model files by folder, and having one fetched into such a folder."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import quote, unquote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from worker import http
from worker.api.answers import document_in, refused
from worker.api.comfyui.answer import in_their_words
from worker.api.comfyui.request import wrong_fields
from worker.api.models import FileName, Shown
from worker.api.models import refusal as model_refusal
from worker.api.native import Native
from worker.api.schemas import inlined
from worker.engines.base import Engine, NativeCall
from worker.errors import EngineCrashed, InvalidJob, Owner, WorkerError
from worker.job import Url
from worker.models.auth import AnyAuth
from worker.models.base import Wanted
from worker.models.identity import safe_name
from worker.models.kinds import kind_of_folder
from worker.models.manifest import checked_url
from worker.tasks import gather_bare
from worker.web import problems

_UNLISTED = frozenset({"custom_nodes"})
"""A folder of the server's that holds no models."""


class DownloadRequest(BaseModel):
    """comfyui-api's order of a model. ``auth`` opens this URL alone, and comes back in no answer."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    url: Annotated[Url, AfterValidator(checked_url)]
    model_type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="a folder of the server's models, as GET /models names them"
    )
    filename: FileName | None = None
    wait: bool = Field(default=False, description="answer when the file is there, or no answer may take longer")
    auth: AnyAuth | None = None

    @property
    def called(self) -> str:
        """The file's name: as it was asked for, else as the URL ends."""
        return self.filename or safe_name(unquote(self.url.partition("?")[0].partition("#")[0].rpartition("/")[2]))

    def wanted(self, kind: str) -> Wanted:
        return Wanted(kind, self.filename or "", self.url, owner=Owner.JOB, field="url", auth=self.auth)


class DownloadAnswer(BaseModel):
    """``size`` in bytes, ``duration`` in seconds."""

    url: str
    model_type: str
    filename: str
    status: str
    size: int | None = None
    duration: float | None = None


_EXAMPLE = {
    "url": "https://huggingface.co/org/repo/resolve/main/model.safetensors",
    "model_type": "checkpoints",
    "wait": False,
}
_PROBLEMS = problems.answers(
    _400="The order is not of comfyui-api's form, or the server has no such folder",
    _422="The order cannot be carried out",
    _429="Too many are being fetched",
    _503="A source, the network, the disk or the server is in the way now",
)


def routes(native: Native, shown: Shown | None) -> APIRouter:
    router = APIRouter()
    body = {"schema": inlined(DownloadRequest.model_json_schema()), "example": _EXAMPLE}

    @router.get(
        "/models",
        summary="The server's model files by folder",
        response_model=dict[str, list[str]],
        responses={503: _PROBLEMS[503]},
    )
    async def every() -> Response:
        try:
            return JSONResponse(await listed(native.engine))
        except WorkerError as error:
            return in_their_words(refused(error))

    if shown is None:
        return router

    @router.post(
        "/download",
        summary="Have a model fetched into a folder",
        response_model=DownloadAnswer,
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": body}}},
        responses={
            200: {"description": "It is on disk"},
            202: {"model": DownloadAnswer, "description": "It is on its way"},
            **_PROBLEMS,
        },
    )
    async def download(request: Request) -> Response:
        try:
            order = _order(await document_in(request, max_body=native.desk.rules.limits.max_body))
            kind = await _kind(order.model_type, native.engine)
        except WorkerError as error:
            return in_their_words(refused(error), 400 if isinstance(error, InvalidJob) else None, at="url")
        try:
            return await _fetched(order, kind, shown, native.desk.rules.timeout)
        except WorkerError as error:
            return in_their_words(model_refusal(error), at="url")

    return router


async def listed(engine: Engine) -> dict[str, list[str]]:
    """Every folder with its files, as the server tells them now. Raises `EngineCrashed`."""
    names = [name for name in await _texts(engine, "/models") if name not in _UNLISTED]
    files = await gather_bare(
        [_texts(engine, f"/models/{quote(name, safe='')}") for name in names], name="comfyui-models"
    )
    return dict(zip(names, files, strict=True))


async def _texts(engine: Engine, path: str) -> list[str]:
    answer = await engine.relay(NativeCall("GET", path))
    found = answer.json if answer.ok else None
    if not isinstance(found, list):
        raise EngineCrashed(f"{path} answered {answer.status}, and no list")
    return [one for one in found if isinstance(one, str)]


def _order(document: dict[str, Any]) -> DownloadRequest:
    try:
        return DownloadRequest.model_validate({k: v for k, v in document.items() if v is not None})
    except ValidationError as error:
        raise InvalidJob(errors=wrong_fields(error)) from None


async def _kind(folder: str, engine: Engine) -> str:
    """The kind whose files lie in a folder of the server's. Raises `InvalidJob` where it has none of this name."""
    known = await _texts(engine, "/models")
    kind = kind_of_folder(folder)
    if kind is None or folder not in known or folder in _UNLISTED:
        there = ", ".join(sorted(set(known) - _UNLISTED))
        raise InvalidJob(f"the server has no such folder of models; there are: {there}", field="model_type")
    return kind


async def _fetched(order: DownloadRequest, kind: str, shown: Shown, longest: timedelta | None) -> Response:
    loop = asyncio.get_running_loop()
    began = loop.time()
    entry = await shown.fetches.fetched(order.wanted(kind), wait=order.wait, longest=longest)
    told = {"url": _shown(order.url), "model_type": order.model_type}
    if entry is None or not order.wait:
        name = order.called if entry is None else entry.place.name
        return JSONResponse({**told, "filename": name, "status": "started"}, 202)
    took = round(loop.time() - began, 3)
    done = {"filename": entry.place.name, "status": "completed", "size": entry.size, "duration": took}
    return JSONResponse({**told, **done})


def _shown(url: str) -> str:
    """The URL without what may be a credential in it."""
    return http.shown(url) if "://" in url else url
