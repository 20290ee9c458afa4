"""SaladCloud's job queue, as its protocol and its reference describe it, on a real socket.

What no source tells is set here: ``heartbeat_s``, and for how long a job waits for a worker whose stream has ended
(``grace_s``); a worker that comes back without naming its job has lost it at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Self

from google.protobuf import empty_pb2
from grpc import StatusCode, aio, method_handlers_generic_handler, ssl_server_credentials
from grpc import unary_stream_rpc_method_handler as streaming
from grpc import unary_unary_rpc_method_handler as unary

from tests.support.certificates import Certificate
from worker.queues.base import JobState
from worker.queues.salad.service_v1alpha_pb2 import (
    AcceptJobsRequest,
    AcceptJobsResponse,
    CompleteJobRequest,
    Job,
    RejectJobRequest,
)

SERVICE = "salad.grpc.saladcloud_job_queue_worker.v1alpha.JobQueueWorkerService"
LARGEST = 10 * 2**20
ATTEMPTS = 4
_NEWS: Any = object()


@dataclass(eq=False)
class QueuedJob:
    """As the platform's API shows a job: ``status`` is pending, running, succeeded or failed."""

    id: str
    input: bytes
    path: str
    port: int
    status: str = "pending"
    output: Any = None
    worker: str | None = None
    attempts: int = 0
    events: list[str] = field(default_factory=lambda: ["created"])


@dataclass(eq=False)
class _Line:
    """One open stream; what is put into it ends it: a status, or None for a plain end."""

    worker: str
    token: str
    context: Any
    is_over: bool = False
    news: asyncio.Queue[StatusCode | None] = field(default_factory=asyncio.Queue)


