"""The submitting side of an SQS queue: what is sent, what is too large, and dead letters that are looked at."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from tests.support.queues import result_of, taken
from tests.support.s3 import Bucket
from tests.support.sqs import Line, Refused, Server, made_line, submitting, taking
from worker.errors import AuthFailed, ConfigError, Fault, InvalidJob, QueueUnavailable, UploadFailed
from worker.queues.policy import Policy
from worker.queues.sqs import Overflow
from worker.queues.sqs.client import Traits, traits_of
from worker.queues.sqs.messages import body_of, dead_letter, dead_state, delivery_of, revived
from worker.queues.sqs.producer import sendable
from worker.result import ErrorResult, Result

pytest_plugins = ("tests.support.sqs_fixtures", "tests.support.s3_fixtures")

NOW = timedelta(0)
DOCUMENT = b'{"params": {"prompt": "a cat"}}'
FAILED = result_of("a", "failed", code="invalid_job")


def failed_for(reason: str) -> Result:
    error = ErrorResult(code="invalid_job", message=reason, retryable=False, fault=Fault.JOB)
    return FAILED.model_copy(update={"error": error})


async def killed(line: Line, *job_ids: str) -> None:
    """Have these jobs fail."""
    async with taking(line) as queue, submitting(line) as producer:
        for job_id in job_ids:
            await producer.submit(job_id, DOCUMENT)
            delivery = await taken(queue)
            await queue.reject(delivery, result_of(delivery.id, "failed", code="invalid_job"))


async def test_a_job_is_handed_over_under_its_id(line: Line) -> None:
    """Also one whose document has none."""
    async with taking(line) as queue, submitting(line) as producer:
        assert await producer.submit("a", DOCUMENT, priority=5)
        delivery = await taken(queue)
    assert (delivery.id, delivery.body) == ("a", DOCUMENT)


async def test_what_sqs_cannot_tell(line: Line) -> None:
    """No job is found by its id and none is withdrawn; how many wait is told where a list is asked for."""
    async with submitting(line) as producer:
        await producer.submit("a", DOCUMENT)
        assert await producer.state("a") is None
        assert not await producer.cancel("a")
        for status in (None, "waiting"):
            with pytest.raises(ConfigError, match=r"queue dead.* 1 wait"):
                await producer.jobs(status)


async def test_dead_letters_are_listed_with_their_reasons(line: Line) -> None:
    """They stay dead, and are there for others when the producer is closed."""
    await killed(line, "a", "b")
    async with submitting(line) as producer:
        states = await producer.jobs("dead")
        assert sorted(state.id for state in states) == ["a", "b"]
        assert [await producer.jobs("dead", 1)] == [states[:1]]
        assert line.counts(dead=True) == (0, 2)
    assert line.counts(dead=True) == (2, 0)
    assert {(one.status, one.code, one.deliveries) for one in states} == {("dead", "invalid_job", 1)}
    [first, _] = states
    assert first.result is not None
    assert first.result.error is not None
    assert (first.result.error.message, first.result.worker.id) == ("why", "w1")


@pytest.mark.parametrize("fifo", [False, True])
async def test_a_dead_job_runs_again(sqs_server: Server, fifo: bool) -> None:
    """Its counts begin anew, but a success that stands is looked for; others stay dead."""
    line = made_line(sqs_server, fifo=fifo, dead_after=5)
    await killed(line, "a", "b")
    async with taking(line) as queue, submitting(line) as producer:
        assert not await producer.requeue("c")
        assert await producer.requeue("a")
        assert not await producer.requeue("a")
        delivery = await taken(queue)
        assert (delivery.id, delivery.body) == ("a", DOCUMENT)
        assert (delivery.deliveries, delivery.redelivered) == (1, True)
        await queue.reject(delivery, FAILED)
        assert [one.id for one in await producer.jobs("dead")] == ["b", "a"]
        assert await producer.requeue("a")
    assert line.counts() == (1, 0)
    assert line.counts(dead=True) == (1, 0)


async def test_a_message_that_sqs_has_moved(sqs_server: Server) -> None:
    """Nobody told why: it was received too often."""
    line = made_line(sqs_server, dead_after=1)
    message_id = line.put(DOCUMENT.decode())
    async with taking(line) as queue, submitting(line) as producer:
        await queue.nack(await taken(queue), NOW, "internal", charged=True)
        assert (await queue.receive()).delivery is None
        [state] = await producer.jobs("dead")
        assert (state.id, state.code) == (message_id, "delivery_limit")
        assert await producer.requeue(message_id)
        again = await taken(queue)
    assert (again.id, again.body) == (message_id, DOCUMENT)


async def test_a_success_whose_webhook_was_not_taken(line: Line) -> None:
    """It is among the dead letters by that code, without an error of its own."""
    async with taking(line) as queue, submitting(line) as producer:
        await producer.submit("a", DOCUMENT)
        await queue.reject(await taken(queue), result_of("a"))
        [state] = await producer.jobs("dead")
    assert (state.code, state.result) == ("webhook_undelivered", None)


async def test_no_dead_letters(sqs_server: Server) -> None:
    """A queue without a redrive policy has none to list or to requeue."""
    async with submitting(made_line(sqs_server)) as producer:
        for asked in (producer.jobs("dead"), producer.requeue("a")):
            with pytest.raises(ConfigError, match="redrive policy"):
                await asked


async def test_dead_letters_are_given_back_as_far_as_sqs_answers(sqs_server: Server, line: Line) -> None:
    """Else they come back by themselves: closing fails for nothing."""
    await killed(line, "a")
    async with submitting(line) as producer:
        await producer.jobs("dead")
        sqs_server.bent.do("ChangeMessageVisibilityBatch", Refused("InternalFailure", 500))
    assert line.counts(dead=True) == (0, 1)


async def test_a_large_document_goes_to_the_bucket(sqs_server: Server, moto_bucket: Bucket) -> None:
    """The message points at it; another document under the same id does not replace it."""
    line = made_line(sqs_server, MaximumMessageSize="2048")
    place = Overflow(moto_bucket.name, "jobs/results/", moto_bucket.endpoint_url)
    async with taking(line) as queue, submitting(line, overflow=place) as producer:
        bodies = [json.dumps({"params": {"prompt": letter * 3000}}).encode() for letter in "xy"]
        for body in bodies:
            await producer.submit("a", body)
        found = [await taken(queue), await taken(queue)]
    assert [one.id for one in found] == ["a", "a"]
    urls = [json.loads(one.body)["job_url"] for one in found]
    keys = [url.removeprefix(f"s3://{moto_bucket.name}/") for url in urls]
    assert all(key.startswith("jobs/results/a/job-") for key in keys)
    assert sorted(moto_bucket.read(key) for key in keys) == bodies


async def test_a_large_document_without_a_bucket(sqs_server: Server) -> None:
    """The limit is told, and what would lift it."""
    line = made_line(sqs_server, MaximumMessageSize="2048")
    async with submitting(line) as producer:
        with pytest.raises(InvalidJob, match=r"1024 fit .* WORKER_S3_BUCKET"):
            await producer.submit("a", json.dumps({"params": {"prompt": "x" * 3000}}).encode())
    assert line.counts() == (0, 0)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_bucket_that_fails(sqs_server: Server, moto_bucket: Bucket, is_there: bool) -> None:
    """Nothing is sent then."""
    line = made_line(sqs_server, MaximumMessageSize="2048")
    place = Overflow("no-such-bucket", "", moto_bucket.endpoint_url if is_there else "http://127.0.0.1:1")
    async with submitting(line, overflow=place) as producer:
        with pytest.raises(UploadFailed):
            await producer.submit("a", json.dumps({"params": {"prompt": "x" * 3000}}).encode())
    assert line.counts() == (0, 0)


@pytest.mark.parametrize(
    ("deed", "kind"),
    [
        (Refused("AccessDenied", 403), AuthFailed),
        (Refused("QueueDoesNotExist"), ConfigError),
        (Refused("RequestThrottled"), QueueUnavailable),
    ],
    ids=str,
)
async def test_a_submit_that_is_refused(sqs_server: Server, line: Line, deed: Refused, kind: type[Exception]) -> None:
    """By the error that it is."""
    sqs_server.bent.do("SendMessage", deed)
    async with submitting(line) as producer:
        with pytest.raises(kind):
            await producer.submit("a", DOCUMENT)


@pytest.mark.parametrize("prompt", ["\x7f", "\ufffe", "\ud800", "\x00", "語\U0001f600"])
async def test_every_character_arrives(line: Line, prompt: str) -> None:
    """Those that SQS takes in no message are escaped."""
    body = json.dumps({"params": {"prompt": prompt}}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    async with taking(line) as queue, submitting(line) as producer:
        await producer.submit("a", body)
        assert json.loads((await taken(queue)).body) == {"params": {"prompt": prompt}}


def test_a_document_that_can_be_sent_is_sent_as_it_is() -> None:
    """Byte for byte."""
    assert sendable('{"a": "語"}'.encode()) == '{"a": "語"}'


@pytest.mark.parametrize(
    "kind", ["software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"]
)
def test_the_pointer_of_amazons_extended_clients(kind: str) -> None:
    """It becomes a pointer of ours."""
    text = json.dumps([kind, {"s3BucketName": "bucket", "s3Key": "0b1c"}])
    assert json.loads(body_of({"Body": text})) == {"job_url": "s3://bucket/0b1c"}


@pytest.mark.parametrize("text", ["[1", "[1]", '["other", {"s3BucketName": "b", "s3Key": "k"}]', "[" + "1," * 3000])
def test_any_other_list_stays_what_it_is(text: str) -> None:
    """The worker says what is wrong with it."""
    assert body_of({"Body": text}) == text.encode()


def test_the_envelope_of_sns() -> None:
    """A topic puts each message into one, unless its subscription has raw delivery."""
    inside = '{"params": {"prompt": "語"}}'
    told = {"Type": "Notification", "MessageId": "m", "TopicArn": "arn:aws:sns:eu-west-1:1:jobs", "Message": inside}
    assert body_of({"Body": json.dumps(told)}) == inside.encode()
    for other in (told | {"Type": "SubscriptionConfirmation"}, told | {"Message": 1}):
        assert body_of({"Body": json.dumps(other)}) == json.dumps(other).encode()


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        (0, []),
        (41, ["sd-code", "sd-fault"]),
        (100, ["sd-code", "sd-fault", "sd-deliveries", "sd-worker"]),
        (10_000, ["sd-code", "sd-fault", "sd-deliveries", "sd-worker", "sd-message", "trace"]),
    ],
)
def test_a_dead_letter_of_a_large_message_says_what_fits(room: int, kept: list[str]) -> None:
    """The message itself always fits, and what says why comes before what the sender said."""
    given = {"trace": {"DataType": "String", "StringValue": "x" * 300}}
    message = {"MessageId": "m", "Body": "語" * 1000, "MessageAttributes": given, "Attributes": {}}
    letter = dead_letter(message, failed_for("w" * 400), fifo=False, most=3000 + room)
    assert list(letter.get("MessageAttributes", {})) == kept


def test_a_reason_that_sqs_would_not_take() -> None:
    """It may name a field by characters that no message holds."""
    failed = failed_for("params.\x00\ufffe: unknown field")
    letter = dead_letter({"MessageId": "m", "Body": "{}", "Attributes": {}}, failed, fifo=False, most=1000)
    assert letter["MessageAttributes"]["sd-message"]["StringValue"] == "params.\ufffd\ufffd: unknown field"


@pytest.mark.parametrize(
    ("receives", "policys", "queues", "is_last", "is_over"),
    [(3, 4, 50, False, False), (4, 4, 50, True, False), (5, 4, 50, True, True), (3, 4, 3, True, False)],
)
def test_the_last_delivery_is_that_of_the_smaller_limit(
    receives: int, policys: int, queues: int, is_last: bool, is_over: bool
) -> None:
    """Of WORKER_QUEUE_MAX_DELIVERIES and maxReceiveCount; beyond the first it is one too many."""
    message = {"MessageId": "m", "ReceiptHandle": "r", "Attributes": {"ApproximateReceiveCount": str(receives)}}
    traits = Traits(told=True, dead_letters="d", most_receives=queues)
    delivery = delivery_of(message, Policy(max_deliveries=policys), NOW, traits)
    assert (delivery.last_delivery, delivery.over_limit) == (is_last, is_over)


def test_each_sending_is_a_run_of_its_own() -> None:
    """Also where a service moves a dead letter back under the id that it had."""
    sent = [{"MessageId": "m", "ReceiptHandle": "r", "Attributes": {"SentTimestamp": at}} for at in ("1", "2")]
    runs = [delivery_of(one, Policy(), NOW, Traits(told=False)).run for one in sent]
    assert runs == ["m 1", "m 2"]


def test_attributes_have_room_for_ten() -> None:
    """Those that say why come first; the sender's as far as there is room."""
    given = {f"a{n}": {"DataType": "Binary", "BinaryValue": b"x", "Extra": 1} for n in range(10)}
    message = {"MessageId": "m", "Body": "{}", "MessageAttributes": given, "Attributes": {}}
    letter = dead_letter(message, FAILED, fifo=True, most=5000)
    assert len(letter["MessageAttributes"]) == 10
    assert letter["MessageAttributes"]["sd-code"]["StringValue"] == "invalid_job"
    assert letter["MessageAttributes"]["a0"] == {"DataType": "Binary", "BinaryValue": b"x"}
    assert (letter["MessageGroupId"], letter["MessageDeduplicationId"]) == ("m", "m")
    assert len(revived(message, "k", fifo=False)["MessageAttributes"]) == 10


