"""Requests that are passed on to the image server: readings freely, work and changes under a turn of the gate.

Only what stands in a table is passed on, with the query parameters that it names, so that no reading changes
anything. What a caller sends beside path, query and body never reaches the server, nor do its headers the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pydantic_core
import structlog
from fastapi import APIRouter, Request, Response

from worker.api.answers import Gone, Late, document_in, gone, refused
from worker.api.passing import checked_work, error_text
from worker.desk import Rules
from worker.desk.refusals import NotReady, TooManyPending
from worker.engines.answer import Answer
from worker.engines.base import Engine, NativeCall
from worker.errors import ResultTooLarge, WorkerError
from worker.gate import Gate
from worker.tasks import cancel_all, to_the_end
from worker.web.inside import is_patient
from worker.web.problems import MEDIA_TYPE, NOBODY, problem

log = structlog.get_logger()

LOOK, WORK = timedelta(seconds=30), timedelta(minutes=10)
RETRY_AFTER = timedelta(seconds=5)
_SHOWN = ("application/json", "text/plain", "image/png", "image/jpeg", "image/webp")

Responses = dict[int | str, dict[str, Any]]
PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
"""By reference: a hundred endpoints that each name the model take a noticeable time to build."""

PROBLEMS: Responses = {
    404: {"description": "The server here has no such endpoint", "content": PROBLEM},
    502: {"description": "The server failed, and how", "content": PROBLEM},
    503: {"description": "The server cannot be reached now", "content": PROBLEM},
}
TURN_PROBLEMS: Responses = {
    **PROBLEMS,
    422: {"description": "The request is not valid, or asks for what is not allowed", "content": PROBLEM},
    429: {"description": "Too many requests wait", "content": PROBLEM},
    504: {"description": "It takes longer than an answer may, and goes on", "content": PROBLEM},
}
DONE: Responses = {204: {"description": "Done; the server has nothing to tell"}}
FORBIDDEN: Responses = {403: {"description": "The operator does not allow it here", "content": PROBLEM}}


@dataclass(frozen=True, slots=True)
class Passed:
    """One endpoint of the server; ``names`` are the query parameters that are passed on."""

    path: str
    names: tuple[str, ...] = ()
    method: str = "GET"

    def call(self, request: Request, *, body: bytes | None = None, timeout: timedelta = LOOK) -> NativeCall:
        given = request.query_params
        query = {name: given[name] for name in self.names if name in given}
        media_type = "application/json" if body is not None else None
        return NativeCall(self.method, self.path, query, body, media_type, timeout)

    @property
    def parameters(self) -> dict[str, Any]:
        """Its query parameters, as OpenAPI describes them."""
        return {"parameters": [{"name": n, "in": "query", "schema": {"type": "string"}} for n in self.names]}


class Relay:
    """Passes requests on. Those that take turns go on to their end when their caller is gone: so does the server.

    ``options_allowed``: requests may change the server's global settings. ``timeout`` is how long the server may work
    on one request; of those no more wait than jobs may.
    """

    def __init__(
        self, engine: Engine, gate: Gate, rules: Rules, *, options_allowed: bool = False, timeout: timedelta = WORK
    ) -> None:
        self.options_allowed = options_allowed
        self._engine = engine
        self._gate = gate
        self._rules = rules
        self._timeout = timeout
        self._turns: set[asyncio.Task[Answer]] = set()
        self._sent: set[asyncio.Task[Answer]] = set()

    async def read(self, request: Request, passed: Passed) -> Response:
        """At once, whatever runs."""
        try:
            return told(await self._engine.relay(passed.call(request)))
        except WorkerError as error:
            return _refused(error)

    async def work(self, request: Request, passed: Passed) -> Response:
        """A document that has the server work, without any way to reach out from it or to change it."""
        limits = self._rules.limits
        try:
            document = await document_in(request, max_body=limits.max_body)
            body = await asyncio.to_thread(lambda: pydantic_core.to_json(checked_work(document, limits)))
            return await self._answered(request, passed.call(request, body=body, timeout=self._timeout))
        except WorkerError as error:
            return _refused(error)

    async def refresh(self, request: Request, passed: Passed) -> Response:
        """Have the server look for files again."""
        try:
            await request.body()
            return await self._answered(request, passed.call(request, timeout=self._timeout))
        except WorkerError as error:
            return _refused(error)

    async def change(self, request: Request, passed: Passed) -> Response:
        """What changes the server for everybody: only where the operator allows it."""
        if not self.options_allowed:
            return forbidden()
        try:
            body = None
            if passed.method == "POST" and await request.body():
                limits = self._rules.limits
                body = pydantic_core.to_json(await document_in(request, max_body=limits.max_body))
            return await self._answered(request, passed.call(request, body=body, timeout=self._timeout))
        except WorkerError as error:
            return _refused(error)

    async def _answered(self, request: Request, call: NativeCall) -> Response:
        try:
            return told(await self._in_turn(request, call))
        except Late:
            return problem(504, "it takes longer than an answer may, and goes on", code="still_running")
        except Gone:
            return NOBODY

    async def _in_turn(self, request: Request, call: NativeCall) -> Answer:
        """Raises `Late`, `Gone`, and what a relayed call raises; a turn that has not come by then is given up, which is
        `TooManyPending` for who still waits."""
        gate, rules = self._gate, self._rules
        if not gate.is_open:
            raise NotReady(f"the server is not ready: {', '.join(gate.reasons)}", retry_after=RETRY_AFTER)
        if len(self._turns) >= rules.max_pending:
            raise TooManyPending(retry_after=RETRY_AFTER)
        sent = asyncio.Event()
        turn = asyncio.create_task(self._turn(call, sent), name=f"relay-{call.path}")
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        away = asyncio.create_task(gone(request), name=f"watch-{call.path}")
        try:
            limit = None if rules.timeout is None or is_patient(request.scope) else rules.timeout.total_seconds()
            await asyncio.wait({turn, away}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if turn.done():
                return turn.result()
            if away.done():
                raise Gone
            if sent.is_set():
                raise Late
            raise TooManyPending("its turn has not come in time, and nothing was done", retry_after=RETRY_AFTER)
        finally:
            if not turn.done():
                turn.add_done_callback(_forgotten)
                turn.cancel()
            await cancel_all({away})

    async def _turn(self, call: NativeCall, sent: asyncio.Event) -> Answer:
        """What was sent is waited for to its end, cancelled or not: the server works on, and the turn is its."""
        async with self._gate.turn() as engine:
            sent.set()
            under_way = asyncio.create_task(engine.relay(call), name=f"sent-{call.path}")
            self._sent.add(under_way)
            under_way.add_done_callback(self._sent.discard)
            return await to_the_end(_result(under_way))

    async def aclose(self) -> None:
        """End what is left, with the server or before it."""
        await cancel_all(set(self._sent))
        await cancel_all(set(self._turns))


def _forgotten(turn: asyncio.Task[Answer]) -> None:
    """What becomes of a turn that nobody waits for any more."""
    if not turn.cancelled() and (error := turn.exception()) is not None:
        log.info("relay_failed", call=turn.get_name(), error=str(error))


async def _result(sent: asyncio.Task[Answer]) -> Answer:
    return await sent


ALLOW = "; the operator may set WORKER_ENGINE_OPTIONS=allow"
CHANGING = "this would change the image server for everybody who uses it: say what a job needs in the job itself"
STOPPING = "this would stop whosever job runs now: cancel your own by hanging up, or by DELETE /v1/jobs/{id}"


def forbidden(why: str = CHANGING) -> Response:
    """The refusal of what concerns everybody who uses the server."""
    return problem(403, why + ALLOW, code="engine_options_refused")


def _refused(error: WorkerError) -> Response:
    if isinstance(error, ResultTooLarge):
        return problem(502, error.message, code=error.code)
    return refused(error)


def told(answer: Answer) -> Response:
    """The server's answer as the caller gets it: its body where all is well, else a problem that says what it said."""
    if answer.ok:
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        shown = media_type if media_type in _SHOWN else "application/octet-stream"
        return Response(answer.body, answer.status, media_type=shown if answer.body else None)
    text = error_text(answer.json) or f"the server answered {answer.status}"
    if answer.status in (401, 403):
        return problem(502, "the server refuses the worker's own credentials", code="auth_failed")
    if 400 <= answer.status < 500 and answer.status != 429 and answer.status in _STATUSES:
        return problem(answer.status, text, code="generation_rejected" if answer.status == 422 else None)
    return problem(502, text, code="engine_failed")


