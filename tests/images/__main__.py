"""`make test-images`: all four images, built and run on stand-ins for their bases.

Where that cannot be done it says so in one line, and is no failure.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.images.bases import BASES, BUILDER, BUILDER_DOCKERFILE, STANDINS
from tests.images.roots import cache, hindrance, opened, prepare
from tests.images.store import ROOT, NotBuilt

BINARY = ROOT / "dist/sd-worker"
SOURCES = ("bundle", "worker", "pyproject.toml", "Makefile")

HALVES = ("a1111 or comfyui", "not (a1111 or comfyui)")
"""Tests of different images run side by side, each process in a network of its own."""


def main(arguments: Sequence[str]) -> int:
    if (why := hindrance()) is not None:
        return _not_run(why)
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        began = time.monotonic()
        try:
            store = opened()
            prepare(store)
        except NotBuilt as error:
            return _not_run(str(error))
        print(f"test-images: a Debian to stand on, {time.monotonic() - began:.0f} s", flush=True)
        if not _is_fresh(BINARY):
            subprocess.run(["make", "binary"], cwd=ROOT, check=True)
        print(f"test-images: the binary, {time.monotonic() - began:.0f} s", flush=True)
        store.tidy(keep=STANDINS)
        for tag, dockerfile in {
            BUILDER: BUILDER_DOCKERFILE,
            **{one.tag: one.dockerfile for one in BASES.values()},
        }.items():
            store.write(tag, dockerfile)
        print(f"test-images: the bases, {time.monotonic() - began:.0f} s", flush=True)
        try:
            return _tested(arguments)
        finally:
            store.tidy(keep=STANDINS)
            print(f"test-images: {time.monotonic() - began:.0f} s", flush=True)


def _tested(arguments: Sequence[str]) -> int:
    """Run the tests, in two processes unless some were chosen; the worse exit code."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--show-capture=no", "-m", "images", "tests/images"]
    if arguments:
        return subprocess.run([*pytest, *arguments], cwd=ROOT).returncode
    running = [
        subprocess.Popen([*pytest, "-k", half], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for half in HALVES
    ]
    for process in running:
        print(process.communicate()[0], flush=True)
    return max(process.returncode for process in running)


def _not_run(why: str) -> int:
    print(f"test-images: not run: {why}", flush=True)
    return 0


def _is_fresh(binary: Path) -> bool:
    """Whether it is younger than all that it is made of."""
    if not binary.exists():
        return False
    built = binary.stat().st_mtime
    return all(path.stat().st_mtime <= built for source in SOURCES for path in _files(ROOT / source))


def _files(source: Path) -> Iterator[Path]:
    yield from (
        (path for path in source.rglob("*") if path.suffix != ".pyc" and path.is_file())
        if source.is_dir()
        else [source]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
