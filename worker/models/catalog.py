"""The operator's list of models: where each is to be had, and what its bytes are.

A JSON list of ``{kind, name, url, sha256, size, base}``, a file or a URL, re-read every five minutes. One wrong entry
costs that entry, a list that cannot be read costs nothing as long as an earlier one was.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pydantic_core
import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from worker import http
from worker.errors import DownloadFailed
from worker.mentions import place_of, stem_of
from worker.models.identity import canonical
from worker.tasks import cancel_all

log = structlog.get_logger(__name__)

EVERY = timedelta(minutes=5)
AGAIN = timedelta(seconds=15)
LARGEST = 64_000_000
_WITHIN = timedelta(seconds=30)
_NAMED = 20
_SCHEMES = ("http://", "https://", "s3://", "hf://", "civitai://", "urn:air:", "air:")


def _usable_url(value: str) -> str:
    if not value.lower().startswith(_SCHEMES):
        raise ValueError("must be an http, https, s3, hf or civitai URL, or an AIR name")
    canonical(value)
    return value


def _relative(value: str) -> str:
    if "\\" in value or "\0" in value or any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("must be a relative name without empty, '.' or '..' parts")
    return value


class Item(BaseModel):
    """A model of the catalogue. Fields that we do not know are left alone: others read the list too."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    name: Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_relative)]
    url: Annotated[str, StringConstraints(max_length=8192), AfterValidator(_usable_url)] | None = None
    sha256: Annotated[str, StringConstraints(to_lower=True, pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    size: Annotated[int, Field(strict=True, gt=0)] | None = None
    base: str | None = None


class Index:
    """The items, found by kind and name, by kind and sha256, and by URL. ``version`` changes with the list."""

    def __init__(self, items: Iterable[Item] = (), version: str = "") -> None:
        self.items = tuple(items)
        self.version = version
        self._by_place: dict[tuple[str, str], Item] = {}
        self._by_digest: dict[tuple[str, str], Item] = {}
        self._by_url: dict[tuple[str, str], Item] = {}
        self._by_short: dict[tuple[str, str], list[Item]] = defaultdict(list)
        for item in self.items:
            self._put(item)

    def _put(self, item: Item) -> None:
        kind = place_of(item.kind, item.name).kind
        self._by_place.setdefault((kind, item.name), item)
        base = item.name.rpartition("/")[2]
        for short in {base, stem_of(base), stem_of(item.name)} - {item.name}:
            self._by_short[kind, short].append(item)
        if item.sha256:
            self._by_digest.setdefault((kind, item.sha256), item)
        if item.url:
            self._by_url.setdefault((kind, canonical(item.url)), item)

    def named(self, kind: str, name: str) -> Item | None:
        """By its name, else by its file's name or stem where those are of one item alone."""
        kind = place_of(kind, name).kind
        exact = self._by_place.get((kind, name))
        if exact is not None:
            return exact
        short = self._by_short.get((kind, name), [])
        return short[0] if len(short) == 1 else None

    def with_digest(self, kind: str, sha256: str) -> Item | None:
        return self._by_digest.get((place_of(kind, "").kind, sha256))

    def at(self, kind: str, url: str) -> Item | None:
        """By its URL in canonical form."""
        return self._by_url.get((place_of(kind, "").kind, url))


def parsed(text: bytes) -> tuple[Index, tuple[str, ...]]:
    """The usable items of a catalogue, and what is wrong with the others. Raises `ValueError` when it is no list."""
    try:
        found = pydantic_core.from_json(text)
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(found, list):
        raise ValueError("is not a JSON list")
    items: dict[tuple[str, str], Item] = {}
    mistakes = []
    for number, one in enumerate(found):
        try:
            item = Item.model_validate(one)
        except ValidationError as error:
            mistakes.append(f"[{number}]{_label(one)}: {_complaints(error)}")
            continue
        if items.setdefault((item.kind, item.name), item) is not item:
            mistakes.append(f"[{number}]{_label(one)}: is listed twice; the first counts")
    return Index(items.values(), hashlib.sha256(text).hexdigest()[:16]), tuple(mistakes)


def _label(one: Any) -> str:
    name = one.get("name") if isinstance(one, dict) else None
    return f" {name[:100]!r}" if isinstance(name, str) else ""


def _complaints(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in error.errors(include_url=False)
    )


@dataclass(frozen=True, slots=True)
class _Read:
    """A list as it was read; ``tag`` tells whether it has changed (an ETag, or a file's time and size)."""

    index: Index
    tag: str


class Catalog:
    """The list at a path or URL. `index` waits for it only until it was read once; later it is renewed beside."""

    def __init__(self, where: str, *, every: timedelta = EVERY, again: timedelta = AGAIN) -> None:
        self._where = where
        self._every_s = every.total_seconds()
        self._again_s = again.total_seconds()
        self._remote = where.lower().startswith(("http://", "https://"))
        self._client: httpx.AsyncClient | None = None
        self._last: _Read | None = None
        self._due = 0.0
        self._failure: DownloadFailed | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """As messages name it."""
        return http.shown(self._where) if self._remote else self._where

    @property
    def version(self) -> str:
        """Of the list that is in use; changes with it. Empty before the first one."""
        return self._last.index.version if self._last else ""

    async def index(self) -> Index:
        """The list, at most some minutes old, or the last good one. Raises `DownloadFailed` while there is none."""
        if self._reading is None and asyncio.get_running_loop().time() >= self._due:
            self._reading = asyncio.create_task(self._renew(), name="catalog")
        if self._last is None and self._reading is not None:
            await asyncio.wait({self._reading})
        if self._last is None:
            raise self._failure or DownloadFailed(f"{self.name}: was not read")
        return self._last.index

    async def aclose(self) -> None:
        await cancel_all({self._reading} if self._reading else set())
        if self._client is not None:
            await self._client.aclose()

    async def _renew(self) -> None:
        """Read it anew; a failure is remembered, and logged when it is the first."""
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(_WITHIN.total_seconds()):
                read = await (self._fetch() if self._remote else asyncio.to_thread(self._opened, self._last))
        except (DownloadFailed, TimeoutError) as error:
            failure = error if isinstance(error, DownloadFailed) else DownloadFailed(f"{self.name}: took too long")
            if self._failure is None:
                log.error("catalog_unavailable", source=self.name, error=failure.message, kept=self._last is not None)
            self._failure, self._due = failure, now() + self._again_s
        else:
            if self._failure is not None:
                log.info("catalog_available", source=self.name)
            self._last, self._failure, self._due = read, None, now() + self._every_s
        finally:
            self._reading = None

    async def _fetch(self) -> _Read:
        if self._client is None:
            self._client = http.client(loopback=http.is_loopback(self._where))
        last = self._last
        known = {"if-none-match": last.tag} if last and last.tag else {}
        with http.translating(DownloadFailed, url=self._where):
            async with self._client.stream("GET", self._where, headers=known, follow_redirects=True) as response:
                if last is not None and response.status_code == 304:
                    return last
                if not response.is_success:
                    raise DownloadFailed(f"{self.name}: answered {response.status_code}")
                text = await http.read(response, limit=LARGEST, too_large=self._too_large)
        return await asyncio.to_thread(self._understood, text, response.headers.get("etag", ""), last)

    def _opened(self, last: _Read | None) -> _Read:
        path = Path(self._where)
        try:
            about = path.stat()
            tag = f"{about.st_mtime_ns}-{about.st_size}-{about.st_ino}"
            if last is not None and last.tag == tag:
                return last
            if about.st_size > LARGEST:
                raise self._too_large(f"has more than {LARGEST} bytes")
            text = path.read_bytes()
        except OSError as error:
            raise DownloadFailed(f"{self.name}: cannot be read: {error.strerror}") from None
        return self._understood(text, tag, last)

    def _too_large(self, why: str) -> DownloadFailed:
        return DownloadFailed(f"{self.name}: {why}")

    def _understood(self, text: bytes, tag: str, last: _Read | None) -> _Read:
        try:
            index, mistakes = parsed(text)
        except ValueError as error:
            raise DownloadFailed(f"{self.name}: {error}") from None
        if last is not None and last.index.version == index.version:
            return _Read(last.index, tag)
        if mistakes:
            log.warning("catalog_entries_skipped", source=self.name, count=len(mistakes), entries=mistakes[:_NAMED])
        log.info("catalog_read", source=self.name, models=len(index.items), version=index.version)
        return _Read(index, tag)
