"""Images and containers, in a storage of their own, by buildah."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD_S = 600


class NotBuilt(Exception):
    """A build that ended; its text is what it printed."""


@dataclass(frozen=True)
class Store:
    """``folder`` holds everything and is kept between runs; ``driver`` is one that works there."""

    folder: Path
    driver: str

    def run(self, *words: str) -> str:
        """What a buildah command prints. Raises `NotBuilt`."""
        place = ("--root", f"{self.folder}/{self.driver}", "--runroot", f"{self.folder}/run-{self.driver}")
        command = ["buildah", *place, "--storage-driver", self.driver, *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_S)
        if done.returncode:
            raise NotBuilt(done.stdout)
        return done.stdout.strip()

    def build(self, tag: str, dockerfile: Path, *options: str, arguments: Mapping[str, str] | None = None) -> str:
        """Build an image from this checkout without any registry; what was printed. Raises `NotBuilt`."""
        given = [word for name, value in (arguments or {}).items() for word in ("--build-arg", f"{name}={value}")]
        offline = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--layers=false")
        return self.run("bud", *offline, *given, *options, "-f", str(dockerfile), "-t", tag, str(ROOT))

    def write(self, tag: str, dockerfile: str) -> str:
        """Build an image from the text of a Dockerfile, with the whole checkout as its context."""
        path, ignored = self.folder / "Dockerfile", self.folder / "none.ignore"
        path.write_text(dockerfile)
        ignored.write_text(".git\n.venv*\n")
        return self.build(tag, path, "--ignorefile", str(ignored))

    def has(self, tag: str) -> bool:
        try:
            self.run("inspect", "--type", "image", tag)
        except NotBuilt:
            return False
        return True

    def config(self, tag: str) -> dict[str, Any]:
        """What an image says of how it is run, in Docker's words."""
        found: dict[str, Any] = self._inspected(tag)["Docker"]["config"]
        return found

    def layers(self, tag: str) -> list[int]:
        """The bytes of each layer, the base's first."""
        manifest = json.loads(self._inspected(tag)["Manifest"])
        return [layer["size"] for layer in manifest["layers"]]

    def history(self, tag: str) -> str:
        """All that the image tells of how it was made."""
        return json.dumps(self._inspected(tag)["Docker"])

    def _inspected(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", tag))
        return found

    def tidy(self, keep: str) -> None:
        """Remove every container, and every image but one."""
        self.run("rm", "--all")
        for row in json.loads(self.run("images", "--json") or "[]") or []:
            if not any(name.startswith(keep) for name in row["names"] or []):
                self.run("rmi", "--force", row["id"])
