"""What a server's answer to a request for a model means. No I/O."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from worker import http
from worker.errors import AuthFailed, DownloadFailed, ModelCorrupt, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.base import Location
from worker.models.connection import Head

REDIRECTS = frozenset({301, 302, 303, 307, 308})
DENIALS = frozenset({400, 401, 403, 404, 410})
"""By which stores say that a signed link has expired, among other things (S3: 403, Azure: 403, GCS: 400)."""

_PASSING = frozenset({408, 409, 421, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_TEXTS = frozenset({".json", ".yaml", ".yml", ".txt", ".xml", ".html", ".md", ".csv"})
_HASH = re.compile(r'"[0-9a-fA-F]{32,128}(?:-\d+)?"')


class Span(NamedTuple):
    """The bytes from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class Part(NamedTuple):
    """What a 206 brings: these bytes, of a file of so many."""

    span: Span
    total: int


def as_meant(head: Head) -> Head:
    """The head with status 206 where a server sends a part and calls it 200, as rclone's S3 server does."""
    found = _CONTENT_RANGE.fullmatch(head.get("content-range")) if head.status == 200 else None
    if found is None or length_of(head) != int(found[2]) + 1 - int(found[1]):
        return head
    return Head(206, head.headers)


def part_of(head: Head, start: int) -> Part | None:
    """None unless the answer begins where it was asked to, in a file whose size it tells."""
    found = _CONTENT_RANGE.fullmatch(head.get("content-range")) if head.status == 206 else None
    if found is None:
        return None
    first, last, total = map(int, found.groups())
    return Part(Span(first, last + 1), total) if first == start and first <= last < total else None


def length_of(head: Head) -> int | None:
    """The length of the body as the server tells it."""
    text = head.get("content-length")
    return int(text) if text.isdecimal() and not head.get("transfer-encoding") else None


def strong_tag(head: Head) -> str | None:
    """The entity tag, if it promises the very same bytes."""
    tag = head.get("etag")
    return tag if len(tag) > 2 and tag[0] == tag[-1] == '"' else None


def is_of_content(tag: str) -> bool:
    """Whether the tag is a hash of the bytes, so that it means the same on every host."""
    return _HASH.fullmatch(tag) is not None


def check_kind(head: Head, name: str, location: Location) -> None:
    """Raise `ModelCorrupt` for a page or an error document, `DownloadFailed` for a compressed body.

    Login pages and JSON errors come with status 200; files of these formats are let pass when the name has theirs.
    """
    media = head.get("content-type").partition(";")[0].strip().lower()
    kind = media.rpartition("/")[2].rpartition("+")[2]
    if kind in ("html", "json", "xml") and PurePosixPath(name).suffix.lower() not in _TEXTS:
        raise ModelCorrupt(f"{location.source} answers with {media} instead of a model", owner=location.owner)
    coding = head.get("content-encoding").lower()
    if coding not in ("", "identity"):
        raise DownloadFailed(f"{location.source} sends the file compressed ({coding[:20]})", owner=location.owner)


def is_passing(status: int) -> bool:
    """Whether the same request may be answered better later."""
    return status >= 500 or status in _PASSING


def refusal(head: Head, location: Location, *, has_token: bool, now: datetime) -> WorkerError:
    """The error for an answer that is none of 200, 206, 416 and a redirect."""
    says = f"{location.source} answers {head.status}"
    if head.status in (401, 403):
        message = f"{says}: {_wanted(location, head.status, has_token)}"
        return ModelForbidden(message) if location.owner is Owner.JOB else AuthFailed(message)
    if head.status in (404, 410):
        return ModelNotFound(says)
    response = httpx.Response(head.status, headers={"retry-after": head.get("retry-after"), "date": head.get("date")})
    later = http.retry_after(response, now) if is_passing(head.status) else None
    return DownloadFailed(says, owner=location.owner, retry_after=later)


def _wanted(location: Location, status: int, has_token: bool) -> str:
    """What would help, in words for the user."""
    host = (urlsplit(location.url).hostname or "").lower()
    if _is_of(host, "civitai.com"):
        if not has_token:
            return "this model needs a CIVITAI_TOKEN"
        return (
            "its owner grants no access to the account of CIVITAI_TOKEN" if status == 403 else "refused CIVITAI_TOKEN"
        )
    if _is_of(host, "huggingface.co", "hf.co"):
        repository = "/".join(urlsplit(location.url).path.split("/")[1:3])
        if not has_token:
            return "this model needs an HF_TOKEN"
        return f"accept the licence of {repository} on huggingface.co with the account of HF_TOKEN"
    if location.url.startswith("s3://"):
        return "these credentials may not read it, or there is no such object"
    return "the credentials are refused" if has_token else "it needs credentials"


def _is_of(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
