"""Requests that are passed on to the image server: what reaches it, when, and what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest
from fastapi import Response
from structlog.testing import capture_logs

from tests.support.native import RULES, Caller, TellingEngine, native_of
from tests.support.virtual import virtual
from tests.support.waiting import wait_until
from worker.api.relay import WORK as LONG
from worker.api.relay import Passed, told
from worker.engines.answer import Answer
from worker.errors import EngineCrashed, InvalidJob, ResultTooLarge
from worker.tasks import cancel_all

READ = Passed("/sdapi/v1/samplers", ("lines",))
WORK = Passed("/sdapi/v1/png-info", method="POST")
CHANGE = Passed("/sdapi/v1/options", method="POST")
IMAGE = json.dumps({"image": "aaaa"}).encode()


def problem(response: Response) -> tuple[int, str]:
    assert response.media_type == "application/problem+json"
    return response.status_code, json.loads(bytes(response.body))["code"]


async def test_only_known_parameters_are_passed_on() -> None:
    """Neither another query parameter nor any header of the caller's."""
    engine = TellingEngine()
    response = await native_of(engine).relay.read(Caller("lines=3&clear=true").request, READ)
    assert (response.status_code, response.body) == (200, b'{"a": 1}')
    (call,) = engine.relayed
    assert (call.method, call.path, call.query) == ("GET", READ.path, {"lines": "3"})
    assert (call.body, call.media_type) == (None, None)


def test_nothing_but_the_body_and_its_kind_comes_back() -> None:
    """No cookie and no hop-by-hop header; a kind that a browser would run becomes one that it would not."""
    headers = {"content-type": "text/html; charset=utf-8", "set-cookie": "a=b", "connection": "close"}
    response = told(Answer(200, headers, b"<script>"))
    assert dict(response.headers) == {"content-length": "8", "content-type": "application/octet-stream"}
    assert dict(told(Answer(204, {}, b"")).headers) == {}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"detail": "Not authenticated"}, (502, "auth_failed")),
        (403, {}, (502, "auth_failed")),
        (404, {"detail": "Not Found"}, (404, "not_found")),
        (422, {"detail": "bad"}, (422, "generation_rejected")),
        (429, {"detail": "rate limit exceeded"}, (502, "engine_failed")),
        (499, {}, (502, "engine_failed")),
        (500, {"error": "X", "errors": "broke"}, (502, "engine_failed")),
        (302, {}, (502, "engine_failed")),
    ],
)
def test_refusals_become_problems(status: int, body: Any, expected: tuple[int, str]) -> None:
    """The server's own key is not the caller's affair, and its failures are not ours."""
    response = told(Answer(status, {}, json.dumps(body).encode()))
    assert problem(response) == expected
    assert json.loads(bytes(response.body))["detail"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (EngineCrashed("gone"), (503, "engine_lost")),
        (ResultTooLarge("so large"), (502, "result_too_large")),
        (InvalidJob("no", field="x"), (422, "invalid_job")),
    ],
)
@pytest.mark.parametrize("act", ["read", "refresh", "work", "change"])
async def test_errors_become_problems(act: str, error: Exception, expected: tuple[int, str]) -> None:
    """A server that is away is 503, whichever way it was asked."""

    class Broken(TellingEngine):
        async def relay(self, call: Any) -> Answer:
            raise error

    relay = native_of(Broken(), allowed=True).relay
    assert problem(await getattr(relay, act)(Caller(body=IMAGE).request, WORK)) == expected


async def test_changes_are_refused() -> None:
    """Unless the operator allows them; then they are passed on in a turn."""
    engine = TellingEngine()
    refused = await native_of(engine).relay.change(Caller(body=b"{}").request, CHANGE)
    assert problem(refused) == (403, "engine_options_refused")
    assert "WORKER_ENGINE_OPTIONS=allow" in json.loads(bytes(refused.body))["detail"]
    assert engine.relayed == []
    native = native_of(engine, allowed=True)
    engine.go.clear()
    task = asyncio.create_task(native.relay.change(Caller(body=b'{"a": 1}').request, CHANGE), name="change")
    await wait_until(lambda: engine.relayed)
    assert native.gate.in_use
    engine.go.set()
    assert (await task).status_code == 200
    assert engine.relayed[0].body == b'{"a":1}'
    await native.relay.change(Caller().request, Passed("/sdapi/v1/unload-checkpoint", method="POST"))
    assert engine.relayed[1].body is None


async def test_work_waits_for_its_turn() -> None:
    """The server corrupts itself when two things run at a time."""
    engine = TellingEngine()
    native = native_of(engine)
    async with native.gate.turn():
        task = asyncio.create_task(native.relay.work(Caller(body=IMAGE).request, WORK), name="work")
        await wait_until(lambda: any(t.get_name() == f"watch-{WORK.path}" for t in asyncio.all_tasks()))
        assert engine.relayed == []
    assert (await task).status_code == 200
    assert (engine.relayed[0].timeout, engine.relayed[0].body) == (LONG, b'{"image":"aaaa"}')


