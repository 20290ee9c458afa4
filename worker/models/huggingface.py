"""Hugging Face: which bytes a file of a repository has just now, and where they are.

A request for ``/<repo>/resolve/<revision>/<path>`` is answered with a redirect to a store; its own headers tell the
commit (``X-Repo-Commit``), and of large files the sha256 (``X-Linked-Etag``) and size (``X-Linked-Size``). Refusals are
told apart by ``X-Error-Code``; a repository that an anonymous visitor may not see is a 401 as if it did not exist.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote, urlsplit

import structlog

from worker import http
from worker.errors import AuthFailed, DownloadFailed, ModelNotFound, Owner, WorkerError
from worker.models.auth import BearerAuth
from worker.models.base import Location
from worker.models.hub import Answer, Remembered, Web, bearer, forbidden, hex_digest
from worker.models.identity import HUGGING_FACE, HuggingFaceFile, origin

log = structlog.get_logger(__name__)

BASE_URL = f"https://{HUGGING_FACE}"
_RENAMES = 3
_LINKED = ("x-linked-etag", "x-linked-size")
_OF_THE_REPOSITORY = ("RepoNotFound", "GatedRepo", "DisabledRepo")


class HuggingFace:
    """Resolves files; ``token`` is sent to ``base_url`` alone."""

    def __init__(self, web: Web, *, token: str | None = None, base_url: str = BASE_URL) -> None:
        self._web = web
        self._token = token
        self._base_url = base_url.rstrip("/")
        self._known: Remembered[Location] = Remembered()

    async def locate(self, file: HuggingFaceFile, owner: Owner, auth: BearerAuth | None = None) -> Location:
        """The file pinned to the commit that its revision is at, with sha256 and size where they are told.

        ``auth`` takes the place of our token, and what it opens is remembered for it alone.

        Raises `ModelNotFound`, `ModelForbidden` for what a job named and `AuthFailed` for what the operator did,
        `AuthFailed` for a token that is not valid, `DownloadFailed`.
        """
        key = origin(file.canonical, auth) if auth is not None else file.canonical
        known = self._known.get(key)
        if known is None:
            token = self._token if auth is None else auth.token.get_secret_value()
            known = self._known.put(key, await self._resolved(file, owner, token, ours=auth is None))
        return replace(known, owner=owner, guarded=owner is Owner.JOB, auth=auth)

    async def _resolved(self, file: HuggingFaceFile, owner: Owner, token: str | None, *, ours: bool) -> Location:
        answer = await self._asked(file, owner, token)
        if token and ours and _refuses_token(answer):
            answer, token = await self._asked(file, owner, None), None
            if answer.status >= 400:
                raise AuthFailed("Hugging Face refuses the HF_TOKEN: it is not valid, or has expired")
            log.warning("model_token_refused", variable="HF_TOKEN", source=str(file))
        if answer.status >= 400:
            raise refusal(answer, file, owner, token=_word(token, ours=ours))
        commit = answer.headers.get("x-repo-commit")
        if commit is None and not _is_linked(answer):
            raise DownloadFailed(f"{file}: the answer is not Hugging Face's", owner=owner)
        linked = answer.headers.get("x-linked-size", "")
        return Location(
            url=_pinned(answer.url, file, commit),
            source=str(file),
            headers=bearer(token),
            sha256=hex_digest(answer.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')),
            size=int(linked) if linked.isdecimal() else answer.size,
            name=file.name,
        )

    async def _asked(self, file: HuggingFaceFile, owner: Owner, token: str | None) -> Answer:
        """The file's own headers. A renamed repository redirects within the site: that is followed, a store is not."""
        revision = quote(file.revision, safe="")
        url = f"{self._base_url}/{quote(file.repo)}/resolve/{revision}/{quote(file.path)}"
        for _ in range(_RENAMES):
            headers = {"accept-encoding": "identity", **bearer(token)}
            answer = await self._web.ask("HEAD", url, headers=headers, owner=owner)
            target = answer.target
            if target is None or _is_linked(answer) or http.origin(target) != http.origin(url):
                return answer
            url = target
        raise DownloadFailed(f"{file}: redirects too often", owner=owner)


def _is_linked(answer: Answer) -> bool:
    return any(name in answer.headers for name in _LINKED)


def _refuses_token(answer: Answer) -> bool:
    """A token that is not valid is refused for public files too, and then no word is said of the repository."""
    return answer.status == 401 and answer.headers.get("x-error-code") not in _OF_THE_REPOSITORY


def _pinned(url: str, file: HuggingFaceFile, commit: str | None) -> str:
    """The URL at that commit, so that a branch which moves meanwhile does not mix two files."""
    if commit is None:
        return url
    parts = urlsplit(url)
    moving, fixed = (f"/resolve/{quote(revision, safe='')}/" for revision in (file.revision, commit))
    return parts._replace(path=parts.path.replace(moving, fixed, 1)).geturl()


def _word(token: str | None, *, ours: bool) -> str:
    return "" if not token else "HF_TOKEN" if ours else "token that came with the request"


def refusal(answer: Answer, file: HuggingFaceFile, owner: Owner, *, token: str) -> WorkerError:
    """What an answer of 4xx means, in words for whoever named the file; ``token`` names the one that was sent."""
    code, place = answer.headers.get("x-error-code", ""), f"{HUGGING_FACE}/{file.repo}"
    if code == "DisabledRepo":
        return ModelNotFound(f"{place}: Hugging Face has disabled it")
    if answer.status in (401, 403):
        return forbidden(owner, f"{place}: {_barred(code, answer.status, token)}")
    match code:
        case "EntryNotFound":
            return ModelNotFound(f"{place}: has no file {file.path!r} at revision {file.revision!r}")
        case "RevisionNotFound":
            return ModelNotFound(f"{place}: has no revision {file.revision!r}")
        case "RepoNotFound":
            hidden = f", or the {token} may not see it" if token else ""
            return ModelNotFound(f"{place}: there is no such repository{hidden}")
    return ModelNotFound(f"{file}: answered {answer.status}")


def _barred(code: str, status: int, token: str) -> str:
    if code == "RepoNotFound" and not token:
        return "does not exist, or is private and needs an HF_TOKEN"
    if token:
        return f"the account of the {token} has no access; accept the model's conditions there with that account"
    if code == "GatedRepo":
        return "this model needs an HF_TOKEN, of an account that accepted its conditions there"
    return f"this model needs an HF_TOKEN (answered {status})"
