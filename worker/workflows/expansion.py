"""From a job that names a workflow, and the document that this made, to the job that is done. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from worker.errors import FieldError, InvalidJob
from worker.job import Job, Limits, check_limits, field_errors
from worker.workflows.base import WorkflowFailed

CALLERS = ("webhook", "priority")
"""What only the job itself may say."""

CALLERS_OUTPUT = ("storage", "prefix", "upload_urls", "result_urls")
"""So that a success can be found again whatever becomes of the workflow."""

_WINS = ("checkpoint", "timeout", "deadline", "metadata", "webhook", "priority")

INPUT = "template.input"


def expanded(job: Job, document: dict[str, Any], limits: Limits, origin: Callable[[str], str | None]) -> Job:
    """The job with the workflow's document in the place of its template; what the job itself says wins.

    Id and digest stay the job's own. Raises `InvalidJob` where a part of the input is wrong, or the job asks for more
    than one may; `WorkflowFailed` where the document is.
    """
    wrong = tuple(_forbidden(document))
    if wrong:
        raise _failed(wrong)
    try:
        made = Job.model_validate(_joined(job, document))
    except ValidationError as error:
        found = field_errors(error)
        given = tuple(_traced(found, origin))
        raise (InvalidJob(errors=given) if given else _failed(found)) from None
    try:
        check_limits(made, limits)
    except InvalidJob as error:
        raise InvalidJob(errors=tuple(_traced(error.errors, origin)) or error.errors) from None
    return made


def _forbidden(document: dict[str, Any]) -> Iterator[FieldError]:
    output = document.get("output")
    here = [name for name in (*CALLERS, "template") if name in document]
    here += [f"output.{name}" for name in CALLERS_OUTPUT if isinstance(output, dict) and name in output]
    for name in here:
        yield FieldError(name, "is not for a workflow to say")


def _joined(job: Job, document: dict[str, Any]) -> dict[str, Any]:
    said = {name: getattr(job, name) for name in _WINS if name in job.model_fields_set}
    joined = {**document, **said, "id": job.id, "sha256": job.sha256}
    output, models = document.get("output", {}), document.get("models", [])
    if isinstance(output, dict):
        joined["output"] = {**output, **job.output.model_dump(exclude_unset=True)}
    if isinstance(models, list) and job.models:
        ours = {(ref.kind, ref.name) for ref in job.models}
        others = [ref for ref in models if not (isinstance(ref, dict) and (ref.get("kind"), ref.get("name")) in ours)]
        joined["models"] = [*others, *job.models]
    return joined


def _traced(errors: tuple[FieldError, ...], origin: Callable[[str], str | None]) -> Iterator[FieldError]:
    """Those mistakes that stand where a part of the input does, under its name."""
    for error in errors:
        name = origin(error.field)
        if name is not None:
            yield FieldError(f"{INPUT}.{name}", error.message)


def _failed(errors: tuple[FieldError, ...]) -> WorkflowFailed:
    return WorkflowFailed(f"made no job document: {'; '.join(map(str, errors))}")
