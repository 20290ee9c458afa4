"""A file at a plain URL: whether it is there, and what its server tells of it."""

from __future__ import annotations

import base64
import binascii
import re

from worker import http
from worker.aws import Refusal
from worker.errors import DownloadFailed, ModelNotFound, Owner, WorkerError
from worker.models.auth import Auth
from worker.models.base import Location
from worker.models.hub import ONE_BYTE, Answer, CredentialsRefused, Web, forbidden, hex_digest
from worker.models.identity import disposition_name, has_extension, name_of

_HEX_HEADERS = (
    "x-checksum-sha256",
    "x-amz-meta-sha256",
    "x-goog-meta-sha256",
    "x-ms-meta-sha256",
    "x-linked-etag",
)
_HOPS = 6
_BASE64_HEADERS = ("x-amz-checksum-sha256",)
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")


async def look(web: Web, url: str, owner: Owner, auth: Auth | None = None) -> Location:
    """Ask for its first byte and read the headers; redirects are followed, ``auth`` stays at the URL's own origin.

    Raises `ModelNotFound`, also for a page where a file should be, `ModelForbidden` for what a job named and
    `AuthFailed` for what the operator did, `DownloadFailed`, `UrlForbidden`.
    """
    answer = await (_first_byte(web, url, owner) if auth is None else _opened(web, url, owner, auth))
    if answer.status not in (200, 206):
        raise refusal(answer, http.shown(url), owner, ours=owner is Owner.OPERATOR)
    if answer.is_page:
        raise ModelNotFound(f"{http.shown(url)}: is a page and not a file")
    return at(url, owner, name=_name(answer, url), sha256=sha256_of(answer), size=answer.size, auth=auth)


async def _first_byte(web: Web, url: str, owner: Owner) -> Answer:
    return await web.ask("GET", url, headers=ONE_BYTE, owner=owner, guarded=owner is Owner.JOB, follow=True)


async def _opened(web: Web, url: str, owner: Owner, auth: Auth) -> Answer:
    """The same with credentials, which no redirect takes along to another origin."""
    there = auth.address(url)
    for _ in range(_HOPS):
        ours = auth.headers() if http.origin(there) == http.origin(url) else {}
        answer = await web.ask("GET", there, headers={**ONE_BYTE, **ours}, owner=owner, guarded=owner is Owner.JOB)
        if answer.target is None:
            return answer
        there = answer.target
    raise DownloadFailed(f"{http.shown(url)}: redirects too often", owner=owner)


async def look_at_object(web: Web, url: str, link: str, owner: Owner) -> Location:
    """The same for an ``s3://`` URL, by a signed link to it."""
    answer = await web.ask("GET", link, headers=ONE_BYTE, owner=owner)
    if answer.status not in (200, 206):
        raise refusal(answer, url, owner, ours=True)
    return at(url, owner, sha256=sha256_of(answer), size=answer.size)


def refusal(answer: Answer, place: str, owner: Owner, *, ours: bool) -> WorkerError:
    """What an answer means that is not the file; ``ours``: it was asked for with the operator's credentials.

    A 403 is about this file: S3 gives it also for a key that does not exist, to who may not list the bucket.
    """
    said = _CODE.search(answer.body)
    code = said[1].decode() if said else ""
    words = f"{place}: answered {answer.status}{f' {code}' if code else ''}"
    if code == "NoSuchBucket":
        return DownloadFailed(words, owner=owner)
    if answer.status == 401 or Refusal(code, answer.status, "").of_credentials:
        return CredentialsRefused(words) if ours else forbidden(owner, words)
    return forbidden(owner, words) if answer.status == 403 else ModelNotFound(words)


def at(
    url: str,
    owner: Owner,
    *,
    name: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    auth: Auth | None = None,
) -> Location:
    """The place itself, without asking."""
    return Location(
        url=url,
        source=http.shown(url),
        headers={} if auth is None else auth.headers(),
        sha256=sha256,
        size=size,
        name=name or name_of(url) or None,
        owner=owner,
        guarded=owner is Owner.JOB and (auth is not None or not url.lower().startswith("s3:")),
        auth=auth,
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
