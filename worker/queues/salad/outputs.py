"""What the platform keeps as the output of a job that is over."""

from __future__ import annotations

from worker.errors import InternalError, ResultTooLarge, WorkerError
from worker.queues.policy import without_images
from worker.queues.salad.service import OutputRefused
from worker.result import ErrorResult, Result


def output_of(result: Result) -> bytes:
    """The result document, images that stand in it included."""
    return result.to_json()


def instead_of(result: Result, error: WorkerError) -> bytes:
    """The result that says why the service does not have the one that was to be its output.

    Without the images that stood in that; those that were stored, it still names.
    """
    told = ErrorResult(code=error.code, message=error.message, retryable=False, fault=error.fault)
    return without_images(result).model_copy(update={"status": "failed", "error": told}).to_json()


def refused(refusal: OutputRefused) -> WorkerError:
    """What the service's refusal means for the job's owner."""
    if refusal.too_large:
        return ResultTooLarge(f"the job queue takes no output of more than 10 MiB: {refusal.message}")
    return InternalError(f"the job queue does not take this output: {refusal.message}")
