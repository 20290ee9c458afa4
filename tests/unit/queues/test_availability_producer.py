"""The user's side of a scheduling server, beside what the contract suite proves of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.clock import FakeClock
from tests.support.receiver import Answer, ScriptedServer
from tests.support.scheduling import FullServer, a_node
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, FieldError, InvalidJob, QueueUnavailable
from worker.queues import open_producer, open_queue
from worker.queues.availability import AvailabilityProducer
from worker.settings import load_settings


@asynccontextmanager
async def producing(server: ScriptedServer, token: str | None = None) -> AsyncIterator[AvailabilityProducer]:
    producer = AvailabilityProducer(server.url(), FakeClock(), token=token)
    try:
        yield producer
    finally:
        await producer.aclose()


async def test_a_document_is_sent_with_its_id_and_priority() -> None:
    """As one job document; what was not given is not there."""
    async with ScriptedServer(Answer(201), Answer(200)) as server, producing(server) as producer:
        assert await producer.submit("a", b'{"params": {"prompt": "x"}}', priority=3)
        assert not await producer.submit("a", b'{"job_url": "s3://a"}')
        sent = [json.loads(request.body) for request in server.requests]
    assert sent == [{"params": {"prompt": "x"}, "id": "a", "priority": 3}, {"job_url": "s3://a", "id": "a"}]


@pytest.mark.parametrize("body", [b"no json", b"[1]", b"\xff"])
async def test_only_documents_can_be_submitted(body: bytes) -> None:
    """What is no JSON object is refused before it is sent."""
    async with ScriptedServer() as server, producing(server) as producer:
        with pytest.raises(InvalidJob):
            await producer.submit("a", body)
        assert server.requests == []


async def test_a_refusal_names_every_field() -> None:
    """As the server's problem does; without one, its detail or its status."""
    problem = b'{"detail": "bad", "errors": [{"field": "params.width", "message": "is odd"}, "x", {"field": "v"}]}'
    answers = Answer(422, body=problem), Answer(400, body=b'{"detail": "bad"}'), Answer(413)
    async with ScriptedServer(*answers) as server, producing(server) as producer:
        found = []
        for _ in answers:
            with pytest.raises(InvalidJob) as caught:
                await producer.submit("a", b"{}")
            found.append(caught.value.errors)
    assert found == [
        (FieldError("params.width", "is odd"), FieldError("v", "is refused")),
        (FieldError("", "bad"),),
        (FieldError("", "the scheduling server answered 413"),),
    ]


async def test_a_refused_token_is_told() -> None:
    """For every verb; the right one is sent."""
    async with FullServer(FakeClock(), user_token="right") as server:
        async with producing(server, "right") as producer:
            assert await producer.state("a") is None
        async with producing(server) as producer:
            with pytest.raises(AuthFailed):
                await producer.jobs()


async def test_an_answer_that_is_none_is_an_outage() -> None:
    """A list that cannot be read, and a status that means nothing here."""
    async with ScriptedServer(Answer(418), Answer(body=b"7"), Answer(418)) as server, producing(server) as producer:
        for ask in (producer.state, producer.state, producer.cancel):
            with pytest.raises(QueueUnavailable):
                await ask("a")


async def test_it_is_opened_from_the_settings() -> None:
    """Each side with its own token, as its variable says; no server is asked for that."""
    async with FullServer(FakeClock(), node_token="node", user_token="user") as server:
        settings = load_settings(
            {
                "WORKER_QUEUE": "availability",
                "WORKER_AVAILABILITY_URL": server.url(),
                "WORKER_AVAILABILITY_TOKEN": "node",
                "WORKER_AVAILABILITY_USER_TOKEN": "user",
                "WORKER_STORAGE": "directory",
                "WORKER_QUEUE_VISIBILITY": "33s",
            }
        ).queue
        queue, producer = (
            open_queue(settings, a_node(), CorrectedClock(FakeClock())),
            open_producer(settings, CorrectedClock(FakeClock())),
        )
        assert server.requests == []
        assert await producer.submit("a", b'{"params": {"prompt": "x"}}')
        assert await queue.check()
        delivery = (await queue.receive()).delivery
        assert delivery is not None
        assert delivery.id == "a"
        await producer.aclose()
        await queue.aclose()
