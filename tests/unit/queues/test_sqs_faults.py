"""SQS away, slow, refusing, or not what the settings say: which error each of that is, and that it passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.queues import result_of, taken
from tests.support.s3 import SECRET_KEY, set_credentials
from tests.support.sqs import Hung, Line, Refused, Server, made_line, running_sqs, submitting, taking
from tests.support.waiting import wait_until
from worker.aws import Refusal, region_of, sqs_client
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ConfigError, LeaseLost, QueueUnavailable, WorkerError
from worker.queues.base import Delivery, Queue
from worker.queues.sqs import SqsQueue
from worker.queues.sqs.errors import error_of
from worker.simulators import free_port

pytest_plugins = ("tests.support.sqs_fixtures",)

DOCUMENT = '{"id": "a", "params": {"prompt": "a cat"}}'
NOW = timedelta(0)
UNKNOWN = "Value AQEB for parameter ReceiptHandle is invalid. Reason: "

Verb = Callable[[Queue, Delivery], Awaitable[Any]]
VERBS: dict[str, tuple[str, Verb]] = {
    "extend": ("ChangeMessageVisibility", lambda queue, delivery: queue.extend(delivery)),
    "ack": ("DeleteMessage", lambda queue, delivery: queue.ack(delivery, result_of("a"))),
    "nack": ("ChangeMessageVisibility", lambda queue, delivery: queue.nack(delivery, NOW, "internal", charged=True)),
    "reject": ("SendMessage", lambda queue, d: queue.reject(d, result_of("a", "failed", code="invalid_job"))),
}
LOST = [
    Refused("ReceiptHandleIsInvalid"),
    Refused("MessageNotInflight", query="AWS.SimpleQueueService.MessageNotInflight"),
    Refused("InvalidParameterValue", message=UNKNOWN + "Message does not exist or is not available"),
    Refused("InvalidParameterValue", message=UNKNOWN + "The receipt handle has expired."),
]
GONE = [
    Refused("QueueDoesNotExist", query="AWS.SimpleQueueService.NonExistentQueue"),
    Refused("QueueDoesNotExist"),
    Refused("InvalidAddress", 404),
]
REFUSED = [
    Refused("InvalidClientTokenId", 403),
    Refused("ExpiredToken", 403),
    Refused("AccessDenied", 403),
    Refused("AccessDeniedException", 400),
    Refused("KmsAccessDenied", 400),
]
AWAY = [
    Refused("RequestThrottled", 403),
    Refused("ThrottlingException"),
    Refused("OverLimit", 403),
    Refused("InternalFailure", 500),
    Refused("ServiceUnavailable", 503),
    Refused("Unheard", 418),
]
MEANT: dict[str, type[WorkerError]] = {
    **dict.fromkeys(
        ("InvalidAddress", "QueueDeletedRecently", "QueueDoesNotExist", "UnsupportedOperation"), ConfigError
    ),
    **dict.fromkeys(("InvalidIdFormat", "MessageNotInflight", "ReceiptHandleIsInvalid"), LeaseLost),
    **dict.fromkeys(
        (
            "InvalidSecurity",
            "KmsAccessDenied",
            "KmsDisabled",
            "KmsInvalidKeyUsage",
            "KmsInvalidState",
            "KmsNotFound",
            "KmsOptInRequired",
        ),
        AuthFailed,
    ),
    **dict.fromkeys(("KmsThrottled", "OverLimit", "RequestThrottled"), QueueUnavailable),
    **dict.fromkeys(
        (
            "BatchEntryIdsNotDistinct",
            "BatchRequestTooLong",
            "EmptyBatchRequest",
            "InvalidAttributeName",
            "InvalidAttributeValue",
            "InvalidBatchEntryId",
            "InvalidMessageContents",
            "PurgeQueueInProgress",
            "QueueNameExists",
            "ResourceNotFoundException",
            "TooManyEntriesInBatchRequest",
        ),
        QueueUnavailable,
    ),
}


@pytest.mark.parametrize(
    ("deeds", "kind"),
    [(GONE, ConfigError), (REFUSED, AuthFailed), (AWAY, QueueUnavailable)],
    ids=["gone", "no", "away"],
)
async def test_a_receive_says_what_is_wrong(
    sqs_server: Server, line: Line, deeds: list[Refused], kind: type[WorkerError]
) -> None:
    """Configuration names its variable; whatever it is, the next receive finds the queue mended."""
    line.put(DOCUMENT)
    async with taking(line) as queue:
        for deed in deeds:
            sqs_server.bent.do("ReceiveMessage", deed)
            with pytest.raises(kind, match="WORKER_SQS_QUEUE_URL" if kind is ConfigError else deed.code) as caught:
                await queue.receive()
            assert isinstance(caught.value, (AuthFailed, ConfigError)) == (kind is not QueueUnavailable), deed
        sqs_server.bent.mend()
        assert (await taken(queue)).deliveries == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_a_held_job_outlasts_whatever_is_wrong(sqs_server: Server, line: Line, verb: str) -> None:
    """Each verb says that the queue is unavailable, loses nothing, and works when it is mended."""
    line.put(DOCUMENT)
    name, call = VERBS[verb]
    deeds = [*REFUSED[:2], *AWAY] if name == "SendMessage" else [*GONE, *REFUSED, *AWAY]
    async with taking(line) as queue:
        delivery = await taken(queue)
        for deed in deeds[: -1 if name == "SendMessage" else None]:
            sqs_server.bent.do(name, deed)
            with pytest.raises(QueueUnavailable):
                await call(queue, delivery)
        assert line.counts() == (0, 1)
        sqs_server.bent.mend()
        await call(queue, delivery)
    assert line.counts() == {"extend": (0, 1), "nack": (1, 0)}.get(verb, (0, 0))


@pytest.mark.parametrize("verb", ["extend", "ack", "nack"])
async def test_a_lease_is_lost_when_sqs_says_so(sqs_server: Server, line: Line, verb: str) -> None:
    """By whichever of its words; then nothing more is asked for this delivery."""
    name, call = VERBS[verb]
    async with taking(line) as queue:
        for deed in LOST:
            line.put(DOCUMENT)
            delivery = await taken(queue)
            sqs_server.bent.do(name, deed, times=1)
            with pytest.raises(LeaseLost):
                await call(queue, delivery)
            calls = sqs_server.bent.calls.copy()
            with pytest.raises(LeaseLost):
                await call(queue, delivery)
            assert sqs_server.bent.calls == calls


def test_every_error_of_the_service_has_a_meaning(sqs_server: Server) -> None:
    """Those that the library knows, each with the error that it is for a held message."""
    client = sqs_client(sqs_server.url + "/0/jobs", connections=1)
    names = {shape.name for shape in client.meta.service_model.error_shapes}
    client.close()
    assert names == set(MEANT)
    for name, kind in MEANT.items():
        error = error_of(Refusal(name, 400, "why"), "the queue", held=True)
        assert isinstance(error, kind), name
        assert isinstance(error, (AuthFailed, ConfigError)) == (kind in (AuthFailed, ConfigError)), name


async def test_nobody_listens_there(sqs_server: Server) -> None:
    """A server that is away is waited for, by every verb."""
    line = Line(f"http://127.0.0.1:{free_port()}/0/jobs", None)
    async with taking(line) as queue:
        for call in (queue.receive, queue.check):
            with pytest.raises(QueueUnavailable) as caught:
                await call()
            assert not isinstance(caught.value, (AuthFailed, ConfigError))


async def test_a_name_that_is_not_resolved(sqs_server: Server) -> None:
    """DNS that fails is an outage, whose message holds no credentials."""
    async with taking(Line("http://user:hunter2@sqs.invalid:1/0/jobs", None)) as queue:
        with pytest.raises(QueueUnavailable) as caught:
            await queue.receive()
    assert "hunter2" not in caught.value.message
    assert SECRET_KEY not in caught.value.message


async def test_no_answer_in_time(sqs_server: Server, line: Line) -> None:
    """A server that hangs keeps nobody waiting for long."""
    line.put(DOCUMENT)
    hung = Hung()
    async with taking(line, connect=timedelta(seconds=2), answer=timedelta(seconds=2)) as queue:
        delivery = await taken(queue)
        sqs_server.bent.do("ChangeMessageVisibility", hung, times=1)
        with pytest.raises(QueueUnavailable, match=r"(?i)time"):
            await queue.extend(delivery)
        hung.release()


async def test_a_server_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same driver goes on with it, and the job that it held is its own still."""
    set_credentials(monkeypatch)
    with running_sqs() as first:
        line = made_line(first)
        port = int(first.url.rpartition(":")[2])
        line.put(DOCUMENT)
        queue = SqsQueue(line.url, CorrectedClock(_Off(NOW)), wait=NOW)
        delivery = await taken(queue)
    with pytest.raises(QueueUnavailable):
        await queue.extend(delivery)
    with running_sqs(port):
        await queue.extend(delivery)
        await queue.ack(delivery, result_of("a"))
        assert line.counts() == (0, 0)
        await queue.aclose()


