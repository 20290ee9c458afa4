"""Where a model is to be had: the operator's own sources, what a job or order names, and the hubs behind it.

What a job names is limited to the hosts that the operator allows, goes through the guard, and may not be of a format
that runs code when it is loaded. A model is not found only after every source said so.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from worker import http
from worker.clock import Clock
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    InvalidJob,
    ModelForbidden,
    ModelNotFound,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.models import plain
from worker.models.auth import Auth, BearerAuth, QueryAuth, S3Auth
from worker.models.base import Location, Wanted
from worker.models.catalog import Catalog, Index, Item
from worker.models.civitai import BASE_URL as CIVITAI_URL
from worker.models.civitai import Civitai
from worker.models.hub import POLICY, CredentialsRefused, Web
from worker.models.huggingface import BASE_URL as HUGGING_FACE_URL
from worker.models.huggingface import HuggingFace
from worker.models.identity import (
    CivitaiFile,
    HuggingFaceFile,
    Match,
    Reference,
    canonical,
    has_extension,
    name_of,
    reference_of,
)
from worker.models.kinds import typed
from worker.models.outages import Outages
from worker.models.verdict import agrees, check_format, completed, is_known, item_of, learned, verdict
from worker.retry import Policy
from worker.settings.models import ModelsSettings
from worker.urls import HTTP, Guard

HOSTS_VARIABLE = "WORKER_MODELS_HOSTS"
_DEFAULT_EXTENSION = ".safetensors"

LinkS3 = Callable[[str], Awaitable[str]]
"""A signed http(s) link for an ``s3://bucket/key`` URL. Raises `AuthFailed` without credentials, `DownloadFailed`."""


class _Source(NamedTuple):
    """Whom a failure is put down to: ``thing`` when that alone is refused to us, else ``place``."""

    place: str
    thing: str


@dataclass(slots=True)
class _Search:
    """One search: what is wanted, and how the sources failed so far."""

    wanted: Wanted
    index: Index
    failures: list[WorkerError] = field(default_factory=list)


