"""A file at a plain URL: whether it is there, and what its server tells of it."""

from __future__ import annotations

import base64
import binascii

from worker import http
from worker.errors import ModelNotFound, Owner
from worker.models.base import Location
from worker.models.hub import ONE_BYTE, Answer, Web, forbidden, hex_digest
from worker.models.identity import disposition_name, has_extension, name_of

_HEX_HEADERS = (
    "x-checksum-sha256",
    "x-amz-meta-sha256",
    "x-goog-meta-sha256",
    "x-ms-meta-sha256",
    "x-linked-etag",
)
_BASE64_HEADERS = ("x-amz-checksum-sha256",)


async def look(web: Web, url: str, owner: Owner) -> Location:
    """Ask for its first byte and read the headers; redirects are followed.

    Raises `ModelNotFound`, also for a page where a file should be, `ModelForbidden` for what a job named and
    `AuthFailed` for what the operator did, `DownloadFailed`, `UrlForbidden`.
    """
    guarded = owner is Owner.JOB
    answer = await web.ask("GET", url, headers=ONE_BYTE, owner=owner, guarded=guarded, follow=True)
    place = http.shown(url)
    if answer.status in (401, 403):
        raise forbidden(owner, f"{place}: answered {answer.status}")
    if answer.status not in (200, 206):
        raise ModelNotFound(f"{place}: answered {answer.status}")
    if answer.is_page:
        raise ModelNotFound(f"{place}: is a page and not a file")
    return at(url, owner, name=_name(answer, url), sha256=sha256_of(answer), size=answer.size)


def at(
    url: str, owner: Owner, *, name: str | None = None, sha256: str | None = None, size: int | None = None
) -> Location:
    """The place itself, without asking."""
    return Location(
        url=url,
        source=http.shown(url),
        sha256=sha256,
        size=size,
        name=name or name_of(url) or None,
        owner=owner,
        guarded=owner is Owner.JOB and not url.lower().startswith("s3:"),
    )


def _name(answer: Answer, url: str) -> str:
    given = disposition_name(answer.headers.get("content-disposition", ""))
    return given if has_extension(given) else name_of(url) or name_of(answer.url)


def sha256_of(answer: Answer) -> str | None:
    """As stores tell it: metadata of the object, S3's own checksum of a whole object, Artifactory's."""
    for name in _HEX_HEADERS:
        found = hex_digest(answer.headers.get(name, "").strip('"'))
        if found is not None:
            return found
    for name in _BASE64_HEADERS:
        try:
            found = hex_digest(base64.b64decode(answer.headers.get(name, ""), validate=True).hex())
        except (binascii.Error, ValueError):
            continue
        if found is not None:
            return found
    return None
