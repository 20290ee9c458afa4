"""Scheduling servers on real sockets: one that knows only what was published, and one that leases and keeps account."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic_core import from_json, to_json

from tests.support.receiver import Answer, Request, ScriptedServer
from tests.support.virtual import takes
from worker.clock import Clock, isoformat
from worker.errors import IdConflict, InvalidJob, JobCancelled, LeaseLost
from worker.job import document_of
from worker.node import Identity, Report
from worker.queues.base import Attempt, Delivery, JobState
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.result import Result
from worker.wire import Availability, Ended, Heartbeat, Release

EXAMPLE_REQUEST = """{
  "node": {
    "id": "random-uuid",
    "gpu": "rtx4090",
    "vram_gb": 24
  },
  "vram_models": {
    "checkpoints": ["dreamshaper_8.safetensors"],
    "loras": ["add_detail.safetensors"]
  },
  "disk_models": {
    "checkpoints": ["Juggernaut_X_RunDiffusion_Hyper.safetensors"],
    "upscalers": ["nomos8khatLOtf_v20.safetensors"]
  }
}"""
"""The request of the platform's guide "How to Manage A Large Number of Stable Diffusion Models"."""

EXAMPLE_ANSWER = """{
  "generation": {
    "checkpoint": "dreamshaper_8.safetensors",
    "params": {
      "prompt": "mechanical cat flying a spaceship",
      "negative_prompt": "text, watermark",
      "cfg": 5.6,
      "steps": 20
    }
  },
  "download": {
    "checkpoints": [
      "https://civitai.com/api/download/models/132760?type=Model&format=SafeTensor&size=pruned&fp=fp16"
    ]
  }
}"""
"""Its answer."""


@dataclass
class StandInNode:
    """A node that says what it is told to; ``tokens`` are handed out in turn, the last one for ever.

    ``takes_s`` of virtual time are spent on a report.
    """

    identity: Identity
    says: Report = field(default_factory=Report)
    tokens: list[str] = field(default_factory=list)
    takes_s: float = 0.0

    async def report(self) -> Report:
        if self.takes_s:
            await takes(self.takes_s)
        return self.says

    async def identity_token(self, refused: str | None = None) -> str | None:
        if len(self.tokens) > 1:
            return self.tokens.pop(0)
        return self.tokens[0] if self.tokens else None


def a_node(worker: str = "w1", *, report: Report | None = None, tokens: list[str] | None = None) -> StandInNode:
    identity = Identity(worker, "machine", "test", gpu="NVIDIA GeForce RTX 4090", instance=f"{worker}-1")
    return StandInNode(identity, report or Report(vram_gb=24), tokens or [])


