"""Where a job's document mentions models, and the same document with other names in those places. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.job import Job

SAME_FOLDER: Mapping[str, str] = {"refiner": "checkpoint"}
"""Kinds whose files lie among those of another kind."""

_EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx")


class Place(NamedTuple):
    """Where a model file lies: ``name`` is its path below the folder of its kind, with ``/`` between the parts.

    ``kind`` is a kind of the job document, or a folder's name where the server has others; never ``refiner``,
    whose files are checkpoints. Make one with `place_of`.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


def place_of(kind: str, name: str) -> Place:
    return Place(SAME_FOLDER.get(kind, kind), name)


@dataclass(frozen=True, slots=True)
class Mention:
    """One place in a job's document that names a model.

    ``path`` leads there from the document's root (``("params", "loras", 0, "name")``). ``name`` is what stands there,
    or the file's name where a URL stands there, empty when that tells none; then ``url`` is set. ``tag``: the name is
    part of a text, as ``<lora:NAME:1>``. ``known`` is the path below its kind's folder of the file that the server
    finds under this name now; None where it finds none, or nobody can tell.
    """

    kind: str
    name: str
    path: tuple[str | int, ...]
    url: str | None = None
    tag: bool = False
    known: str | None = None

    @property
    def field(self) -> str:
        """The place as errors name it."""
        return ".".join(map(str, self.path))


def stem_of(name: str) -> str:
    """The name without a model file's extension; other dots belong to the name."""
    lower = name.lower()
    return next((name[: -len(e)] for e in _EXTENSIONS if lower.endswith(e) and len(name) > len(e)), name)


def renamed(job: Job, names: Sequence[tuple[Mention, str]]) -> Job:
    """The job with other model names in the places of these mentions; its digest stays that of the original.

    In a text the tag gets the stem of the file's own name, since the servers know it by that.
    """
    document: Any = job.model_dump(mode="json", exclude_unset=True)
    for mention, name in names:
        document = _replaced(document, mention.path, mention, name)
    return Job.model_validate(document).model_copy(update={"sha256": job.sha256}) if names else job


def _replaced(node: Any, path: Sequence[str | int], mention: Mention, name: str) -> Any:
    if not path:
        return _in_text(str(node), mention.name, name) if mention.tag else name
    head, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(head, int):
        return [_replaced(one, rest, mention, name) if i == head else one for i, one in enumerate(node)]
    return {**node, head: _replaced(node.get(head), rest, mention, name)}


def _in_text(text: str, old: str, new: str) -> str:
    tag = re.compile(rf"(<(?:lora|lyco):\s*){re.escape(old)}(\s*[:>])", re.IGNORECASE)
    stem = stem_of(new.rpartition("/")[2])
    return tag.sub(lambda found: f"{found[1]}{stem}{found[2]}", text)
