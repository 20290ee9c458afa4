"""SaladCloud's metadata service on a real socket: what it is sent, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support.metadata import MetadataService
from tests.support.receiver import Answer
from tests.support.virtual import elapse, virtual
from worker.platforms.salad import Metadata, MetadataFailed
from worker.platforms.salad import metadata as module
from worker.retry import Policy
from worker.simulators import free_port

THRICE = Policy(attempts=3, first=timedelta(milliseconds=1))
AMPLE = timedelta(seconds=30)


@asynccontextmanager
async def metadata_of(url: str) -> AsyncIterator[Metadata]:
    metadata = Metadata(url, rng=random.Random(1))
    try:
        yield metadata
    finally:
        await metadata.aclose()


async def test_each_call_carries_the_header_and_goes_past_every_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxy would add what the service refuses, and could not reach it."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://[::1]:{free_port()}")
    async with MetadataService() as service, metadata_of(service.url()) as metadata:
        assert await metadata.ask("GET", "/v1/status") == {"ready": True, "started": True}
        assert await metadata.ask("PUT", "/v1/deletion-cost", {"deletion_cost": 7}) is None
        assert service.deletion_cost == 7
        assert {request.headers["metadata"] for request in service.requests} == {"true"}
        assert [(call.method, call.path, call.status) for call in service.calls] == [
            ("GET", "/v1/status", 200),
            ("PUT", "/v1/deletion-cost", 204),
        ]
        assert metadata.answered is True


@pytest.mark.parametrize("headers", [{}, {"metadata": "true", "x-forwarded-for": "1.2.3.4"}, {"metadata": "yes"}])
async def test_the_stand_in_refuses_what_the_service_refuses(headers: dict[str, str]) -> None:
    """Without the header, or with a proxy's, it answers 403: what the tests around rely on."""
    async with MetadataService() as service, httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(service.url("/v1/token"), headers=headers)
        assert answer.status_code == 403
        assert answer.json()["code"] == "forbidden"


FAILURES: list[tuple[Answer, str, bool]] = [
    (Answer(500), "answered 500", False),
    (Answer(503), "answered 503", False),
    (Answer(403), "answered 403", True),
    (Answer(404), "answered 404", True),
    (Answer(302, {"location": "/v1/elsewhere"}), "answered 302", True),
    (Answer(200, body=b"<html>"), "no JSON", True),
    (Answer(200, body=b"x" * 70_000), "more than 65536 bytes", False),
    (Answer(raw=b"garbage\r\n\r\n"), "valid HTTP", False),
]


@pytest.mark.parametrize(("answer", "message", "answered"), FAILURES, ids=[one[1] for one in FAILURES])
async def test_whatever_fails_is_one_error(answer: Answer, message: str, answered: bool) -> None:
    """It names the address and the reason, and no body; an answer is told from none."""
    async with MetadataService(answer) as service, metadata_of(service.url()) as metadata:
        with pytest.raises(MetadataFailed, match=message):
            await metadata.ask("GET", "/v1/token")
        assert metadata.answered is answered


@pytest.mark.parametrize("slow", [Answer(hang=True), Answer(stall=True, body=b"{}")], ids=["hangs", "stalls"])
async def test_patience_ends(slow: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that takes its time is away."""
    monkeypatch.setattr(module, "PATIENCE", timedelta(milliseconds=50))
    async with MetadataService(slow) as service, metadata_of(service.url()) as metadata:
        with pytest.raises(MetadataFailed, match="no answer in time") as caught:
            await metadata.ask("GET", "/v1/token", budget=AMPLE)
        assert caught.value.is_away


async def test_a_service_that_is_not_there_is_told_of_once_and_left_alone() -> None:
    """Nobody waits for it again and again, and the log is not filled; what is urgent is tried all the same."""
    async with metadata_of(f"http://[::1]:{free_port()}") as metadata:
        with capture_logs() as lines:
            for path in ("/v1/token", "/v1/token", "/v1/deletion-cost"):
                with pytest.raises(MetadataFailed):
                    await metadata.ask("GET", path)
            with pytest.raises(MetadataFailed, match="cannot be connected to"):
                await metadata.ask("GET", "/v1/token", urgent=True)
        assert [line["event"] for line in lines] == ["metadata_unavailable"]
        assert "cannot be connected to" in lines[0]["error"]


async def test_only_a_service_that_is_away_is_asked_again() -> None:
    """What it refused it would refuse again."""
    async with MetadataService(Answer(500), Answer(502)) as service, metadata_of(service.url()) as metadata:
        answer = await metadata.ask("GET", "/v1/token", tries=THRICE, budget=AMPLE)
        assert answer["jwt"]
        assert [call.status for call in service.calls] == [500, 502, 200]
        service.missing.add("/v1/token")
        with pytest.raises(MetadataFailed, match="answered 404"):
            await metadata.ask("GET", "/v1/token", tries=THRICE, budget=AMPLE)
        assert [call.status for call in service.calls][3:] == [404]


async def test_what_one_endpoint_refuses_says_nothing_of_the_others() -> None:
    """A service without deletion costs still gives tokens."""
    async with MetadataService() as service, metadata_of(service.url()) as metadata:
        service.missing.add("/v1/deletion-cost")
        for _ in range(2):
            with pytest.raises(MetadataFailed):
                await metadata.ask("PUT", "/v1/deletion-cost", {"deletion_cost": 1})
        assert (await metadata.ask("GET", "/v1/token"))["jwt"]
        assert service.asked == {("PUT", "/v1/deletion-cost"): 1, ("GET", "/v1/token"): 1}


class Scripted(httpx.AsyncBaseTransport):
    """Answers with these statuses in turn, at the times that it notes."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.times: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.times.append(asyncio.get_running_loop().time())
        return httpx.Response(self.statuses.pop(0), json={}, request=request)


@virtual
async def test_it_is_left_alone_longer_and_longer_until_it_answers() -> None:
    """2 s after the first failure, then twice as long each time, a minute at most; one line says that it is back."""
    transport = Scripted(*[500] * 8, 200, 500, 200)
    metadata = Metadata("http://metadata", rng=random.Random(1), transport=transport)
    with capture_logs() as lines:
        while transport.statuses:
            try:
                await metadata.ask("GET", "/v1/token")
            except MetadataFailed:
                await elapse(0.5)
    await metadata.aclose()
    waits = [after - before for before, after in pairwise(transport.times)]
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60, 0, 2]
    assert _events(lines) == ["metadata_unavailable", "metadata_available"] * 2


def _events(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines]
