"""The error tree: how a job may end badly, what its queue is told, and whom it is charged to.

WorkerError
├── JobRefused            rejected at once, the job is at fault
│   ├── InvalidJob          field errors
│   ├── ModelNotFound
│   ├── ModelForbidden      401 or 403 on a model URL that the job gave
│   ├── ModelTooLarge
│   ├── ModelInUse          by a job or the server, so that it cannot be removed now
│   ├── UrlForbidden
│   ├── UploadForbidden     401 or 403 on a URL that the job gave
│   ├── ResultTooLarge
│   ├── GenerationRejected  the server's own 4xx
│   ├── Expired
│   ├── IdConflict          dead letter without webhook or failure document
│   └── DeliveryLimit
├── OutputError           a 200 that is not the picture that was asked for; the canary tells whose fault
│   ├── OutputEmpty
│   ├── OutputMismatch
│   ├── OutputFlat
│   └── WrongModel
├── EngineFault           the image server failed
│   ├── EngineOutOfMemory
│   ├── EngineCrashed
│   ├── EngineStalled
│   ├── GpuFault
│   ├── NodeKilledOom       the whole node went, and said so at its next start
│   └── NodeCrashed
├── DependencyFailed      something outside the node
│   ├── DownloadFailed
│   ├── ModelCorrupt
│   ├── UploadFailed
│   ├── QueueUnavailable
│   └── WebhookFailed
├── JobTimedOut · JobCancelled · DiskFull · UnsupportedDocument · InternalError
├── ConfigError · AuthFailed      the operator's
└── Draining · ModelComing · LeaseLost      no fault at all
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Who caused it; public in result documents."""

    JOB = "job"
    NODE = "node"
    DEPENDENCY = "dependency"
    OPERATOR = "operator"
    BUG = "bug"


class Disposition(StrEnum):
    """What the queue is told of a delivery that ended with an error."""

    ACK = "ack"
    REJECT = "reject"
    NACK_CHARGED = "nack_charged"
    NACK = "nack"
    ABANDON = "abandon"


class Owner(StrEnum):
    """Who named the thing outside that failed: only what the operator configured pauses intake."""

    OPERATOR = "operator"
    JOB = "job"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class WorkerError(Exception):
    """Root of everything that the worker itself raises.

    ``fault`` and ``disposition`` are the class's defaults; where only the canary can tell whose fault
    it was, `blamed` sets them on the instance.
    """

    code: ClassVar[str] = "internal"
    fault: Fault = Fault.BUG
    disposition: Disposition = Disposition.NACK_CHARGED

    def __init_subclass__(cls) -> None:
        if "code" not in cls.__dict__:
            cls.code = _snake(cls.__name__)

    def __init__(self, message: str = "", *, retry_after: timedelta | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).strip().splitlines()[0])
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        return str(self)

    @property
    def retryable(self) -> bool:
        return self.disposition in (Disposition.NACK, Disposition.NACK_CHARGED)

    def blamed(self, fault: Fault, disposition: Disposition) -> WorkerError:
        """Set whose fault the canary found it to be; gives back the same error."""
        self.fault, self.disposition = fault, disposition
        return self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake in a document; ``field`` is a dotted path such as ``params.width``."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class JobRefused(WorkerError):
    """The job can never succeed as it is."""

    fault = Fault.JOB
    disposition = Disposition.REJECT


class InvalidJob(JobRefused):
    """The job document, or something that it names, is not valid."""

    def __init__(self, message: str = "", *, field: str = "", errors: tuple[FieldError, ...] = ()) -> None:
        self.errors = errors or (FieldError(field, message),)
        super().__init__("; ".join(map(str, self.errors)))


class ModelNotFound(JobRefused):
    """No such model, and no source has it."""


class ModelForbidden(JobRefused):
    """The URL of a model that the job gave answers 401 or 403."""


class ModelTooLarge(JobRefused):
    """The models that the job needs at once do not fit into the node's cache."""


class ModelInUse(JobRefused):
    """The model is being used, so that it cannot be removed now."""


class UrlForbidden(JobRefused):
    """A URL that the job names must not be visited."""


class UploadForbidden(JobRefused):
    """A URL that the job gave for uploading answered 401 or 403."""


class ResultTooLarge(JobRefused):
    """The result would exceed what inline storage allows."""


class GenerationRejected(JobRefused):
    """The image server refused the request."""


class Expired(JobRefused):
    """The job's deadline passed before it could be started."""


