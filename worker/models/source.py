"""A location followed to where its bytes are: addresses, proxies, redirects, tokens, links that expire."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import httpx

from worker import __version__, http
from worker.errors import DownloadFailed, InvalidJob, Owner
from worker.models import connection as connections
from worker.models.answers import DENIALS, REDIRECTS, as_meant
from worker.models.base import Location
from worker.models.connection import Broken, Connection, Head, Route
from worker.urls import HTTP, RESOLVE_WITHIN, Guard, resolve_by_system

HOPS = 5
PORTS = {"http": 80, "https": 443}

Begin = Callable[[], Awaitable[str]]
"""The URL to begin with; a new one each time where links expire."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and the connection over which its body comes."""

    connection: Connection
    head: Head


@dataclass(frozen=True, slots=True)
class Means:
    """What sources share. ``patience`` is how long the head of an answer is waited for."""

    guard: Guard
    threads: ThreadPoolExecutor
    patience: timedelta
    tls: Callable[[], ssl.SSLContext]


class Source:
    """Asks for ranges of one location's file.

    Where redirects lead is remembered, so that not every range goes through them; when the place found refuses, as a
    signed link does that has expired, the way is gone anew from its beginning, once a request. ``headers`` of the
    location go to its own origin alone.
    """

    def __init__(self, location: Location, means: Means, begin: Begin | None = None) -> None:
        self.location = location
        self._means = means
        self._begin = begin or self._its_url
        self._found: httpx.URL | None = None

    @property
    def has_token(self) -> bool:
        return any(name.lower() == "authorization" for name in self.location.headers)

    async def ask(self, headers: Mapping[str, str], kept: Connection | None = None) -> Answer:
        """Send a GET, over ``kept`` where that leads to the same place; else that is closed.

        Raises `DownloadFailed` for what fails on the way, `UrlForbidden` for an address that a job may not reach.
        """
        with contextlib.ExitStack() as undo:
            if kept is not None:
                undo.callback(kept.close)
            answer = await self._answered(headers, kept)
            undo.pop_all()
            return answer

    async def _answered(self, headers: Mapping[str, str], kept: Connection | None) -> Answer:
        remembered = self._found
        answer = await self._followed(remembered or await self._start(), headers, kept)
        if remembered is None or answer.head.status not in DENIALS:
            return answer
        answer.connection.close()
        if self._found is remembered:
            self._found = None
        return await self._followed(self._found or await self._start(), headers, None)

    async def _its_url(self) -> str:
        return self.location.url

    async def _start(self) -> httpx.URL:
        return self._checked(await self._begin())

    async def _followed(self, url: httpx.URL, headers: Mapping[str, str], kept: Connection | None) -> Answer:
        for _ in range(HOPS + 1):
            answer = await self._asked(url, headers, kept)
            if answer.head.status not in REDIRECTS:
                self._found = url if answer.head.status in (200, 206, 416) else self._found
                return answer
            answer.connection.close()
            kept = None
            url = self._redirected(url, answer.head)
        raise self._failed("redirects too often")

    def _redirected(self, url: httpx.URL, head: Head) -> httpx.URL:
        nowhere = self._failed("redirects to something that is no URL")
        try:
            with http.translating(lambda _: nowhere):
                target = url.join(head.get("location"))
        except ValueError:
            raise nowhere from None
        if not head.get("location"):
            raise self._failed("redirects without saying where")
        if url.scheme == "https" and target.scheme != "https":
            raise self._failed("redirects away from https")
        return self._checked(str(target))

    def _checked(self, url: str) -> httpx.URL:
        if self.location.guarded:
            return self._means.guard.parsed(url)
        parsed = http.parsed(url)
        if parsed is None or parsed.scheme not in HTTP or not parsed.host:
            if self.location.owner is Owner.JOB:
                raise InvalidJob(f"{self.location.source}: not an http or https URL")
            raise self._failed("is not an http or https URL")
        return parsed

    async def _asked(self, url: httpx.URL, headers: Mapping[str, str], kept: Connection | None) -> Answer:
        place = http.origin(url)
        if kept is not None and kept.key == place and kept.is_reusable:
            try:
                return Answer(kept, await self._head(kept, url, headers))
            except DownloadFailed:
                pass
        elif kept is not None:
            kept.close()
        connecting = connections.opened(
            await self._route(url),
            place,
            threads=self._means.threads,
            context=self._means.tls,
            timeout_s=min(self._means.patience, http.CONNECT_MOST).total_seconds(),
        )
        try:
            fresh = await connecting
        except Broken as failure:
            raise self._failed(str(failure), url) from None
        return Answer(fresh, await self._head(fresh, url, headers))

    async def _head(self, connection: Connection, url: httpx.URL, headers: Mapping[str, str]) -> Head:
        absolute = connection.route.by_proxy
        target = str(url.copy_with(userinfo=b"", fragment=None)) if absolute else url.raw_path.decode("ascii")
        asked = [*self._request_headers(url), *headers.items(), *(connection.route.proxy_headers if absolute else ())]
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            try:
                head = await connection.ask(target, asked, self._means.patience.total_seconds())
            except Broken as failure:
                raise self._failed(str(failure), url) from None
            undo.pop_all()
            return as_meant(head)

    def _request_headers(self, url: httpx.URL) -> list[tuple[str, str]]:
        """What every request says; the token only to the location's own origin."""
        headers = [
            ("host", url.netloc.decode("ascii")),
            ("user-agent", f"sd-worker/{__version__}"),
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
        ]
        if http.origin(url) != http.origin(self.location.url):
            return headers
        if url.userinfo and not self.has_token:
            headers.append(("authorization", _basic(url)))
        return [*headers, *self.location.headers.items()]

    async def _route(self, url: httpx.URL) -> Route:
        """Directly, or through the proxy that the environment names; what jobs name never goes through one."""
        host, port = url.raw_host.decode("ascii"), url.port or PORTS[url.scheme]
        server_name = host if url.scheme == "https" else None
        proxy = None if self.location.guarded else self._proxy(url, host)
        if proxy is None:
            return Route(await self._addresses(host, port), port, server_name)
        proxy_port = proxy.port or PORTS["http"]
        headers = (("proxy-authorization", _basic(proxy)),) if proxy.userinfo else ()
        return Route(
            await self._addresses(proxy.raw_host.decode("ascii"), proxy_port),
            proxy_port,
            server_name,
            tunnel=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            proxy_headers=headers,
        )

    def _proxy(self, url: httpx.URL, host: str) -> httpx.URL | None:
        """The environment's, by its usual variables; none for this machine itself."""
        proxies = getproxies()
        text = proxies.get(url.scheme) or proxies.get("all")
        if not text or http.is_loopback(url) or proxy_bypass(host):
            return None
        proxy = http.parsed(text if "://" in text else f"http://{text}")
        if proxy is None or proxy.scheme != "http" or not proxy.host:
            raise self._failed("the environment names a proxy that is no http:// one")
        return proxy

    async def _addresses(self, host: str, port: int) -> tuple[str, ...]:
        """In the order in which to try them."""
        look_up = self._means.guard.addresses if self.location.guarded else resolve_by_system
        try:
            async with asyncio.timeout(RESOLVE_WITHIN.total_seconds()):
                found = await look_up(host, port)
        except (OSError, TimeoutError):
            raise self._failed(f"host {host!r} cannot be resolved") from None
        return tuple(str(address) for address in found)

    def _failed(self, reason: str, url: httpx.URL | None = None) -> DownloadFailed:
        """``url`` is told where it is another than the location's, without its query."""
        elsewhere = url is not None and http.origin(url) != http.origin(self.location.url)
        via = f" (at {url.host})" if elsewhere and url is not None else ""
        return DownloadFailed(f"{self.location.source}{via}: {reason}", owner=self.location.owner)


def _basic(url: httpx.URL) -> str:
    return "Basic " + base64.b64encode(unquote(url.userinfo.decode("ascii")).encode()).decode("ascii")
