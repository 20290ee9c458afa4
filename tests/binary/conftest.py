"""The real file, unpacked once for all tests: `dist/sd-worker`, which `make test-binary` builds first, or the one that
`SD_WORKER_BINARY` names. Needs root, for other users and roots, and debootstrap."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Binary:
    """``home`` is the folder that the file unpacked into ``base``, as root at an image's build would."""

    path: Path
    base: Path

    @property
    def home(self) -> Path:
        (home,) = self.base.iterdir()
        return home

    @property
    def program(self) -> Path:
        return self.home / "bin" / "sd-worker"

    @property
    def glibc(self) -> str:
        """What the file says that it needs."""
        line = next(line for line in self.path.read_bytes().splitlines() if line.startswith(b"GLIBC="))
        return line.removeprefix(b"GLIBC=").decode()

    def environment(self, **more: str) -> dict[str, str]:
        """Of an image that sets nothing else, HOME neither."""
        return {"PATH": os.environ["PATH"], "SD_WORKER_BUNDLE_DIR": str(self.base), **more}

    def python(self, code: str) -> str:
        """What the Python within prints."""
        return subprocess.run([self.program, "-I", "-c", code], check=True, capture_output=True, text=True).stdout

    def apart(self, mounts: str, *command: object, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command where these mounts are made for it alone."""
        words = ["unshare", "--mount", "sh", "-ec", f'{mounts}\nexec "$@"', "sh", *map(str, command)]
        return subprocess.run(words, env=self.environment(**more), capture_output=True, text=True)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    made = Path(tempfile.mkdtemp(prefix="sd-worker-binary-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def binary(folder: Path) -> Binary:
    path = shutil.copy2(os.environ.get("SD_WORKER_BINARY", ROOT / "dist" / "sd-worker"), folder / "sd-worker")
    built = Binary(Path(path), folder / "base")
    subprocess.run([path, "version"], env=built.environment(), check=True)
    return built
