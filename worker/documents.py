"""Job documents that lie in S3, where messages only point at them: ``s3://bucket/key``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker.aws import Refusal, Service, s3_client
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, DownloadFailed, InvalidJob, UploadFailed

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


class S3Documents:
    """Reads the documents behind ``s3://bucket/key`` URLs, and writes them, with the operator's credentials."""

    def __init__(self, *, endpoint_url: str | None, region: str | None, clock: CorrectedClock) -> None:
        self._service: Service[S3Client] = Service(
            lambda: s3_client(endpoint_url=endpoint_url, region=region, connections=2),
            clock=clock,
            threads=2,
            unavailable=DownloadFailed,
            name="s3-documents",
        )

    async def fetch(self, url: str, limit: int) -> bytes:
        """The whole object, of at most so many bytes.

        Raises `InvalidJob` for the field ``job_url`` when it is missing, forbidden or too large, `DownloadFailed`
        when the store fails.
        """
        parts = urlsplit(url)
        bucket, key = parts.netloc, parts.path.removeprefix("/")
        if not bucket or not key:
            raise InvalidJob("must be s3://bucket/key", field="job_url")

        def read(client: S3Client) -> bytes:
            body = client.get_object(Bucket=bucket, Key=key)["Body"]
            try:
                return body.read(limit + 1)
            finally:
                body.close()

        answer = await self._service.ask(read)
        if isinstance(answer, Refusal):
            if answer.of_credentials:
                raise AuthFailed(str(answer))
            if answer.status in (403, 404):
                raise InvalidJob(f"s3 answers {answer.status} {answer.code}", field="job_url")
            raise DownloadFailed(str(answer), retry_after=answer.retry_after)
        if len(answer) > limit:
            raise InvalidJob(f"the document has more than {limit} bytes", field="job_url")
        return answer

    async def put(self, bucket: str, key: str, body: bytes) -> str:
        """Write a document and give back its URL. Raises `UploadFailed` and `AuthFailed`."""

        def write(client: S3Client) -> None:
            client.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json")

        try:
            answer = await self._service.ask(write)
        except DownloadFailed as error:
            raise UploadFailed(error.message) from None
        if isinstance(answer, Refusal):
            message = f"bucket {bucket}, {key}: {answer}"
            if answer.of_credentials or answer.status == 403:
                raise AuthFailed(message)
            raise UploadFailed(message, retry_after=answer.retry_after)
        return f"s3://{bucket}/{key}"

    async def aclose(self) -> None:
        await self._service.aclose()
