"""Custom workflows: files of the operator's that make job documents of inputs."""

from worker.workflows.base import Defect, Described, Workflow, WorkflowBroken, WorkflowFailed, is_name
from worker.workflows.folder import load, tell
from worker.workflows.workflows import Workflows

__all__ = [
    "Defect",
    "Described",
    "Workflow",
    "WorkflowBroken",
    "WorkflowFailed",
    "Workflows",
    "is_name",
    "load",
    "tell",
]
