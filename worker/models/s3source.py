"""``s3://bucket/key`` as a link of its own for some time, so that one way of transfer serves every source."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from worker.aws import Refusal, Service, s3_client
from worker.clock import CorrectedClock
from worker.errors import DownloadFailed

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

LINK_LIVES = timedelta(hours=1)
"""A transfer that takes longer gets a new link when this one is refused."""


class S3Links:
    """Signs links with the operator's credentials; boto3 is imported with the first."""

    def __init__(
        self,
        *,
        endpoint_url: str | None,
        region: str | None,
        clock: CorrectedClock,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._service: Service[S3Client] = Service(
            lambda: s3_client(endpoint_url=endpoint_url, region=region, connections=2, credentials=credentials),
            clock=clock,
            threads=1,
            unavailable=DownloadFailed,
            name="s3-models",
        )

    async def link(self, url: str) -> str:
        """An http(s) URL of the object, good for an hour. Asks no store.

        Raises `DownloadFailed` for what is no ``s3://bucket/key``, `AuthFailed` without credentials.
        """
        parts = urlsplit(url)
        bucket, key = parts.netloc, parts.path.removeprefix("/")
        if not bucket or not key:
            raise DownloadFailed(f"{url} is no s3://bucket/key")
        answer = await self._service.ask(
            lambda client: client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=int(LINK_LIVES.total_seconds())
            )
        )
        if isinstance(answer, Refusal):
            raise DownloadFailed(str(answer))
        return answer

    async def aclose(self) -> None:
        await self._service.aclose()
