"""Webhooks as comfyui-api sends them: `prompt.complete` and `prompt.failed`, and the older one for each file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from worker.api.comfyui.answer import base64s, body, filenames, outputs, renamed, stats
from worker.api.comfyui.request import Wishes
from worker.clock import isoformat
from worker.errors import Owner
from worker.job import Job
from worker.made import Made
from worker.result import Result
from worker.signature import webhook_id
from worker.tasks import gather_bare
from worker.webhooks import Message, Sender, Target, Updates

EVENTS = frozenset({"succeeded", "failed", "cancelled"})


class PromptNotifier:
    """Tells the owner of one prompt, and of no other, how it ended.

    ``echo`` is what a body repeats of the request; ``made`` gives what was made while the job is still held.
    """

    def __init__(
        self, request: Wishes, echo: Mapping[str, Any], sender: Sender, made: Callable[[str], Made | None]
    ) -> None:
        self._request = request
        self._echo = echo
        self._sender = sender
        self._made = made

    def wants(self, event: str, job: Job) -> bool:
        named = self._request.webhook is not None or self._request.webhook_v2 is not None
        return named and event in EVENTS

    async def accepts(self, job: Job) -> None:
        """Whoever took the prompt in has looked at its URLs."""

    async def send(
        self, event: str, job: Job, result: Result, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> tuple[str, ...]:
        """As `Notifier.send`; of several that fail the first error comes out."""
        if not self.wants(event, job):
            return ()
        made = self._made(job.id) if event == "succeeded" else None
        sent = [*await self._older(job, result, made), *await self._newer(job, result, made)]
        told = await gather_bare(
            [self._sender.deliver(target, message, before_try=before_try) for target, message in sent],
            name=f"webhooks-{job.id}",
        )
        return tuple(dict.fromkeys(warning for warnings in told for warning in warnings))

    @asynccontextmanager
    async def updates(
        self, job: Job, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[Updates]:
        """comfyui-api tells of a prompt's end alone."""
        yield Updates(job, frozenset())

    async def _newer(self, job: Job, result: Result, made: Made | None) -> Sequence[tuple[Target, Message]]:
        if self._request.webhook_v2 is None:
            return []
        event = "prompt.complete" if made is not None else "prompt.failed"
        told = _failure(result) if made is None else await outputs(self._request, result, made)
        content = {"type": event, "timestamp": isoformat(result.finished_at), **self._echo, **told}
        target = Target(self._request.webhook_v2, EVENTS, self._sender.secrets, Owner.JOB)
        return [(target, await _message(event, job.id, content, made))]

    async def _older(self, job: Job, result: Result, made: Made | None) -> Sequence[tuple[Target, Message]]:
        """One for each file, unsigned, with the file itself; of a failure where the newer one tells it to nobody."""
        if self._request.webhook is None or (made is None and self._request.webhook_v2 is not None):
            return []
        target = Target(self._request.webhook, EVENTS, (), Owner.JOB)
        named = {"id": self._request.id, "prompt": self._echo["prompt"]}
        if made is None:
            content = {"event": "prompt.failed", **named, **_failure(result)}
            return [(target, await _message("prompt.failed", job.id, content, made))]
        times, sent = stats(result, made.output.native), []
        for number, (image, name) in enumerate(zip(await base64s(made), filenames(self._request, made), strict=True)):
            content = {"event": "output.complete", "image": image, **named, "filename": name, "stats": times}
            sent.append((target, await _message("output.complete", job.id, content, made, number)))
        return sent


def _failure(result: Result) -> dict[str, Any]:
    """``error`` in words, as comfyui-api has it, and what programs can decide by."""
    error = result.error
    if error is None:
        return {"error": "what was made is not held any more", "code": "internal", "retryable": True}
    return {"error": renamed(error.message), "code": error.code, "retryable": error.retryable}


async def _message(
    event: str, job_id: str, content: Mapping[str, Any], made: Made | None, number: int | None = None
) -> Message:
    return Message(webhook_id(event, job_id, number), await body(content, 0 if made is None else made.size))
