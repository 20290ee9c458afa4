"""Where the HTTP service listens, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from tests.support.serving import serving
from worker.errors import ConfigError


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def get(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return (await client.get(url)).text


class NoIpv6(socket.socket):
    """Sockets of a kernel that was built without IPv6."""

    def __init__(self, family: int = -1, *rest: Any, **named: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *rest, **named)


class Ipv6SwitchedOff(socket.socket):
    """Sockets of a kernel whose IPv6 is switched off by a setting."""

    def bind(self, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        super().bind(address)


class Forbidden(socket.socket):
    """Sockets of a user who may not have this port."""

    def bind(self, address: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("kernel", [NoIpv6, Ipv6SwitchedOff])
async def test_without_ipv6_it_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch, kernel: type[socket.socket]) -> None:
    """`::` means every family that there is."""
    monkeypatch.setattr(socket, "socket", kernel)
    async with serving(hello) as service:
        assert await get(service.url(host="127.0.0.1")) == "hello"


@pytest.mark.parametrize(("host", "url", "other"), [("127.0.0.1", "127.0.0.1", "::1"), ("::1", "[::1]", "127.0.0.1")])
async def test_one_address_means_this_one(host: str, url: str, other: str) -> None:
    """An address that the operator chose is the only one listened on."""
    async with serving(hello, host) as service:
        assert await get(service.url(host=url)) == "hello"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(other, service.port)


async def test_names_are_resolved() -> None:
    """A host may be a name."""
    async with serving(hello, "localhost") as service:
        assert await get(service.url(host="localhost")) == "hello"


@pytest.mark.parametrize("host", ["::", "127.0.0.1"])
async def test_a_port_in_use_is_a_mistake_of_configuration(host: str) -> None:
    """The message names the variable and the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"WORKER_HTTP_PORT: port {port} is in use"):
            async with serving(hello, host, port):
                pass


async def test_a_forbidden_port_is_a_mistake_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports that the user may not have are named likewise."""
    monkeypatch.setattr(socket, "socket", Forbidden)
    with pytest.raises(ConfigError, match="WORKER_HTTP_PORT: this user may not listen on port 80"):
        async with serving(hello, "::", 80):
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
async def test_a_foreign_host_is_a_mistake_of_configuration(host: str) -> None:
    """An address that is not this machine's, or no address, names the other variable."""
    with pytest.raises(ConfigError, match=f"WORKER_HTTP_HOST: cannot listen on {host}"):
        async with serving(hello, host):
            pass


async def test_signals_stay_ours() -> None:
    """uvicorn takes no signal: the supervisor alone drains."""
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    async with serving(hello) as service:
        assert await get(service.url()) == "hello"
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


class Slow:
    """An application with answers that take as long as the test wants, or for ever."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        self.asked.set()
        while scope["path"] == "/flood":
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"ended"})


async def ended(reader: asyncio.StreamReader) -> bool:
    """Read until the other side closes or breaks the connection."""
    with suppress(ConnectionResetError):
        while await reader.read(1_000_000):
            pass
    return True


async def test_cancelling_leaves_nothing_behind() -> None:
    """Idle, silent, endless and unread connections are all closed, no task is left, the port is free again."""
    tasks, slow = asyncio.all_tasks(), Slow()
    async with asyncio.timeout(10), serving(slow) as service:
        connections = []
        for request in (b"", b"GET /", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n"):
            slow.asked.clear()
            connections.append(await asyncio.open_connection("::1", service.port))
            connections[-1][1].write(request)
            if b"HTTP" in request:
                await slow.asked.wait()
        service.task.cancel()
        with suppress(asyncio.CancelledError):
            await service.task
        assert [await ended(reader) for reader, _ in connections] == [True] * 4
        for _, writer in connections:
            writer.close()
    assert asyncio.all_tasks() == tasks
    async with serving(hello, port=service.port) as again:
        assert await get(again.url()) == "hello"


async def test_running_answers_may_end() -> None:
    """An answer that ends within the grace is complete, though nobody new is let in."""
    slow = Slow()
    async with serving(slow) as service:
        answer = asyncio.create_task(get(service.url()), name="client")
        await slow.asked.wait()
        service.task.cancel()
        slow.may_end.set()
        assert await answer == "begun ended"


async def test_nothing_is_logged_of_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Probes every second would fill a log."""
    async with serving(hello) as service:
        await get(service.url("/secret?token=1"))
    assert caplog.records == []
