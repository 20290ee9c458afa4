"""Many requests in one moment take turns, and who asks for little does not wait."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.virtual import virtual
from worker.web.turns import AT_ONCE, Turns


class Work:
    """An application that notes in which round of the event loop it began, and when it had the body."""

    def __init__(self) -> None:
        self.round = 0
        self.began: dict[str, int] = {}
        self.went_on: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began[scope["path"]] = self.round
        while (await receive()).get("more_body", False):
            pass
        self.went_on[scope["path"]] = self.round

    async def rounds(self, most: int) -> None:
        for self.round in range(most):
            await asyncio.sleep(0)


async def whole() -> Message:
    return {"type": "http.request", "body": b"x", "more_body": False}


async def ignored(message: Message) -> None:
    raise AssertionError(message)


def requests(turns: Turns, count: int, method: str = "POST") -> list[asyncio.Task[None]]:
    scopes = [{"type": "http", "method": method, "path": f"/{method}-{n:03}"} for n in range(count)]
    return [asyncio.create_task(turns(scope, whole, ignored), name=scope["path"]) for scope in scopes]


@virtual
async def test_a_few_go_on_in_each_round() -> None:
    """In the order of their coming, and all of them in the end."""
    work = Work()
    tasks = requests(Turns(work), 40)
    await work.rounds(100)
    await asyncio.gather(*tasks)
    assert list(work.began) == sorted(work.began)
    steps = [*work.began.values(), *work.went_on.values()]
    assert len(steps) == 80
    assert max(steps.count(number) for number in set(steps)) <= 2 * AT_ONCE
    assert max(steps) <= 80 / AT_ONCE + 5


@virtual
async def test_who_sends_nothing_waits_for_nobody() -> None:
    """The probes are among them."""
    work = Work()
    turns = Turns(work)
    posts = requests(turns, 40)
    probes = requests(turns, 10, "GET")
    await work.rounds(100)
    await asyncio.gather(*posts, *probes)
    assert {work.went_on[task.get_name()] for task in probes} == {0}
    assert max(work.went_on.values()) > 5


@virtual
async def test_who_went_away_takes_nobodys_turn() -> None:
    """The next one goes on instead."""
    work = Work()
    tasks = requests(Turns(work), 12)
    await asyncio.sleep(0)
    for task in tasks[AT_ONCE:-1]:
        task.cancel()
    await work.rounds(20)
    await tasks[-1]
    assert {task.cancelled() for task in tasks[AT_ONCE:-1]} == {True}
    assert work.went_on[tasks[-1].get_name()] <= 4


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_other_protocols_pass(kind: str) -> None:
    """Only HTTP is taken in turns."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await Turns(app)({"type": kind}, whole, ignored)
    assert seen == [kind]