class SaladJobQueue:
    """The service on ``target``. ``calls`` counts every call by method and how it was answered.

    A token is a JWT by its shape, whose subject is the worker; it is taken unless it is among the ``refused``, which
    are answered with ``refusal``. ``failing`` statuses answer the next calls of a method, whatever they ask; the answer
    to one that is among the ``losing`` is lost. No end of a job is answered before ``answers`` is set. While it is
    mute, streams are taken and nothing is ever said on them.
    """

    def __init__(
        self,
        *,
        heartbeat_s: float = 0.05,
        grace_s: float = 30.0,
        attempts: int = ATTEMPTS,
        certificate: Certificate | None = None,
    ) -> None:
        self.heartbeat_s = heartbeat_s
        self.grace_s = grace_s
        self.attempts = attempts
        self.jobs: dict[str, QueuedJob] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.named: list[str] = []
        self.agents: set[str] = set()
        self.refused: set[str] = set()
        self.refusal = StatusCode.UNAUTHENTICATED
        self.failing: dict[str, deque[StatusCode]] = {
            "AcceptJobs": deque(),
            "CompleteJob": deque(),
            "RejectJob": deque(),
        }
        self.losing: deque[str] = deque()
        self.repeating: deque[str] = deque()
        self.asked_to_end = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.is_mute = False
        self._waiting: deque[str] = deque()
        self._lines: dict[str, _Line] = {}
        self._open: Counter[str] = Counter()
        self._server: aio.Server | None = None
        self._certificate = certificate
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, again on the same port after a `stop`."""
        sizes = [("grpc.max_send_message_length", LARGEST), ("grpc.max_receive_message_length", LARGEST)]
        self._server = aio.server(options=[*sizes, ("grpc.so_reuseport", 0)])
        handlers = {
            "AcceptJobs": streaming(self._accept, AcceptJobsRequest.FromString, AcceptJobsResponse.SerializeToString),
            "CompleteJob": unary(self._complete, CompleteJobRequest.FromString, empty_pb2.Empty.SerializeToString),
            "RejectJob": unary(self._reject, RejectJobRequest.FromString, empty_pb2.Empty.SerializeToString),
        }
        self._server.add_generic_rpc_handlers((method_handlers_generic_handler(SERVICE, handlers),))
        self._port = self._listening(self._server, f"127.0.0.1:{self._port}")
        await self._server.start()

    def _listening(self, server: aio.Server, address: str) -> int:
        """Its port; with TLS where there is a certificate."""
        if (mine := self._certificate) is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, ssl_server_credentials([(mine.key, mine.chain)]))

    async def stop(self) -> None:
        """Be gone, as after a crash: every connection breaks."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def streams(self) -> int:
        """How many are open now."""
        return sum(self._open.values())

    def submit(self, job_id: str, body: Any, *, path: str = "/v1/jobs", port: int = 3000) -> QueuedJob:
        """Create a job, as the platform's API does; bytes are taken as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        job = self.jobs[job_id] = QueuedJob(job_id, data, path, port)
        self._wait(job)
        return job

    def end_streams(self, status: StatusCode | None = None, worker: str | None = None) -> None:
        """End what is open, plainly or with a status."""
        for line in [one for one in self._lines.values() if worker in (None, one.worker)]:
            line.is_over = True
            line.news.put_nowait(status)

    def expire_tokens(self) -> None:
        """Every token that a stream has is good no more."""
        self.refused |= {line.token for line in self._lines.values()}
        self.end_streams(self.refusal)

    def repeat(self, job_id: str) -> None:
        """Push a job once more to the worker that has it."""
        self.repeating.append(job_id)

    def hand_to(self, job_id: str, worker: str) -> None:
        """Give up on the worker that has the job: another one has it now."""
        job = self.jobs[job_id]
        job.worker = worker
        job.attempts += 1
        job.events += ["failed", "started"]
        self._stir()

    def cut_off(self) -> None:
        """Give up on every worker that has a job; each may come back and ask for it."""
        self.end_streams(StatusCode.UNAVAILABLE)
        for job in [one for one in self.jobs.values() if one.status == "running"]:
            self._failed_once(job)

    def _wait(self, job: QueuedJob) -> None:
        self._waiting.append(job.id)
        self._stir()

    def _stir(self) -> None:
        for line in self._lines.values():
            line.news.put_nowait(_NEWS)

    def _failed_once(self, job: QueuedJob) -> None:
        job.worker = None
        job.events.append("failed")
        if job.attempts >= self.attempts:
            job.status = "failed"
        else:
            job.status = "pending"
            self._wait(job)

    async def _asked(self, method: str, context: Any) -> tuple[str, str]:
        """The worker and its token."""
        told = dict(context.invocation_metadata())
        self.agents.add(str(told.get("user-agent", "")))
        if self.failing[method]:
            await self._refuse(method, context, self.failing[method].popleft())
        scheme, _, token = str(told.get("authorization", "")).partition(" ")
        worker = subject_of(token) if scheme == "Bearer" else None
        if worker is None or token in self.refused:
            await self._refuse(method, context, self.refusal)
        return str(worker), token

    async def _refuse(self, method: str, context: Any, status: StatusCode) -> None:
        self.calls[method, status.name] += 1
        await context.abort(status, f"the service says {status.name}")

    async def _accept(self, request: AcceptJobsRequest, context: Any) -> AsyncIterator[AcceptJobsResponse]:
        worker, token = await self._asked("AcceptJobs", context)
        self.named.append(request.current_job_id)
        if not self._knows(worker, request.current_job_id):
            await self._refuse("AcceptJobs", context, StatusCode.NOT_FOUND)
        self.calls["AcceptJobs", "OK"] += 1
        line = _Line(worker, token, context)
        if (earlier := self._lines.get(worker)) is not None:
            earlier.news.put_nowait(None)
        self._lines[worker] = line
        self._open[worker] += 1
        try:
            async with contextlib.aclosing(self._said(line)) as messages:
                async for message in messages:
                    if isinstance(message, StatusCode):
                        await context.abort(message, f"the service says {message.name}")
                    yield message
        finally:
            self._ended(line)

    def _knows(self, worker: str, named: str) -> bool:
        running = [one for one in self.jobs.values() if one.worker == worker and one.status == "running"]
        for job in running:
            if job.id != named:
                self._failed_once(job)
        return not named or any(job.id == named for job in running)

    def _ended(self, line: _Line) -> None:
        self._open[line.worker] -= 1
        if self._lines.get(line.worker) is line:
            del self._lines[line.worker]
            for job in self.jobs.values():
                if job.worker == line.worker and job.status == "running":
                    asyncio.get_running_loop().call_later(self.grace_s, self._gave_up, job, job.attempts)

    def _gave_up(self, job: QueuedJob, attempt: int) -> None:
        away = job.worker is not None and job.worker not in self._lines
        if away and job.status == "running" and job.attempts == attempt:
            self._failed_once(job)

    async def _said(self, line: _Line) -> Any:
        """What is said on a stream: a heartbeat now and then, and a job as soon as the worker has none."""
        while self.is_mute:
            if (status := await line.news.get()) is not _NEWS:
                return
        yield AcceptJobsResponse(heartbeat=empty_pb2.Empty())
        while True:
            job = self.jobs[self.repeating.popleft()] if self.repeating else self._next(line)
            if job is not None:
                yield AcceptJobsResponse(job=Job(job_id=job.id, port=job.port, path=job.path, input=job.input))
            try:
                async with asyncio.timeout(self.heartbeat_s):
                    status = await line.news.get()
            except TimeoutError:
                yield AcceptJobsResponse(heartbeat=empty_pb2.Empty())
                continue
            if status is None:
                return
            if status is not _NEWS:
                yield status

    def _next(self, line: _Line) -> QueuedJob | None:
        worker = line.worker
        if self._lines.get(worker) is not line or line.is_over or line.context.cancelled():
            return None
        if any(job.worker == worker and job.status == "running" for job in self.jobs.values()):
            return None
        while self._waiting:
            job = self.jobs[self._waiting.popleft()]
            if job.status == "pending":
                job.status, job.worker = "running", worker
                job.attempts += 1
                job.events.append("started")
                return job
        return None

    async def _held(self, method: str, context: Any, job_id: str) -> QueuedJob:
        self.asked_to_end += 1
        await self.answers.wait()
        worker, _ = await self._asked(method, context)
        job = self.jobs.get(job_id)
        if job is None or job.status != "running" or job.worker != worker:
            await self._refuse(method, context, StatusCode.NOT_FOUND)
            raise AssertionError("unreachable")
        return job

    async def _complete(self, request: CompleteJobRequest, context: Any) -> empty_pb2.Empty:
        job = await self._held("CompleteJob", context, request.job_id)
        try:
            output = json.loads(request.output)
        except ValueError:
            await self._refuse("CompleteJob", context, StatusCode.INVALID_ARGUMENT)
            raise
        job.status, job.output, job.worker = "succeeded", output, None
        job.events.append("succeeded")
        return await self._done("CompleteJob", context)

    async def _reject(self, request: RejectJobRequest, context: Any) -> empty_pb2.Empty:
        job = await self._held("RejectJob", context, request.job_id)
        self._failed_once(job)
        return await self._done("RejectJob", context)

    async def _done(self, method: str, context: Any) -> empty_pb2.Empty:
        """Answered, unless the answer is to be lost on its way."""
        if self.losing and self.losing[0] == method:
            self.losing.popleft()
            await self._refuse(method, context, StatusCode.UNAVAILABLE)
        self.calls[method, "OK"] += 1
        self._stir()
        return empty_pb2.Empty()


class PlatformsApi:
    """The user's side, as a `Producer`: jobs are created and looked at, a pending one is cancelled."""

    def __init__(self, service: SaladJobQueue) -> None:
        self._service = service

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        self._service.submit(job_id, body)
        return True

    async def state(self, job_id: str) -> JobState | None:
        found = self._service.jobs.get(job_id)
        return None if found is None else JobState(found.id, found.status, found.attempts, (), None, None)

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        found = [await self.state(job_id) for job_id in self._service.jobs]
        return [one for one in found if one is not None and status in (None, one.status)][:limit]

    async def requeue(self, job_id: str) -> bool:
        return False

    async def cancel(self, job_id: str) -> bool:
        job = self._service.jobs.get(job_id)
        if job is None or job.status != "pending":
            return False
        job.status = "cancelled"
        return True

    async def aclose(self) -> None:
        """Nothing is open."""


def subject_of(token: str) -> str | None:
    """The subject of a JWT; None for what is none."""
    try:
        part = token.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["sub"])
    except (IndexError, ValueError, KeyError):
        return None
