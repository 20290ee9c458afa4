"""Signatures against the public Standard Webhooks package, as a receiver would check them."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from worker.job import ID
from worker.signature import decode_secrets, signature, webhook_id

KEYS = st.binary(min_size=24, max_size=64)
BODIES = st.text(st.characters(codec="utf-8"), max_size=400).map(str.encode)
IDS = st.from_regex(ID, fullmatch=True)


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def headers_of(keys: list[bytes], id: str, body: bytes) -> dict[str, str]:
    timestamp = str(int(datetime.now(UTC).timestamp()))
    secrets = decode_secrets(" ".join(map(secret_of, keys)))
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(secrets, id, timestamp, body),
    }


@given(keys=st.lists(KEYS, min_size=1, max_size=3), job_id=IDS, body=BODIES)
def test_every_secret_verifies_every_body(keys: list[bytes], job_id: str, body: bytes) -> None:
    """Whatever id and body, the public package accepts with each of the secrets."""
    headers = headers_of(keys, webhook_id("succeeded", job_id), body)
    for key in keys:
        Webhook(secret_of(key)).verify(body, headers, json_parse=False)


@given(key=KEYS, job_id=IDS, body=BODIES, changed=st.sampled_from(["body", "id", "timestamp", "key"]))
def test_nothing_signed_can_be_changed(key: bytes, job_id: str, body: bytes, changed: str) -> None:
    """Another body, id, timestamp or key, and the signature no longer holds."""
    headers = headers_of([key], webhook_id("failed", job_id), body)
    match changed:
        case "body":
            body += b"."
        case "id":
            headers["webhook-id"] += "0"
        case "timestamp":
            headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) - 1)
        case "key":
            key = bytes([key[0] ^ 1]) + key[1:]
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(key)).verify(body, headers, json_parse=False)


@given(job_id=IDS, other=IDS, sequence=st.integers(0, 2**40))
def test_ids_tell_jobs_events_and_progress_apart(job_id: str, other: str, sequence: int) -> None:
    """An id depends on event, job and sequence alone, has the documented form, and differs between jobs."""
    plain, numbered = webhook_id("progress", job_id), webhook_id("progress", job_id, sequence)
    assert re.fullmatch(r"progress_[0-9a-f]{32}", plain)
    assert numbered == f"{plain}_{sequence}"
    assert (webhook_id("progress", other) == plain) is (job_id == other)
    assert webhook_id("started", job_id) != plain


@pytest.mark.parametrize("size", [0, 1, 23, 65])
def test_secrets_of_another_size_are_refused(size: int) -> None:
    """Fewer than 24 bytes are guessed, more than 64 are none by the specification."""
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        decode_secrets(secret_of(bytes(size)))


@pytest.mark.parametrize("text", ["hunter2", "whsec_hunter2!", "WHSEC_" + "QUJD" * 8, "whsec_ü"])
def test_what_is_no_secret_is_refused_without_being_shown(text: str) -> None:
    """The prefix and strict base64 are required, and the message never holds the value."""
    with pytest.raises(ValueError, match="whsec_") as caught:
        decode_secrets(text)
    assert "hunter2" not in str(caught.value)


def test_no_secret_is_no_signature() -> None:
    """An empty setting decodes to no keys, and no keys sign nothing."""
    assert decode_secrets(" ") == ()
    assert signature((), "id", "1", b"body") == ""