def test_a_message_that_tells_little() -> None:
    """What may be missing is unknown, not wrong."""
    delivery = delivery_of({"MessageId": "m", "ReceiptHandle": "r"}, Policy(), NOW, Traits(told=False))
    assert (delivery.id, delivery.body, delivery.queued_at, delivery.deliveries) == ("m", b"", None, 1)
    attributes = {"sd-code": {"StringValue": "expired"}, "sd-fault": {"StringValue": "nobody's"}}
    state = dead_state({"MessageId": "m", "Body": "{}", "MessageAttributes": attributes})
    assert (state.code, state.result, state.deliveries) == ("expired", None, 0)


@pytest.mark.parametrize(
    "policy", ["", "{", "[]", '{"maxReceiveCount": 3}', '{"deadLetterTargetArn": "a", "maxReceiveCount": "x"}']
)
def test_a_redrive_policy_that_cannot_be_read_is_none(policy: str) -> None:
    """No dead letters then."""
    traits = traits_of("https://sqs.eu-west-1.amazonaws.com/1/jobs", {"RedrivePolicy": policy})
    assert (traits.dead_letters, traits.most_receives) == (None, None)


def test_the_dead_letters_lie_beside_the_queue() -> None:
    """In the same account and region, as AWS demands: no further right is needed to find them."""
    policy = '{"deadLetterTargetArn": "arn:aws:sqs:eu-west-1:1:dead", "maxReceiveCount": 5}'
    traits = traits_of("https://sqs.eu-west-1.amazonaws.com/1/jobs", {"RedrivePolicy": policy})
    assert traits.dead_letters == "https://sqs.eu-west-1.amazonaws.com/1/dead"
