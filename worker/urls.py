"""The guard in front of every URL that a job or request names.

Contract: such a URL reaches public addresses only, unless the operator allows more, and the address that was
checked is the address that is connected to, so that a name cannot change its mind in between.
URLs of the operator's own settings do not come here.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpcore
import httpx

from worker import http
from worker.errors import ConfigError, DownloadFailed, FieldError, Owner, UrlForbidden

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[tuple[Address, ...]]]

HTTP = ("http", "https")
HTTP_OR_S3 = ("http", "https", "s3")
VARIABLE = "WORKER_URLS_ALLOW_PRIVATE"
PORTS = range(1, 65536)
RESOLVE_WITHIN = timedelta(seconds=10)

_V4_SPECIAL = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,254}")
_V6_GLOBAL = IPv6Network("2000::/3")
_V6_SPECIAL = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_LINK_LOCAL = tuple(
    ip_network(text)
    for text in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32", "168.63.129.16/32")
)
"""Link-local addresses, and those under which clouds answer with credentials although they are none."""

_EMBEDDING = (
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::/96"), 0),
    (IPv6Network("64:ff9b::/96"), 0),
    (IPv6Network("64:ff9b:1::/48"), 0),
    (IPv6Network("2002::/16"), 80),
)
"""IPv6 networks whose addresses stand for an IPv4 one, and how many bits are right of it."""


def is_public(address: Address) -> bool:
    """Whether the address is of the open Internet, by the IANA special-purpose registries.

    Not left to ``ipaddress.is_global``, which differs between Python's patch releases. Forms that embed an
    IPv4 address (mapped, 6to4, NAT64, Teredo) are never public.
    """
    if isinstance(address, IPv4Address):
        return not (_in_any(address, _V4_SPECIAL) or _in_any(address, _LINK_LOCAL))
    return address in _V6_GLOBAL and not _in_any(address, _V6_SPECIAL)


def is_link_local(address: Address) -> bool:
    """Whether it is a link-local or cloud metadata address, also when embedded in an IPv6 one."""
    return any(_in_any(form, _LINK_LOCAL) for form in (address, *_embedded(address)))


def _in_any(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _embedded(address: Address) -> tuple[IPv4Address, ...]:
    if isinstance(address, IPv4Address):
        return ()
    return tuple(
        IPv4Address((int(address) >> shift) & 0xFFFF_FFFF) for network, shift in _EMBEDDING if address in network
    )


async def resolve_by_system(host: str, port: int) -> tuple[Address, ...]:
    """Every address of the host as the system resolves it; raises `OSError` when there is none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("not a host name") from None
    return tuple(dict.fromkeys(ip_address(item[4][0]) for item in found))


