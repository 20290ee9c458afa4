"""Civitai: which file a version of a model means, what its bytes are, and the short-lived link to them.

The API tells a version's files with hashes. The download URL checks who asks and redirects to a signed link that
works for some minutes, at a host that answers 400 when our token comes along. Asked with ``Content-Type:
application/json`` it says no in JSON; otherwise, and sometimes all the same, by a redirect to its login page. 404 may
pass; 410 means that the author archived the version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from worker import http
from worker.errors import AuthFailed, DownloadFailed, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.base import Location
from worker.models.hub import ONE_BYTE, Answer, Remembered, Web, bearer, forbidden, hex_digest
from worker.models.identity import CIVITAI, CivitaiFile, safe_name

BASE_URL = f"https://{CIVITAI}"
_JSON = {"accept": "application/json", "content-type": "application/json"}
_DEFAULT_TYPES = ("Model", "Pruned Model")
_NEVER_MEANT = ("Training Data", "Config")


@dataclass(frozen=True, slots=True)
class VersionFile:
    """A file as the API lists it; ``told`` holds what it can be chosen by, under the names of the download URL."""

    id: int | None
    name: str
    type: str = ""
    size: int | None = None
    sha256: str | None = None
    primary: bool = False
    told: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model; ``early_until`` is Civitai's own word for when the early access ends, ``type`` its word
    for the model's kind."""

    id: int
    files: tuple[VersionFile, ...] = ()
    early_until: str = ""
    type: str = ""


def version_of(document: Mapping[str, Any] | None) -> Version | None:
    """The version that a document of the API describes; None for anything else."""
    if document is None or not isinstance(document.get("id"), int):
        return None
    files = document.get("files")
    return Version(
        id=document["id"],
        files=tuple(_file_of(one) for one in files if isinstance(one, dict)) if isinstance(files, list) else (),
        early_until=_day(document.get("earlyAccessEndsAt") or document.get("earlyAccessDeadline")),
        type=_texts(document.get("model")).get("type", ""),
    )


def _file_of(one: Mapping[str, Any]) -> VersionFile:
    told = {**_texts(one.get("metadata")), **_texts(one)}
    hashes = one.get("hashes")
    return VersionFile(
        id=one["id"] if isinstance(one.get("id"), int) else None,
        name=safe_name(str(one.get("name") or "")),
        type=told.get("type", ""),
        size=_bytes(one.get("sizeKB")),
        sha256=hex_digest(hashes.get("SHA256")) if isinstance(hashes, dict) else None,
        primary=one.get("primary") is True,
        told=told,
    )


def _texts(found: object) -> dict[str, str]:
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _bytes(kilobytes: object) -> int | None:
    """Sizes come as 1024ths of a byte count; rounded ones are no sizes to check a file by."""
    size = kilobytes * 1024 if isinstance(kilobytes, int | float) and 0 < kilobytes < 2**40 else 0.5
    return int(size) if float(size).is_integer() else None


def _day(value: object) -> str:
    return value[:10] if isinstance(value, str) and value[:4].isdecimal() else ""


def chosen(files: Sequence[VersionFile], wanted: CivitaiFile, sha256: str | None) -> VersionFile | None:
    """The file that is meant: the one with these bytes, or this id; else as Civitai's own clients choose.

    Those take the primary file, else the first of type Model, else of type Pruned Model, among those that are as the
    URL says.
    """
    if sha256 is not None:
        same = next((file for file in files if file.sha256 == sha256), None)
        if same is not None:
            return same
    if wanted.file is not None:
        return next((file for file in files if file.id == wanted.file), None)
    fitting = [
        file for file in files if all(file.told.get(name, "").lower() == value.lower() for name, value in wanted.choice)
    ]
    typed = [file for kind in _DEFAULT_TYPES for file in fitting if file.type == kind]
    rest = [file for file in fitting if wanted.choice or file.type not in _NEVER_MEANT]
    return next((file for file in (*(f for f in fitting if f.primary), *typed, *rest)), None)


