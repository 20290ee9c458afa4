"""`sd-worker version`."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer


def version(
    licenses: Annotated[
        bool, typer.Option("--licenses", help="Print the licences of everything that the binary carries.")
    ] = False,
) -> None:
    """Print the version, Python's and the platform."""
    from importlib.metadata import version as version_of

    if licenses:
        print(notices(Path(sys.prefix)))
        return
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"sd-worker {version_of('sd-worker')}, {python}, {platform.platform()}")


def notices(home: Path) -> str:
    """The licences that `make binary` put beside its Python; where there are none, where to look."""
    carried = home / "NOTICES"
    if carried.is_file():
        return carried.read_text().rstrip()
    return f"This is no binary: each package under {home} has its licence in its own .dist-info folder."
