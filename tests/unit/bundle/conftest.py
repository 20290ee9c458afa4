"""A binary with a shell script for a program, so that the stub is tried in milliseconds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundle import archive

PROGRAM = """#!/bin/sh
# Told by "-c" to rename a folder, it does what Python would; else it says what it was given.
if [ "$2" = -c ]; then exec mv -T -n "$4" "$5"; fi
echo "pid=$$"
echo "umask=$(umask)"
echo "bundle=${SD_WORKER_BUNDLE_DIR-unset}"
printf descriptors=
ls -m /proc/self/fd
for argument in "$@"; do printf 'argument=[%s]\\n' "$argument"; done
exit "${ENDS:-0}"
"""


@dataclass(frozen=True)
class Stub:
    """A built file, and where it unpacks. ``root`` stands for /opt/sd-worker."""

    path: Path
    base: Path
    root: Path

    @property
    def home(self) -> Path:
        """Where the program lies once it is unpacked."""
        return self.base / self.name

    @property
    def name(self) -> str:
        line = next(line for line in self.path.read_bytes().splitlines() if line.startswith(b"NAME="))
        return line.removeprefix(b"NAME=").decode()

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "SD_WORKER_BUNDLE_DIR": str(self.base), **more}

    def start(self, *arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.path, *arguments],
            env=self.environment() if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, environ=environ) as process:
            out, err = process.communicate()
        assert process.returncode == code, out + err
        return subprocess.CompletedProcess(self.path, process.returncode, out, err)


def build(folder: Path, program: str = PROGRAM, loader: str = "/bin/sh") -> Stub:
    """Pack this program as `make binary` packs a Python."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True, exist_ok=True)
    (tree / "bin" / "sd-worker").write_text(program)
    (tree / "bin" / "sd-worker").chmod(0o755)
    (tree / "NOTICES").write_bytes(os.urandom(20_000))
    archive.pack(tree, folder / "payload")
    root = folder / "opt" / "sd-worker"
    facts = {"ROOT_BASE": str(root), "LOADER": loader, "GLIBC": "2.31", "MEGABYTES": "120", "VERSION": "1.2.3"}
    archive.write(folder / "sd-worker", folder / "payload", facts)
    return Stub(folder / "sd-worker", folder / "base", root)


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return build(tmp_path)
