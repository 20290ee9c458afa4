"""A caller's own request on its way to an image server, and back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import SecretStr

from tests.support.engines import settings_for
from tests.support.receiver import Answer, ScriptedServer
from worker.engines.base import NativeCall
from worker.engines.client import Client
from worker.errors import EngineCrashed, ResultTooLarge

SHORT = timedelta(milliseconds=50)


async def test_a_relayed_call_goes_out_as_ours() -> None:
    """With the worker's credentials, the query written anew, and the body as it is."""
    async with ScriptedServer(Answer(body=b'{"a": 1}')) as server:
        client = Client(settings_for(server.url(), api_key=SecretStr("key"), username="u", password=SecretStr("p")))
        call = NativeCall("POST", "/sdapi/v1/x", {"a": "b c&d"}, b"{}", "application/json")
        answer = await client.relay(call)
        await client.aclose()
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("POST", "/sdapi/v1/x?a=b+c%26d", b"{}")
    assert (request.headers["x-api-key"], request.headers["authorization"]) == ("key", "Basic dTpw")
    assert (answer.status, answer.json) == (200, {"a": 1})


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_may_be_too_large(chunked: bool) -> None:
    """It is not read to its end."""
    async with ScriptedServer(Answer(body=bytes(100), chunked=chunked)) as server:
        client = Client(settings_for(server.url()))
        with pytest.raises(ResultTooLarge, match="more than 99 bytes"):
            await client.relay(NativeCall("GET", "/x"), most=99)
        await client.aclose()


@pytest.mark.parametrize("answer", [Answer(hang=True), Answer(stall=True, body=b"abc")])
async def test_the_timeout_bounds_the_whole_call(answer: Answer) -> None:
    """Whether nothing comes at all or the rest does not."""
    async with ScriptedServer(answer) as server:
        client = Client(settings_for(server.url()))
        with pytest.raises(EngineCrashed, match="no answer in time"):
            await client.relay(NativeCall("GET", "/x", timeout=SHORT))
        await client.aclose()


async def test_nobody_answers() -> None:
    """As with any other request."""
    async with ScriptedServer() as server:
        url = server.url()
    client = Client(settings_for(url))
    with pytest.raises(EngineCrashed):
        await client.relay(NativeCall("GET", "/x"))
    await client.aclose()
