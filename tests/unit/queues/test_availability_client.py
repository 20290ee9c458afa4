"""Speaking to one scheduling server: tokens, refusals, patience."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.clock import FakeClock
from tests.support.network import Network
from tests.support.receiver import Answer, ScriptedServer
from tests.support.scheduling import a_node
from worker.errors import AuthFailed, QueueUnavailable
from worker.queues.availability import client as module
from worker.queues.availability.client import Client, QueueRefused, job_path

LONG, SHORT = timedelta(seconds=10), timedelta(seconds=0.05)


def client_of(server: ScriptedServer, *tokens: str, url: str | None = None) -> Client:
    return Client(url or server.url(), a_node(tokens=list(tokens)).identity_token, FakeClock())


async def test_paths_stand_below_the_url() -> None:
    """The URL may have a path of its own, and may be that of the published endpoint."""
    async with ScriptedServer() as server:
        for url in ("/", "/availability", "/availability/", "/api", "/api/availability"):
            client = client_of(server, url=server.url(url))
            await client.call("POST", "/availability", b"{}", patience=LONG)
            await client.call("POST", job_path("a/b c", "/result"), b"{}", patience=LONG)
            await client.aclose()
        asked = [request.target for request in server.requests]
    root, below = ["/availability", "/jobs/a%2Fb%20c/result"], ["/api/availability", "/api/jobs/a%2Fb%20c/result"]
    assert asked == root * 3 + below * 2


async def test_the_token_is_sent_to_the_server() -> None:
    """As a bearer's; without one nothing is sent."""
    async with ScriptedServer() as server:
        for tokens in (("secret",), ()):
            client = client_of(server, *tokens)
            await client.call("GET", "/jobs", patience=LONG)
            await client.aclose()
        assert [request.headers.get("authorization") for request in server.requests] == ["Bearer secret", None]


async def test_the_token_is_asked_anew_once_when_it_is_not_valid() -> None:
    """An identity token that has just run out costs one more request; one that stays refused is told."""
    async with ScriptedServer(Answer(401), Answer(200), Answer(401), Answer(401)) as server:
        client = client_of(server, "old", "new", "newer", "newest")
        assert (await client.call("GET", "/", patience=LONG)).status == 200
        with pytest.raises(QueueRefused):
            await client.call("GET", "/", patience=LONG)
        await client.aclose()
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer old", "Bearer new", "Bearer newer", "Bearer newest"]


async def test_the_refused_token_is_named_when_another_is_asked_for() -> None:
    """The node asks its platform anew where it has no other yet."""
    asked: list[str | None] = []

    async def token(refused: str | None = None) -> str | None:
        asked.append(refused)
        return "kept" if refused is None else f"not {refused}"

    async with ScriptedServer(Answer(401), Answer(200)) as server:
        client = Client(server.url(), token, FakeClock())
        assert (await client.call("GET", "/", patience=LONG)).status == 200
        await client.aclose()
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer kept", "Bearer not kept"]
    assert asked == [None, "kept"]


async def test_a_token_that_does_not_change_is_not_tried_again() -> None:
    """The operator's own is what it is."""
    async with ScriptedServer(Answer(401)) as server:
        client = client_of(server, "mine")
        with pytest.raises(QueueRefused, match="answered 401"):
            await client.call("GET", "/", patience=LONG)
        await client.aclose()
        assert len(server.requests) == 1


async def test_no_redirect_is_followed() -> None:
    """So that the token goes nowhere else."""
    async with ScriptedServer() as other, ScriptedServer() as server:
        server.otherwise = Answer(307, {"location": other.url()})
        client = client_of(server, "secret")
        with pytest.raises(QueueUnavailable, match="answered 307"):
            await client.call("POST", "/availability", b"{}", patience=LONG)
        await client.aclose()
        assert other.requests == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_passes_is_an_outage(status: int) -> None:
    """With the time after which the server wants to be asked again."""
    async with ScriptedServer(Answer(status, {"retry-after": "7"})) as server:
        client = client_of(server)
        with pytest.raises(QueueUnavailable, match=f"answered {status}") as caught:
            await client.call("GET", "/", patience=LONG)
        await client.aclose()
    assert caught.value.retry_after == timedelta(seconds=7)
    assert not isinstance(caught.value, AuthFailed)