_STATUSES = frozenset(int(status) for status in HTTPStatus)


def mount(
    router: APIRouter,
    relay: Relay,
    *,
    readings: Mapping[str, tuple[str, ...]],
    work: Mapping[str, tuple[str, ...]],
    changes: Mapping[tuple[str, str], tuple[str, ...]],
    refreshes: tuple[str, ...] = (),
) -> None:
    """Add the endpoints of a server: query parameters by path; changes by method and path."""
    for path, names in readings.items():
        _add(router, relay.read, Passed(path, names), "As the server tells it", PROBLEMS)
    for path, names in work.items():
        _add(router, relay.work, Passed(path, names, "POST"), "Passed on in its turn", TURN_PROBLEMS)
    for (method, path), names in changes.items():
        passed = Passed(path, names, method)
        _add(
            router, relay.change, passed, "Refused unless WORKER_ENGINE_OPTIONS=allow", TURN_PROBLEMS | FORBIDDEN | DONE
        )
    for path in refreshes:
        _add(
            router,
            relay.refresh,
            Passed(path, (), "POST"),
            "Have it look for new files, in its turn",
            TURN_PROBLEMS | DONE,
        )


def _add(router: APIRouter, act: Any, passed: Passed, summary: str, responses: Responses) -> None:
    async def endpoint(request: Request) -> Response:
        answer: Response = await act(request, passed)
        return answer

    router.add_api_route(
        passed.path,
        endpoint,
        methods=[passed.method],
        summary=f"{passed.path.rpartition('/')[2]}: {summary[0].lower()}{summary[1:]}",
        name=f"{passed.method.lower()}_{passed.path.strip('/').replace('/', '_').replace('-', '_')}",
        responses=responses,
        openapi_extra=passed.parameters,
    )
