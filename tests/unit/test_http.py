"""HTTP out: clients, the translation of httpx's errors, bounded reading, dates."""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support.receiver import Answer, ScriptedServer
from worker import http
from worker.clock import CorrectedClock
from worker.errors import DownloadFailed, InvalidJob, QueueUnavailable, UploadFailed

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SECRET_URL = "https://user:hunter2@host.example:8443/a/b?sig=hunter2#hunter2"


def _name(kind: type) -> str:
    return kind.__name__


EXCEPTIONS = sorted(
    {kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, Exception)},
    key=_name,
)


class FixedClock:
    def now(self) -> datetime:
        return NOW


def instance(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", SECRET_URL)
    if kind is httpx.HTTPStatusError:
        return httpx.HTTPStatusError("hunter2", request=request, response=httpx.Response(418, request=request))
    if issubclass(kind, httpx.RequestError):
        return kind("", request=request)
    return kind("hunter2") if kind is not httpx.StreamConsumed else kind()


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=_name)
def test_every_exception_of_httpx_is_either_translated_or_a_known_misuse(kind: type[Exception]) -> None:
    """A new exception class of httpx makes this fail until somebody says what it means."""
    assert (kind in http.REASONS) != (kind in http.BUGS)


def test_no_other_module_names_an_exception_of_httpx() -> None:
    """There is one place of translation, so that no driver forgets a kind of failure."""
    names = {kind.__name__ for kind in EXCEPTIONS}
    found = {
        f"{path.name}: {node.attr}"
        for path in Path(http.__file__).parent.rglob("*.py")
        if path.name != "http.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "httpx" and node.attr in names
    }
    assert found == set()


@pytest.mark.parametrize("kind", list(http.REASONS), ids=_name)
def test_translated_messages_say_why_and_hide_secrets(kind: type[Exception]) -> None:
    """Each becomes the caller's error, with the reason, without query, user or the foreign text."""
    with pytest.raises(UploadFailed) as caught, http.translating(UploadFailed, url=SECRET_URL):
        raise instance(kind)
    expected = "answered 418" if kind is httpx.HTTPStatusError else http.REASONS[kind]
    assert caught.value.message == f"https://host.example:8443/a/b: {expected}"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", sorted(http.BUGS, key=str), ids=_name)
def test_misuse_of_the_library_is_left_alone(kind: type[Exception]) -> None:
    """Our own bugs are not dressed up as somebody else's failure."""
    makers: dict[type[Exception], Any] = {
        httpx.StreamConsumed: kind,
        httpx.StreamClosed: kind,
        httpx.ResponseNotRead: kind,
        httpx.RequestNotRead: kind,
    }
    error = makers[kind]() if kind in makers else kind("misuse")
    with pytest.raises(kind), http.translating(UploadFailed):
        raise error


def test_our_own_errors_pass_untouched() -> None:
    """A WorkerError raised inside is not wrapped."""
    error = InvalidJob("no", field="x")
    with pytest.raises(InvalidJob) as caught, http.translating(UploadFailed):
        raise error
    assert caught.value is error


def test_the_place_is_taken_from_the_request_or_left_open() -> None:
    """Without a URL given, the failed request's is shown; without a request, none."""
    failures = [instance(httpx.ReadTimeout), httpx.ReadTimeout("hunter2"), httpx.InvalidURL("hunter2")]
    messages = []
    for failure in failures:
        with pytest.raises(UploadFailed) as caught, http.translating(UploadFailed):
            raise failure
        messages.append(caught.value.message)
    assert messages == [
        "https://host.example:8443/a/b: no answer in time",
        "request: no answer in time",
        "request: is not a URL",
    ]


async def test_a_refused_connection_is_told_with_its_detail() -> None:
    """Where nobody listens the message says that it cannot be connected to, and why."""
    async with ScriptedServer() as server:
        url = server.url("/x?token=hunter2")
    async with http.client(loopback=True) as client:
        with pytest.raises(QueueUnavailable) as caught, http.translating(QueueUnavailable):
            await client.get(url)
    assert re.fullmatch(r"http://\[::1\]:\d+/x: cannot be connected to \(.+\)", caught.value.message)


def _translating() -> AbstractContextManager[None]:
    return http.translating(DownloadFailed)


async def test_a_hanging_server_and_a_broken_one_are_told_apart() -> None:
    """A read timeout and an answer that is not HTTP each have their reason; the answer's bytes are not shown."""
    async with ScriptedServer(Answer(hang=True), Answer(raw=b"hunter2 hunter2\r\n\r\n")) as server:
        async with http.client(loopback=True, timeout=timedelta(milliseconds=200)) as client:
            with pytest.raises(DownloadFailed, match="no answer in time"), _translating():
                await client.get(server.url())
        async with http.client(loopback=True) as client:
            with pytest.raises(DownloadFailed, match=r"/: did not answer with valid HTTP$"), _translating():
                await client.get(server.url())


async def test_redirects_are_not_followed() -> None:
    """A 302 is an answer like any other."""
    async with ScriptedServer(Answer(302, {"location": "/elsewhere"})) as server, http.client(loopback=True) as client:
        assert (await client.get(server.url())).status_code == 302
        assert len(server.requests) == 1


