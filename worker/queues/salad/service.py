"""The platform's job queue service: one connection, its three calls, and what its refusals mean.

The only place that names grpc's exceptions. Messages that leave this module never hold a body or a token.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from enum import Enum
from typing import Any, Protocol

import grpc
from google.protobuf import empty_pb2
from grpc import StatusCode, aio

from worker import __version__, http
from worker.errors import AuthFailed, ConfigError, FieldError, LeaseLost, QueueUnavailable, WorkerError
from worker.log import redact
from worker.node import Node
from worker.queues.salad.service_v1alpha_pb2 import (
    AcceptJobsRequest,
    AcceptJobsResponse,
    CompleteJobRequest,
    Job,
    RejectJobRequest,
)
from worker.settings.node import SaladSettings
from worker.tasks import cancel_all

LARGEST = 10 * 2**20
"""Bytes of a message that the service takes."""

LEAST_TAKEN = 2**20
"""Bytes of a message that are never too many: a service that says so means that it is asked too much."""

PATIENCE = timedelta(seconds=30)
UNSAID = timedelta(seconds=3)
"""How long a stream may say nothing before the service is asked whether it has taken it."""

NOBODY = "00000000-0000-0000-0000-000000000000"
"""The id of no job."""

_END: Any = aio.EOF  # type: ignore[attr-defined]
_SERVICE = "/salad.grpc.saladcloud_job_queue_worker.v1alpha.JobQueueWorkerService/"
_TOLD_MOST = 200
_TARGET = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}")
_OPTIONS = (
    ("grpc.max_send_message_length", 2 * LARGEST),
    ("grpc.max_receive_message_length", 2 * LARGEST),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.primary_user_agent", f"sd-worker/{__version__}"),
)


class QueueRefused(AuthFailed, QueueUnavailable):
    """The service refuses our identity token: the queue is paused until one is taken."""

    code = AuthFailed.code


class JobGone(LeaseLost):
    """The service knows of no such job that is ours."""

    code = LeaseLost.code


class OutputRefused(QueueUnavailable):
    """The service does not take this output, now or later; ``too_large``: for its size."""

    code = QueueUnavailable.code

    def __init__(self, message: str = "", *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class NoSuchService(QueueUnavailable):
    """Something answers there that is no job queue."""

    code = QueueUnavailable.code


ERRORS: dict[StatusCode, Callable[[str], WorkerError]] = {
    StatusCode.CANCELLED: QueueUnavailable,
    StatusCode.UNKNOWN: QueueUnavailable,
    StatusCode.INVALID_ARGUMENT: OutputRefused,
    StatusCode.DEADLINE_EXCEEDED: QueueUnavailable,
    StatusCode.NOT_FOUND: JobGone,
    StatusCode.ALREADY_EXISTS: QueueUnavailable,
    StatusCode.PERMISSION_DENIED: QueueRefused,
    StatusCode.RESOURCE_EXHAUSTED: lambda message: OutputRefused(message, too_large=True),
    StatusCode.FAILED_PRECONDITION: QueueUnavailable,
    StatusCode.ABORTED: QueueUnavailable,
    StatusCode.OUT_OF_RANGE: QueueUnavailable,
    StatusCode.UNIMPLEMENTED: NoSuchService,
    StatusCode.INTERNAL: QueueUnavailable,
    StatusCode.UNAVAILABLE: QueueUnavailable,
    StatusCode.DATA_LOSS: QueueUnavailable,
    StatusCode.UNAUTHENTICATED: QueueRefused,
}
"""What each status that is no success means to us."""

BUGS: frozenset[type[Exception]] = frozenset({aio.UsageError, aio.AbortError})
"""Misuse of the library by us: left alone, so that it counts as a bug."""


@contextmanager
def translating(place: str) -> Iterator[None]:
    """Turn whatever grpc raises inside into an error of ours that names the place.

    A call that the service cancels looks like a cancellation of our task, which it is not.
    """
    try:
        yield
    except aio.AioRpcError as failure:
        raise _error(place, failure.code(), failure.details()) from None
    except aio.InternalError:
        raise QueueUnavailable(f"{place}: the connection broke") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _error(place, StatusCode.CANCELLED, None) from None


_TLS_REFUSALS = (
    (re.compile(r"Hostname Verification Check failed"), "its certificate is for another name"),
    (re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: ([a-z -]+))?"), "its certificate is not to be trusted"),
    (re.compile(r"WRONG_VERSION_NUMBER"), "it does not speak TLS"),
)
"""What the library says of them, far behind in a long line, and what that means."""


def _error(place: str, code: StatusCode, details: str | None) -> WorkerError:
    said = " ".join(redact(details or "").split())
    told = next((_in_words(found, words) for what, words in _TLS_REFUSALS if (found := what.search(said))), said)
    told = told[:_TOLD_MOST]
    return ERRORS[code](f"{place}: {code.name}{f' ({told})' if told else ''}")


def _in_words(found: re.Match[str], words: str) -> str:
    return ": ".join((words, *(why for why in found.groups() if why)))


class Said(Enum):
    """What a stream says beside jobs."""

    HEARTBEAT = "heartbeat"
    TAKEN = "taken"


Word = Job | Said


class Tokens(Protocol):
    """As `Node.identity_token`."""

    def __call__(self, refused: str | None = None) -> Awaitable[str | None]: ...


class Service:
    """Every call carries a token of the node, and a fresh one where that is refused.

    All raise `QueueUnavailable`, which is a `QueueRefused` where no token is taken, and `JobGone`. The connection is
    made at the first call; `ConfigError` for an address that is none.
    """

    def __init__(
        self, settings: SaladSettings, node: Node, *, patience: timedelta = PATIENCE, unsaid: timedelta = UNSAID
    ) -> None:
        self.place = settings.service_endpoint
        self._tls = settings.service_use_tls
        self._tokens: Tokens = node.identity_token
        self._patience_s, self._unsaid_s = patience.total_seconds(), unsaid.total_seconds()
        self._channel: aio.Channel | None = None
        self._is_closed = False

    async def accept(self, current: Callable[[], str]) -> AsyncGenerator[Word, None]:
        """The words of one stream; ``current`` names the job that we have, else nothing.

        `Said.TAKEN`, once at most, is no word of the stream: it stands in for the first one, which need not come for as
        long as there is nothing to say. Another call was answered meanwhile, on the connection that had carried the
        request for the stream before, and the stream was not refused.
        """
        token = await self._token()
        try:
            async with aclosing(self._messages(current(), token)) as messages:
                async for message in messages:
                    yield message
            return
        except QueueRefused:
            fresh = await self._token(token)
            if fresh == token:
                raise
        async with aclosing(self._messages(current(), fresh)) as messages:
            async for message in messages:
                yield message

    async def complete(self, job_id: str, output: bytes) -> None:
        """The job is over with this JSON; `OutputRefused` where the service does not take that."""
        request = CompleteJobRequest(job_id=job_id, output=output)
        if request.ByteSize() > LARGEST:
            raise OutputRefused(f"{len(output)} bytes are more than the service takes", too_large=True)
        try:
            await self._call("CompleteJob", request)
        except OutputRefused as refusal:
            if refusal.too_large and request.ByteSize() <= LEAST_TAKEN:
                raise QueueUnavailable(refusal.message) from None
            raise

    async def reject(self, job_id: str) -> None:
        """The job is given back: the service hands it over again, unless that was its last time."""
        await self._call("RejectJob", RejectJobRequest(job_id=job_id))

    async def look(self) -> None:
        """Ask what changes nothing: to give back a job that nobody has.

        Raises `AuthFailed`, `QueueUnavailable`, and `ConfigError` where something else answers there.
        """
        try:
            await self.reject(NOBODY)
        except (JobGone, OutputRefused):
            return
        except QueueRefused as error:
            raise AuthFailed(error.message) from None
        except NoSuchService as error:
            raise ConfigError((FieldError("SALAD_SERVICE_ENDPOINT", f"is no job queue: {error.message}"),)) from None

    async def aclose(self) -> None:
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def _token(self, refused: str | None = None) -> str:
        token = await self._tokens(refused)
        if token is None:
            raise QueueUnavailable("no identity token of this node is to be had now (SALAD_METADATA_URI)")
        return token

    async def _messages(self, current: str, token: str) -> AsyncGenerator[Word, None]:
        accept: Any = self._opened().unary_stream(
            _SERVICE + "AcceptJobs",
            request_serializer=AcceptJobsRequest.SerializeToString,
            response_deserializer=AcceptJobsResponse.FromString,
        )
        with translating(self.place):
            call = accept(AcceptJobsRequest(current_job_id=current), metadata=_metadata(token))
            reading = asyncio.create_task(call.read(), name="salad-read")
            asking = asyncio.create_task(self._answers(), name="salad-ask")
            try:
                await asyncio.wait({reading, asking}, return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
                if not reading.done():
                    yield Said.TAKEN
                message = await reading
                while message is not _END:
                    yield message.job if message.HasField("job") else Said.HEARTBEAT
                    message = await call.read()
            finally:
                call.cancel()
                await cancel_all({reading, asking})

    async def _answers(self) -> None:
        """Ask from time to time what changes nothing, until that is answered."""
        while True:
            await asyncio.sleep(self._unsaid_s)
            try:
                await self.reject(NOBODY)
            except (JobGone, OutputRefused):
                return
            except QueueUnavailable:
                continue
            return

    async def _call(self, method: str, request: CompleteJobRequest | RejectJobRequest) -> None:
        token = await self._token()
        try:
            await self._once(method, request, token)
        except QueueRefused:
            fresh = await self._token(token)
            if fresh == token:
                raise
            await self._once(method, request, fresh)

    async def _once(self, method: str, request: CompleteJobRequest | RejectJobRequest, token: str) -> None:
        unary: Any = self._opened().unary_unary(
            _SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=empty_pb2.Empty.FromString,
        )
        with translating(self.place):
            await unary(request, timeout=self._patience_s, metadata=_metadata(token))

    def _opened(self) -> aio.Channel:
        if self._is_closed:
            raise QueueUnavailable(f"{self.place}: the connection was closed")
        if self._channel is None:
            self._channel = self._connection()
        return self._channel

    def _connection(self) -> aio.Channel:
        if not _TARGET.fullmatch(self.place):
            raise ConfigError((FieldError("SALAD_SERVICE_ENDPOINT", "is not a host and a port"),))
        proxy = not http.is_loopback(f"http://{self.place}")
        options = (*_OPTIONS, ("grpc.enable_http_proxy", int(proxy)))
        if self._tls:
            return aio.secure_channel(self.place, grpc.ssl_channel_credentials(), options)
        return aio.insecure_channel(self.place, options)


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)
