"""The repository's Dockerfiles, read as far as tests ask about them."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINES = ("a1111", "comfyui", "fooocus", "sdnext")


@dataclass(frozen=True)
class Dockerfile:
    """Its instructions in order, as (name, the rest in one line)."""

    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [rest for one, rest in self.instructions if one == name]

    def last(self, name: str) -> str:
        return self.all(name)[-1]

    def words(self, name: str) -> list[str]:
        """The last instruction of this name in its exec form."""
        found: list[str] = json.loads(self.last(name))
        return found

    def variables(self, name: str) -> dict[str, str]:
        """All that the instructions of this name, ENV or LABEL, set."""
        pairs = (word.partition("=") for rest in self.all(name) for word in shlex.split(rest))
        return {key: value for key, _, value in pairs}

    def arguments(self) -> dict[str, str]:
        """The defaults of the build arguments that have one."""
        pairs = (rest.partition("=") for rest in self.all("ARG") if "=" in rest)
        return {key: value.strip('"') for key, _, value in pairs}


def dockerfile(engine: str) -> Dockerfile:
    text = (ROOT / f"Dockerfile.{engine}").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    logical = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    return Dockerfile(tuple((line.split(None, 1)[0], line.split(None, 1)[1]) for line in logical))
