"""The one boto3 session, and clients that are used from threads of their own.

boto3 costs tens of megabytes, so it is imported at the first call, once for the whole process. Its own retries
are off: ours are in `worker.retry`. Signatures are made with the corrected clock, because a store refuses a
request (``RequestTimeTooSkewed``) from a node whose clock is off by more than 15 minutes.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx

from worker import http
from worker.clock import Clock, CorrectedClock, SystemClock
from worker.errors import AuthFailed, DownloadFailed, InvalidJob, WorkerError

if TYPE_CHECKING:
    from boto3 import Session
    from types_boto3_s3.client import S3Client

_AUTH = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnauthorizedAccess",
        "UnrecognizedClientException",
    }
)
_SKEWED = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
_signing = threading.local()


class Client(Protocol):
    """What every boto3 client has."""

    @property
    def meta(self) -> Any: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Client)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer by which a service says no; ``code`` is its own word, ``status`` that of HTTP."""

    code: str
    status: int
    message: str
    retry_after: timedelta | None = None

    @property
    def of_credentials(self) -> bool:
        """Whether it refuses who we are, as opposed to what we ask for."""
        return self.code in _AUTH or self.code in _SKEWED or self.status == 401

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message[:300]}"


class Service(Generic[C]):
    """One service of AWS, or one that speaks like it, asked from at most ``threads`` threads.

    ``opened`` makes the client in such a thread at the first call; ``unavailable(message)`` is the error for a
    service that does not answer. A call that is given up runs on in its thread until its own timeout.
    """

    def __init__(
        self,
        opened: Callable[[], C],
        *,
        clock: CorrectedClock,
        threads: int,
        unavailable: Callable[[str], WorkerError],
        name: str = "aws",
    ) -> None:
        self._opened = opened
        self._clock = clock
        self._unavailable = unavailable
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._opening = threading.Lock()
        self._client: C | None = None

    async def ask(self, work: Callable[[C], T]) -> T | Refusal:
        """What the work gives back, or the service's refusal.

        Raises `AuthFailed` without usable credentials, ``unavailable`` for a service that does not answer. A
        request that was refused for our clock is sent once more with the time that the service told.
        """
        answer = await self._in_thread(work)
        if isinstance(answer, Refusal) and answer.code in _SKEWED and self._clock.offset:
            return await self._in_thread(work)
        return answer

    async def aclose(self) -> None:
        """Close the connections; calls under way run on unheard."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _in_thread(self, work: Callable[[C], T]) -> T | Refusal:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._answer, work)

    def _answer(self, work: Callable[[C], T]) -> T | Refusal:
        from botocore import exceptions

        _signing.clock = self._clock
        try:
            return work(self._ready())
        except exceptions.ClientError as error:
            return _refusal(error.response)
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
            exceptions.TokenRetrievalError,
            exceptions.SSOError,
        ) as error:
            raise AuthFailed(f"no usable credentials: {error}") from None
        except exceptions.BotoCoreError as error:
            raise self._unavailable(str(error)) from None
        except RecursionError:
            raise self._unavailable("every answer is a redirect, which botocore follows without end") from None
        finally:
            _signing.clock = None

    def _ready(self) -> C:
        with self._opening:
            if self._client is None:
                self._client = self._opened()
                self._client.meta.events.register("after-call", self._observe)
            return self._client

    def _observe(self, parsed: Mapping[str, Any], **_: Any) -> None:
        metadata = parsed.get("ResponseMetadata", {})
        request = httpx.Request("GET", str(self._client.meta.endpoint_url) if self._client else "")
        http.observe_date(
            httpx.Response(metadata.get("HTTPStatusCode", 200), headers=_told(metadata), request=request), self._clock
        )


@functools.cache
def session() -> Session:
    """The process's only session, with credentials by the standard chain."""
    import botocore.auth
    import botocore.session
    from boto3 import Session

    botocore.auth.get_current_datetime = _signing_time  # type: ignore[attr-defined]
    core = botocore.session.get_session()
    if _without_instance_metadata:
        core.get_component("credential_provider").remove("iam-role")
    return Session(botocore_session=core)


