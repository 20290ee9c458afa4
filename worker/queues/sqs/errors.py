"""What SQS means by its refusals. Pure.

A code comes with or without the ``AWS.SimpleQueueService.`` of the older protocol. The service itself tells a receipt
that is of no use any more as ``InvalidParameterValue`` and says why in words alone.
"""

from __future__ import annotations

from worker.aws import Refusal
from worker.errors import AuthFailed, ConfigError, FieldError, LeaseLost, QueueUnavailable, WorkerError

VARIABLE = "WORKER_SQS_QUEUE_URL"

NO_QUEUE = frozenset(
    {"InvalidAddress", "NonExistentQueue", "QueueDeletedRecently", "QueueDoesNotExist", "UnsupportedOperation"}
)
FORBIDDEN = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "InvalidSecurity",
        "KmsAccessDenied",
        "KmsDisabled",
        "KmsInvalidKeyUsage",
        "KmsInvalidState",
        "KmsNotFound",
        "KmsOptInRequired",
        "OptInRequired",
    }
)
LOST = frozenset({"InvalidIdFormat", "MessageNotInflight", "ReceiptHandleIsInvalid"})
_VAGUE = frozenset({"InvalidParameterValue", "InvalidParameterValueException"})
_OF_RECEIPT = ("receipthandle", "receipt handle", "visibility timeout change")
_BUSY = frozenset({"KmsThrottled", "OverLimit", "RequestThrottled", "Throttling", "ThrottlingException"})


class QueueRefused(AuthFailed, QueueUnavailable):
    """SQS refuses our credentials, or what they are to be used for: paused until the operator has mended it."""

    code = AuthFailed.code


class QueueGone(ConfigError, QueueUnavailable):
    """There is no such queue: paused until the operator has mended it."""

    code = ConfigError.code

    def __init__(self, message: str) -> None:
        ConfigError.__init__(self, (FieldError(VARIABLE, message),))


def plain(code: str) -> str:
    """The code without its namespace."""
    return code.rpartition(".")[2]


def is_lost(refusal: Refusal) -> bool:
    """Whether the message is not ours any more: deleted, visible, or in other hands."""
    code = plain(refusal.code)
    said = refusal.message.lower()
    return code in LOST or (code in _VAGUE and any(word in said for word in _OF_RECEIPT))


def is_forbidden(refusal: Refusal) -> bool:
    """Whether it refuses who we are or what we may do."""
    code = plain(refusal.code)
    return refusal.of_credentials or code in FORBIDDEN or (refusal.status == 403 and code not in _BUSY)


def is_passing(refusal: Refusal) -> bool:
    """Whether the same may be granted later, without anybody doing anything about it."""
    return (
        plain(refusal.code) in _BUSY or refusal.status == 429 or (refusal.status >= 500 and not is_forbidden(refusal))
    )


def error_of(refusal: Refusal, place: str, *, held: bool = False) -> WorkerError:
    """The error that a refusal is; ``held`` where it was asked for a message that we hold."""
    said = f"{place}: {refusal}"
    code = plain(refusal.code)
    if code in NO_QUEUE:
        return QueueGone(f"names no queue that can be used ({refusal})")
    if held and is_lost(refusal):
        return LeaseLost(said)
    if is_forbidden(refusal):
        return QueueRefused(said)
    return QueueUnavailable(said, retry_after=refusal.retry_after)
