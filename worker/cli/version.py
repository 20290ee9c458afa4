"""`sd-worker version`."""

from __future__ import annotations

import platform


def version() -> None:
    """Print the version, Python's and the platform."""
    from importlib.metadata import version as version_of

    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"sd-worker {version_of('sd-worker')}, {python}, {platform.platform()}")
