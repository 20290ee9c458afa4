"""The worker and its locked dependencies, laid into the copied Python, less what a worker never reads."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bundle.errors import BuildError
from bundle.interpreter import output, packages, program

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"

SERVICES = {"boto3": ("s3", "sqs"), "botocore": ("s3", "signin", "sqs", "sso", "sso-oidc", "sts")}
"""Of the AWS libraries' data (25 MB compressed) only what our clients and the credential chain load."""

UNUSED = ("bin", "dispatcher")
"""Scripts that would start with the building machine's Python, and the scheduling service, no part of a node."""


def install(folder: Path) -> Path:
    """Lay the worker into this Python, compiled, and say where its packages are. Raises `BuildError`.

    The byte code is never checked against its source, so the times of the files mean nothing.
    """
    there = packages(folder)
    if not there.is_relative_to(folder):
        raise BuildError(f"this Python takes its packages from {there}, outside of its own folder")
    _pip("--require-hashes", "--only-binary=:all:", "-r", str(LOCK), "--target", str(there))
    _pip("--no-build-isolation", str(HERE.parent), "--target", str(there))
    for name in UNUSED:
        shutil.rmtree(there / name, ignore_errors=True)
    for library, services in SERVICES.items():
        prune(there / library / "data", services)
    for stale in [*there.glob("*.dist-info/RECORD"), *there.glob("*.dist-info/direct_url.json")]:
        stale.unlink()
    output(program(folder), "-I", "-m", "compileall", "-qq", "-f", "--invalidation-mode", "unchecked-hash", str(folder))
    return there


def prune(data: Path, services: tuple[str, ...]) -> None:
    """Leave only these services in a folder of AWS service descriptions. Raises `BuildError` if one is missing."""
    if missing := [name for name in services if not (data / name).is_dir()]:
        raise BuildError(f"{data} has no {', '.join(missing)}: has the library's layout changed?")
    for entry in data.iterdir():
        if entry.is_dir() and entry.name not in services:
            shutil.rmtree(entry)


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps", "--upgrade")
    output(sys.executable, "-m", "pip", "install", *quiet, *arguments)
