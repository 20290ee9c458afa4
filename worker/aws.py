"""The one boto3 session, and clients that are used from threads of their own.

boto3 costs tens of megabytes, so it is imported at the first call, once for the whole process. Its own retries
are off: ours are in `worker.retry`. Signatures are made with the corrected clock, because a store refuses a
request (``RequestTimeTooSkewed``) from a node whose clock is off by more than 15 minutes.
"""

from __future__ import annotations

import asyncio
import functools
import re
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
from worker.errors import AuthFailed, WorkerError

if TYPE_CHECKING:
    from boto3 import Session
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

_AUTH = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidSignatureException",
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
        request that was refused for our clock is sent once more with the time that the service told, one that was
        refused for our credentials with those that the standard chain finds now, where they are others.
        """
        offset = self._clock.offset
        answer = await self._in_thread(work)
        if not isinstance(answer, Refusal) or not answer.of_credentials:
            return answer
        is_corrected = self._clock.offset != offset or (answer.code in _SKEWED and self._clock.offset)
        if is_corrected or await self._in_thread(lambda _: renew_credentials()):
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

    key_id, secret = credentials or (None, None)
    with _session_lock:
        config = Config(
            region_name=region or session().region_name or "us-east-1",
            signature_version="s3v4",
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=connect_timeout.total_seconds(),
            read_timeout=read_timeout.total_seconds(),
            max_pool_connections=connections,
            proxies=None if endpoint_url is None else _proxies_to(endpoint_url),
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


def sqs_client(
    queue_url: str,
    *,
    connections: int,
    connect_timeout: timedelta = timedelta(seconds=5),
    read_timeout: timedelta = timedelta(seconds=30),
) -> SQSClient:
    """A client of SQS, or of what speaks like it, for the queue of this URL.

    ``AWS_ENDPOINT_URL_SQS`` says where, else the URL itself does: it also names the region where it is one of AWS's.
    """
    from botocore.config import Config

    place = urlsplit(queue_url)
    origin = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"
    with _session_lock:
        config = Config(
            region_name=region_of(queue_url) or session().region_name or "us-east-1",
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=connect_timeout.total_seconds(),
            read_timeout=read_timeout.total_seconds(),
            max_pool_connections=connections,
            tcp_keepalive=True,
        )
        opened: Callable[..., SQSClient] = functools.partial(session().client, "sqs")
        client = opened(config=config)
        told = client.meta.endpoint_url
        endpoint = origin if _is_aws(told) else told
        if endpoint == told and not http.is_loopback(endpoint):
            return client
        client.close()
        return opened(endpoint_url=endpoint, config=config.merge(Config(proxies=_proxies_to(endpoint))))


def region_of(queue_url: str) -> str | None:
    """The region that a URL of AWS names, also one of the older kind, or of an endpoint in a private network."""
    host = urlsplit(queue_url).hostname or ""
    if not _is_aws(queue_url):
        return None
    found = re.search(r"(?:^|\.)([a-z]{2}(?:-[a-z]+)+-\d+)\.", host)
    return found[1] if found else "us-east-1"


def _proxies_to(endpoint_url: str) -> dict[str, str] | None:
    return {} if http.is_loopback(endpoint_url) else None


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


def renew_credentials() -> bool:
    """Read static credentials anew, which may have been rotated on disk; whether they are others than before.

    Every client of the session uses them from then on. It belongs in a thread; what finds none changes nothing.
    """
    import botocore.session
    from botocore import credentials, exceptions

    with _session_lock:
        held = session().get_credentials()
        chain = botocore.session.get_session().get_component("credential_provider")
        chain.remove("iam-role")
        try:
            found = chain.load_credentials()
        except exceptions.BotoCoreError:
            return False
        if type(held) is not credentials.Credentials or type(found) is not credentials.Credentials:
            return False
        fresh = (found.access_key, found.secret_key, found.token)
        if fresh == (held.access_key, held.secret_key, held.token):
            return False
        held.access_key, held.secret_key, held.token = fresh
        return True


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
    return (urlsplit(endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


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