class Civitai:
    """Resolves files; ``token`` is sent to ``base_url`` alone."""

    def __init__(self, web: Web, *, token: str | None = None, base_url: str = BASE_URL) -> None:
        self._web = web
        self._token = token
        self._base_url = base_url.rstrip("/")
        self._known: Remembered[Version] = Remembered()

    async def locate(self, wanted: CivitaiFile, owner: Owner, sha256: str | None = None) -> Location:
        """The file's signed link, with its sha256, size and name.

        A version that is gone is looked for by ``sha256``, under which another may offer the same file. Raises as
        `HuggingFace.locate`.
        """
        try:
            return await self._located(wanted, owner, sha256)
        except ModelNotFound:
            twin = await self._twin(wanted, owner, sha256) if sha256 else None
            if twin is None:
                raise
        return await self._located(twin, owner, sha256)

    async def type_of(self, wanted: CivitaiFile, owner: Owner) -> str:
        """Civitai's word for the kind of the model that the file belongs to. Raises as `locate`."""
        return (await self._version(wanted, owner)).type

    async def _located(self, wanted: CivitaiFile, owner: Owner, sha256: str | None) -> Location:
        version = await self._version(wanted, owner)
        file = chosen(version.files, wanted, sha256)
        if file is None:
            raise ModelNotFound(f"{wanted}: has no such file{_choices(version.files)}")
        if sha256 is not None and file.sha256 is not None and file.sha256 != sha256:
            raise ModelNotFound(f"{wanted}: holds another file than the one with sha256 {sha256[:12]}...")
        return await self._link(wanted, version, file, owner)

    async def _twin(self, wanted: CivitaiFile, owner: Owner, sha256: str) -> CivitaiFile | None:
        url = f"{self._base_url}/api/v1/model-versions/by-hash/{sha256.upper()}"
        headers = {**_JSON, **bearer(wanted.token or self._token)}
        answer = await self._web.ask("GET", url, headers=headers, owner=owner, document=True)
        version = version_of(answer.document) if answer.status == 200 else None
        if version is None or version.id == wanted.version:
            return None
        return CivitaiFile(version.id, token=wanted.token)

    async def _version(self, wanted: CivitaiFile, owner: Owner) -> Version:
        known = self._known.get(str(wanted.version))
        if known is not None:
            return known
        url = f"{self._base_url}/api/v1/model-versions/{wanted.version}"
        token = wanted.token or self._token
        answer = await self._web.ask("GET", url, headers={**_JSON, **bearer(token)}, owner=owner, document=True)
        if answer.status != 200:
            raise self._refusal(answer, wanted, owner)
        version = version_of(answer.document)
        if version is None:
            raise DownloadFailed(f"{wanted}: the answer is not Civitai's", owner=owner)
        return self._known.put(str(wanted.version), version)

    async def _link(self, wanted: CivitaiFile, version: Version, file: VersionFile, owner: Owner) -> Location:
        """Ask for the download without following it. Not by HEAD, to which Civitai answers 401 in spite of a token."""
        query = urlencode({"fileId": file.id} if file.id is not None else dict(wanted.choice))
        url = f"{self._base_url}/api/download/models/{wanted.version}" + (f"?{query}" if query else "")
        headers = bearer(wanted.token or self._token)

        def passing(answer: Answer) -> WorkerError | None:
            return self._refusal(answer, wanted, owner, version) if answer.status == 404 else None

        answer = await self._web.ask(
            "GET", url, headers={**ONE_BYTE, **_JSON, **headers}, owner=owner, retry_on=passing
        )
        target = answer.target
        direct = answer.status in (200, 206) and not answer.is_page
        if not direct and (target is None or http.origin(target) == http.origin(url)):
            raise self._refusal(answer, wanted, owner, version)
        return Location(
            url=target or url,
            source=str(wanted),
            headers={} if target else headers,
            sha256=file.sha256,
            size=file.size or answer.size,
            name=file.name or None,
            owner=owner,
            guarded=owner is Owner.JOB,
            expires=target is not None,
        )

    def _refusal(
        self, answer: Answer, wanted: CivitaiFile, owner: Owner, version: Version | None = None
    ) -> WorkerError:
        return refusal(
            answer,
            wanted,
            owner,
            token="the URL's token" if wanted.token else "the CIVITAI_TOKEN" if self._token else "",
            early_until=version.early_until if version else "",
        )


def refusal(
    answer: Answer, wanted: CivitaiFile, owner: Owner, *, token: str = "", early_until: str = ""
) -> WorkerError:
    """What an answer means that is neither the document nor the file; ``token`` names the one that was sent."""
    said = answer.document or {}
    text = " ".join(str(said.get(name, "")) for name in ("error", "message")).lower()
    page = urlsplit(answer.target or "").path
    status = 401 if page.startswith("/login") else 403 if page.startswith(("/join", "/model")) else answer.status
    if status == 410 or "archived" in text:
        return ModelNotFound(f"{wanted}: its author took it down")
    if status == 404:
        return ModelNotFound(f"{wanted}: Civitai has no such version, or it is not published")
    if status == 403 and (page or "early access" in text or "deadline" in said):
        until = _day(said.get("deadline")) or early_until
        return forbidden(owner, f"{wanted}: is in early access{f' until {until}' if until else ''}")
    if status == 403 and said:
        return forbidden(owner, f"{wanted}: Civitai does not let {token or 'visitors'} download it")
    if status == 401:
        return _unauthorized(wanted, owner, token, disabled="disabled" in text)
    if status in (400, 405, 422):
        return ModelNotFound(f"{wanted}: answered {status}")
    return DownloadFailed(f"{wanted}: the answer ({answer.status}) is not Civitai's", owner=owner)


def _unauthorized(wanted: CivitaiFile, owner: Owner, token: str, *, disabled: bool) -> WorkerError:
    """401 asks for a login and nothing else, so with our token it means that the token is not valid."""
    if disabled:
        return forbidden(owner, f"{wanted}: its author has switched downloads off")
    if not token:
        return forbidden(owner, f"{wanted}: this model needs a CIVITAI_TOKEN")
    why = f"{wanted}: Civitai refuses {token}: it is not valid, or has expired"
    return ModelForbidden(why) if wanted.token else AuthFailed(why)


def _choices(files: Sequence[VersionFile]) -> str:
    offered = ", ".join(f"{file.id} {file.name}" for file in files[:8] if file.id is not None)
    return f"; it has {offered}" if offered else ""