class IdConflict(JobRefused):
    """Another document was already done under this id."""


class DeliveryLimit(JobRefused):
    """The job was handed over too often without an end."""

    def __init__(self, message: str = "", *, fault: Fault = Fault.NODE) -> None:
        super().__init__(message)
        self.fault = fault


class OutputError(WorkerError):
    """The server answered 200, but not with the picture that was asked for."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class OutputEmpty(OutputError):
    """The server answered with no image, or with fewer than were asked for."""


class OutputMismatch(OutputError):
    """An image cannot be opened or has another size than was asked for."""


class OutputFlat(OutputError):
    """An image has one colour all over."""


class WrongModel(OutputError):
    """The server proves that another model than the one asked for was used."""


class EngineFault(WorkerError):
    """The image server failed."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class EngineOutOfMemory(EngineFault):
    """The image server ran out of memory."""

    code = "engine_oom"


class EngineCrashed(EngineFault):
    """The image server went away or broke."""

    code = "engine_lost"


class EngineStalled(EngineFault):
    """The image server makes no progress and does not react to an interrupt."""


class GpuFault(EngineFault):
    """The GPU is in a state from which only a new process recovers."""


class NodeKilledOom(EngineFault):
    """The node ran out of memory while the job was at work there."""


class NodeCrashed(EngineFault):
    """The worker of the node crashed while the job was at work there."""


def engine_fault(code: str) -> EngineFault:
    """The fault of this code. Raises `KeyError` for a code that is none's."""
    return {kind.code: kind for kind in EngineFault.__subclasses__()}[code]()


class DependencyFailed(WorkerError):
    """Something outside the node failed; ``owner`` says who named it."""

    fault = Fault.DEPENDENCY
    disposition = Disposition.NACK

    def __init__(
        self, message: str = "", *, owner: Owner = Owner.OPERATOR, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.owner = owner


class DownloadFailed(DependencyFailed):
    """An input or document could not be fetched."""


class ModelCorrupt(DependencyFailed):
    """What came is not the model that was asked for."""


class UploadFailed(DependencyFailed):
    """An image or document could not be stored."""


class QueueUnavailable(DependencyFailed):
    """The queue does not answer."""


class WebhookFailed(DependencyFailed):
    """The receiver of a webhook did not take it within the budget."""


class AuthFailed(DependencyFailed):
    """Credentials that the operator configured are refused."""

    fault = Fault.OPERATOR


class JobTimedOut(WorkerError):
    """The generation took longer than the job's timeout."""

    code = "job_timeout"
    fault = Fault.JOB
    disposition = Disposition.NACK_CHARGED


class JobCancelled(WorkerError):
    """The job was cancelled by its owner."""

    code = "cancelled"
    fault = Fault.JOB
    disposition = Disposition.ACK


class DiskFull(WorkerError):
    """No space is left on the node's disk."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class UnsupportedDocument(WorkerError):
    """The document has a version that this worker does not know; a newer one may."""

    fault = Fault.OPERATOR
    disposition = Disposition.NACK


class ConfigError(WorkerError):
    """The configuration is wrong; carries every mistake."""

    fault = Fault.OPERATOR
    disposition = Disposition.NACK

    def __init__(self, mistakes: tuple[FieldError, ...] | str) -> None:
        self.mistakes = (FieldError("", mistakes),) if isinstance(mistakes, str) else mistakes
        super().__init__("\n".join(map(str, self.mistakes)))


class InternalError(WorkerError):
    """A bug in the worker; the traceback is in its log."""

    code = "internal"


class Draining(WorkerError):
    """The worker is being stopped and gives its jobs back."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class ModelComing(WorkerError):
    """The job's models take too long to come: it is handed over again when they may be here."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class LeaseLost(WorkerError):
    """The queue says that the delivery is no longer ours: nothing may be settled."""

    fault = Fault.NODE
    disposition = Disposition.ABANDON


ENGINE_FAULT_CODES = frozenset({"engine_lost", "engine_stalled", "gpu_fault", "node_killed_oom", "node_crashed"})
"""Codes that are charged to a job from the second different node on."""

UNRECEIVED = "unreceived"
"""The end of a hand-over that came when nobody waited for it any more: nobody ever knew of the job."""

UNCOUNTED_CODES = frozenset({"draining", "model_coming", "unsupported_document", UNRECEIVED, "webhook_undelivered"})
"""Ends that do not count as hand-overs against the delivery limit, where the queue can tell."""
