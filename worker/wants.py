"""What a job's mentions of models come to: files that are wanted, and the job with the names they got. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from worker.errors import InvalidJob, Owner
from worker.job import Job, ModelRef
from worker.mentions import Mention, Place, place_of, renamed, stem_of
from worker.models.base import Wanted


def wants_of(job: Job, mentions: Sequence[Mention]) -> tuple[Wanted, ...]:
    """One for each mention, in their order. What the job's ``models`` say of a file holds wherever it is named.

    Raises `InvalidJob` where two places give one file different origins.
    """
    return tuple(_wanted(job, mention) for mention in mentions)


def settled(job: Job, mentions: Sequence[Mention], places: Sequence[Place]) -> Job:
    """The job with each model by the name that it is stored under, where that is not the one that stands there."""
    return renamed(job, [(m, p.name) for m, p in zip(mentions, places, strict=True) if not _stands(m, p)])


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


def _stands(mention: Mention, place: Place) -> bool:
    """Whether the server finds the file by what stands there now."""
    return mention.url is None and (mention.known or mention.name) == place.name
