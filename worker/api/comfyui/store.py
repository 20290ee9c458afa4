"""Where a prompt's request has its files uploaded: a bucket that it names, or URLs below a prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import assert_never

from worker import aws
from worker.api.comfyui.answer import filenames
from worker.api.comfyui.request import HttpUpload, S3Upload, Wishes
from worker.errors import AuthFailed, InternalError, InvalidJob, Owner, UploadFailed, UploadForbidden, UrlForbidden
from worker.job import Job
from worker.made import Made
from worker.result import Result
from worker.storage.base import R, Storable
from worker.storage.presigned import PresignedStorage
from worker.storage.s3 import S3Storage


@dataclass(frozen=True, slots=True)
class Uploads:
    """By what is uploaded: ``s3`` with the operator's credentials and endpoint, ``urls`` through the guard."""

    s3: S3Storage
    urls: PresignedStorage

    async def check(self, upload: S3Upload | HttpUpload | None) -> None:
        """Refuse what can be stored by nobody before anything is made for it. Raises `AuthFailed`."""
        if isinstance(upload, S3Upload):
            await asyncio.to_thread(aws.check_credentials)


class PromptStore:
    """Takes the files of one prompt, under the names that its answer tells. Nothing else is stored.

    What fails is the job's own: it pauses nothing.
    """

    name = "request"

    def __init__(
        self,
        request: Wishes,
        upload: S3Upload | HttpUpload,
        uploads: Uploads,
        made: Callable[[str], Made | None],
    ) -> None:
        self._request = request
        self._upload = upload
        self._uploads = uploads
        self._made = made

    def accepts(self, job: Job, outputs: int) -> None:
        """Raises `UrlForbidden` for a URL of a wrong form."""
        if isinstance(self._upload, HttpUpload):
            with _of_job("http_upload.url_prefix"):
                self._uploads.urls.accepts(_addressed(job, [self._upload.url(str(i)) for i in range(outputs)]), outputs)

    def marks(self, job: Job) -> bool:
        return False

    async def find_mark(self, job: Job) -> Result | None:
        return None

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        made = self._made(job.id)
        if made is None:
            raise InternalError("what was made is not held any more")
        names = filenames(self._request, made)
        match self._upload:
            case S3Upload(bucket=bucket, prefix=prefix) as place:
                key = prefix + names[artifact.index]
                with _of_job("s3.bucket"):
                    await self._uploads.s3.elsewhere(bucket).put_under(key, artifact)
                return artifact.result(url=place.url(names[artifact.index]), key=key)
            case HttpUpload() as place:
                with _of_job("http_upload.url_prefix"):
                    return await self._uploads.urls.put_artifact(_addressed(job, map(place.url, names)), artifact)
            case _:
                assert_never(self._upload)

    async def put_mark(self, job: Job, result: Result) -> Result:
        return result

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        """The caller, or his webhook, is told."""

    async def check(self) -> str:
        return "named by each request"

    async def aclose(self) -> None:
        """What it goes through belongs to others."""


def _addressed(job: Job, urls: Iterator[str] | list[str]) -> Job:
    """The job as if it had brought a URL for each file."""
    return job.model_copy(update={"output": job.output.model_copy(update={"upload_urls": tuple(urls)})})


@contextmanager
def _of_job(field: str) -> Iterator[None]:
    """Errors of a place that the request named are the job's, and name the request's field."""

    def told(message: str) -> str:
        head, colon, rest = message.partition(": ")
        return f"{field}: {rest if colon and head.startswith('output.upload_urls') else message}"

    try:
        yield
    except InvalidJob as error:
        raise InvalidJob(error.errors[0].message, field=field) from None
    except UploadForbidden as error:
        raise UploadForbidden(told(error.message)) from None
    except AuthFailed as error:
        raise UploadForbidden(told(error.message)) from None
    except UrlForbidden as error:
        raise UrlForbidden(told(error.message)) from None
    except UploadFailed as error:
        raise UploadFailed(told(error.message), owner=Owner.JOB, retry_after=error.retry_after) from None