class Sources:
    """The `Finder`. Close it with ``aclose``.

    ``link_s3`` signs links by which ``s3://`` URLs are looked at; without it such a place is offered unseen.
    """

    def __init__(
        self,
        settings: ModelsSettings,
        *,
        guard: Guard,
        clock: Clock,
        rng: random.Random,
        link_s3: LinkS3 | None = None,
        hugging_face_url: str = HUGGING_FACE_URL,
        civitai_url: str = CIVITAI_URL,
        policy: Policy = POLICY,
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._link_s3 = link_s3
        self._web = Web(guard=guard, clock=clock, rng=rng, policy=policy)
        hf, civitai = settings.hf_token, settings.civitai_token
        self._hugging_face = HuggingFace(
            self._web, token=hf.get_secret_value() if hf else None, base_url=hugging_face_url
        )
        self._civitai = Civitai(self._web, token=civitai.get_secret_value() if civitai else None, base_url=civitai_url)
        self._catalog = Catalog(settings.catalog) if settings.catalog else None
        self._outages = Outages()

    @property
    def catalog_version(self) -> str:
        """Of the catalogue in use; changes with it. Empty without one."""
        return self._catalog.version if self._catalog else ""

    @property
    def paused(self) -> dict[str, str]:
        """The operator's sources that are left alone for now, by the code of their error."""
        return self._outages.paused

    async def catalogued(self) -> Index:
        """The catalogue; empty without one. Raises `DownloadFailed` while it cannot be read."""
        return await self._catalog.index() if self._catalog else Index()

    async def aclose(self) -> None:
        if self._catalog is not None:
            await self._catalog.aclose()
        await self._web.aclose()

    async def completed(self, wanted: Wanted) -> Wanted:
        """As `Finder.completed`. Raises `InvalidJob` and `UrlForbidden` as `locations`."""
        return self._completed(wanted, await self._index([]))

    async def typed(self, wanted: Wanted) -> Wanted:
        """The same with its kind, for a file of Civitai's that was named without. Raises as `locations`."""
        return await typed(wanted, lambda file: self._civitai.type_of(file, wanted.owner))

    async def locations(self, wanted: Wanted) -> AsyncIterator[Location]:
        """As `Finder.locations`: for a model without a URL the operator's sources in turn.

        With a URL they come first where they are known to hold the very same file, and last where only its sha256,
        once it has come, can tell.
        """
        failures: list[WorkerError] = []
        wanted = self._completed(wanted, index := await self._index(failures))
        search = _Search(wanted, index, failures if wanted.url is None or is_known(wanted) else [])
        found = False
        async for place in self._of_operator(search) if wanted.url is None else self._in_order(search):
            found = True
            yield place
        error = verdict(wanted, search.failures, found=found)
        if error is not None:
            raise error

    async def _index(self, failures: list[WorkerError]) -> Index:
        try:
            return await self.catalogued()
        except DownloadFailed as error:
            failures.append(error)
            return Index()

    def _completed(self, wanted: Wanted, index: Index) -> Wanted:
        if wanted.url is not None:
            self._check_url(wanted, wanted.url)
        extension = _DEFAULT_EXTENSION if self._settings.source and not wanted.known else ""
        return completed(wanted, item_of(wanted, index), extension=extension)

    def _check_url(self, wanted: Wanted, url: str) -> None:
        """Raise `InvalidJob` for a URL that names no file, `UrlForbidden` for a host that a job may not name."""
        at = wanted.field or "models"
        try:
            canonical(url)
            reference, parts = reference_of(url), urlsplit(url)
            if wanted.auth is not None:
                opened(url, wanted.auth)
        except ValueError as error:
            raise InvalidJob(str(error), field=at) from None
        if reference is None and parts.scheme not in (*HTTP, "s3"):
            raise InvalidJob("must be an http, https, s3, hf or civitai URL, or an AIR name", field=at)
        if wanted.owner is not Owner.JOB:
            return
        allowed = set(self._settings.hosts)
        if isinstance(wanted.auth, S3Auth) and parts.netloc not in allowed | self._buckets():
            host = self._host(wanted.auth.store, at)
        elif reference is None and parts.scheme == "s3":
            host, allowed = parts.netloc, (allowed | self._buckets()) - {"*"}
        else:
            host = reference.host if reference else self._host(url, at)
        if "*" not in allowed and not any(host == one or host.endswith(f".{one}") for one in allowed):
            raise UrlForbidden(f"{at}: {host!r} is none of the hosts that a job may name ({HOSTS_VARIABLE})")

    def _host(self, url: str, at: str) -> str:
        try:
            return self._guard.parsed(url).host.lower().rstrip(".")
        except UrlForbidden as error:
            raise UrlForbidden(f"{at}: {error.message}") from None

    def _buckets(self) -> set[str]:
        """The buckets of the operator's templates: their models are there for jobs."""
        return {urlsplit(one).netloc for one in self._settings.source if one.lower().startswith("s3://")}

    async def _in_order(self, search: _Search) -> AsyncIterator[Location]:
        """The places for a model with a URL; its hub is asked first for what others can be compared by."""
        wanted, own, asked = search.wanted, None, False
        others = bool(self._settings.source or search.index.items)
        if others and (wanted.sha256 is None or wanted.size is None) and reference_of(wanted.url or ""):
            own, asked = await self._own(search), True
        known = learned(wanted, own)
        spare = []
        if others and is_known(known):
            async for place in self._of_operator(replace(search, wanted=known)):
                if agrees(place, known) is Match.YES:
                    yield place
                elif known.sha256 is not None:
                    spare.append(place)
        if not asked:
            own = await self._own(search)
        if own is not None:
            yield own
        for place in spare:
            yield place

    async def _own(self, search: _Search) -> Location | None:
        """The place that the model's own URL means."""
        wanted = search.wanted
        url = wanted.url or ""
        return await self._tried(search, _source(url), partial(self._named_at, url, wanted), wanted.owner)

    async def _of_operator(self, search: _Search) -> AsyncIterator[Location]:
        """What the templates and then the catalogue lead to, unless it is another file."""
        wanted = search.wanted
        for template in self._settings.source if wanted.name else ():
            url = _filled(template, wanted)
            source = _Source(http.shown(template), http.shown(url))
            place = await self._tried(
                search, source, partial(self._at, url, Owner.OPERATOR, wanted.sha256), Owner.OPERATOR
            )
            if place is not None:
                yield place
        item = item_of(wanted, search.index)
        if item is None or item.url is None or (wanted.url and canonical(item.url) == canonical(wanted.url)):
            return
        place = await self._tried(search, _source(item.url), partial(self._listed, item, item.url), Owner.OPERATOR)
        if place is not None:
            yield place

    async def _tried(
        self, search: _Search, source: _Source, look: Callable[[], Awaitable[Location]], owner: Owner
    ) -> Location | None:
        """What the look finds, if it may be used; how it failed is kept. Only the operator's sources are paused."""
        place = None
        try:
            place = await (self._counted(source, look) if owner is Owner.OPERATOR else look())
            self._check(place, search.wanted)
        except (AuthFailed, DownloadFailed, ModelNotFound, ModelForbidden, UrlForbidden, InvalidJob) as error:
            search.failures.append(error)
            return None
        return place

    async def _counted(self, source: _Source, look: Callable[[], Awaitable[Location]]) -> Location:
        """Look, unless the source is paused; its failures in a row pause it."""
        for name in {*source}:
            self._outages.check(name)
        try:
            place = await look()
        except AuthFailed as error:
            self._outages.failed(source.place if isinstance(error, CredentialsRefused) else source.thing, error)
            raise
        except DownloadFailed as error:
            self._outages.failed(source.place, error)
            raise
        except ModelNotFound:
            self._answered(source)
            raise
        self._answered(source)
        return place

    def _answered(self, source: _Source) -> None:
        for name in {*source}:
            self._outages.succeeded(name)

    def _check(self, place: Location, wanted: Wanted) -> None:
        if agrees(place, wanted) is Match.NO:
            raise ModelNotFound(f"{place.source}: holds another file than the one that is wanted")
        self._check_format((place.name or "", wanted.name), wanted, place.owner, place.sha256 or wanted.sha256)

    def _check_format(self, names: tuple[str, ...], wanted: Wanted, owner: Owner, sha256: str | None) -> None:
        if not self._settings.allow_pickle:
            check_format(names, wanted, trusted=owner is Owner.OPERATOR, sha256=sha256)

    async def _named_at(self, url: str, wanted: Wanted) -> Location:
        """The place of the model's own URL. A plain one is asked beforehand only for a name that it does not tell."""
        if wanted.owner is Owner.JOB:
            self._check_format((name_of(url), wanted.name), wanted, wanted.owner, None)
        seen = has_extension(wanted.name) or urlsplit(url).scheme == "s3"
        if reference_of(url) is None and seen and (wanted.auth is not None or urlsplit(url).scheme in HTTP):
            return plain.at(url, wanted.owner, auth=wanted.auth)
        try:
            if wanted.auth is not None:
                return await self._opened(url, wanted, wanted.auth)
            return await self._at(url, wanted.owner, wanted.sha256)
        except UrlForbidden as error:
            raise UrlForbidden(f"{wanted.field or 'models'}: {error.message}") from None

    async def _opened(self, url: str, wanted: Wanted, auth: Auth) -> Location:
        """The place as the credentials open it that came with a request."""
        reference = reference_of(url)
        match opened(url, auth):
            case BearerAuth() as bearer if isinstance(reference, HuggingFaceFile):
                return await self._hugging_face.locate(reference, wanted.owner, bearer)
            case str() as token if isinstance(reference, CivitaiFile):
                place = await self._civitai.locate(replace(reference, token=token), wanted.owner, wanted.sha256)
                return replace(place, auth=BearerAuth(type="bearer", token=SecretStr(token)))
        return await plain.look(self._web, url, wanted.owner, auth)

    async def _listed(self, item: Item, url: str) -> Location:
        """The place of a catalogue's entry, with what the catalogue says of the file."""
        place = await self._at(url, Owner.OPERATOR, item.sha256)
        told = Wanted(item.kind, item.name, sha256=item.sha256, size=item.size)
        if agrees(place, told) is Match.NO:
            raise ModelNotFound(f"{place.source}: holds another file than the catalogue says")
        return replace(place, sha256=place.sha256 or item.sha256, size=place.size or item.size)

    async def _at(self, url: str, owner: Owner, sha256: str | None) -> Location:
        reference = reference_of(url)
        if isinstance(reference, HuggingFaceFile):
            return await self._hugging_face.locate(reference, owner)
        if reference is not None:
            return await self._civitai.locate(reference, owner, sha256)
        if urlsplit(url).scheme in HTTP:
            return await plain.look(self._web, url, owner)
        if self._link_s3 is None:
            return plain.at(url, owner)
        return await plain.look_at_object(self._web, url, await self._linked(self._link_s3, url), owner)

    @staticmethod
    async def _linked(link: LinkS3, url: str) -> str:
        try:
            return await link(url)
        except AuthFailed as error:
            raise CredentialsRefused(error.message) from None


def _source(url: str) -> _Source:
    reference: Reference | None = reference_of(url)
    if reference is not None:
        return _Source(reference.host, str(reference))
    return _Source(http.origin(url), http.shown(url))


def opened(url: str, auth: Auth) -> Auth | str:
    """The credentials as they are used for a URL; of Civitai's, which takes a token as it likes, that alone.

    Raises `ValueError` where they do not fit: they would be kept back, and the file refused for want of them.
    """
    reference = reference_of(url)
    match auth:
        case BearerAuth():
            fit = urlsplit(url).scheme != "s3"
            if isinstance(reference, CivitaiFile):
                return auth.token.get_secret_value()
        case QueryAuth(query_param="token") if isinstance(reference, CivitaiFile):
            return auth.query_value.get_secret_value()
        case S3Auth():
            fit = urlsplit(url).scheme == "s3"
        case _:
            fit = reference is None and urlsplit(url).scheme in HTTP
    if not fit:
        raise ValueError(f"credentials of the type {auth.type!r} do not open such a URL")
    return auth


def _filled(template: str, wanted: Wanted) -> str:
    """The template's URL for this model."""
    is_key = template.lower().startswith("s3://")
    kind, name = wanted.place.kind, wanted.name
    return template.format(kind=kind, name=name if is_key else quote(name, safe="/"))
