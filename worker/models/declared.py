"""What the operator has declared to be on the node, read from where it stands: inline, a file or a URL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from worker import http
from worker.errors import ConfigError, DownloadFailed, FieldError, InvalidJob
from worker.models.dynamic import listed
from worker.models.manifest import VARIABLE, Manifest, joined, parse
from worker.settings.groups import Settings
from worker.settings.inherited import LISTS, MANIFESTS, SWITCHES
from worker.settings.rules import is_inline

MOST_BYTES = 10_000_000
TIMEOUT = timedelta(seconds=30)
_TRANSIENT = (408, 425, 429)

FetchS3 = Callable[[str, int], Awaitable[bytes]]
"""The object behind ``s3://bucket/key``, of at most so many bytes."""


def is_declared(settings: Settings) -> bool:
    """Whether there is anything to read: without, a node begins with what it has."""
    return bool(_sources(settings) or _lists(settings))


async def declared(settings: Settings, fetch_s3: FetchS3) -> Manifest:
    """All that is declared, as one manifest.

    Raises `ConfigError` with every mistake of a document, and for one that is not there or not ours to read;
    `DownloadFailed` while the server that has it is away.
    """
    texts = [(variable, await _text(variable, value, fetch_s3)) for variable, value in _sources(settings).items()]
    readings = [*(partial(parse, text, variable) for variable, text in texts), partial(listed, _lists(settings))]
    found: list[Manifest] = []
    mistakes: list[FieldError] = []
    for read in readings:
        try:
            found.append(read())
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(tuple(mistakes))
    return joined(tuple(found))


def _sources(settings: Settings) -> dict[str, str]:
    ours = {VARIABLE: settings.models.manifest} if settings.models.manifest is not None else {}
    return ours | {o.variable: o.value for o in settings.inherited if o.variable in MANIFESTS and o.honoured}


def _lists(settings: Settings) -> dict[str, str]:
    return {o.variable: o.value for o in settings.inherited if o.variable in (*LISTS, *SWITCHES) and o.honoured}


async def _text(variable: str, value: str, fetch_s3: FetchS3) -> str:
    if is_inline(value):
        return value
    if value.lower().startswith("s3://"):
        body = await _object(variable, value, fetch_s3)
    elif "://" in value:
        body = await _page(variable, value)
    else:
        body = await _file(variable, value)
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _mistake(variable, "is no UTF-8 text") from None


async def _object(variable: str, url: str, fetch_s3: FetchS3) -> bytes:
    try:
        return await fetch_s3(url, MOST_BYTES)
    except InvalidJob as error:
        raise _mistake(variable, error.errors[0].message) from None


async def _page(variable: str, url: str) -> bytes:
    async with http.client(timeout=TIMEOUT, loopback=http.is_loopback(url)) as client:
        with http.translating(DownloadFailed, url=url):
            async with client.stream("GET", url, follow_redirects=True) as response:
                code = response.status_code
                if response.is_success:
                    return await http.read(response, limit=MOST_BYTES, too_large=lambda m: _mistake(variable, m))
    said = f"{http.shown(url)} answered {code}"
    raise DownloadFailed(f"{variable}: {said}") if code >= 500 or code in _TRANSIENT else _mistake(variable, said)


async def _file(variable: str, path: str) -> bytes:
    def read() -> bytes:
        with Path(path).open("rb") as file:
            return file.read(MOST_BYTES + 1)

    try:
        body = await asyncio.to_thread(read)
    except OSError as error:
        raise _mistake(variable, f"names a file that cannot be read ({error.strerror})") from None
    if len(body) > MOST_BYTES:
        raise _mistake(variable, f"has more than {MOST_BYTES} bytes")
    return body


def _mistake(variable: str, message: str) -> ConfigError:
    return ConfigError((FieldError(variable, message),))
