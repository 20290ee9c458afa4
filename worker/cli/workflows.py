"""What `sd-worker check` finds of the custom workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator

from worker.cli.local import Finding
from worker.settings.groups import Settings


async def findings(settings: Settings) -> AsyncIterator[Finding]:
    """A line for each file that cannot be used, and one for all the others; nothing where there are none."""
    from worker.workflows import load

    workflows = await load(settings.http.workflows_dir)
    for defect in workflows.broken.values():
        if defect not in workflows.notes:
            yield Finding.failed(str(defect))
    for note in workflows.notes:
        yield Finding.note(str(note))
    if names := [workflow.described.name for workflow in workflows]:
        yield Finding.ok(f"{', '.join(names)} in {settings.http.workflows_dir}")
