"""Model files as the servers list them, found by exact identity: never fuzzy, never the closest. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from worker.errors import InvalidJob

EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".sft")
_BRACKET = re.compile(r"\s+\[[^\[\]]*\]$")
_HASH = re.compile(r"[0-9a-f]{8,64}")


def without_extension(name: str) -> str:
    """The name without the extension of a model file; other dots belong to the name."""
    lower = name.lower()
    return next((name[: -len(e)] for e in EXTENSIONS if lower.endswith(e) and len(name) > len(e)), name)


def stem_of(name: str) -> str:
    """The last part of a name or path without extension and without the hash in brackets."""
    return without_extension(PurePosixPath(_BRACKET.sub("", name).replace("\\", "/")).name)


def _hash(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) and _HASH.fullmatch(value.lower()) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One listed model. ``title`` is what the server is told; hashes only where they really are ones."""

    title: str
    name: str
    filename: str = ""
    short_hash: str | None = None
    sha256: str | None = None
    alias: str = ""

    @property
    def label(self) -> str:
        """Its title without the hash that a first load may add: the same for as long as the file is listed."""
        return _BRACKET.sub("", self.title)

    @property
    def stem(self) -> str:
        return stem_of(self.filename or self.title)

    @property
    def hash10(self) -> str | None:
        return self.sha256[:10] if self.sha256 else self.short_hash

    def _identities(self) -> tuple[frozenset[str], ...]:
        """What it may be called, most certain first."""
        bare = self.label
        path = PurePosixPath(self.filename.replace("\\", "/"))
        tails = {"/".join(path.parts[-n:]) for n in range(2, len(path.parts))} if self.filename else set()
        hashes = {h for h in (self.short_hash, self.sha256, self.sha256[:10] if self.sha256 else None) if h}
        return (
            frozenset({self.filename, self.title} - {""}),
            frozenset({self.name, bare, without_extension(bare)} - {""}),
            frozenset(hashes | {f"{self.stem} [{h}]" for h in hashes}),
            frozenset({path.name, self.stem, self.alias} - {""}),
            frozenset(tails | {without_extension(t) for t in tails}),
        )

    def called(self, wanted: str, level: int) -> bool:
        return wanted in self._identities()[level]


LEVELS = 5


def find(files: Iterable[ModelFile], wanted: str, *, field: str) -> ModelFile | None:
    """The one file that is called exactly so, by path, title, name, hash, file name or stem.

    A name with a model file's extension also finds the file under the name without it, since SD.Next lists it so.
    Raises `InvalidJob` when the name fits several files equally well.
    """
    known = tuple(files)
    tried = [wanted] if without_extension(wanted) == wanted else [wanted, without_extension(wanted)]
    for level in range(LEVELS):
        found = {f for f in known for name in tried if f.called(name, level)}
        if len({f.filename or f.title for f in found}) > 1:
            exact = {f for f in found if f.called(wanted, level)}
            found = exact if len({f.filename or f.title for f in exact}) == 1 else found
        if len({f.filename or f.title for f in found}) > 1:
            raise InvalidJob("names several models of this server; write the path below the folder", field=field)
        if found:
            return next(iter(found))
    return None


def checkpoints(items: Any) -> tuple[ModelFile, ...]:
    """The body of ``/sd-models``; SD.Next of 2023 says ``name`` where others say ``model_name``.

    For diffusers folders SD.Next of 2023 gives pieces of the path as hashes: those are not taken for ones.
    """
    return tuple(
        ModelFile(
            title=_text(item.get("title")),
            name=_text(item.get("model_name")) or _text(item.get("name")),
            filename=_text(item.get("filename")),
            short_hash=_hash(item.get("hash")),
            sha256=_sha256(item.get("sha256")),
        )
        for item in dicts(items)
        if _text(item.get("title"))
    )


def _sha256(value: Any) -> str | None:
    found = _hash(value)
    return found if found and len(found) == 64 else None


def loras(items: Any) -> tuple[ModelFile, ...]:
    """The body of ``/loras``."""
    return tuple(
        ModelFile(
            title=_text(item.get("name")),
            name=_text(item.get("name")),
            filename=_text(item.get("path")),
            alias=_text(item.get("alias")),
        )
        for item in dicts(items)
        if _text(item.get("name"))
    )


def modules(items: Any) -> tuple[ModelFile, ...]:
    """The body of ``/sd-vae`` or Forge's ``/sd-modules``."""
    return tuple(
        ModelFile(
            title=_text(item.get("model_name")),
            name=_text(item.get("model_name")),
            filename=_text(item.get("filename")),
        )
        for item in dicts(items)
        if _text(item.get("model_name"))
    )


def dicts(items: Any) -> Sequence[dict[str, Any]]:
    """The objects in a list, whatever else it is."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def texts(items: Any, key: str) -> tuple[str, ...]:
    """One text of each object in a list."""
    return tuple(item[key] for item in dicts(items) if isinstance(item.get(key), str))
