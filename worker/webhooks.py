"""Webhooks by the Standard Webhooks specification: who is told what, signed, and until when it is tried again.

Ids derive from the job, so a receiver that remembers them acts once however often, and from whichever node, it
is told. A try differs from the one before in its timestamp and signature alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import pydantic_core
import structlog
from pydantic import SecretStr

from worker import http
from worker.clock import CorrectedClock, isoformat
from worker.errors import (
    ConfigError,
    DownloadFailed,
    FieldError,
    InvalidJob,
    Owner,
    UrlForbidden,
    WebhookFailed,
    WorkerError,
)
from worker.job import Job
from worker.result import Result, WorkerResult
from worker.retry import Policy, retrying
from worker.signature import decode_secrets, read_secrets, signature, webhook_id
from worker.tasks import cancel_all
from worker.urls import Guard, named

log = structlog.get_logger()

GONE = "webhook_gone"
UPDATES_EVERY = timedelta(seconds=1)
POLICY = Policy(attempts=1000, first=timedelta(seconds=1), most=timedelta(seconds=30))
_IN_THREAD = 1_000_000
_DRAIN_MOST = 16_384


class Options(Protocol):
    """The operator's webhook settings, their form already checked."""

    @property
    def url(self) -> str | None: ...
    @property
    def events(self) -> str | Collection[str]: ...
    @property
    def secret(self) -> SecretStr | None: ...
    @property
    def secrets_file(self) -> Path | None: ...
    @property
    def timeout(self) -> timedelta: ...
    @property
    def budget(self) -> timedelta: ...


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for jobs that say nothing else; secrets are keys, decoded."""

    url: str | None = None
    events: frozenset[str] = frozenset({"succeeded", "failed"})
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    named: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, options: Options, *, variable: str = "WORKER_WEBHOOK_SECRETS_FILE") -> Defaults:
        """The settings, secrets decoded; `ConfigError` when the secrets file cannot be used, without its content."""
        try:
            named = read_secrets(options.secrets_file) if options.secrets_file else {}
        except ValueError as mistake:
            raise ConfigError((FieldError(variable, str(mistake)),)) from None
        secret = options.secret.get_secret_value() if options.secret else ""
        return cls(options.url, frozenset(options.events), decode_secrets(secret), named)


@dataclass(frozen=True, slots=True)
class Target:
    """Where one job's webhooks go. ``owner`` says who named the place."""

    url: str = field(repr=False)
    events: frozenset[str]
    secrets: tuple[bytes, ...] = field(repr=False)
    owner: Owner


@dataclass(frozen=True, slots=True)
class Message:
    """One webhook, the same bytes at every try."""

    id: str
    body: bytes = field(repr=False)


