"""Ids, secrets and signatures of the Standard Webhooks specification, without any sending."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

import pydantic_core

_KEY_BYTES = range(24, 65)


def webhook_id(event: str, job_id: str, sequence: int | None = None) -> str:
    """``<event>_<32 hex of sha256(job id)>``, with a sequence number for events that come more than once."""
    base = f"{event}_{hashlib.sha256(job_id.encode()).hexdigest()[:32]}"
    return base if sequence is None else f"{base}_{sequence}"


def signature(secrets: tuple[bytes, ...], id: str, timestamp: str, body: bytes) -> str:
    """``v1,<base64 HMAC-SHA256 of id.timestamp.body>`` for each secret, separated by blanks."""
    signed = b".".join((id.encode(), timestamp.encode(), body))
    digests = (hmac.digest(key, signed, "sha256") for key in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def decode_secrets(text: str) -> tuple[bytes, ...]:
    """The keys of ``whsec_`` secrets separated by blanks; `ValueError` without any value in it."""
    return tuple(_decoded(secret) for secret in text.split())


def _decoded(secret: str) -> bytes:
    try:
        if not secret.startswith("whsec_"):
            raise binascii.Error
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is `whsec_` and base64") from None
    if len(key) not in _KEY_BYTES:
        raise ValueError("a secret has 24 to 64 bytes in base64")
    return key


def read_secrets(path: Path) -> dict[str, tuple[bytes, ...]]:
    """The secrets file: a JSON object of names to secrets, several for one name separated by blanks."""
    try:
        document = pydantic_core.from_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("is not JSON") from None
    if not isinstance(document, dict) or not all(isinstance(text, str) and text.split() for text in document.values()):
        raise ValueError("must be a JSON object of names to secrets")
    try:
        return {name: decode_secrets(text) for name, text in document.items()}
    except ValueError as mistake:
        raise ValueError(f"holds something else than secrets: {mistake}") from None
