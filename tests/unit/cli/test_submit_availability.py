"""`sd-worker submit` and `queue` over a scheduling server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.queues import result_of, taken
from tests.support.scheduling import FullServer
from tests.unit.cli.conftest import Command
from worker.cli import main
from worker.clock import SystemClock


@pytest.fixture(name="server")
async def open_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FullServer]:
    async with FullServer(SystemClock(), user_token="user") as server:
        monkeypatch.setenv("WORKER_QUEUE", "availability")
        monkeypatch.setenv("WORKER_STORAGE", "directory")
        monkeypatch.setenv("WORKER_AVAILABILITY_URL", server.url())
        monkeypatch.setenv("WORKER_AVAILABILITY_USER_TOKEN", "user")
        yield server


async def ran(*argv: str) -> int:
    return await asyncio.to_thread(main, argv)


async def test_jobs_are_submitted_and_waited_for(server: FullServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0 when each succeeded; its end is printed."""
    waiting = asyncio.create_task(ran("submit", "--prompt", "x", "--wait"), name="submit")
    delivery = await taken(server.queue, tries=20)
    assert not waiting.done()
    await server.queue.ack(delivery, result_of(delivery.id))
    assert await waiting == 0
    assert "succeeded" in capsys.readouterr().out


async def test_dead_letters_are_listed_and_requeued(server: FullServer, capsys: pytest.CaptureFixture[str]) -> None:
    """As those of the embedded queue."""
    await server.queue.submit("a", b'{"params": {"prompt": "x"}}')
    await server.queue.reject(await taken(server.queue), result_of("a", "failed", code="invalid_job"))
    assert await ran("queue", "dead") == 0
    assert "invalid_job" in capsys.readouterr().out
    assert await ran("queue", "requeue", "a") == 0
    assert await ran("queue", "requeue", "a") == 1
    assert (await taken(server.queue)).id == "a"


async def test_a_refused_token_is_bad_configuration(
    server: FullServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 64, with its variable, the code and no token."""
    monkeypatch.setenv("WORKER_AVAILABILITY_USER_TOKEN", "hunter2")
    assert await ran("submit", "--prompt", "x") == 64
    said = capsys.readouterr().err
    assert "WORKER_AVAILABILITY_USER_TOKEN: not accepted" in said
    assert "auth_failed: " in said
    assert "hunter2" not in said


def test_check_in_an_image_asks_for_no_queue_file(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduling server has none that could be written."""
    monkeypatch.setenv("WORKER_QUEUE", "sqlite")
    assert "queue" in command("check", "--image").out
    monkeypatch.setenv("WORKER_QUEUE", "availability")
    monkeypatch.setenv("WORKER_STORAGE", "directory")
    monkeypatch.setenv("WORKER_AVAILABILITY_URL", "http://[::1]:1")
    assert "queue" not in command("check", "--image").out
