"""The network as a worker in this process sees it: names resolve as told, and every connection is noted."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

Answers = Sequence[Sequence[str]]
"""What a name resolves to, at the first look-up and at each later one; the last stays."""


class Network:
    """``names`` are resolved as told, other names not at all; addresses in any notation as the system does.

    ``dialled`` are the connections that were tried, but for those to ports in ``usual``: address, port. What is not
    of this machine refuses them.
    """

    def __init__(self, names: Mapping[str, Answers] | None = None) -> None:
        self.names = dict(names or {})
        self.usual: set[int] = set()
        self.dialled: list[tuple[str, int]] = []
        self.looked_up: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()
        self._getaddrinfo = self._loop.getaddrinfo
        self._create_connection = self._loop.create_connection

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(self._loop, "getaddrinfo", self.getaddrinfo)
        patch.setattr(self._loop, "create_connection", self.create_connection)

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name in self.names:
            answers = self.names[name]
            found = answers[min(self.looked_up[name], len(answers) - 1)]
            self.looked_up[name] += 1
            return [_entry(address, port) for address in found]
        if not _is_numeric(name) and name not in ("localhost", "localhost."):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return await self._getaddrinfo(host, port, **options)

    async def create_connection(self, protocol: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        if port not in self.usual:
            self.dialled.append((str(host), int(port)))
            if not _is_here(str(host)):
                raise ConnectionRefusedError(f"{host} is not of this machine")
        return await self._create_connection(protocol, host, port, **options)


def _entry(address: str, port: Any) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    place = (address, port, 0, 0) if ":" in address else (address, port)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place)


def _is_numeric(name: str) -> bool:
    """Whether the system's resolver takes it for an address, in whatever notation, and asks nobody."""
    try:
        socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return True


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A port on which every loopback address listens, and the peers that were accepted there; nobody answers them."""
    accepted: list[str] = []
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, False)
        listener.bind(("::", 0))
        listener.listen()
        listener.setblocking(False)

        def take() -> None:
            peer, address = listener.accept()
            accepted.append(str(address))
            peer.close()

        loop.add_reader(listener, take)
        try:
            yield listener.getsockname()[1], accepted
        finally:
            loop.remove_reader(listener)
