"""``s3://bucket/key`` as a link of its own for some time, so that one way of transfer serves every source."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from worker.aws import Refusal, Service, presigned, s3_client
from worker.clock import Clock, CorrectedClock
from worker.errors import DownloadFailed, Owner
from worker.models.auth import S3Auth

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
        bucket, key = object_of(url)
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


def object_of(url: str, owner: Owner = Owner.OPERATOR) -> tuple[str, str]:
    """Bucket and key of an ``s3://`` URL. Raises `DownloadFailed`."""
    parts = urlsplit(url)
    bucket, key = parts.netloc, parts.path.removeprefix("/")
    if not bucket or not key:
        raise DownloadFailed(f"{url} is no s3://bucket/key", owner=owner)
    return bucket, key


async def lent_link(url: str, auth: S3Auth, clock: Clock) -> str:
    """A link signed with credentials that came with a request: for the store that they name, else for AWS."""
    bucket, key = object_of(url, Owner.JOB)
    token = auth.session_token.get_secret_value() if auth.session_token is not None else None
    keys = (auth.access_key_id, auth.secret_access_key.get_secret_value(), token)
    address = f"{auth.store}/{bucket}/{quote(key)}"
    return await asyncio.to_thread(presigned, address, keys, auth.signing_region, clock, LINK_LIVES)
