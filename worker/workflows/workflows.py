"""The custom workflows of this worker: found by name, asked about an input, and put in the place of a template."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import structlog

from worker.errors import FieldError, InvalidJob
from worker.job import Job, Limits, Template
from worker.workflows.base import Defect, Workflow, WorkflowBroken, WorkflowFailed
from worker.workflows.expansion import INPUT, expanded
from worker.workflows.workshop import Overdue, Raised, Stuck, Workshop

log = structlog.get_logger()
T = TypeVar("T")

BUILD_LIMIT_S = 2.0


class Workflows:
    """Those of a folder. ``broken`` have a file that cannot be used; ``notes`` tell of files that are none at all."""

    def __init__(
        self,
        found: Sequence[Workflow] = (),
        *,
        root: Path = Path(),
        broken: Mapping[str, Defect] | None = None,
        notes: Sequence[Defect] = (),
        workshop: Workshop | None = None,
        limit_s: float = BUILD_LIMIT_S,
    ) -> None:
        self._found = {workflow.described.name: workflow for workflow in found}
        self.root = root
        self._workshop = workshop or Workshop()
        self._limit_s = limit_s
        self.broken: Mapping[str, Defect] = dict(broken or {})
        self.notes = tuple(notes)

    def __iter__(self) -> Iterator[Workflow]:
        """Those that can be used, by name."""
        return iter(sorted(self._found.values(), key=lambda workflow: workflow.described.name))

    def __contains__(self, name: str) -> bool:
        """Whether there is one of this name, usable or broken."""
        return name in self._found or name in self.broken

    def find(self, name: str) -> Workflow:
        """Raises `WorkflowBroken`, and `InvalidJob` where there is none of this name."""
        if name in self.broken:
            defect = self.broken[name]
            said = str(defect) if defect in self.notes else f"{defect.place} is broken (the log says how)"
            raise WorkflowBroken(f"the workflow {name} cannot be used: {said}")
        if name not in self._found:
            raise InvalidJob("no workflow of this name is here", field="template.name")
        return self._found[name]

    async def check(self, name: str, given: Mapping[str, Any], *, field: str = INPUT) -> None:
        """Raise `InvalidJob` naming parts of ``field`` for an input that the workflow does not take; and as `find`."""
        workflow = self.find(name)
        await self._run(name, lambda: workflow.check(given), field)

    async def expanded(self, job: Job, limits: Limits) -> Job:
        """The job itself where it names no workflow, else what this makes of it, as `expansion.expanded`.

        Raises as `check` does, and `WorkflowFailed`.
        """
        if job.template is None:
            return job
        return (await self._made(job, job.template, limits))[1]

    async def document(self, job: Job, limits: Limits) -> dict[str, Any]:
        """What the workflow that a job names makes of its input: a job document that holds. Raises as `expanded`."""
        if job.template is None:
            raise ValueError("the job names no workflow")
        return (await self._made(job, job.template, limits))[0]

    async def _made(self, job: Job, template: Template, limits: Limits) -> tuple[dict[str, Any], Job]:
        name, given = template.name, template.input
        workflow = self.find(name)
        document = await self._run(name, lambda: workflow.build(given), INPUT)
        try:
            return document, expanded(job, document, limits, workflow.origin)
        except WorkflowFailed as error:
            raise self._failed(name, error.message) from None

    async def _run(self, name: str, call: Callable[[], T], field: str) -> T:
        try:
            return await self._workshop.run(name, call, limit_s=self._limit_s)
        except InvalidJob as error:
            named = (FieldError(f"{field}.{e.field}".rstrip("."), e.message) for e in error.errors)
            raise InvalidJob(errors=tuple(named)) from None
        except WorkflowFailed as error:
            raise self._failed(name, error.message) from None
        except Overdue:
            raise self._failed(name, f"took longer than {self._limit_s:g} s") from None
        except Stuck:
            raise self._failed(name, "earlier calls still hang") from None
        except Raised as raised:
            place = place_of(raised.error, self.root)
            at = f"{place.file}:{place.line}" if place is not None else name
            said = f"{type(raised.error).__name__} at {at} (the worker's log has the traceback)"
            raise self._failed(name, said, raised.error) from None

    def _failed(self, name: str, said: str, error: BaseException | None = None) -> WorkflowFailed:
        """What its caller is told; the log is told where in the file."""
        log.error("workflow_failed", workflow=name, error=said, exc_info=error)
        return WorkflowFailed(f"the workflow {name} failed: {said}")


def place_of(error: BaseException, root: Path) -> Defect | None:
    """The last line of a file below ``root`` that an error came through; what stands there cannot be parsed, for a
    `SyntaxError`."""
    folder = str(root.absolute())
    found: tuple[str, int | None] | None = None
    said = str(error)
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).absolute().is_relative_to(folder):
            found = frame.filename, frame.lineno
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).absolute().is_relative_to(folder):
        found, said = (error.filename, error.lineno), error.msg
    if found is None:
        return None
    file = Path(found[0]).absolute().relative_to(folder).as_posix()
    return Defect(file, found[1], f"{type(error).__name__}: {said}")