def without_instance_metadata() -> None:
    """From now on no credentials are looked for at the address of AWS's metadata service, which is somebody else's.

    As ``AWS_EC2_METADATA_DISABLED`` does, but for our own session alone, which is made anew.
    """
    global _without_instance_metadata
    if not _without_instance_metadata:
        _without_instance_metadata = True
        session.cache_clear()


_session_lock = threading.Lock()
_without_instance_metadata = False


def s3_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    connections: int,
    connect_timeout: timedelta = timedelta(seconds=5),
    read_timeout: timedelta = timedelta(seconds=30),
    credentials: tuple[str, str] | None = None,
) -> S3Client:
    """A client of S3 or of a store that speaks it.

    ``credentials``: key id and secret instead of what the standard chain finds.

    Other stores than AWS are addressed by path, which R2, GCS, MinIO and rclone all take; checksums are sent only
    where S3 requires them, because R2 and GCS refuse the newer ones. An endpoint may also come from
    ``AWS_ENDPOINT_URL_S3``.
    """
    from botocore.config import Config

    loopback = endpoint_url is not None and http.is_loopback(endpoint_url)
    key_id, secret = credentials or (None, None)
    with _session_lock:
        config = Config(
            region_name=region or session().region_name or "us-east-1",
            signature_version="s3v4",
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=connect_timeout.total_seconds(),
            read_timeout=read_timeout.total_seconds(),
            max_pool_connections=connections,
            proxies={} if loopback else None,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        )
        by_path = config.merge(Config(s3={"addressing_style": "path"}))
        opened = functools.partial(session().client, "s3", aws_access_key_id=key_id, aws_secret_access_key=secret)
        client: S3Client = opened(endpoint_url=endpoint_url, config=config if endpoint_url is None else by_path)
        if endpoint_url is None and not _is_aws(client.meta.endpoint_url):
            client.close()
            client = opened(config=by_path)
        return client


def check_credentials() -> None:
    """Raises `AuthFailed` where the standard chain finds none. It may ask the network, and belongs in a thread."""
    from botocore import exceptions

    try:
        with _session_lock:
            found = session().get_credentials()
    except exceptions.BotoCoreError as error:
        raise AuthFailed(f"no usable credentials: {error}") from None
    if found is None:
        raise AuthFailed("no usable credentials: Unable to locate credentials")


def presigned(url: str, keys: tuple[str, str, str | None], region: str, clock: Clock, lives: timedelta) -> str:
    """The URL of an object with a signature that lets one read it: key id, secret and session token are ``keys``.

    Asks nobody. It imports botocore, and belongs in a thread.
    """
    from botocore.auth import S3SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    session()
    signer = S3SigV4QueryAuth(Credentials(*keys), "s3", region, expires=int(lives.total_seconds()))
    request = AWSRequest(method="GET", url=url)
    _signing.clock = clock
    try:
        signer.add_auth(request)
    finally:
        _signing.clock = None
    return str(request.url)


def _is_aws(endpoint_url: str) -> bool:
    return (urlsplit(endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _signing_time(remove_tzinfo: bool = True) -> datetime:
    """Stands in for botocore's own source of the time in the threads that sign for us."""
    clock: Clock = getattr(_signing, "clock", None) or SystemClock()
    now = clock.now()
    return now.replace(tzinfo=None) if remove_tzinfo else now


def _refusal(response: Mapping[str, Any]) -> Refusal:
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    answered = httpx.Response(metadata.get("HTTPStatusCode", 0) or 500, headers=_told(metadata))
    return Refusal(
        code=str(error.get("Code", "")),
        status=answered.status_code,
        message=str(error.get("Message", "")),
        retry_after=http.retry_after(answered, datetime.min.replace(tzinfo=UTC)),
    )


def _told(metadata: Mapping[str, Any]) -> dict[str, str]:
    headers = metadata.get("HTTPHeaders", {})
    return {name: headers[name] for name in ("date", "age", "retry-after") if name in headers}


class S3Documents:
    """Reads the documents behind ``s3://bucket/key`` URLs of jobs with the operator's credentials."""

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

    async def aclose(self) -> None:
        await self._service.aclose()
