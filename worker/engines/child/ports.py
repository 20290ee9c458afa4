"""Who listens on a port of this machine, as `/proc` tells it."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.engines.child import processes
from worker.engines.child.processes import Seen, Table

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LISTENING = "0A"
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_CONNECT_S = 1.0
NEAR = 100
"""Ports above the wanted one that gradio tries when it is taken."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket; ``inode`` is what the descriptors of its holders point at."""

    address: Address
    port: int
    inode: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is to be found: host and port of its URL."""

    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether it can only be this machine."""
        address = _address(self.host)
        return self.host == "localhost" if address is None else address.is_loopback or address.is_unspecified

    def reached_by(self, listener: Listener) -> bool:
        """Whether a connection to here may end at this socket: ``[::1]`` and ``127.0.0.1`` stand for each other."""
        if listener.port != self.port:
            return False
        address = _address(self.host)
        if address is None or address.is_unspecified or listener.address.is_unspecified:
            return True
        return listener.address == address or (self.local and listener.address.is_loopback)


def place_of(url: str) -> Place:
    parts = urlsplit(url)
    return Place(parts.hostname or "localhost", parts.port or (443 if parts.scheme == "https" else 80))


def _address(host: str) -> Address | None:
    try:
        return _plain(ipaddress.ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def _plain(address: Address) -> Address:
    """IPv4 as itself also where it is written as IPv6."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def listeners() -> list[Listener] | None:
    """All listening TCP sockets of our network; None where nobody can tell."""
    texts = []
    for name in ("tcp", "tcp6"):
        try:
            texts.append((processes.PROC / "self" / "net" / name).read_text())
        except OSError:
            continue
    return [one for text in texts for one in parse_listeners(text)] if texts else None


def parse_listeners(text: str) -> list[Listener]:
    """The listening ones of `/proc/net/tcp` or `tcp6`, whose addresses are words in the machine's byte order."""
    rows = (line.split() for line in text.splitlines()[1:] if f" {LISTENING} " in line)
    found = []
    for row in rows:
        if len(row) > 9 and row[3] == LISTENING:
            host, _, port = row[1].partition(":")
            found.append(Listener(parse_address(host), int(port, 16), int(row[9])))
    return found


def parse_address(digits: str) -> Address:
    """Hexadecimal of 32-bit words, each as the machine's own order of bytes makes it look."""
    words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
    return _plain(ipaddress.ip_address(b"".join(words)))


def sockets_of(pid: int) -> frozenset[int] | None:
    """The inodes of its open sockets; None where we may not see them."""
    folder = processes.PROC / str(pid) / "fd"

    def read() -> frozenset[int]:
        links = (_link(folder / name) for name in os.listdir(folder))  # noqa: PTH208 - as above, names are enough
        matches = (_SOCKET.fullmatch(link) for link in links)
        return frozenset(int(match[1]) for match in matches if match)

    try:
        return processes.as_owner(pid, read)
    except OSError:
        return None


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return ""


def holder_of(inodes: Iterable[int], among: Table) -> Seen | None:
    """A process that holds one of these sockets; None where it cannot be found."""
    wanted = frozenset(inodes)
    for one in among.values():
        if one.alive and wanted & (sockets_of(one.pid) or frozenset()):
            return one
    return None


def taken(places: Iterable[Place]) -> str | None:
    """Why one of the places is not free, in words; None when all are."""
    found = listeners()
    if found is None:
        return next((f"port {place.port} is in use" for place in places if _answers(place)), None)
    for place in places:
        inodes = [one.inode for one in found if place.reached_by(one)]
        if inodes:
            return held(place.port, holder_of(inodes, processes.table()))
    return None


@dataclass(frozen=True, slots=True)
class Misplaced:
    """That the server does not listen where it should: who has its port, and where it listens instead."""

    port: int
    inodes: frozenset[int]
    elsewhere: tuple[int, ...]

    def __str__(self) -> str:
        others = ", ".join(map(str, self.elsewhere))
        if not self.inodes:
            return f"nothing listens on port {self.port}; the server listens on {others}"
        who = held(self.port, holder_of(self.inodes, processes.table()))
        return f"{who}; the server listens on {others}" if others else who


def misplaced(places: Sequence[Place], found: Sequence[Listener], own: AbstractSet[int]) -> Misplaced | None:
    """What is wrong about the ports, None when it listens at one of the places, or nowhere yet.

    ``own`` are the inodes of the server's sockets. With a port that nobody has only a neighbouring port tells
    that it moved, as gradio does: others may serve something else while it starts.
    """
    elsewhere = tuple(sorted({one.port for one in found if one.inode in own}))
    answering = {place: _answering(place, found) for place in places}
    if any(own & inodes for inodes in answering.values()):
        return None
    for place, inodes in answering.items():
        if inodes:
            return Misplaced(place.port, inodes, elsewhere)
    for place in places:
        near = tuple(port for port in elsewhere if 0 < port - place.port <= NEAR)
        if near:
            return Misplaced(place.port, frozenset(), near)
    return None


def _answering(place: Place, found: Sequence[Listener]) -> frozenset[int]:
    """The sockets that connections to the place end at: of the address's own family if there are any."""
    there = [one for one in found if place.reached_by(one)]
    address = _address(place.host)
    family = address.version if address is not None else 6
    return frozenset(one.inode for one in [one for one in there if one.address.version == family] or there)


def held(port: int, holder: Seen | None) -> str:
    return f"port {port} is held by {holder or 'another process'}"


def _answers(place: Place) -> bool:
    hosts = ("::1", "127.0.0.1") if place.local else (place.host,)
    for host in hosts:
        try:
            with socket.create_connection((host, place.port), timeout=_CONNECT_S):
                return True
        except OSError:
            continue
    return False