class MinimalServer(ScriptedServer):
    """Knows ``POST /availability`` as it was published and nothing else: 404. ``answers`` come in turn, then ``{}``."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = deque(answers)
        self.asked: list[dict[str, Any]] = []

    def answer(self, request: Request) -> Answer:
        if (request.method, request.path) != ("POST", "/availability"):
            return Answer(404)
        body = json.loads(request.body)
        self.asked.append(body)
        node = body["node"]
        named = (
            isinstance(node["id"], str) and isinstance(node["gpu"], str) and isinstance(node["vram_gb"], int | float)
        )
        listed = all(
            isinstance(name, str)
            for category in (body["vram_models"], body["disk_models"])
            for names in category.values()
            for name in names
        )
        if not (named and listed):
            return Answer(400)
        return _json(json.loads(self.answers.popleft())) if self.answers else _json({})


Verb = Callable[[Request, str], Awaitable[Answer]]


class FullServer(ScriptedServer):
    """Leases with growing tokens, heartbeats, results, releases, long polls, orders, and the users' verbs.

    ``faults`` are answered instead, in turn, by the verb that they hit: ``availability``, ``heartbeat``, ``result``,
    ``release``, ``jobs``; what is ``lost`` was done all the same. ``orders`` go out one a request of a node. While
    ``let_go`` is not set, what was decided for a request for work is not sent.
    """

    def __init__(
        self,
        clock: Clock,
        policy: Policy | None = None,
        *,
        node_token: str | None = None,
        user_token: str | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy or Policy()
        self.queue = MemoryQueue(clock, policy=self.policy)
        self.node_token, self.user_token = node_token, user_token
        self.faults: dict[str, deque[Answer]] = defaultdict(deque)
        self.lost: dict[str, deque[Answer]] = defaultdict(deque)
        self.orders: deque[dict[str, Any]] = deque()
        self.asked: list[Availability] = []
        self.beats: list[Heartbeat] = []
        self.let_go = asyncio.Event()
        self.let_go.set()
        self.retry_after: float | None = None
        self._waiting: dict[str, set[asyncio.Task[Any]]] = defaultdict(set)

    async def reply(self, request: Request) -> Answer:
        name, verb, job_id = self._route(request)
        if verb is None:
            return Answer(404)
        wanted = self.user_token if name == "jobs" else self.node_token
        if wanted is not None and request.headers.get("authorization") != f"Bearer {wanted}":
            return _problem(401, "unauthorized", "the token is missing or wrong")
        if self.faults[name]:
            return self.faults[name].popleft()
        answer = await verb(request, job_id)
        return self.lost[name].popleft() if self.lost[name] else answer

    def _route(self, request: Request) -> tuple[str, Verb | None, str]:
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        routes: Mapping[tuple[str, ...], tuple[str, Verb]] = {
            ("POST", "availability"): ("availability", self._availability),
            ("POST", "heartbeat"): ("heartbeat", self._heartbeat),
            ("POST", "jobs", "*", "result"): ("result", self._result),
            ("POST", "jobs", "*", "release"): ("release", self._release),
            ("POST", "jobs"): ("jobs", self._submit),
            ("GET", "jobs"): ("jobs", self._list),
            ("GET", "jobs", "*"): ("jobs", self._state),
            ("DELETE", "jobs", "*"): ("jobs", self._cancel),
            ("POST", "jobs", "*", "requeue"): ("jobs", self._requeue),
        }
        job_id = parts[1] if len(parts) > 1 else ""
        name, verb = routes.get((request.method, *parts[:1], *["*"] * (len(parts) > 1), *parts[2:]), ("", None))
        return name, verb, job_id

    async def _availability(self, request: Request, _: str) -> Answer:
        asked = Availability.model_validate_json(request.body)
        self.asked.append(asked)
        queue = self.queue.beside(asked.node.id, wait=timedelta(seconds=asked.wait or 0))
        receiving = asyncio.create_task(queue.receive(), name="stand-in-receive")
        waiting = self._waiting[asked.node.id]
        waiting.add(receiving)
        try:
            await asyncio.wait({receiving})
        except asyncio.CancelledError:
            receiving.cancel()
            await asyncio.wait({receiving})
            raise
        finally:
            waiting.discard(receiving)
        delivery = None if receiving.cancelled() else receiving.result().delivery
        await self.let_go.wait()
        found = {} if delivery is None else {"generation": self._generation(delivery)}
        again = {} if self.retry_after is None else {"retry_after": self.retry_after}
        return _json({**found, **again, **self._order()})

    def _order(self) -> dict[str, Any]:
        return self.orders.popleft() if self.orders else {}

    def _generation(self, delivery: Delivery) -> dict[str, Any]:
        assert delivery.queued_at is not None
        return {
            **document_of(delivery.body, max_body=len(delivery.body)),
            "id": delivery.id,
            "token": delivery.receipt,
            "lease": self.policy.visibility.total_seconds(),
            "queued_at": isoformat(delivery.queued_at),
            "deliveries": delivery.deliveries,
            "redelivered": delivery.redelivered,
            "attempts": [_attempt(one) for one in delivery.attempts],
            "max_attempts": self.policy.max_attempts,
            "max_deliveries": self.policy.max_deliveries,
        }

    async def _heartbeat(self, request: Request, _: str) -> Answer:
        beat = Heartbeat.model_validate_json(request.body)
        self.beats.append(beat)
        lost, cancelled = [], []
        for running in beat.running:
            try:
                await self.queue.extend(self._held(running.id, running.token))
            except LeaseLost:
                lost.append(running.id)
            except JobCancelled:
                cancelled.append(running.id)
        if beat.away:
            for receiving in self._waiting[beat.node.id]:
                receiving.cancel()
        return _json({"lost": lost, "cancel": cancelled, **self._order()})

    async def _result(self, request: Request, job_id: str) -> Answer:
        ended = Ended.model_validate_json(request.body)
        end = self.queue.reject if ended.dead else self.queue.ack
        try:
            await end(self._held(job_id, ended.token), Result.model_validate(ended.result))
        except LeaseLost:
            return _problem(409, "lease_lost", "another holds the job, or it is over")
        return Answer(204)

    async def _release(self, request: Request, job_id: str) -> Answer:
        release = Release.model_validate_json(request.body)
        held, delay = self._held(job_id, release.token), timedelta(seconds=release.delay)
        try:
            await self.queue.nack(held, delay, release.reason, charged=release.charged)
        except LeaseLost:
            return _problem(409, "lease_lost", "another holds the job, or it is over")
        return Answer(204)

    def _held(self, job_id: str, token: Any) -> Delivery:
        return Delivery(job_id, b"", self.policy.visibility, receipt=token)

    async def _submit(self, request: Request, _: str) -> Answer:
        try:
            document = document_of(request.body, max_body=len(request.body))
            is_new = await self.queue.submit(
                document["id"], to_json(document), priority=int(document.get("priority", 0))
            )
        except InvalidJob as error:
            return _problem(422, "invalid_job", error.message, [{"field": "params", "message": error.message}])
        except IdConflict as error:
            return _problem(409, "id_conflict", error.message)
        return _json({"id": document["id"]}, 201 if is_new else 200)

    async def _list(self, request: Request, _: str) -> Answer:
        asked = parse_qs(urlsplit(request.target).query)
        states = await self.queue.jobs(asked.get("status", [None])[0], int(asked.get("limit", ["100"])[0]))
        return _json({"jobs": [_job(state) for state in states]})

    async def _state(self, request: Request, job_id: str) -> Answer:
        state = await self.queue.state(job_id)
        return _problem(404, "not_found", "no such job") if state is None else _json(_job(state))

    async def _cancel(self, request: Request, job_id: str) -> Answer:
        return Answer(204 if await self.queue.cancel(job_id) else 409)

    async def _requeue(self, request: Request, job_id: str) -> Answer:
        return Answer(204 if await self.queue.requeue(job_id) else 409)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    ended = None if attempt.ended is None else isoformat(attempt.ended)
    return {"worker": attempt.worker, "ended": ended, "code": attempt.code, "charged": attempt.charged}


def _job(state: JobState) -> dict[str, Any]:
    return {
        "id": state.id,
        "status": state.status,
        "deliveries": state.deliveries,
        "attempts": [_attempt(one) for one in state.attempts],
        "code": state.code,
        "result": None if state.result is None else from_json(state.result.to_json()),
    }


def _json(document: Any, status: int = 200) -> Answer:
    return Answer(status, {"content-type": "application/json"}, to_json(document))


def _problem(status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None) -> Answer:
    return _json({"status": status, "code": code, "detail": detail, "errors": errors or []}, status)