class _Off:
    """A clock that goes wrong by so much."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> Any:
        from worker.clock import SystemClock

        return SystemClock().now() + self._by


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_an_hour_off(sqs_server: Server, line: Line, hours: int) -> None:
    """The first refusal tells the time, and the same request is sent again with it."""
    line.put(DOCUMENT)
    sqs_server.bent.strict_time = True
    clock = CorrectedClock(_Off(timedelta(hours=hours)))
    queue = SqsQueue(line.url, clock, wait=NOW)
    try:
        delivery = await taken(queue)
        await queue.extend(delivery)
    finally:
        await queue.aclose()
    assert abs(clock.offset + timedelta(hours=hours)) < timedelta(minutes=1)


async def test_credentials_that_are_rotated_on_disk(
    sqs_server: Server, line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is read again when its keys are refused, by the worker that runs; no key is in the log."""
    path = tmp_path / "credentials"
    text = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    path.write_text(text.format("AKIDOLD", "hunter2"))
    set_credentials(monkeypatch, key=None)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    line.put(DOCUMENT)
    sqs_server.bent.keys = {"AKIDOLD"}
    with structlog.testing.capture_logs() as logs:
        async with taking(line) as queue:
            delivery = await taken(queue)
            sqs_server.bent.keys = {"AKIDNEW"}
            with pytest.raises(AuthFailed) as caught:
                await queue.extend(delivery)
            path.write_text(text.format("AKIDNEW", "hunter3"))
            await queue.extend(delivery)
            path.write_text("[default]\naws_access_key_id = AKIDHALF\n")
            sqs_server.bent.keys = {"AKIDNEWER"}
            with pytest.raises(AuthFailed):
                await queue.extend(delivery)
            sqs_server.bent.keys = None
    set_credentials(monkeypatch)
    assert "hunter" not in f"{caught.value.message} {logs}"


