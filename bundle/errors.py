"""The one error of a build."""

from __future__ import annotations


class BuildError(Exception):
    """The file cannot be built here, and why."""
