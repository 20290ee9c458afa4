"""A user's document becomes a job, and a leased job the document that its node gets. No I/O.

What the catalogue knows of a job's models is written into its document once, when it is submitted: a job that is handed
over again asks for the very same, or the digest of its standing success would be another's.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dispatcher.needs import Catalogue, needs_of, work_of
from dispatcher.store.base import Grant, NewJob
from dispatcher.words import Need, NodeOrders
from worker.clock import isoformat
from worker.errors import InvalidJob
from worker.job import Limits, ModelRef, job_url_of, parse
from worker.mentions import place_of, stem_of
from worker.queues.base import Attempt
from worker.wire import Download, Evict, Generation, category_of

MODELS_MOST = 64


@dataclass(frozen=True, slots=True)
class Counts:
    """The limits by which the holder of a job judges whether this was the last time."""

    max_attempts: int = 3
    max_deliveries: int = 10


def new_job(document: Any, catalogue: Catalogue, limits: Limits, *, user: str = "") -> NewJob:
    """What is submitted with a document; one without an ``id`` gets a random one.

    Raises `InvalidJob` with every wrong field, and `UnsupportedDocument` for a version of the future.
    """
    if not isinstance(document, dict):
        raise InvalidJob("the document must be a JSON object", field="")
    if job_url_of(document) is not None:
        raise InvalidJob("the dispatcher must see the document itself, to know its models", field="job_url")
    job = parse(document, fallback_id=uuid.uuid4().hex, limits=limits)
    whole = {**document, "id": job.id}
    needs = needs_of(whole, catalogue)
    return NewJob(
        id=job.id,
        document=supplied(whole, needs, catalogue),
        fingerprint=job.sha256,
        needs=needs,
        priority=job.priority,
        work_s=work_of(whole),
        user=user,
        deadline=job.deadline,
    )


def supplied(document: Mapping[str, Any], needs: Iterable[Need], catalogue: Catalogue) -> dict[str, Any]:
    """The document with whence its models are to be had, as far as the catalogue tells and it does not say so itself.

    What stands in it is never contradicted: a model that it gives a URL, or another digest or size, stays as it is.
    """
    listed = document.get("models")
    models = [dict(item) for item in listed if isinstance(item, Mapping)] if isinstance(listed, list | tuple) else []
    changed = False
    for need in needs:
        source = catalogue.find(need.kind, need.name, need.sha256)
        if source is None or source.url is None or need.url != source.url:
            continue
        known = {"url": source.url, "sha256": source.sha256, "size": source.size}
        entry = next((item for item in models if _is_same(item, need)), None)
        if entry is None and len(models) < MODELS_MOST:
            models += _listable({"kind": need.kind, "name": need.name.replace("\\", "/"), **known})
            changed = True
        elif entry is not None and not entry.get("url") and _agrees(entry, known):
            entry.update({name: value for name, value in known.items() if value is not None})
            changed = True
    return {**document, "models": models} if changed else dict(document)


def _listable(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The entry where a document may hold it, else nothing: a name may be one that no file can have."""
    entry = {name: value for name, value in entry.items() if value is not None}
    try:
        ModelRef.model_validate(entry)
    except ValidationError:
        return []
    return [entry]


def _is_same(item: Mapping[str, Any], need: Need) -> bool:
    if item.get("sha256") is not None and item.get("sha256") == need.sha256:
        return True
    here, there = place_of(str(item.get("kind")), str(item.get("name"))), place_of(need.kind, need.name)
    return here.kind == there.kind and stem_of(here.name) == stem_of(there.name)


def _agrees(item: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    return all(known.get(name) is None or item.get(name) in (None, known[name]) for name in ("sha256", "size"))


def generation_of(grant: Grant, counts: Counts) -> Generation:
    """What the node gets: the job's document, and how it is leased."""
    fields = {
        **grant.document,
        "id": grant.job.id,
        "token": grant.token,
        "lease": grant.lease.total_seconds(),
        "deliveries": grant.deliveries,
        "attempts": tuple(attempt_of(one) for one in grant.attempts),
        "max_attempts": counts.max_attempts,
        "max_deliveries": counts.max_deliveries,
        "queued_at": isoformat(grant.queued_at),
        "redelivered": grant.redelivered,
    }
    return Generation.model_construct(**fields)


def attempt_of(attempt: Attempt) -> dict[str, Any]:
    """An earlier end, as in the result document, and whether it was charged."""
    return {
        "worker": attempt.worker,
        "ended": isoformat(attempt.ended) if attempt.ended is not None else None,
        "code": attempt.code,
        "charged": attempt.charged,
    }


def downloads_of(orders: NodeOrders, *, plain: bool) -> dict[str, tuple[str | Download, ...]] | None:
    """Orders to fetch, by category; ``plain`` as published: URLs and nothing else."""
    found: dict[str, tuple[str | Download, ...]] = {}
    for need in orders.download:
        if plain and need.url is None:
            continue
        order: str | Download | None = need.url
        if not plain or order is None:
            order = Download(url=need.url, name=need.name, kind=need.kind, sha256=need.sha256, size=need.size)
        category = category_of(need.kind)
        found[category] = (*found.get(category, ()), order)
    return found or None


def evictions_of(orders: NodeOrders) -> tuple[Evict, ...] | None:
    return tuple(Evict(kind=need.kind, name=need.name) for need in orders.evict) or None


def stored_orders(orders: NodeOrders) -> dict[str, Any]:
    """Orders as they stand in the node's row; `read_orders` reads them again."""
    return {"download": [_stored(need) for need in orders.download], "evict": [_stored(need) for need in orders.evict]}


def read_orders(stored: Mapping[str, Any]) -> NodeOrders:
    return NodeOrders(
        tuple(Need(**one) for one in stored.get("download", ())), tuple(Need(**one) for one in stored.get("evict", ()))
    )


def _stored(need: Need) -> dict[str, Any]:
    fields = {name: getattr(need, name) for name in ("key", "kind", "name", "size", "url", "sha256")}
    return {name: value for name, value in fields.items() if value is not None}
