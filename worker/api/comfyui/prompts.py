"""Prompts in comfyui-api's language, from the request to the answer: of graphs, and of the operator's workflows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from worker.api.answers import Gone, Late, document_in, ended, failed, hands_off, late, refused
from worker.api.comfyui.answer import answered, in_their_words, outputs
from worker.api.comfyui.notifier import PromptNotifier
from worker.api.comfyui.request import (
    HttpUpload,
    Malformed,
    Unsaved,
    Wishes,
    check_saver,
    echo,
    read,
    wishes,
    without_secrets,
)
from worker.api.comfyui.store import PromptStore, Uploads
from worker.desk import Desk, Ended
from worker.errors import DownloadFailed, FieldError, InvalidJob, UrlForbidden, WorkerError
from worker.job import parse
from worker.made import Made
from worker.tasks import LARGE, aside
from worker.urls import Guard
from worker.web.inside import is_patient
from worker.web.problems import NOBODY
from worker.webhooks import Sender

_OTHERWISE = {
    "output": "convert_output says it here",
    **dict.fromkeys(
        ("models", "checkpoint", "metadata", "priority", "timeout", "deadline"),
        "is of the job document; post that to /v1/jobs, with the workflow as its template",
    ),
}
"""What another server's callers may say beside an input, and comfyui-api would leave out unheard."""


@dataclass(frozen=True, slots=True)
class Means:
    """How prompts reach out: ``guard`` is before every URL that a request names."""

    guard: Guard
    sender: Sender
    uploads: Uploads


class Prompts:
    """Takes prompts in and answers them."""

    def __init__(self, desk: Desk, means: Means) -> None:
        self._desk = desk
        self._means = means

    async def answered(self, request: Request) -> Response:
        """What the caller of a graph is answered, be it a problem."""
        try:
            document = await document_in(request, max_body=self._desk.rules.limits.max_body)
            asked = await aside(_size(request), lambda: read(document))
            return await self._done(request, asked, asked.document, echo(asked, document))
        except WorkerError as error:
            return _problem(error)

    async def of_workflow(self, request: Request, name: str) -> Response:
        """What the caller of one of the operator's workflows is: as of the graph that it makes, with his input."""
        try:
            body = await document_in(request, max_body=self._desk.rules.limits.max_body)
            asked, given = await aside(_size(request), lambda: _beside_input(body))
            built = await self._built(asked.id, {"name": name, "input": given}, _size(request))
            told = {**echo(asked, {**body, "prompt": built.get("workflow", {})}), "input": without_secrets(given)}
            output = {**(built.get("output") or {}), **asked.output}
            return await self._done(request, asked, {**built, "id": asked.id, "output": output}, told)
        except WorkerError as error:
            return _problem(error)

    async def _built(self, job_id: str, template: Mapping[str, Any], size: int) -> dict[str, Any]:
        """The job document that a workflow makes of an input, once: it may draw numbers."""
        limits = self._desk.rules.limits
        job = await aside(size, lambda: parse({"id": job_id, "template": template}, fallback_id=job_id, limits=limits))
        try:
            built = await self._desk.tools.workflows.document(job, limits)
        except InvalidJob as error:
            raise Malformed(errors=error.errors) from None
        if "workflow" in built:
            check_saver(built["workflow"])
        return built

    async def _done(
        self, request: Request, asked: Wishes, document: Mapping[str, Any], told: Mapping[str, Any]
    ) -> Response:
        await self._check_urls(asked)
        await self._means.uploads.check(asked.upload)
        desk, leaves = self._desk, hands_off(request, not asked.waits)
        upload, named = asked.upload, asked.webhook is not None or asked.webhook_v2 is not None
        ticket = await desk.take(
            document,
            waits=not leaves,
            key=request.headers.get("idempotency-key") if is_patient(request.scope) else None,
            native=True,
            store=None if upload is None else PromptStore(asked, upload, self._means.uploads, self._made),
            notifier=PromptNotifier(asked, told, self._means.sender, self._made) if named else None,
            credentials=asked.credentials,
        )
        if leaves:
            return await answered({**told, "status": "ok"}, status=202, size=_size(request))
        try:
            return await self._ended(request, await ended(request, desk, ticket), asked, told)
        except Late:
            return in_their_words(late(ticket))
        except Gone:
            return NOBODY

    async def _ended(self, request: Request, end: Ended, asked: Wishes, told: Mapping[str, Any]) -> Response:
        if end.result.status != "succeeded" or end.made is None:
            return in_their_words(failed(end.result))
        content = {**told, **await outputs(asked, end.result, end.made)}
        return await answered(content, size=end.made.size + _size(request))

    async def _check_urls(self, asked: Wishes) -> None:
        """Refuse, before anything is done for it, a URL that may not be visited.

        Raises `InvalidJob` naming it. A host that cannot be resolved now may be there later.
        """
        named = {"webhook": asked.webhook, "webhook_v2": asked.webhook_v2}
        if isinstance(asked.upload, HttpUpload):
            named["http_upload.url_prefix"] = asked.upload.url_prefix
        for field, url in named.items():
            try:
                if url is not None:
                    await self._means.guard.check(url)
            except UrlForbidden as error:
                raise InvalidJob(error.message, field=field) from None
            except DownloadFailed:
                continue

    def _made(self, job_id: str) -> Made | None:
        held = self._desk.held(job_id)
        made = None if held is None else held.made
        return made if isinstance(made, Made) else None


def _beside_input(body: Mapping[str, Any]) -> tuple[Wishes, dict[str, Any]]:
    """What a request to a workflow wishes for, and its input. Raises `InvalidJob`."""
    wrong = [FieldError(name, said) for name, said in _OTHERWISE.items() if body.get(name) is not None]
    given = body.get("input", {})
    if not isinstance(given, dict):
        wrong.append(FieldError("input", "must be an object"))
    if wrong:
        raise Malformed(errors=tuple(wrong))
    return wishes(body, Wishes), given


def _problem(error: WorkerError) -> Response:
    return in_their_words(refused(error), 400 if isinstance(error, Malformed | Unsaved) else None)


def _size(request: Request) -> int:
    """About how long an answer is that repeats the request."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else LARGE + 1