async def test_no_credentials_at_all(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the operator's, for every verb; a job that is held waits until there are some."""
    line.put(DOCUMENT)
    set_credentials(monkeypatch, key=None)
    async with taking(line) as queue:
        with pytest.raises(AuthFailed, match="credentials"):
            await queue.receive()
        with pytest.raises(QueueUnavailable, match="credentials"):
            await queue.receive()
    set_credentials(monkeypatch)


@pytest.mark.parametrize(("deed", "kind"), [(GONE[0], ConfigError), (REFUSED[0], AuthFailed)], ids=["gone", "refused"])
async def test_a_check_ends_the_start_where_nothing_can_ever_work(
    sqs_server: Server, line: Line, deed: Refused, kind: type[WorkerError]
) -> None:
    """Its error is no outage that might pass."""
    sqs_server.bent.do("*", deed)
    async with taking(line) as queue:
        with pytest.raises(kind) as caught:
            await queue.check()
    assert not isinstance(caught.value, QueueUnavailable)


async def test_the_smallest_policy_that_works(sqs_server: Server, line: Line) -> None:
    """Without sqs:GetQueueAttributes jobs are done all the same; what failed is deleted, which the log says once."""
    sqs_server.bent.do("GetQueueAttributes", Refused("AccessDenied", 403))
    with structlog.testing.capture_logs() as logs:
        async with taking(line) as queue, submitting(line) as producer:
            assert "GetQueueAttributes is missing" in await queue.check()
            for _ in range(2):
                await producer.submit("a", DOCUMENT.encode())
                await queue.reject(await taken(queue), result_of("a", "failed", code="invalid_job"))
            with pytest.raises(ConfigError, match="GetQueueAttributes"):
                await producer.jobs("dead")
    assert [one["event"] for one in logs] == ["dead_letters_unknown"]
    sqs_server.bent.mend()
    assert line.counts() == (0, 0)


async def test_a_check_without_the_right_to_hold_messages(sqs_server: Server, line: Line) -> None:
    """Neither its attributes nor its messages: that is refused."""
    sqs_server.bent.do("*", Refused("AccessDenied", 403))
    async with taking(line) as queue:
        with pytest.raises(AuthFailed):
            await queue.check()


async def test_a_poll_that_failed_when_nobody_waited_is_forgotten(sqs_server: Server, line: Line) -> None:
    """The next receive asks anew."""
    line.put(DOCUMENT)
    hung = Hung(then=Refused("InternalFailure", 500))
    async with taking(line) as queue:
        sqs_server.bent.do("ReceiveMessage", hung, times=1)
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        hung.release()
        await queue.settled()
        assert (await taken(queue)).body == DOCUMENT.encode()


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123/jobs", "eu-west-1"),
        ("https://eu-central-1.queue.amazonaws.com/123/jobs", "eu-central-1"),
        ("https://queue.amazonaws.com/123/jobs", "us-east-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/123/jobs", "us-gov-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123/jobs", "cn-north-1"),
        ("https://vpce-1a-2b.sqs.ap-southeast-2.vpce.amazonaws.com/123/jobs", "ap-southeast-2"),
        ("https://sqs.us-east-2.api.aws/123/jobs", "us-east-2"),
        ("http://localhost:9324/0/jobs", None),
    ],
)
def test_the_region_comes_from_the_url(url: str, region: str | None) -> None:
    """Of every kind of URL that AWS has."""
    assert region_of(url) == region


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123/jobs", "https://sqs.eu-west-1.amazonaws.com"),
        ("https://vpce-1a.sqs.eu-west-1.vpce.amazonaws.com/1/jobs", "https://vpce-1a.sqs.eu-west-1.vpce.amazonaws.com"),
        ("http://elastic.example:9324/0/jobs", "http://elastic.example:9324"),
    ],
)
def test_the_endpoint_comes_from_the_url(
    sqs_server: Server, url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless ``AWS_ENDPOINT_URL_SQS`` says where."""
    client = sqs_client(url, connections=1)
    assert client.meta.endpoint_url == endpoint
    client.close()
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9324")
    client = sqs_client(url, connections=1)
    assert client.meta.endpoint_url == "http://127.0.0.1:9324"
    client.close()
