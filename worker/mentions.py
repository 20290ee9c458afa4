"""Where a job's document mentions models, and the same document with other names in those places. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from worker.job import Job

SAME_FOLDER: Mapping[str, str] = {
    "refiner": "checkpoint",
    "checkpoints": "checkpoint",
    "loras": "lora",
    "upscalers": "upscaler",
    "upscale_models": "upscaler",
    "embeddings": "embedding",
    "diffusion_models": "unet",
    "text_encoders": "clip",
}
"""Kinds whose files lie among those of another kind: folders' names that stand for a kind, and refiners."""

_SOURCE = re.compile(r"(?:https?|hf|civitai|s3)://|urn:air:", re.IGNORECASE)
_EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".patch")


class Place(NamedTuple):
    """Where a model file lies: ``name`` is its path below the folder of its kind, with ``/`` between the parts.

    ``kind`` is a kind of the job document, or a folder's name where the server has others; never one of
    `SAME_FOLDER`. Make one with `place_of`.
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
    part of a text, as in ``<lora:NAME:1>``. ``known`` is the path below its kind's folder of the file that the server
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


def is_source(text: str) -> bool:
    """Whether a text that stands where a model is named says where it is to be had: a URL, or an AIR name."""
    return _SOURCE.match(text) is not None


def file_of(url: str) -> str:
    """The name of a model file that a URL ends with; empty where it ends with none."""
    path = re.split(r"[?#]", url, maxsplit=1)[0]
    if path.lower().startswith("hf:"):
        path = path.rpartition("@")[0] or path
    name = unquote(path.rpartition("/")[2])
    return name if stem_of(name) != name and not set("/\\\0") & set(name) else ""


Known = Callable[[str, str, str], Place | None]
"""The file that the server finds now under a kind and a name; the field is for errors, as `InvalidJob` for a name
that means several."""


@dataclass
class Gathering:
    """The mentions of a job as they are found, in their order; ``known`` asks what the server lists."""

    job: Job
    known: Known
    found: list[Mention] = field(default_factory=list)

    def add(self, kind: str, value: Any, path: tuple[str | int, ...], *, tag: bool = False) -> None:
        """Note what stands at a place; what is no name at all is for admission to refuse."""
        if not isinstance(value, str) or not value:
            return
        where = ".".join(map(str, path))
        url = value if is_source(value) and not tag else None
        name = value if url is None else self._name_of(kind, url)
        place = self.known(kind, name, where) if name else None
        if place is not None and place.kind != place_of(kind, "").kind:
            kind = place.kind
        self.found.append(Mention(kind, name, path, url, tag, place.name if place is not None else None))

    def _name_of(self, kind: str, url: str) -> str:
        """As the job's own list calls the file, else as the URL does."""
        same = place_of(kind, "").kind
        listed = (r.name for r in self.job.models if r.url == url and place_of(r.kind, "").kind == same)
        return next(listed, None) or file_of(url)


def unexplained(job: Job, mentions: Sequence[Mention]) -> bool:
    """Whether the job names a file that the server does not find, and says nowhere whence it could come."""
    told = {stem_of(ref.name.rpartition("/")[2]) for ref in job.models if ref.url is not None}
    return any(
        m.known is None and m.url is None and stem_of(m.name.replace("\\", "/").rpartition("/")[2]) not in told
        for m in mentions
    )


def renamed(job: Job, names: Sequence[tuple[Mention, str]]) -> Job:
    """The job with other model names in the places of these mentions; its digest stays that of the original.

    In a text the tag gets the stem of the file's own name, since the servers know it by that; so does the word that
    stands for an embedding: ``NAME`` by itself, or ``embedding:NAME`` with the path where the text has that.
    """
    document: Any = job.model_dump(mode="json", exclude_unset=True)
    texts: dict[tuple[str | int, ...], list[tuple[Mention, str]]] = {}
    for mention, name in names:
        if mention.tag:
            texts.setdefault(mention.path, []).append((mention, name))
        else:
            document = _replaced(document, mention.path, partial(_instead, name=name))
    for path, tags in texts.items():
        document = _replaced(document, path, partial(_retold, tags=tags))
    return Job.model_validate(document).model_copy(update={"sha256": job.sha256}) if names else job


def _replaced(node: Any, path: Sequence[str | int], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(node)
    head, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(head, int):
        return [_replaced(one, rest, change) if i == head else one for i, one in enumerate(node)]
    return {**node, head: _replaced(node.get(head), rest, change)}


def _instead(_: Any, *, name: str) -> str:
    return name


def _retold(text: str, *, tags: Sequence[tuple[Mention, str]]) -> str:
    """The text with all tags renamed at once: the new name of one may be the old name of another."""
    for i, (mention, _) in enumerate(tags):
        text = _marked(text, mention, f"\ue000{i}\ue001")
    for i, (_, name) in enumerate(tags):
        mark, stem = f"\ue000{i}\ue001", stem_of(name)
        text = text.replace(f"embedding:{mark}", f"embedding:{stem}").replace(mark, stem.rpartition("/")[2])
    return text


def _marked(text: str, mention: Mention, mark: str) -> str:
    """The text with a mark in place of a name, where its tag or the word for an embedding holds that."""
    name = re.escape(mention.name)
    if place_of(mention.kind, "").kind != "embedding":
        tag = re.compile(rf"(<(?:lora|lyco):\s*){name}(\s*[:>])", re.IGNORECASE)
        return tag.sub(lambda found: f"{found[1]}{mark}{found[2]}", text)
    path = re.compile(rf"(embedding:){name}(?![\w~/-]|\.\w)")
    if path.search(text):
        return path.sub(lambda found: f"{found[1]}{mark}", text)
    return _word(mention.name).sub(lambda _: mark, text)


def is_word_in(text: Any, name: str) -> bool:
    """Whether a text holds a name as a word of its own, as an embedding is named to Automatic1111 and SD.Next."""
    return isinstance(text, str) and _word(name).search(text) is not None


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.~-]){re.escape(name)}(?![\w~-])", re.IGNORECASE)
