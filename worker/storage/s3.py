"""Images, other files and result documents in a bucket of S3, or of any store that speaks its protocol.

The mark is written with ``If-None-Match: *``, so that the first writer wins. Some stores ignore that condition
(``rclone serve s3``) and some reject it: whether this one honours it is learned by storing the first of them a
second time, which changes nothing because its key holds its hash. Without it the mark is looked up right before
it is written and read back after.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import structlog

from worker import aws
from worker.aws import Refusal, Service
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ConfigError, FieldError, UploadFailed, UploadForbidden, WorkerError
from worker.job import Job
from worker.result import FileResult, ImageResult, Result
from worker.retry import Policy, retrying
from worker.storage.base import R, Storable
from worker.storage.keys import Keys, failures_among, in_order, standing, told
from worker.tasks import gather_bare

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

log = structlog.get_logger(__name__)
T = TypeVar("T")
Named = TypeVar("Named", ImageResult, FileResult)
POLICY = Policy()

JSON = "application/json"
MULTIPART = 16 * 1024 * 1024
PROBED = 10
LONGEST_LINK = timedelta(days=7)
_PART = 8 * 1024 * 1024
_TRIAL = b"written by sd-worker check\n"
_RACED = (409, 412)
_NO_BUCKET = ("NoSuchBucket", "InvalidBucketName")
_NO_CONDITION = ("NotImplemented", "InvalidArgument", "InvalidRequest", "NotSupported", "UnsupportedOperation")


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and how to reach it; ``public_url`` is linked to instead of presigned links for ``presign_ttl``."""

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    public_url: str | None = None
    presign_ttl: timedelta = timedelta(hours=24)
    cache_control: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: each wait for the network, an image, a document."""

    connect: timedelta = timedelta(seconds=5)
    read: timedelta = timedelta(seconds=30)
    image: timedelta = timedelta(minutes=5)
    document: timedelta = timedelta(minutes=1)
    policy: Policy = POLICY


@dataclass(frozen=True, slots=True)
class _Seen:
    body: bytes
    etag: str


class S3Storage:
    """Raises `UploadFailed` for a store that fails or does not answer, `AuthFailed` for refused credentials.

    The client is made at the first use. ``concurrency`` bounds the requests under way.
    """

    name = "s3"

    def __init__(
        self,
        place: Place,
        keys: Keys,
        *,
        clock: CorrectedClock,
        rng: random.Random,
        concurrency: int = 4,
        patience: Patience = Patience(),
        multipart: int = MULTIPART,
    ) -> None:
        if place.public_url is None and not timedelta(0) < place.presign_ttl <= LONGEST_LINK:
            raise ConfigError((FieldError("WORKER_S3_PRESIGN_TTL", "must be more than 0 and at most 7 days"),))
        self._place = place
        self._keys = keys
        self._rng = rng
        self._patience = patience
        self._multipart = multipart
        self._honours: bool | None = None
        self._denied = False
        self._lent = False
        self._service: Service[S3Client] = Service(
            lambda: aws.s3_client(
                endpoint_url=place.endpoint_url,
                region=place.region,
                connections=concurrency,
                connect_timeout=patience.connect,
                read_timeout=patience.read,
            ),
            clock=clock,
            threads=concurrency,
            unavailable=UploadFailed,
            name="s3",
        )

    def accepts(self, job: Job, outputs: int) -> None:
        """Any job whose keys are not too long, which only the keys themselves tell."""
        self._keys.mark(job)

    def marks(self, job: Job) -> bool:
        return True

    async def find_mark(self, job: Job) -> Result | None:
        async def look_up() -> Result | None:
            seen = await self._read(self._keys.mark(job))
            found = None if seen is None else standing(job, seen.body)
            return None if found is None else await self._relinked(found)

        return await self._retrying(look_up, self._patience.document)

    async def find_result(self, job_id: str) -> Result | None:
        """As `Archive.find_result`. Without s3:ListBucket failures are found up to the `PROBED`th attempt."""

        async def look_up() -> Result | None:
            seen = await self._read(self._keys.mark_of(job_id))
            found = None if seen is None else told(seen.body)
            if found is None:
                return next(reversed(await self._failures(job_id)), None)
            return await self._relinked(found)

        return await self._retrying(look_up, self._patience.document)

    async def find_failures(self, job_id: str) -> tuple[Result, ...]:
        return await self._retrying(partial(self._failures, job_id), self._patience.document)

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        key = self._keys.artifact(job, artifact)

        async def put() -> R:
            await self._put_verified(key, artifact)
            return artifact.result(url=await self._link(key), key=key)

        return await self._retrying(put, self._patience.image)

    async def put_mark(self, job: Job, result: Result) -> Result:
        return await self._retrying(partial(self._claim, job, result), self._patience.document)

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        key, body = self._keys.failure(job, attempt), result.to_json(base64=False)

        async def put() -> None:
            self._taken(await self._put(key, body, JSON), key)

        await self._retrying(put, self._patience.document)

    async def check(self) -> str:
        """Write, read back, and find out what a look-up and a condition are worth here.

        Needs no more than ``s3:PutObject`` and ``s3:GetObject``; a small text stays in the bucket.
        """
        key = self._keys.trial()
        self._taken(await self._put(key, _TRIAL, "text/plain"), key)
        seen = await self._read(key)
        if seen is None:
            raise AuthFailed(f"bucket {self._place.bucket}: written, but s3:GetObject is denied")
        if seen.body != _TRIAL:
            raise UploadFailed(f"bucket {self._place.bucket}: {key} does not hold what was written to it")
        self._learn(await self._put(key, _TRIAL, "text/plain", IfNoneMatch="*"))
        absent = await self._get(key + ".absent")
        listing = isinstance(absent, Refusal) and absent.status == 403
        return (
            f"bucket {self._place.bucket}: written and read back, "
            + ("conditional writes" if self._honours else "no conditional writes (the mark is looked up instead)")
            + (", s3:ListBucket is missing (what is absent answers 403)" if listing else "")
        )

    def elsewhere(self, bucket: str) -> S3Storage:
        """A bucket that a job names, over the same connections, which stay this one's to close."""
        other = copy.copy(self)
        other._place, other._lent = replace(self._place, bucket=bucket), True
        return other

    async def put_under(self, key: str, artifact: Storable[object]) -> None:
        """Store it under this key, whatever stands there.

        Raises `UploadFailed`, `AuthFailed`, and `UploadForbidden` for a bucket of a job's that is not there or ours.
        """

        async def put() -> None:
            await self._put_verified(key, artifact)

        await self._retrying(put, self._patience.image)

    async def aclose(self) -> None:
        await self._service.aclose()

    async def _claim(self, job: Job, result: Result) -> Result:
        """One try at making this result the mark; whatever success stands in the end is given back."""
        key, body = self._keys.mark(job), result.to_json(base64=False)
        seen = None if self._honours else await self._read(key)
        for _ in range(3):
            found = None if seen is None else standing(job, seen.body)
            if found is not None:
                return await self._relinked(found)
            answer = await self._put(key, body, JSON, **self._condition(seen))
            if not isinstance(answer, Refusal):
                return result if self._honours else await self._read_back(job, result)
            if not self._learn(answer):
                raise self._failure(answer, key)
            seen = await self._read(key)
        raise UploadFailed(f"{key}: a document stands there that can be neither read nor replaced")

    async def _read_back(self, job: Job, result: Result) -> Result:
        seen = await self._read(self._keys.mark(job))
        found = None if seen is None else standing(job, seen.body)
        return result if found is None else await self._relinked(found)

    async def _failures(self, job_id: str) -> tuple[Result, ...]:
        prefix = self._keys.failures_of(job_id)

        def listed(s3: S3Client) -> list[str]:
            found = s3.list_objects_v2(Bucket=self._place.bucket, Prefix=prefix)
            return [one["Key"] for one in found.get("Contents", ())]

        names = await self._ask(listed)
        if isinstance(names, Refusal) and (names.status != 403 or names.of_credentials):
            raise self._failure(names, prefix)
        numbers = range(1, PROBED + 1) if isinstance(names, Refusal) else failures_among(names)
        reads = [self._read(self._keys.failure_of(job_id, number)) for number in numbers]
        found = await gather_bare(reads, name="s3-failure")
        return in_order(seen.body for seen in found if seen is not None)

    def _condition(self, seen: _Seen | None) -> dict[str, str]:
        if self._honours is False:
            return {}
        return {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen.etag}

    def _learn(self, answer: Refusal | str) -> bool:
        """Remember what the answer to a conditional request on a standing object tells; False if nothing."""
        if isinstance(answer, str):
            self._honours = False
        elif answer.status in _RACED:
            self._honours = True
        elif (answer.status == 501 or answer.code in _NO_CONDITION) and self._honours is not False:
            self._honours = False
            log.info("storage_condition_refused", code=answer.code)
        else:
            return False
        return True

    async def _put_verified(self, key: str, artifact: Storable[object]) -> None:
        data, media_type = artifact.data, artifact.media_type
        if len(data) > self._multipart:
            self._taken(await self._put_in_parts(key, data, media_type), key)
            await self._verify_length(key, len(data))
            return
        etag = self._taken(await self._put(key, data, media_type), key)
        if etag.strip('"') != hashlib.md5(data, usedforsecurity=False).hexdigest():
            await self._verify_length(key, len(data))
        if self._honours is None:
            self._learn(await self._put(key, data, media_type, IfNoneMatch="*"))

    async def _verify_length(self, key: str, length: int) -> None:
        """An ETag is no hash where the store encrypts or the upload came in parts; a length always is one."""
        answer = await self._ask(lambda s3: s3.head_object(Bucket=self._place.bucket, Key=key)["ContentLength"])
        if isinstance(answer, Refusal):
            if answer.status == 403 and not answer.of_credentials:
                return
            raise self._failure(answer, key)
        if answer != length:
            raise UploadFailed(f"{key}: {length} bytes were sent, {answer} are stored")

    async def _put(self, key: str, data: bytes, media_type: str, **condition: str) -> str | Refusal:
        """The ETag of what was stored, which the store checked against the digest that we send."""
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        extra: dict[str, Any] = {**self._headers(media_type), **condition}
        return await self._ask(
            lambda s3: s3.put_object(Bucket=self._place.bucket, Key=key, Body=data, ContentMD5=digest, **extra)["ETag"]
        )

    async def _put_in_parts(self, key: str, data: bytes, media_type: str) -> str | Refusal:
        def upload(s3: S3Client) -> str:
            from boto3.s3.transfer import TransferConfig

            config = TransferConfig(multipart_threshold=self._multipart, multipart_chunksize=_PART, use_threads=False)
            s3.upload_fileobj(
                io.BytesIO(data), self._place.bucket, key, ExtraArgs=self._headers(media_type), Config=config
            )
            return ""

        return await self._ask(upload)

    def _headers(self, media_type: str) -> dict[str, str]:
        cached = {} if self._place.cache_control is None else {"CacheControl": self._place.cache_control}
        return {"ContentType": media_type, **cached}

    async def _read(self, key: str) -> _Seen | None:
        """What stands under a key; a 403 counts as absent, for that is what S3 answers without s3:ListBucket."""
        answer = await self._get(key)
        if isinstance(answer, _Seen):
            return answer
        if answer.status == 404 and answer.code != "NoSuchBucket":
            return None
        if answer.status == 403 and not answer.of_credentials:
            if not self._denied:
                self._denied = True
                log.warning("storage_lookup_denied", bucket=self._place.bucket, needs="s3:GetObject, s3:ListBucket")
            return None
        raise self._failure(answer, key)

    async def _get(self, key: str) -> _Seen | Refusal:
        def get(s3: S3Client) -> _Seen:
            found = s3.get_object(Bucket=self._place.bucket, Key=key)
            with found["Body"] as body:
                return _Seen(body.read(), found["ETag"])

        return await self._ask(get)

    async def _relinked(self, result: Result) -> Result:
        images = [await self._linked(image) for image in result.images]
        files = [await self._linked(file) for file in result.files]
        return result.model_copy(update={"images": tuple(images), "files": tuple(files)})

    async def _linked(self, output: Named) -> Named:
        return output if output.key is None else output.model_copy(update={"url": await self._link(output.key)})

    async def _link(self, key: str) -> str:
        if self._place.public_url is not None:
            return f"{self._place.public_url.rstrip('/')}/{quote(key)}"
        answer = await self._ask(
            lambda s3: s3.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._place.bucket, "Key": key},
                ExpiresIn=int(self._place.presign_ttl.total_seconds()),
            )
        )
        return self._taken(answer, key)

    async def _ask(self, work: Callable[[S3Client], T]) -> T | Refusal:
        return await self._service.ask(work)

    def _taken(self, answer: str | Refusal, key: str) -> str:
        if isinstance(answer, Refusal):
            raise self._failure(answer, key)
        return answer

    def _failure(self, refusal: Refusal, key: str) -> WorkerError:
        message = f"bucket {self._place.bucket}, {key}: {refusal}"
        if self._lent and (refusal.status in (401, 403) or refusal.code in _NO_BUCKET):
            return UploadForbidden(message)
        if refusal.of_credentials or refusal.status == 403:
            return AuthFailed(message)
        return UploadFailed(message, retry_after=refusal.retry_after)

    async def _retrying(self, operation: Callable[[], Awaitable[T]], budget: timedelta) -> T:
        return await retrying(
            operation,
            self._patience.policy,
            budget=budget,
            rng=self._rng,
            retry_on=lambda error: isinstance(error, UploadFailed),
            on_retry=_log_retry,
            out_of_time=lambda message: UploadFailed(f"bucket {self._place.bucket}: {message}"),
        )


def _log_retry(error: WorkerError, attempt: int, wait: timedelta) -> None:
    log.info("storage_retried", attempt=attempt, wait_s=round(wait.total_seconds(), 3), reason=error.message)
