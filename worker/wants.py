"""What a job's mentions of models come to: files that are wanted, and the job with the names they got. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import ValidationError

from worker.errors import InvalidJob, Owner
from worker.job import Job, ModelRef
from worker.mentions import Mention, Place, place_of, renamed, stem_of
from worker.models.auth import Credentials, auth_for
from worker.models.base import Wanted
from worker.wire import Download


def wants_of(job: Job, mentions: Sequence[Mention], sources: Sequence[Download] = ()) -> tuple[Wanted, ...]:
    """One for each mention, in their order. What the job's ``models`` say of a file holds wherever it is named.

    What the job gives no URL for is had where ``sources`` have it, which are the operator's word. Embeddings that only
    they name come last: a server tells a word of a text from an embedding's name by its files alone.
    Raises `InvalidJob` where two places give one file different origins.
    """
    known = tuple(_readable(sources))
    wanted = tuple(_supplied(_wanted(job, mention), mention, known) for mention in mentions)
    return wanted + tuple(_of(ref) for ref in known if ref.kind == "embedding" and not _is_among(ref, wanted))


def settled(job: Job, mentions: Sequence[Mention], places: Sequence[Place]) -> Job:
    """The job with each model by the name that it is stored under, where that is not the one that stands there."""
    return renamed(job, [(m, p.name) for m, p in zip(mentions, places, strict=True) if not _stands(m, p)])


def lent(wanted: Sequence[Wanted], credentials: Credentials) -> tuple[Wanted, ...]:
    """With what the job's caller gave to open the URLs that the job itself names."""
    if not credentials:
        return tuple(wanted)
    return tuple(
        replace(one, auth=auth_for(one.url, credentials)) if one.url and one.owner is Owner.JOB else one
        for one in wanted
    )


def _wanted(job: Job, mention: Mention) -> Wanted:
    listed = _listed(job, mention)
    url = mention.url or (listed.url if listed else None)
    if mention.url and listed and listed.url and listed.url != mention.url:
        raise InvalidJob("gives this file another URL than models does", field=mention.field)
    name = mention.known or (listed.name if listed else mention.name)
    return Wanted(
        kind=mention.kind,
        name=name,
        url=url,
        sha256=listed.sha256 if listed else None,
        size=listed.size if listed else None,
        owner=Owner.JOB,
        field=mention.field,
        known=mention.known is not None,
    )


def _listed(job: Job, mention: Mention) -> ModelRef | None:
    """What ``models`` says of the mentioned file: by URL, by name, else by a stem or base name that is one alone."""
    kind = place_of(mention.kind, "").kind
    refs = [ref for ref in job.models if place_of(ref.kind, "").kind == kind]
    if mention.path[0] == "models":
        index = mention.path[1]
        return job.models[index] if isinstance(index, int) else None
    if mention.url:
        return next((ref for ref in refs if ref.url == mention.url), None)
    named = mention.name.replace("\\", "/")
    for same in (
        lambda ref: ref.name == named,
        lambda ref: stem_of(ref.name) == named,
        lambda ref: ref.name.rpartition("/")[2] == named,
        lambda ref: stem_of(ref.name.rpartition("/")[2]) == named,
    ):
        found = [ref for ref in refs if same(ref)]
        if len(found) > 1:
            raise InvalidJob("could be several of those in models; write the whole name", field=mention.field)
        if found:
            return found[0]
    return None


def _readable(sources: Sequence[Download]) -> Iterator[ModelRef]:
    """Those that say where a file is to be had; one that no file could have come from is passed over."""
    for source in sources:
        if source.url:
            kind = place_of(source.kind or "", "").kind
            sha256 = source.sha256.lower() if source.sha256 else None
            told = {"kind": kind, "name": source.name, "url": source.url, "sha256": sha256, "size": source.size or None}
            try:
                yield ModelRef.model_validate(told)
            except ValidationError:
                continue


def _supplied(wanted: Wanted, mention: Mention, sources: Sequence[ModelRef]) -> Wanted:
    """With what the operator's source of this very file tells, unless the job has a URL of its own for it."""
    if wanted.url is not None:
        return wanted
    ref = _source(wanted, sources)
    if ref is None and mention.path == ("checkpoint",) and not wanted.known:
        ref = _source(replace(wanted, kind="unet"), sources)
    if ref is None:
        return wanted
    extension = wanted.name[len(stem_of(wanted.name)) :]
    stays = wanted.known or (extension and ref.name.endswith(extension))
    return replace(
        _of(ref),
        kind=wanted.kind if wanted.place.kind == ref.kind else ref.kind,
        name=wanted.name if stays else ref.name,
        sha256=wanted.sha256 or ref.sha256,
        size=wanted.size if wanted.size is not None else ref.size,
        field=wanted.field,
        known=wanted.known,
        claimed=wanted.sha256 is not None and ref.sha256 is None,
    )


def _of(ref: ModelRef) -> Wanted:
    return Wanted(ref.kind, ref.name, ref.url, ref.sha256, ref.size, Owner.OPERATOR)


def _source(wanted: Wanted, sources: Sequence[ModelRef]) -> ModelRef | None:
    """The source of the same digest, else the only one of the name, where it contradicts nothing."""
    refs = [ref for ref in sources if ref.kind == wanted.place.kind]
    if wanted.sha256 and (same := next((ref for ref in refs if ref.sha256 == wanted.sha256), None)):
        return same
    called = [ref for ref in refs if stem_of(ref.name) == _named(wanted.name)]
    called = called or [ref for ref in refs if _is_called(ref, wanted.name)]
    return called[0] if len(called) == 1 and _agrees(called[0], wanted) else None


def _is_called(ref: ModelRef, name: str) -> bool:
    """Whether a file is meant by its path or its own name, with or without the extension."""
    path = stem_of(ref.name)
    return _named(name) in (path, path.rpartition("/")[2])


def _named(name: str) -> str:
    return stem_of(name.replace("\\", "/"))


def _agrees(ref: ModelRef, wanted: Wanted) -> bool:
    if ref.sha256 and wanted.sha256:
        return ref.sha256 == wanted.sha256
    return ref.size is None or wanted.size is None or ref.size == wanted.size


def _is_among(ref: ModelRef, wanted: Sequence[Wanted]) -> bool:
    return any(one.place.kind == ref.kind and _is_called(ref, one.name) for one in wanted)


def _stands(mention: Mention, place: Place) -> bool:
    """Whether the server finds the file by what stands there now."""
    return mention.url is None and (mention.known or mention.name) == place.name
