"""A user's document becomes a job, and a leased job the document that its node gets. No I/O.

A document stays what its user sent. What the catalogue knows of its models goes to the node beside it at each
hand-over, since that is the operator's word and the document is not.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dispatcher.needs import Catalogue, needs_of, work_of
from dispatcher.store.base import Grant, NewJob
from dispatcher.words import Key, Need, NodeOrders
from worker.clock import isoformat
from worker.errors import InvalidJob
from worker.job import Limits, job_url_of, parse
from worker.queues.base import Attempt
from worker.wire import Download, Evict, Generation, category_of


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
    return NewJob(
        id=job.id,
        document=whole,
        fingerprint=job.sha256,
        needs=needs_of(whole, catalogue),
        priority=job.priority,
        work_s=work_of(whole),
        user=user,
        deadline=job.deadline,
    )


def generation_of(grant: Grant, counts: Counts, catalogue: Catalogue) -> Generation:
    """What the node gets: the job's document, how it is leased, and whence its models are to be had."""
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
        "sources": sources_of(grant.job.needs, catalogue),
    }
    return Generation.model_construct(**fields)


def sources_of(needs: Iterable[Need], catalogue: Catalogue) -> tuple[Download, ...] | None:
    """Where the catalogue has these models now.

    A need may hold the digest that an entry had when the job was submitted; whether the job itself contradicts what the
    entry says today is for the node to see.
    """
    found: dict[Key, Download] = {}
    for need in needs:
        source = catalogue.find(need.kind, need.name, need.sha256) or catalogue.find(need.kind, need.name)
        if source is not None and source.url is not None:
            found[source.key] = Download(
                url=source.url, name=source.name, kind=source.kind, sha256=source.sha256, size=source.size
            )
    return tuple(found.values()) or None


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
