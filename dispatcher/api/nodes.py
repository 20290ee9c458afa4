"""The nodes' side: asking for work, keeping it, bringing it to an end, giving it back.

A node sees nothing but the jobs that it is given, and can do nothing to a job but under the token of its lease.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from dispatcher.api.examples import ASKED, GIVEN
from dispatcher.api.problems import LeaseOver, Missing, Unreadable, answers, read, taking
from dispatcher.auth import Forbidden, Node
from dispatcher.desk import Offer
from dispatcher.documents import downloads_of, evictions_of, generation_of
from dispatcher.fleet import Seat
from dispatcher.heartbeats import Held, held_of
from dispatcher.stock import speaks_ours
from dispatcher.store.base import JobRow
from dispatcher.view import View
from worker.errors import FieldError
from worker.job import field_errors
from worker.result import Result
from worker.tasks import run_guarded
from worker.wire import Answer, Availability, Ended, Heartbeat, HeartbeatAnswer, NodeInfo, Release, Running

S = TypeVar("S", Availability, Heartbeat)

WAIT_MOST_S = 60.0
"""A request for work is held back no longer, whatever it offers: proxies cut what takes longer."""

WAIT_PARKED_S = 2.0
"""So long where jobs there wait for files: what has come by then changes what the node should get."""

PAUSE_S, STOPPING_PAUSE_S = 2.0, 1.0
DELAY_MOST = timedelta(days=1)


class _NodeGone(Exception):
    """The connection of a held request was closed."""


def routes(view: View) -> APIRouter:
    router = APIRouter(tags=["nodes"], responses=answers(401, 403, 422, 503))

    @router.post(
        "/availability",
        summary="Ask for work: what this node is and has; the answer is a job, orders, or nothing",
        response_model=Answer,
        openapi_extra=taking(Availability.model_json_schema(), ASKED),
        responses={200: {"content": {"application/json": {"example": GIVEN}}}},
    )
    async def availability(request: Request) -> Response:
        return await _asked(request, view)

    @router.post(
        "/heartbeat",
        summary="Renew the leases of everything that is held",
        response_model=HeartbeatAnswer,
        openapi_extra=taking(Heartbeat.model_json_schema()),
    )
    async def heartbeat(request: Request) -> Response:
        return await _beat(request, view)

    @router.post(
        "/jobs/{id}/result",
        summary="Bring a job to its end, under the token of its lease",
        status_code=204,
        openapi_extra=taking(Ended.model_json_schema()),
        responses=answers(404, 409, 413),
    )
    async def result(id: str, request: Request) -> Response:
        began = _now()
        node = await view.access.node(request.headers)
        ended = await read(request, Ended)
        await _mine(view, node, id, ended.token)
        await _end(view, id, ended)
        view.metrics.request("result", _now() - began)
        return Response(status_code=204)

    @router.post(
        "/jobs/{id}/release",
        summary="Give a job back, under the token of its lease",
        status_code=204,
        openapi_extra=taking(Release.model_json_schema()),
        responses=answers(404, 409),
    )
    async def release(id: str, request: Request) -> Response:
        node = await view.access.node(request.headers)
        given = await read(request, Release)
        await _mine(view, node, id, given.token)
        await _release(view, id, given, node)
        return Response(status_code=204)

    return router


async def _asked(request: Request, view: View) -> Response:
    began = _now()
    node = await view.access.node(request.headers)
    asked = _of(node, await read(request, Availability))
    held, _ = await _own(view, node, asked.running)
    await view.losses.hear(asked.node.id, asked.stats)
    seat = view.fleet.asked(asked)
    view.heartbeats.mention(held)
    urgent = _has_news(seat) or view.heartbeats.cancelled(held)
    wait_s = 0.0 if urgent else min(asked.wait or 0.0, _wait_most(view, seat))
    offer = await _offer(view, request, seat.id, wait_s)
    if not offer.held:
        view.metrics.request("availability", _now() - began)
    return _json(_answer(view, seat, offer, held, waited=wait_s > 0))


async def _beat(request: Request, view: View) -> Response:
    began = _now()
    node = await view.access.node(request.headers)
    beat = _of(node, await read(request, Heartbeat))
    held, lost = await _own(view, node, beat.running)
    await view.losses.hear(beat.node.id, beat.stats)
    seat = view.fleet.beat(beat)
    if beat.away:
        view.desk.nudge(beat.node.id)
    extended = await view.heartbeats.renew(held)
    lost |= extended.lost
    cancelled = (extended.cancelled | view.heartbeats.cancelled(held)) - lost
    answer = HeartbeatAnswer(lost=tuple(sorted(lost)), cancel=tuple(sorted(cancelled)))
    if seat is not None and _has_news(seat):
        seat.told = orders = seat.due
        answer = answer.model_copy(
            update={"download": downloads_of(orders, plain=False), "evict": evictions_of(orders)}
        )
    view.metrics.request("heartbeat", _now() - began)
    return _json(answer)


def _wait_most(view: View, seat: Seat) -> float:
    """So that a node which waits here is heard of again well before it would count as away."""
    timeout_s = view.settings.rules.node_timeout.total_seconds()
    return min(timeout_s / 2, WAIT_PARKED_S if seat.parked else WAIT_MOST_S)


def _has_news(seat: Seat) -> bool:
    """Whether the node has orders that it was not told of yet."""
    due = seat.due
    return bool(due.download or due.evict) and due != seat.told


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _offer(view: View, request: Request, node: str, wait_s: float) -> Offer:
    """What the desk has; where the node goes away meanwhile nothing stays leased to it."""
    if wait_s <= 0:
        return await view.desk.ask(node, 0.0)
    try:
        return await run_guarded(view.desk.ask(node, wait_s), _gone(request), name=f"ask-{node}")
    except _NodeGone:
        return Offer()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise _NodeGone


def _answer(view: View, seat: Seat, offer: Offer, held: Iterable[Held], *, waited: bool) -> Answer:
    plain = not speaks_ours(seat.asked)
    seat.told = orders = seat.due
    cancel = view.heartbeats.cancelled(held)
    known: dict[str, Any] = {
        "download": downloads_of(orders, plain=plain),
        "evict": evictions_of(orders),
        "cancel": tuple(sorted(cancel)) or None,
    }
    if offer.grant is not None:
        view.heartbeats.leased(offer.grant.job.id, offer.grant.token, seat.id)
        return Answer(generation=generation_of(offer.grant, view.counts, view.upkeep.catalogue), **known)
    pause = STOPPING_PAUSE_S if view.upkeep.health.stopping else 0.0 if waited else PAUSE_S
    skipped = dict(offer.choice.skipped) if offer.choice is not None else {}
    return Answer(retry_after=pause, skipped=skipped or None, **known)


async def _own(view: View, node: Node, running: Iterable[Running]) -> tuple[list[Held], frozenset[str]]:
    """What a node may renew of what it names, and what not: no token of ours, or another's job."""
    held, lost = held_of(running)
    if node.subject is None:
        return held, lost
    mine = [one for one in held if await _holds(view, node.subject, *one[:2])]
    return mine, lost | {one[0] for one in held if one not in mine}


