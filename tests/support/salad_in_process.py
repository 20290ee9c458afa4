"""A driver's way to the stand-in of the platform's job queue without a socket, so that time may be virtual."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, NoReturn

from grpc import StatusCode

from tests.support.salad_queue import SaladJobQueue
from tests.support.virtual import takes
from worker.node import Node
from worker.queues.salad.service import ERRORS, Said, Service, Word
from worker.queues.salad.service_v1alpha_pb2 import AcceptJobsRequest, CompleteJobRequest, RejectJobRequest
from worker.settings.node import SaladSettings

LATENCY_S = 0.01


class _Aborted(Exception):
    def __init__(self, status: StatusCode) -> None:
        self.status = status


class _Context:
    """One call, as the service sees it."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.is_over = False

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token}"),)

    async def abort(self, status: StatusCode, details: str) -> NoReturn:
        raise _Aborted(status)

    def cancelled(self) -> bool:
        return self.is_over


class InProcessService(Service):
    """Calls the stand-in's own methods. Cut off, its stream ends and nothing arrives any more."""

    def __init__(self, settings: SaladSettings, node: Node, platform: SaladJobQueue) -> None:
        super().__init__(settings, node)
        self._platform, self._worker = platform, node.identity.id
        self._is_cut = False

    def sever(self) -> None:
        self._is_cut = True
        self._platform.end_streams(StatusCode.UNAVAILABLE, self._worker)

    def mend(self) -> None:
        self._is_cut = False

    async def _messages(self, current: str, token: str) -> AsyncGenerator[Word, None]:
        await self._reach()
        context: Any = _Context(token)
        said: Any = self._platform._accept(AcceptJobsRequest(current_job_id=current), context)
        try:
            async with aclosing(said):
                async for message in said:
                    yield message.job if message.HasField("job") else Said.HEARTBEAT
        except _Aborted as end:
            raise self._told(end.status) from None
        finally:
            context.is_over = True

    async def _once(self, method: str, request: CompleteJobRequest | RejectJobRequest, token: str) -> None:
        await self._reach()
        verb: Any = {"CompleteJob": self._platform._complete, "RejectJob": self._platform._reject}[method]
        try:
            await verb(request, _Context(token))
        except _Aborted as end:
            raise self._told(end.status) from None

    async def _reach(self) -> None:
        await takes(LATENCY_S)
        if self._is_cut:
            raise self._told(StatusCode.UNAVAILABLE)

    def _told(self, status: StatusCode) -> Exception:
        return ERRORS[status](f"{self.place}: {status.name}")