async def test_who_leaves_before_his_turn_takes_none() -> None:
    """Nothing is sent for somebody who is gone."""
    engine, caller = TellingEngine(), Caller(body=IMAGE)
    native = native_of(engine)
    relay = native.relay
    async with native.gate.turn():
        caller.leave()
        assert (await relay.work(caller.request, WORK)).status_code == 499
    async with native.gate.turn():
        assert engine.relayed == []


async def test_who_leaves_during_his_turn_keeps_it_to_the_end() -> None:
    """The server works on: another's turn begins only when it has answered."""
    engine, caller = TellingEngine(), Caller(body=IMAGE)
    engine.go.clear()
    native = native_of(engine)
    relay = native.relay
    task = asyncio.create_task(relay.work(caller.request, WORK), name="work")
    await wait_until(lambda: engine.relayed)
    caller.leave()
    assert (await task).status_code == 499
    assert native.gate.in_use
    engine.go.set()
    async with native.gate.turn():
        assert engine.ended == 1


@virtual
async def test_an_answer_may_come_too_late() -> None:
    """After WORKER_HTTP_TIMEOUT the caller is told so; the server goes on."""
    engine = TellingEngine()
    engine.go.clear()
    native = native_of(engine, rules=dataclasses.replace(RULES, timeout=timedelta(seconds=95)))
    response = await native.relay.work(Caller(body=IMAGE).request, WORK)
    assert problem(response) == (504, "still_running")
    assert asyncio.get_running_loop().time() >= 95
    engine.go.set()
    async with native.gate.turn():
        assert engine.ended == 1


@virtual
async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    """Whoever waited is told so, and not that it goes on: nothing was sent, and nothing will be."""
    engine = TellingEngine()
    native = native_of(engine, rules=dataclasses.replace(RULES, timeout=timedelta(seconds=95)))
    async with native.gate.turn():
        response = await native.relay.work(Caller(body=IMAGE).request, WORK)
        assert problem(response) == (429, "too_many_pending")
        assert int(response.headers["retry-after"]) > 0
    async with native.gate.turn():
        assert engine.relayed == []


async def test_only_so_many_wait() -> None:
    """One more is told to come again."""
    engine = TellingEngine()
    engine.go.clear()
    relay = native_of(engine).relay
    tasks = {asyncio.create_task(relay.work(Caller(body=IMAGE).request, WORK), name="work") for _ in range(2)}
    await wait_until(lambda: len([t for t in asyncio.all_tasks() if t.get_name().startswith("relay-")]) == 2)
    response = await relay.work(Caller(body=IMAGE).request, WORK)
    assert problem(response) == (429, "too_many_pending")
    assert int(response.headers["retry-after"]) > 0
    engine.go.set()
    assert {task.result().status_code for task in (await asyncio.wait(tasks))[0]} == {200}


async def test_a_server_that_is_not_ready_is_not_waited_for() -> None:
    """What closed the gate may take minutes."""
    response = await native_of(TellingEngine(), ready=False).relay.refresh(Caller().request, WORK)
    assert problem(response) == (503, "not_ready")
    assert "starting" in json.loads(bytes(response.body))["detail"]


async def test_what_fails_when_nobody_waits_any_more_is_logged() -> None:
    """And closes the gate as any fault of the server does."""

    class Falling(TellingEngine):
        async def relay(self, call: Any) -> Answer:
            await super().relay(call)
            raise EngineCrashed("fell")

    engine, caller = Falling(), Caller(body=IMAGE)
    engine.go.clear()
    native = native_of(engine)
    task = asyncio.create_task(native.relay.work(caller.request, WORK), name="work")
    await wait_until(lambda: engine.relayed)
    caller.leave()
    await task
    with capture_logs() as logs:
        engine.go.set()
        await wait_until(lambda: not native.gate.in_use)
        await wait_until(lambda: any(one["event"] == "relay_failed" for one in logs))
    assert native.gate.reasons == ("engine",)


async def test_what_is_left_is_ended() -> None:
    """With the worker, whether it was sent or still waits: the server's own end may be far."""
    engine = TellingEngine()
    engine.go.clear()
    native = native_of(engine)
    tasks = {
        asyncio.create_task(native.relay.work(Caller(body=IMAGE).request, WORK), name=f"work-{i}") for i in range(2)
    }
    await wait_until(lambda: engine.relayed and len(native.relay._turns) == 2)
    await native.relay.aclose()
    await cancel_all(tasks)
    assert not native.relay._turns
    assert not native.gate.in_use
    assert (len(engine.relayed), engine.ended) == (1, 0)
