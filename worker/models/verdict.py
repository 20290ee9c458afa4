"""What is decided about the places of a model: which agree, what its name is, what it means that none is left.

No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from worker.errors import (
    AuthFailed,
    DownloadFailed,
    InvalidJob,
    ModelForbidden,
    ModelNotFound,
    UrlForbidden,
    WorkerError,
)
from worker.mentions import stem_of
from worker.models.base import Location, Wanted
from worker.models.catalog import Index, Item
from worker.models.identity import Match, canonical, has_extension, is_pickle, name_of

PICKLE_VARIABLE = "WORKER_MODELS_ALLOW_PICKLE"
_REFUSED = (InvalidJob, UrlForbidden, ModelForbidden)


def agrees(place: Location, wanted: Wanted) -> Match:
    """Whether the place has the very file that is wanted, by sha256 where both are known, else by size."""
    if place.sha256 and wanted.sha256:
        return Match.YES if place.sha256 == wanted.sha256 else Match.NO
    if place.size is not None and wanted.size is not None:
        return Match.YES if place.size == wanted.size else Match.NO
    return Match.UNKNOWN


def is_known(wanted: Wanted) -> bool:
    """Whether there is something that another source's file can be compared by."""
    return wanted.sha256 is not None or wanted.size is not None


def learned(wanted: Wanted, place: Location | None) -> Wanted:
    """With what a place tells of the file."""
    if place is None:
        return wanted
    return replace(
        wanted, sha256=wanted.sha256 or place.sha256, size=place.size if wanted.size is None else wanted.size
    )


def item_of(wanted: Wanted, index: Index) -> Item | None:
    """The catalogue's entry for the very model that is wanted: by URL, sha256, or name, unless another fact differs."""
    by_url = index.at(wanted.kind, canonical(wanted.url)) if wanted.url else None
    by_digest = index.with_digest(wanted.kind, wanted.sha256) if wanted.sha256 else None
    by_name = index.named(wanted.kind, wanted.name) if wanted.name else None
    for item in (by_url, by_digest):
        if item is not None and _fits(item, wanted):
            return item
    if by_name is None or not _fits(by_name, wanted):
        return None
    told = bool(by_name.sha256 and wanted.sha256) or bool(by_name.size and wanted.size)
    return by_name if wanted.url is None or told else None


def _fits(item: Item, wanted: Wanted) -> bool:
    if item.sha256 and wanted.sha256:
        return item.sha256 == wanted.sha256
    return not (item.size and wanted.size) or item.size == wanted.size


def completed(wanted: Wanted, item: Item | None, *, extension: str = "") -> Wanted:
    """With what the catalogue's entry and the URL tell. A name without any model's extension gets one.

    That is the entry's or the URL's, else ``extension``: servers list no file without, yet LoRAs are named so.
    """
    name = wanted.name or (item.name if item else "") or (name_of(wanted.url) if wanted.url else "")
    if name and not has_extension(name):
        if item is not None and wanted.url is None and _same_stem(item.name, name):
            name = item.name
        else:
            source = name_of(wanted.url) if wanted.url else ""
            name += source[len(stem_of(source)) :] or ("" if wanted.url else extension)
    return replace(
        wanted,
        name=name,
        sha256=wanted.sha256 or (item.sha256 if item else None),
        size=wanted.size if wanted.size is not None else item.size if item else None,
    )


def _same_stem(full: str, short: str) -> bool:
    return stem_of(full) == short or stem_of(full.rpartition("/")[2]) == short


def check_format(names: Sequence[str], wanted: Wanted, *, trusted: bool, sha256: str | None) -> None:
    """Raise `InvalidJob` for a pickle that a job named, or that is the operator's but has no sha256 to know it by."""
    name = next((name for name in names if is_pickle(name)), None)
    if name is None or (trusted and sha256):
        return
    way = "give its sha256, or set" if trusted else "use a safetensors file, or have the operator set"
    raise InvalidJob(
        f"{name!r} is in a format that can run code when it is loaded; {way} {PICKLE_VARIABLE}=true",
        field=wanted.field or "models",
    )


def verdict(wanted: Wanted, failures: Sequence[WorkerError], *, found: bool) -> WorkerError | None:
    """What the failures of all sources come to; None when places were found and only they can tell.

    A source that is away outweighs all that said no: nobody may call a model missing because a server was down.
    """
    away = next((one for one in failures if isinstance(one, DownloadFailed)), None)
    unauthorized = next((one for one in failures if isinstance(one, AuthFailed)), None)
    if away or unauthorized or found:
        return away or unauthorized
    refused = next((one for one in failures if isinstance(one, _REFUSED)), None)
    if refused is not None:
        return refused
    what = f"{wanted.place.kind} {wanted.name!r}" if wanted.name else wanted.place.kind
    said = "; ".join(dict.fromkeys(one.message for one in failures)) or "no source has it, and no URL is given"
    return ModelNotFound(f"{wanted.field + ': ' if wanted.field else ''}{what}: {said}")