class Notifier(Protocol):
    """Who tells what becomes of jobs, as `Sender` does."""

    def wants(self, event: str, job: Job) -> bool: ...

    async def accepts(self, job: Job) -> None: ...

    async def send(
        self, event: str, job: Job, result: Result, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> tuple[str, ...]: ...

    def updates(
        self, job: Job, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> AbstractAsyncContextManager[Updates]: ...


class Sender:
    """Sends webhooks of jobs to where the job, or else the operator, wants them.

    The operator's own URL is exempt from the guard, and its ``Date`` headers are the only ones that correct the
    clock. ``inline``: results carry base64 where the job does not choose a storage.
    """

    def __init__(
        self,
        defaults: Defaults,
        *,
        guard: Guard,
        clock: CorrectedClock,
        rng: random.Random,
        timeout: timedelta = timedelta(seconds=15),
        budget: timedelta = timedelta(minutes=1),
        inline: bool = False,
        worker: WorkerResult | None = None,
        policy: Policy = POLICY,
    ) -> None:
        self._defaults = defaults
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._timeout = timeout
        self._budget = budget
        self._inline = inline
        self._worker = worker
        self._policy = policy
        loopback = defaults.url is not None and http.is_loopback(defaults.url)
        self._clients = {
            Owner.OPERATOR: http.client(timeout=timeout, loopback=loopback),
            Owner.JOB: guard.client(timeout=timeout),
        }
        if defaults.url is not None and not defaults.secrets:
            log.warning("webhooks_unsigned")

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """The operator's keys."""
        return self._defaults.secrets

    def wants(self, event: str, job: Job) -> bool:
        """Whether anyone is to be told of the event."""
        url, events = self._place(job)
        return url is not None and event in events

    async def accepts(self, job: Job) -> None:
        """Refuse a job whose webhook could never be sent.

        Raises `InvalidJob` for an unknown secret and `UrlForbidden`. A host that cannot be resolved now may be
        there when the job is done.
        """
        if job.webhook is None:
            return
        try:
            with named("webhook.url"):
                self._target(job)
                await self._guard.check(job.webhook.url)
        except DownloadFailed as unresolved:
            log.warning("webhook_host_unresolved", error=unresolved.message)

    async def send(
        self, event: str, job: Job, result: Result, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> tuple[str, ...]:
        """Tell how the job ended, and give back warnings; nothing is sent of an event that nobody wants.

        ``before_try`` is awaited before each try, within the budget: a try may be made once it returns.
        Raises `WebhookFailed` when the receiver did not take it within the budget, and at once what `accepts`
        raises.
        """
        if not self.wants(event, job):
            return ()
        target = self._target(job)
        return await self.deliver(target, await self._message(event, job, result), before_try=before_try)

    async def deliver(
        self, target: Target, message: Message, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> tuple[str, ...]:
        """One webhook, tried within the budget; raises and gives back as `send`."""

        async def once() -> tuple[str, ...]:
            if before_try is not None:
                await before_try()
            return await self._try(target, message)

        return await retrying(
            once,
            self._policy,
            budget=self._budget,
            rng=self._rng,
            on_retry=lambda error, attempt, wait: log.info(
                "webhook_retried", webhook_id=message.id, attempt=attempt, wait_s=wait.total_seconds(), error=str(error)
            ),
            out_of_time=lambda why: WebhookFailed(f"{http.origin(target.url)}: {why}", owner=target.owner),
        )

    @asynccontextmanager
    async def updates(
        self, job: Job, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[Updates]:
        """What is told while the job runs, to be fed from its stages; ends with the block, unsent or not.

        ``before_try`` is awaited before each is sent, and what is newest by then is what goes out.
        """
        wanted = frozenset(event for event in ("started", "progress") if self.wants(event, job))
        updates = Updates(job, wanted, before_try)
        if not wanted:
            yield updates
            return
        task = asyncio.create_task(self._tell(updates, self._target(job)), name=f"webhook-updates-{job.id}")
        try:
            yield updates
        finally:
            if task.done():
                log.error("webhook_updates_broke", exc_info=task.exception())
            await cancel_all({task})

    async def check(self) -> str:
        """Try to reach the operator's receiver, without an event; `WebhookFailed` when it is not there."""
        target = self._defaults.url
        if target is None:
            return "only for jobs that name one"
        client = self._clients[Owner.OPERATOR]
        with http.translating(WebhookFailed, url=http.origin(target)):
            async with client.stream("HEAD", target) as response:
                http.observe_date(response, self._clock)
        signed = f"signed with {len(self._defaults.secrets)} secret(s)" if self._defaults.secrets else "unsigned"
        return f"{http.origin(target)} answers {response.status_code}, {signed}"

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _place(self, job: Job) -> tuple[str | None, frozenset[str]]:
        if job.webhook is None:
            return self._defaults.url, self._defaults.events
        events = job.webhook.events
        return job.webhook.url, self._defaults.events if events is None else frozenset(events)

    def _target(self, job: Job) -> Target:
        """Where the job's webhooks go; a URL of the job's whose very form is forbidden is never tried."""
        url, events = self._place(job)
        if job.webhook is not None:
            self._guard.parsed(job.webhook.url)
        secrets, name = self._defaults.secrets, job.webhook.secret if job.webhook else None
        if name is not None:
            if name not in self._defaults.named:
                raise InvalidJob("no secret of this name is configured", field="webhook.secret")
            secrets = self._defaults.named[name]
        return Target(url or "", events, secrets, Owner.OPERATOR if job.webhook is None else Owner.JOB)

    async def _message(self, event: str, job: Job, result: Result) -> Message:
        inline = self._inline if job.output.storage is None else job.output.storage == "inline"
        large = sum(len(output.base64 or "") for output in result.outputs) > _IN_THREAD
        document = (await asyncio.to_thread(result.to_json, base64=inline)) if large else result.to_json(base64=inline)
        return Message(webhook_id(event, job.id), _body(event, result.finished_at, document))

    async def _tell(self, updates: Updates, target: Target) -> None:
        """Send the newest of each event, at most one a second; what fails is not tried again.

        The sequence is the second, so that it goes on growing when another node does the job again.
        """
        loop = asyncio.get_running_loop()
        sequence = 0
        while True:
            event, state = await updates.next()
            ready_again = loop.time() + UPDATES_EVERY.total_seconds()
            sequence = max(sequence + 1, int(self._clock.now().timestamp()))
            data = {**state, "worker": self._worker.model_dump(exclude_none=True) if self._worker else None}
            message = Message(
                webhook_id(event, updates.job.id, sequence if event == "progress" else None),
                _body(event, self._clock.now(), pydantic_core.to_json(data)),
            )
            try:
                await self._try(target, message)
            except (WebhookFailed, UrlForbidden) as error:
                log.info("webhook_update_lost", webhook_id=message.id, error=error.message)
            await asyncio.sleep(ready_again - loop.time())

    async def _try(self, target: Target, message: Message) -> tuple[str, ...]:
        def failed(why: str, retry_after: timedelta | None = None) -> WorkerError:
            return WebhookFailed(why, owner=target.owner, retry_after=retry_after)

        headers = await self._headers(target, message)
        origin = http.origin(target.url)
        answer: httpx.Response | None = None
        try:
            with http.translating(failed, url=origin):
                async with (
                    asyncio.timeout(self._timeout.total_seconds()),
                    self._clients[target.owner].stream(
                        "POST", target.url, content=message.body, headers=headers
                    ) as answer,
                ):
                    if target.owner is Owner.OPERATOR:
                        http.observe_date(answer, self._clock)
                    await _drained(answer)
        except TimeoutError:
            if answer is None:
                raise failed(f"{origin}: no answer within {self._timeout.total_seconds():g} s") from None
        if answer.is_success:
            return ()
        if answer.status_code == httpx.codes.GONE:
            return (GONE,)
        raise failed(f"{origin}: answered {answer.status_code}", http.retry_after(answer, self._clock.now()))

    async def _headers(self, target: Target, message: Message) -> dict[str, str]:
        timestamp = str(int(self._clock.now().timestamp()))
        headers = {"content-type": "application/json", "webhook-id": message.id, "webhook-timestamp": timestamp}
        if target.secrets:
            sign = (target.secrets, message.id, timestamp, message.body)
            large = len(message.body) > _IN_THREAD
            headers["webhook-signature"] = await asyncio.to_thread(signature, *sign) if large else signature(*sign)
        return headers


class Updates:
    """What a running job has to tell: the newest state of each event waits for its turn, older ones are dropped."""

    def __init__(
        self, job: Job, wanted: frozenset[str], before_try: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.job = job
        self._wanted = wanted
        self._before_try = before_try
        self._waiting: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()

    def started(self, stage: str = "") -> None:
        self._put("started", 0.0, stage)

    def progress(self, fraction: float, stage: str = "") -> None:
        """``fraction`` 0-1 of the generation."""
        self._put("progress", fraction, stage)

    def _put(self, event: str, fraction: float, stage: str) -> None:
        if event in self._wanted:
            self._waiting[event] = {
                "id": self.job.id,
                "status": "running",
                "progress": round(fraction, 4),
                "stage": stage,
                "metadata": self.job.metadata,
            }
            self._news.set()

    async def next(self) -> tuple[str, dict[str, Any]]:
        """The oldest event that waits, once it may be told."""
        await self._news.wait()
        if self._before_try is not None:
            await self._before_try()
        event = next(iter(self._waiting))
        state = self._waiting.pop(event)
        if not self._waiting:
            self._news.clear()
        return event, state


def _body(event: str, at: datetime, data: bytes) -> bytes:
    return b'{"type":"job.%b","timestamp":"%b","data":%b}' % (event.encode(), isoformat(at).encode(), data)


async def _drained(response: httpx.Response) -> None:
    """Read a short answer to its end, so that the connection can be used again; its status already counts."""
    try:
        with http.translating(WebhookFailed):
            async with asyncio.timeout(1):
                await http.read(response, limit=_DRAIN_MOST, too_large=WebhookFailed)
    except (TimeoutError, WebhookFailed):
        return
