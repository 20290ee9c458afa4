"""Messages of SQS as deliveries and as dead letters. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic_core

from worker.errors import DeliveryLimit, Fault
from worker.job import usable_id
from worker.queues.base import Delivery, JobState
from worker.queues.policy import Policy, job_code
from worker.queues.sqs.client import Traits
from worker.result import ErrorResult, Result, WorkerResult

ID, SEEN = "sd-id", "sd-requeued"
"""Attributes of our own: the id of a job, whose document need not have one; that it was on the queue before."""

CODE, FAULT, REASON, WORKER, RECEIVES = "sd-code", "sd-fault", "sd-message", "sd-worker", "sd-deliveries"
"""Attributes of a dead letter: why it died, by whose fault, where, and after how many deliveries."""

NOT_TAKEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that SQS takes in no message."""

ATTRIBUTES_MOST = 10
_REASON_MOST = 500
_MOVED = "received too often: moved by the queue's redrive policy"
_POINTERS = frozenset(
    {"software.amazon.payloadoffloading.PayloadS3Pointer", "com.amazon.sqs.javamessaging.MessageS3Pointer"}
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a delivery is answered with: the queue's handle for it, and the message for a dead letter."""

    handle: str
    message: Mapping[str, Any]


def delivery_of(message: Mapping[str, Any], policy: Policy, visibility: timedelta, traits: Traits) -> Delivery:
    """The delivery that a message is; what SQS counts are all its receives, whatever became of them.

    That it was never received before does not say that its job was not done: whoever sent it may have sent it twice,
    and a standard queue may hand it over twice at once.
    """
    received = max(receives_of(message), 1)
    most = min(policy.max_deliveries, traits.most_receives or policy.max_deliveries)
    return Delivery(
        id=job_id_of(message),
        body=body_of(message),
        visibility=visibility,
        receipt=Receipt(message["ReceiptHandle"], dict(message)),
        queued_at=sent_at(message),
        deliveries=received,
        redelivered=True if received > 1 or SEEN in message.get("MessageAttributes", {}) else None,
        last_delivery=received >= most,
        over_limit=received > policy.max_deliveries,
        attempts_most=policy.max_attempts,
        run=run_of(message),
    )


def job_id_of(message: Mapping[str, Any]) -> str:
    """What the sender calls the job beside its document, else the queue's own name for the message."""
    told = message.get("MessageAttributes", {}).get(ID, {}).get("StringValue")
    return usable_id(told) or str(message["MessageId"])


def run_of(message: Mapping[str, Any]) -> str:
    """The name of this sending of the message: not every service gives one that it moved back a new id."""
    return f"{message['MessageId']} {message.get('Attributes', {}).get('SentTimestamp', '')}".strip()


def body_of(message: Mapping[str, Any]) -> bytes:
    """The document, taken out of the envelope that SNS puts it into.

    Where Amazon's extended clients have put it into S3, what points at it there in our own way.
    """
    text: str = message.get("Body", "")
    if not (text.startswith("[") and len(text) < 4096) and '"TopicArn"' not in text:
        return text.encode()
    try:
        found = pydantic_core.from_json(text)
    except ValueError:
        return text.encode()
    match found:
        case [str(kind), {"s3BucketName": str(bucket), "s3Key": str(key)}] if kind in _POINTERS:
            return pydantic_core.to_json({"job_url": f"s3://{bucket}/{key}"})
        case {"Type": "Notification", "TopicArn": str(), "Message": str(inner)}:
            return inner.encode("utf-8", "surrogatepass")
    return text.encode()


def named(job_id: str) -> dict[str, Any]:
    """The attributes of a message for a job of this id."""
    return {ID: _text(job_id)}


def dead_letter(message: Mapping[str, Any], result: Result, *, fifo: bool, most: int) -> dict[str, Any]:
    """The message as it goes to the dead letters: as it came, with why it died as far as there is room.

    SQS takes ten attributes, and ``most`` bytes of them and the body; what the sender gave comes after ours.
    """
    error = result.error
    told = {
        ID: message.get("MessageAttributes", {}).get(ID, {}).get("StringValue"),
        CODE: job_code(result, dead=True),
        FAULT: error and str(error.fault),
        RECEIVES: str(receives_of(message)),
        WORKER: result.worker.id,
        REASON: error and NOT_TAKEN.sub("\N{REPLACEMENT CHARACTER}", error.message[:_REASON_MOST]),
    }
    said = {name: _text(value) for name, value in told.items() if value}
    room = most - len(message["Body"].encode())
    kept: dict[str, Any] = {}
    for name, value in (said | _without(message, *told)).items():
        if len(kept) < ATTRIBUTES_MOST and (size := _size(name, value)) <= room:
            kept[name], room = value, room - size
    return sent_again(message, kept) | (_grouped(message, message["MessageId"]) if fifo else {})


def _size(name: str, value: Mapping[str, Any]) -> int:
    """Bytes of an attribute, as SQS counts them."""
    text, data = value.get("StringValue", ""), value.get("BinaryValue", b"")
    return len(name) + len(value["DataType"]) + len(text.encode()) + len(data)


def revived(message: Mapping[str, Any], key: str, *, fifo: bool) -> dict[str, Any]:
    """A dead letter as it is put on the queue again; ``key``: a FIFO queue takes it once under each."""
    given = _without(message, CODE, FAULT, REASON, WORKER, RECEIVES)
    attributes = dict(list(given.items())[: ATTRIBUTES_MOST - 2]) | named(job_id_of(message)) | {SEEN: _text("yes")}
    return sent_again(message, attributes) | (_grouped(message, key) if fifo else {})


def _without(message: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in message.get("MessageAttributes", {}).items() if name not in names}


def sent_again(message: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a message with these attributes, as `SendMessage` takes it."""
    kept = {"StringValue", "BinaryValue", "DataType"}
    clean = {name: {k: v for k, v in value.items() if k in kept} for name, value in attributes.items()}
    return {"MessageBody": message["Body"]} | ({"MessageAttributes": clean} if clean else {})


def dead_state(message: Mapping[str, Any]) -> JobState:
    """What is known of a dead letter; one that SQS itself has moved says nothing, but was received too often."""
    given = {name: value.get("StringValue", "") for name, value in message.get("MessageAttributes", {}).items()}
    job_id, at = job_id_of(message), sent_at(message) or _EPOCH
    code, fault = given.get(CODE), given.get(FAULT)
    if code is None:
        code, fault = DeliveryLimit.code, str(DeliveryLimit.fault)
    result = None
    if fault in set(Fault):
        result = Result(
            id=job_id,
            status="failed",
            error=ErrorResult(code=code, message=given.get(REASON, _MOVED), retryable=False, fault=Fault(fault)),
            worker=WorkerResult(id=given.get(WORKER, ""), version=""),
            created_at=at,
            finished_at=at,
        )
    deliveries = given.get(RECEIVES, "")
    return JobState(
        id=job_id,
        status="dead",
        deliveries=int(deliveries) if deliveries.isdecimal() else receives_of(message),
        attempts=(),
        code=code,
        result=result,
    )


def receives_of(message: Mapping[str, Any]) -> int:
    return int(message.get("Attributes", {}).get("ApproximateReceiveCount", 0))


def sent_at(message: Mapping[str, Any]) -> datetime | None:
    """When it came to the queue, by SQS's clock."""
    sent = message.get("Attributes", {}).get("SentTimestamp")
    return None if sent is None else _EPOCH + timedelta(milliseconds=int(sent))


def _grouped(message: Mapping[str, Any], key: str) -> dict[str, str]:
    group = message.get("Attributes", {}).get("MessageGroupId") or message["MessageId"]
    return {"MessageGroupId": group, "MessageDeduplicationId": key}


def _text(value: str) -> dict[str, str]:
    return {"DataType": "String", "StringValue": value}