@dataclass(frozen=True, slots=True)
class Guard:
    """What URLs of jobs may point at: public addresses, and what the operator allows beside them."""

    private: bool = False
    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    resolve: Resolve = resolve_by_system

    @classmethod
    def from_setting(cls, text: str, *, variable: str = VARIABLE, resolve: Resolve = resolve_by_system) -> Guard:
        """Parse ``true``, ``false``, or hosts and CIDRs separated by blanks or commas.

        Raises `ConfigError` with every wrong part.
        """
        guard, mistakes = cls(resolve=resolve), []
        for part in text.replace(",", " ").split():
            try:
                guard = guard._allowing(part)
            except ValueError as mistake:
                mistakes.append(FieldError(variable, f"{part!r} {mistake}"))
        if mistakes:
            raise ConfigError(tuple(mistakes))
        return guard

    def _allowing(self, part: str) -> Guard:
        if part.lower() in ("true", "false"):
            return replace(self, private=self.private or part.lower() == "true")
        try:
            return replace(self, networks=(*self.networks, ip_network(part.strip("[]"), strict=False)))
        except ValueError:
            if "/" in part:
                raise ValueError("is no network; write 10.0.0.0/8") from None
        return replace(self, hosts=self.hosts | {_host_name(part)})

    def parsed(self, url: str, *, schemes: tuple[str, ...] = HTTP) -> httpx.URL:
        """The URL, its form checked without any look-up; `UrlForbidden` says what is wrong with it."""
        parsed = http.parsed(url)
        if parsed is None:
            raise UrlForbidden("not a valid URL")
        if parsed.scheme not in schemes:
            raise UrlForbidden(f"{_named(parsed)}: only {', '.join(schemes)} URLs are visited")
        if not parsed.host:
            raise UrlForbidden("the URL names no host")
        if not _is_host(_host(parsed)):
            raise UrlForbidden("the URL's host is neither a name nor an address")
        if parsed.port is not None and parsed.port not in PORTS:
            raise UrlForbidden(f"{_named(parsed)}: no such port")
        if parsed.userinfo:
            raise UrlForbidden(f"{_named(parsed)}: user name and password may not stand in a URL")
        return parsed

    async def check(self, url: str, *, schemes: tuple[str, ...] = HTTP) -> None:
        """Raise `UrlForbidden` unless form and every address of the URL are allowed.

        A host that cannot be resolved is a `DownloadFailed` of the job's: it may be there later. ``s3`` URLs
        name a bucket, not a host, and are checked for their form only.
        """
        parsed = self.parsed(url, schemes=schemes)
        if parsed.scheme not in HTTP:
            return
        host = _host(parsed)
        try:
            async with asyncio.timeout(RESOLVE_WITHIN.total_seconds()):
                await self.addresses(host, parsed.port or (443 if parsed.scheme == "https" else 80))
        except (OSError, TimeoutError):
            raise DownloadFailed(f"host {host!r} cannot be resolved", owner=Owner.JOB) from None

    async def addresses(self, host: str, port: int) -> tuple[Address, ...]:
        """The addresses to connect to, each allowed; `UrlForbidden` when one is not, `OSError` without any."""
        found = await self.resolve(host, port)
        if not found:
            raise OSError("no address")
        if _canonical(host) not in self.hosts:
            for address in found:
                self._admit(host, address)
        return found

    def _admit(self, host: str, address: Address) -> None:
        if _in_any(address, self.networks):
            return
        if is_link_local(address):
            raise UrlForbidden(f"host {host!r} is link-local")
        if not self.private and not is_public(address):
            raise UrlForbidden(f"host {host!r} is not public")

    def transport(self, *, connections: int = 20) -> httpx.AsyncBaseTransport:
        """A transport whose every connection, those after redirects included, goes to an address checked here.

        It goes there directly: a proxy would resolve the name again, by its own lights.
        """
        return GuardedTransport(self, connections)

    def client(self, *, timeout: timedelta = timedelta(seconds=30), connections: int = 20) -> httpx.AsyncClient:
        """A client for URLs that jobs name; its requests may also raise `UrlForbidden`."""
        return http.client(timeout=timeout, connections=connections, transport=self.transport(connections=connections))


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over a pool that connects through the guard."""

    def __init__(self, guard: Guard, connections: int) -> None:
        super().__init__(verify=http.tls(), trust_env=False)
        self._guard = guard
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=http.tls(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=30,
            network_backend=GuardedBackend(guard, httpcore.AnyIOBackend()),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Look at the form of each URL, too: a redirect may name anything."""
        self._guard.parsed(str(request.url))
        return await super().handle_async_request(request)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name through the guard and connects to the very addresses that it let pass."""

    def __init__(self, guard: Guard, inner: httpcore.AsyncNetworkBackend) -> None:
        self._guard = guard
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Try the addresses in turn, each for its share of what is left of the timeout."""
        if port not in PORTS:
            raise httpcore.ConnectError("no such port")
        loop = asyncio.get_running_loop()
        ends = loop.time() + (RESOLVE_WITHIN.total_seconds() if timeout is None else timeout)
        addresses = await self._resolved(host, port, ends)
        failure: Exception = httpcore.ConnectError("no address")
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            share = max(ends - loop.time(), 0.001) / left
            try:
                return await self._inner.connect_tcp(str(address), port, share, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _resolved(self, host: str, port: int, ends: float) -> tuple[Address, ...]:
        try:
            async with asyncio.timeout_at(ends):
                return await self._guard.addresses(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout("name look-up timed out") from None
        except OSError:
            raise httpcore.ConnectError("host cannot be resolved") from None

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


@contextmanager
def named(field: str) -> Iterator[None]:
    """Have a refused address say where it stands in the document."""
    try:
        yield
    except UrlForbidden as error:
        raise UrlForbidden(f"{field}: {error.message}") from None


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _is_host(host: str) -> bool:
    """Whether it may be a name or an address; one that holds only within a network of this node is none."""
    if ":" not in host:
        return _NAME.fullmatch(host) is not None
    try:
        return "%" not in host and IPv6Address(host).version == 6
    except ValueError:
        return False


def _canonical(host: str) -> str:
    return host.lower().rstrip(".")


def _named(url: httpx.URL) -> str:
    return f"host {_host(url)!r}" if url.host else "the URL"


def _host_name(part: str) -> str:
    url = http.parsed(f"http://{part}/")
    if url is None or not url.host or set(part) & set(":@/?#*"):
        raise ValueError("is neither a host nor a network")
    return _canonical(_host(url))