async def _holds(view: View, subject: str, job_id: str, token: int) -> bool:
    if view.heartbeats.owner(job_id, token) == subject:
        return True
    row = await view.store.job(job_id)
    return row is not None and (row.node, row.token) == (subject, token)


async def _mine(view: View, node: Node, job_id: str, token: Any) -> None:
    """Refuse a node that the platform vouches for where the job neither is nor was leased to it.

    One that comes late, or says again what was taken, is judged by its token; but it never speaks for another holder.
    """
    if node.subject is None or view.heartbeats.owner(job_id, token) == node.subject:
        return
    row = await view.store.job(job_id)
    if row is None or (row.node != node.subject and all(one.worker != node.subject for one in row.attempts)):
        raise Forbidden("the job is not leased to this node")
    if row.node not in (node.subject, None):
        raise LeaseOver


async def _end(view: View, job_id: str, ended: Ended) -> None:
    try:
        result = Result.model_validate({**ended.result, "id": ended.result.get("id", job_id)})
    except ValidationError as error:
        raise Unreadable(*_within(error)) from None
    if result.id != job_id:
        raise Unreadable(FieldError("result.id", "is of another job"))
    if result.error is not None and "\0" in result.error.code:
        raise Unreadable(FieldError("result.error.code", "has a NUL character in it"))
    dead = result.status == "failed" if ended.dead is None else ended.dead
    if not await view.store.end(job_id, _token(ended.token), result, dead=dead):
        raise await _stale(view, job_id, "result")
    view.heartbeats.over(job_id)
    view.fleet.over(job_id)
    view.metrics.ended(result.status)


async def _release(view: View, job_id: str, given: Release, node: Node) -> JobRow:
    row = await view.store.release(
        job_id,
        _token(given.token),
        code=given.reason,
        delay=min(timedelta(seconds=min(given.delay, DELAY_MOST.total_seconds())), DELAY_MOST),
        charged=given.charged,
        worker=node.subject or given.worker or view.heartbeats.owner(job_id, given.token) or "",
    )
    if row is None:
        raise await _stale(view, job_id, "release")
    view.heartbeats.over(job_id)
    view.fleet.over(job_id)
    view.metrics.released(given.reason)
    if row.status == "waiting":
        view.desk.back(row)
    return row


def _within(error: ValidationError) -> tuple[FieldError, ...]:
    return tuple(FieldError(f"result.{one.field}", one.message) for one in field_errors(error))


async def _stale(view: View, job_id: str, verb: str) -> Missing | LeaseOver:
    """Why a token is not good: no such job, or a lease that is over."""
    view.metrics.stale(verb)
    return Missing("no such job") if await view.store.job(job_id) is None else LeaseOver()


def _token(token: Any) -> int:
    """The token as the store has it; -1, which none ever is, for what is no token of ours."""
    return token if isinstance(token, int) and not isinstance(token, bool) else -1


def _of(node: Node, said: S) -> S:
    """What the node said, under the name that the platform vouches for where it does."""
    if node.subject is None:
        return said
    info: NodeInfo = said.node.model_copy(update={"id": node.subject})
    return said.model_copy(update={"node": info})


def _json(answer: Answer | HeartbeatAnswer) -> Response:
    return Response(answer.to_json(), media_type="application/json")
