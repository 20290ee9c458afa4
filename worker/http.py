"""HTTP out: one TLS context, clients with sane defaults, and the only place that names httpx's exceptions.

Messages that leave this module never hold a body, a query string or credentials.
"""

from __future__ import annotations

import functools
import ipaddress
import ssl
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import structlog

from worker import __version__
from worker.clock import CorrectedClock
from worker.errors import WorkerError

log = structlog.get_logger(__name__)

CONNECT_MOST = timedelta(seconds=10)
SKEW = timedelta(seconds=30)
MALFORMED = "a malformed URL"

REASONS: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "no connection in time",
    httpx.ReadTimeout: "no answer in time",
    httpx.WriteTimeout: "takes no data",
    httpx.PoolTimeout: "no free connection in time",
    httpx.TimeoutException: "timed out",
    httpx.ConnectError: "cannot be connected to",
    httpx.ReadError: "the connection broke while reading",
    httpx.WriteError: "the connection broke while sending",
    httpx.CloseError: "the connection broke while closing",
    httpx.NetworkError: "the network failed",
    httpx.ProxyError: "the proxy refused",
    httpx.UnsupportedProtocol: "is not an http or https URL",
    httpx.LocalProtocolError: "the request is not valid HTTP",
    httpx.RemoteProtocolError: "did not answer with valid HTTP",
    httpx.ProtocolError: "did not answer with valid HTTP",
    httpx.TransportError: "the transport failed",
    httpx.DecodingError: "the answer cannot be decompressed",
    httpx.TooManyRedirects: "redirects too often",
    httpx.RequestError: "the request failed",
    httpx.HTTPStatusError: "refused the request",
    httpx.HTTPError: "the request failed",
    httpx.InvalidURL: "is not a URL",
}
"""What each of httpx's errors means to whoever reads our message."""

BUGS: frozenset[type[Exception]] = frozenset(
    {
        httpx.CookieConflict,
        httpx.StreamError,
        httpx.StreamConsumed,
        httpx.StreamClosed,
        httpx.ResponseNotRead,
        httpx.RequestNotRead,
    }
)
"""Misuse of the library by us: left alone, so that it counts as a bug."""

_TELLING = (httpx.ConnectError, httpx.ProxyError)
_skewed: weakref.WeakSet[CorrectedClock] = weakref.WeakSet()


@functools.cache
def tls() -> ssl.SSLContext:
    """The one TLS context of the process: each costs tens of milliseconds and megabytes."""
    return httpx.create_ssl_context()


def client(
    *,
    timeout: timedelta = timedelta(seconds=30),
    loopback: bool = False,
    base_url: str = "",
    headers: Mapping[str, str] | None = None,
    auth: httpx.Auth | tuple[str, str] | None = None,
    connections: int = 20,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client that follows no redirects; close it with ``aclose``.

    ``timeout`` bounds each single wait (for a connection at most 10 s), not the whole exchange: put
    ``asyncio.timeout`` around that. A ``loopback`` client ignores the environment, because with
    ``HTTP_PROXY`` set even ``[::1]`` would go to the proxy.
    """
    return httpx.AsyncClient(
        timeout=httpx.Timeout(timeout.total_seconds(), connect=min(timeout, CONNECT_MOST).total_seconds()),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=30),
        verify=tls(),
        trust_env=not loopback,
        follow_redirects=False,
        max_redirects=5,
        base_url=base_url,
        headers={"user-agent": f"sd-worker/{__version__}", **(headers or {})},
        auth=auth,
        transport=transport,
    )


@contextmanager
def translating(error: Callable[[str], WorkerError], *, url: str | httpx.URL | None = None) -> Iterator[None]:
    """Turn whatever httpx raises inside into ``error(message)``; our own errors pass untouched.

    ``error`` is a class such as `DownloadFailed`, or a function that makes one from the message. ``url`` says
    what was visited where the failed request cannot; its query and user information are left out.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as failure:
        raise error(f"{_visited(failure, url)}: {reason_of(failure)}") from None


def reason_of(failure: Exception) -> str:
    """Why a request failed, in words that hold neither body nor URL."""
    if isinstance(failure, httpx.HTTPStatusError):
        return f"answered {failure.response.status_code}"
    reason = next(REASONS[kind] for kind in type(failure).__mro__ if kind in REASONS)
    detail = str(failure) if isinstance(failure, _TELLING) else ""
    return f"{reason} ({detail})" if detail else reason


def _visited(failure: Exception, url: str | httpx.URL | None) -> str:
    if url is not None:
        return shown(url)
    try:
        return shown(failure.request.url) if isinstance(failure, httpx.HTTPError) else "request"
    except RuntimeError:
        return "request"


def parsed(text: str) -> httpx.URL | None:
    """The URL that a text holds; None where it holds none."""
    try:
        return httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        return None


def shown(url: str | httpx.URL) -> str:
    """The URL as it may stand in a message: without user information, query and fragment."""
    place = origin(url)
    return place if place == MALFORMED else place + urlsplit(str(url)).path


def origin(url: str | httpx.URL) -> str:
    """Scheme, host and port alone, for URLs whose very path is a secret, as those of chat services are."""
    try:
        parts = urlsplit(str(url))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return MALFORMED
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}:{port}" if port else f"{parts.scheme}://{host}"


def is_loopback(url: str | httpx.URL) -> bool:
    """Whether the URL names this machine itself, by ``localhost`` or by address."""
    try:
        host = urlsplit(str(url)).hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read(response: httpx.Response, *, limit: int, too_large: Callable[[str], WorkerError]) -> bytes:
    """The whole body of a streamed response, or ``too_large(message)`` as soon as more than ``limit`` bytes came."""
    declared = response.headers.get("content-length", "")
    body = bytearray()
    if not (declared.isdecimal() and int(declared) > limit):
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise too_large(f"has more than {limit} bytes")


def retry_after(response: httpx.Response, now: datetime) -> timedelta | None:
    """What ``Retry-After`` asks for, given in seconds or as a date; None without a usable one.

    A date is measured from the response's own ``Date``, and only where that is missing from ``now``.
    """
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return timedelta(seconds=min(int(value), 86_400))
    at = _date(value)
    if at is None:
        return None
    since = _date(response.headers.get("date", "")) or now
    return max(at - since, timedelta(0))


def observe_date(response: httpx.Response, clock: CorrectedClock) -> None:
    """Let the clock learn from a server's ``Date``; an offset of more than 30 s is logged once a clock.

    Only for servers that the operator named: whoever is listened to sets the time of our signatures. What a
    cache answered (``Age``) is not heard, for its date is old.
    """
    at = _date(response.headers.get("date", ""))
    if at is None or response.headers.get("age", "0").strip() != "0":
        return
    clock.observe(at)
    if abs(clock.offset) > SKEW and clock not in _skewed:
        _skewed.add(clock)
        log.warning("clock_skew_found", offset_s=round(clock.offset.total_seconds(), 1), host=response.url.host)


def _date(value: str) -> datetime | None:
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