async def test_loopback_clients_ignore_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With HTTP_PROXY set, a loopback client still talks to [::1] itself, any other to the proxy."""
    async with ScriptedServer() as proxy, ScriptedServer() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url().rstrip("/"))
        async with http.client(loopback=True) as client:
            await client.get(server.url("/direct"))
        async with http.client() as client:
            await client.get("http://host.example/by-proxy")
        assert [request.path for request in server.requests] == ["/direct"]
        assert [request.target for request in proxy.requests] == ["http://host.example/by-proxy"]


async def test_clients_name_themselves_and_take_headers_base_url_and_auth() -> None:
    """What a driver asks for reaches the server, beside our user agent."""
    async with ScriptedServer() as server:
        client = http.client(loopback=True, base_url=server.url("/api/"), headers={"x-key": "k"}, auth=("me", "pw"))
        await client.get("thing")
        await client.aclose()
    (request,) = server.requests
    assert request.path == "/api/thing"
    assert request.headers["x-key"] == "k"
    assert request.headers["authorization"].startswith("Basic ")
    assert request.headers["user-agent"].startswith("sd-worker/")


def test_there_is_one_tls_context() -> None:
    """Every client shares it."""
    assert http.tls() is http.tls()


@pytest.mark.parametrize(
    ("url", "shown", "origin"),
    [
        (SECRET_URL, "https://host.example:8443/a/b", "https://host.example:8443"),
        ("http://[::1]:7860/sdapi?x=1", "http://[::1]:7860/sdapi", "http://[::1]:7860"),
        ("http://host.example", "http://host.example", "http://host.example"),
        ("http://[::1", "a malformed URL", "a malformed URL"),
        ("http://host:port/", "a malformed URL", "a malformed URL"),
    ],
)
def test_urls_in_messages(url: str, shown: str, origin: str) -> None:
    """User, query and fragment never show; the origin leaves the path out too."""
    assert (http.shown(url), http.origin(url)) == (shown, origin)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:1/", True),
        ("http://a.localhost/", True),
        ("http://127.9.9.9/", True),
        ("http://[::1]:7860/", True),
        ("http://10.0.0.1/", False),
        ("http://host.example/", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_is_loopback(url: str, loopback: bool) -> None:
    """Only names and addresses of this very machine are."""
    assert http.is_loopback(url) is loopback


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "undeclared"])
@pytest.mark.parametrize(("size", "limit"), [(0, 0), (9000, 9000), (9001, 9000)])
async def test_bodies_are_read_up_to_the_limit(size: int, limit: int, chunked: bool) -> None:
    """A body of the limit's length is read whole, one byte more is refused, declared or not."""
    body = bytes(size)
    async with (
        ScriptedServer(Answer(body=body, chunked=chunked)) as server,
        http.client(loopback=True) as client,
        client.stream("GET", server.url()) as response,
    ):
        if size <= limit:
            assert await http.read(response, limit=limit, too_large=DownloadFailed) == body
        else:
            with pytest.raises(DownloadFailed, match="has more than 9000 bytes"):
                await http.read(response, limit=limit, too_large=DownloadFailed)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "999999999999"}, 86_400),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Sun, 01 Mar 2026 13:00:10 GMT", "date": "Sun, 01 Mar 2026 13:00:00 GMT"}, 10),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    """Seconds or a date, the date measured on the server's own clock; nonsense is as good as nothing."""
    asked = http.retry_after(httpx.Response(503, headers=headers), NOW)
    assert asked == (None if expected is None else timedelta(seconds=expected))


def dated(date: str | None, **headers: str) -> httpx.Response:
    given = headers | ({"date": date} if date else {})
    return httpx.Response(200, headers=given, request=httpx.Request("GET", "http://host.example/"))


@pytest.mark.parametrize(
    ("date", "offset", "logged"),
    [
        ("Sun, 01 Mar 2026 13:00:00 GMT", 3600, True),
        ("Sun, 01 Mar 2026 11:59:30 -0000", -30, False),
        ("Sun, 01 Mar 2026 11:59:29 GMT", -31, True),
        ("Sun, 01 Mar 2026 12:00:01 GMT", 0, False),
        ("yesterday", 0, False),
        (None, 0, False),
    ],
)
def test_dates_correct_the_clock(date: str | None, offset: float, logged: bool) -> None:
    """The clock takes a server's offset; more than 30 s is reported."""
    clock = CorrectedClock(FixedClock())
    with capture_logs() as logs:
        http.observe_date(dated(date), clock)
    assert clock.offset == timedelta(seconds=offset)
    assert [entry["event"] for entry in logs] == ["clock_skew_found"] * logged


def test_skew_is_reported_once_a_clock() -> None:
    """However many servers say so, one clock is reported once."""
    clock = CorrectedClock(FixedClock())
    with capture_logs() as logs:
        for _ in range(3):
            http.observe_date(dated("Sun, 01 Mar 2026 13:00:00 GMT"), clock)
    assert [entry["offset_s"] for entry in logs] == [3600.0]


def test_a_cached_answer_says_nothing_of_the_time() -> None:
    """The Date of an answer with an Age is old and not heard."""
    clock = CorrectedClock(FixedClock())
    http.observe_date(dated("Sun, 01 Mar 2026 11:00:00 GMT", age="3600"), clock)
    assert clock.offset == timedelta(0)
    http.observe_date(dated("Sun, 01 Mar 2026 11:00:00 GMT", age="0"), clock)
    assert clock.offset == timedelta(hours=-1)
