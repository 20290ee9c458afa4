"""Opens the configured places for what jobs make and for results, and picks the one for each job."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, assert_never

import httpx

from worker.clock import CorrectedClock
from worker.errors import ConfigError, FieldError, InvalidJob
from worker.job import Job
from worker.settings.storage import StorageKind, StorageSettings
from worker.storage.base import Archive, Storage
from worker.urls import Guard

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.storage.keys import Keys
    from worker.storage.s3 import S3Storage
    from worker.storage.s4 import Account, TokenSource

NOT_ON_SALAD = "s4 is SaladCloud's: it works there alone, with the organization that SALAD_ORGANIZATION_NAME names"


class Storages:
    """The places that are configured; ``default`` is the operator's."""

    def __init__(self, default: Storage, others: tuple[Storage, ...]) -> None:
        self.default = default
        self._by_name = {storage.name: storage for storage in (default, *others)}

    def of(self, job: Job) -> Storage:
        """Where what this job makes and its result go.

        What the job names decides, else the operator's default. Raises `InvalidJob` for a place that is not
        configured, and for URLs beside a place that does not use them.
        """
        output = job.output
        name = output.storage or ("presigned" if output.upload_urls else self.default.name)
        if name not in self._by_name:
            raise InvalidJob(f"{name} is not configured here", field="output.storage")
        if name != "presigned":
            for field, given in (("upload_urls", output.upload_urls), ("result_urls", output.result_urls)):
                if given:
                    raise InvalidJob(f"is for presigned storage, not for {name}", field=f"output.{field}")
        return self._by_name[name]

    @property
    def inline(self) -> Storage:
        """Where what was made stands in the result itself."""
        return self._by_name["inline"]

    @property
    def archives(self) -> tuple[Archive, ...]:
        """The places whose documents are found by a job's id alone, the operator's first."""
        return tuple(one for one in self._by_name.values() if isinstance(one, Archive))

    async def purge(self, now: datetime) -> None:
        """Delete local images and files that are older than the operator keeps them."""
        from worker.storage.directory import DirectoryStorage

        for storage in self._by_name.values():
            if isinstance(storage, DirectoryStorage):
                await storage.purge(now)

    async def check(self) -> str:
        """Try the operator's place and say in a few words what was found."""
        return await self.default.check()

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:
            for storage in self._by_name.values():
                stack.push_async_callback(storage.aclose)


def open_storage(
    settings: StorageSettings,
    *,
    client: httpx.AsyncClient,
    guard: Guard,
    clock: CorrectedClock,
    rng: random.Random,
    account: Account | None = None,
) -> Storages:
    """Every place that the settings allow, without any I/O; `ConfigError` for settings that cannot work.

    ``client`` visits URLs of jobs and connects through ``guard``; it stays its owner's to close. A job may name
    ``inline`` and ``presigned`` always, ``s3`` where a bucket is set, ``directory`` where it is the default or
    ``WORKER_STORAGE_DIRECTORY`` is set, ``s4`` where it is the default, which takes an ``account``: SaladCloud's.
    """
    kinds: list[StorageKind] = [settings.chosen, "inline", "presigned"]
    if settings.bucket is not None:
        kinds.append("s3")
    if "directory" in settings.model_fields_set:
        kinds.append("directory")
    opened = [_open(kind, settings, client, guard, clock, rng, account) for kind in dict.fromkeys(kinds)]
    return Storages(opened[0], tuple(opened[1:]))


def account_of(settings: Settings, token: TokenSource) -> Account | None:
    """By which this node may use S4; None where it is not SaladCloud's, or nobody says for which organization it works.

    ``token`` gives the node's identity token.
    """
    organization = settings.salad.organization_name
    if settings.platform != "salad" or organization is None:
        return None
    from worker.storage.s4 import Account

    return Account(organization, token, settings.salad.storage_uri)


def open_buckets(settings: StorageSettings, *, clock: CorrectedClock, rng: random.Random) -> S3Storage:
    """The operator's store for buckets that requests name, without any I/O: see `S3Storage.elsewhere`."""
    from worker.storage.keys import Keys
    from worker.storage.s3 import Place, S3Storage

    place = Place(bucket="", endpoint_url=settings.endpoint_url, region=settings.region)
    return S3Storage(place, Keys(), clock=clock, rng=rng, concurrency=settings.upload_concurrency)


def _open(
    kind: StorageKind,
    settings: StorageSettings,
    client: httpx.AsyncClient,
    guard: Guard,
    clock: CorrectedClock,
    rng: random.Random,
    account: Account | None,
) -> Storage:
    match kind:
        case "s3":
            return _open_s3(settings, clock, rng)
        case "directory":
            from worker.storage.directory import DirectoryStorage

            return DirectoryStorage(settings.directory, keep=settings.keep, result_prefix=settings.result_prefix)
        case "inline":
            from worker.storage.inline import InlineStorage

            return InlineStorage(settings.inline_max)
        case "presigned":
            from worker.storage.presigned import PresignedStorage

            return PresignedStorage(client, guard, rng=rng)
        case "s4":
            return _open_s4(settings, clock, rng, account)
        case _:
            assert_never(kind)


def _open_s3(settings: StorageSettings, clock: CorrectedClock, rng: random.Random) -> Storage:
    from worker.storage.s3 import Place, S3Storage

    if settings.bucket is None:
        raise ConfigError((FieldError("WORKER_S3_BUCKET", "is required by WORKER_STORAGE=s3"),))
    place = Place(
        bucket=settings.bucket,
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        public_url=settings.public_url,
        presign_ttl=settings.presign_ttl,
    )
    return S3Storage(place, _keys(settings), clock=clock, rng=rng, concurrency=settings.upload_concurrency)


def _open_s4(settings: StorageSettings, clock: CorrectedClock, rng: random.Random, account: Account | None) -> Storage:
    from worker.storage.s4 import S4Storage

    if account is None:
        raise ConfigError((FieldError("WORKER_STORAGE", NOT_ON_SALAD),))
    return S4Storage(
        account,
        _keys(settings),
        clock=clock,
        rng=rng,
        ttl=settings.presign_ttl,
        concurrency=settings.upload_concurrency,
    )


def _keys(settings: StorageSettings) -> Keys:
    from worker.storage.keys import Keys

    return Keys(prefix=settings.prefix, result_prefix=settings.result_prefix, pattern=settings.key)
