"""Who answers while starts come and go: one listening socket, and whichever application is to be seen."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.support.waiting import wait_until
from worker import blocked, http
from worker.blocked import Front
from worker.errors import ConfigError
from worker.tasks import cancel_all


def saying(text: str) -> Starlette:
    async def answer(request: Any) -> PlainTextResponse:
        return PlainTextResponse(text)

    return Starlette(routes=[Route("/", answer)])


Get = Callable[[tuple[str, int]], Awaitable[str]]


@asynccontextmanager
async def getting() -> AsyncIterator[Get]:
    async with http.client(loopback=True) as client:

        async def get(at: tuple[str, int]) -> str:
            host = f"[{at[0]}]" if ":" in at[0] else at[0]
            return (await client.get(f"http://{host}:{at[1]}/")).text

        yield get


async def test_the_front_answers_on_both_families_and_shows_what_it_is_told() -> None:
    """One listening socket from the first moment on, whichever application answers."""
    heard: list[tuple[str, int]] = []
    front = Front(saying("own"), ("::", 0), instead=("::1", 0), on_listening=heard.append)
    async with getting() as get:
        await front.open()
        await front.open()
        ((_, port),) = heard
        assert [await get((host, port)) for host in ("::1", "127.0.0.1")] == ["own", "own"]
        showing = asyncio.create_task(front.showing(saying("worker")), name="showing")
        await wait_until(lambda: front._shown is not front._own)
        assert await get(("::1", port)) == "worker"
        await cancel_all({showing})
        assert await get(("127.0.0.1", port)) == "own"
    await front.aclose()


async def test_a_taken_port_is_a_mistake_that_is_told_elsewhere_until_it_is_free() -> None:
    """The probes are answered where they would be without any settings, then where they should."""
    heard: list[tuple[str, int]] = []
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        wanted = ("::1", int(taken.getsockname()[1]))
        front = Front(saying("own"), wanted, instead=("127.0.0.1", 0), on_listening=heard.append)
        async with getting() as get:
            for _ in range(2):
                with pytest.raises(ConfigError, match="WORKER_HTTP_PORT"):
                    await front.open()
            (elsewhere,) = heard
            assert await get(elsewhere) == "own"
    async with getting() as get:
        await front.open()
        assert heard == [elsewhere, wanted]
        assert await get(wanted) == "own"
    with socket.socket() as again:
        again.bind(elsewhere)
    await front.aclose()


async def test_where_nobody_can_listen_only_the_log_tells() -> None:
    """Neither there nor elsewhere: the mistake is that of the place that was asked for."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::1", 0))
        taken.listen()
        place = ("::1", int(taken.getsockname()[1]))
        front = Front(saying("own"), place, instead=place, on_listening=lambda at: None)
        with pytest.raises(ConfigError, match="WORKER_HTTP_PORT"):
            await front.open()
    await front.aclose()


async def test_a_front_that_breaks_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could ask such a worker how it is: a bug, told as one."""
    breaks = asyncio.Event()

    async def serving(app: Any, host: str, port: int, *, on_listening: Callable[[int], None]) -> None:
        on_listening(1)
        await breaks.wait()
        raise OSError("the loop's selector")

    monkeypatch.setattr(blocked, "serve", serving)
    front = Front(saying("own"), ("::1", 0), instead=("::1", 0), on_listening=lambda at: None)
    await front.open()
    breaks.set()
    with pytest.raises(OSError, match="selector"):
        await front.broken()
    await front.aclose()