@pytest.mark.parametrize("status", [200, 204, 400, 404, 405, 409, 413, 422])
async def test_what_says_something_of_the_request_comes_back(status: int) -> None:
    """Its meaning depends on what was asked."""
    async with ScriptedServer(Answer(status)) as server:
        client = client_of(server)
        reply = await client.call("GET", "/", patience=LONG)
        await client.aclose()
    assert (reply.status, reply.is_success) == (status, status < 300)
    assert (reply.is_conflict, reply.is_absent) == (status == 409, status in (404, 405))
    assert reply.document() is None


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_is_the_operators_and_an_outage(status: int) -> None:
    """So that held jobs wait for it, the intake pauses, and a command ends as for bad configuration."""
    body = b'{"code": "group_not_listed", "detail": "hunter2"}'
    async with ScriptedServer(Answer(status, body=body)) as server:
        client = client_of(server)
        with pytest.raises(QueueRefused) as caught:
            await client.call("GET", "/", patience=LONG)
        await client.aclose()
    error = caught.value
    assert isinstance(error, AuthFailed)
    assert isinstance(error, QueueUnavailable)
    assert (error.code, str(error.fault)) == ("auth_failed", "operator")
    assert error.message.endswith(f"answered {status} (group_not_listed)")


@pytest.mark.parametrize("body", [b"<html>", b'["a"]', b'{"code": 7}', b'{"code": "Two Words"}'])
async def test_no_body_gets_into_a_message(body: bytes) -> None:
    """Only a problem's code does, which is a word."""
    async with ScriptedServer(Answer(503, body=body)) as server:
        client = client_of(server)
        with pytest.raises(QueueUnavailable, match=r"answered 503$"):
            await client.call("GET", "/", patience=LONG)
        await client.aclose()


@pytest.mark.parametrize("answer", [Answer(hang=True), Answer(stall=True, body=b"x")], ids=["hangs", "stalls"])
async def test_patience_ends(answer: Answer) -> None:
    """A server that does not answer, or not to the end, is away."""
    async with ScriptedServer(answer) as server:
        client = client_of(server)
        with pytest.raises(QueueUnavailable, match="no answer in time"):
            await client.call("GET", "/", patience=SHORT)
        await client.aclose()


async def test_a_server_that_is_not_there_is_away() -> None:
    """A refused connection is told as such."""
    async with ScriptedServer() as server:
        url = server.url()
    client = Client(url, a_node().identity_token, FakeClock())
    with pytest.raises(QueueUnavailable, match="cannot be connected to"):
        await client.call("GET", "/", patience=LONG)
    await client.aclose()


async def test_names_that_do_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the DNS fails the server is away; it is asked anew with the next request."""
    network = Network()
    network.patch(monkeypatch)
    async with ScriptedServer() as server:
        client = Client(f"http://jobs.example:{server.port}", a_node().identity_token, FakeClock())
        with pytest.raises(QueueUnavailable, match=r"jobs\.example"):
            await client.call("GET", "/", patience=LONG)
        network.usual.add(server.port)
        network.names["jobs.example"] = [["::1"]]
        assert (await client.call("GET", "/", patience=LONG)).status == 200
        await client.aclose()


async def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its length claims to be."""
    monkeypatch.setattr(module, "LARGEST", 1000)
    async with ScriptedServer(Answer(body=b"x" * 1001, chunked=True)) as server:
        client = client_of(server)
        with pytest.raises(QueueUnavailable, match="more than 1000 bytes"):
            await client.call("GET", "/", patience=LONG)
        await client.aclose()


async def test_what_is_no_json_is_an_outage() -> None:
    """A proxy's page with status 200, and numbers that JSON does not have."""
    async with ScriptedServer(Answer(body=b"<html>"), Answer(body=b'{"a": NaN}')) as server:
        client = client_of(server)
        for _ in range(2):
            with pytest.raises(QueueUnavailable, match="no JSON"):
                (await client.call("GET", "/", patience=LONG)).document()
        await client.aclose()
