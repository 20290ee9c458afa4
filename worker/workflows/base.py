"""What a custom workflow is to its callers, and how one can be of no use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from worker.errors import Disposition, Fault, WorkerError

_SEGMENT = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_name(text: str) -> bool:
    """Whether this can name a workflow: its path below the folder of workflows, without the extension."""
    return _NAME.fullmatch(text) is not None and ".." not in text


@dataclass(frozen=True, slots=True)
class Described:
    """What a caller has to know. ``schema`` is the input's, by JSON Schema 2020-12; ``example`` is an input that it
    takes, None where nobody gave one and none can be told from the schema."""

    name: str
    summary: str
    description: str
    schema: dict[str, Any]
    example: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Defect:
    """What keeps a file from being of use; ``file`` is its path below the folder of workflows."""

    file: str
    line: int | None
    message: str

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class Workflow(Protocol):
    """One that can be used. Both methods may run the operator's own code, so they are called beside the event loop.

    An `InvalidJob` of theirs names fields of the input (``steps``, ``colours.0``).
    """

    @property
    def described(self) -> Described: ...

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `InvalidJob` for an input that it does not take."""

    def build(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The job document that an input comes to. Raises `InvalidJob` as `check`, and `WorkflowFailed`."""

    def origin(self, field: str) -> str | None:
        """The part of the input that stands in this place of the document unchanged, where one can be told."""


class WorkflowBroken(WorkerError):
    """The workflow's file cannot be used."""

    fault = Fault.OPERATOR
    disposition = Disposition.REJECT


class WorkflowFailed(WorkerError):
    """The workflow made no job of its input."""

    fault = Fault.OPERATOR
    disposition = Disposition.REJECT


class Unusable(Exception):
    """A file that is no workflow, with the line that shows it where there is one."""

    def __init__(self, message: str, *, line: int | None = None, schema: bool = False) -> None:
        super().__init__(message)
        self.line = line
        self.schema = schema
