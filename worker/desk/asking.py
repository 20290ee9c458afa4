"""What callers ask for: documents read as jobs, beside the event loop where they hold images."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic_core

from worker.inputs import Inputs
from worker.job import Job, Limits, Params, document_of, job_url_of, parse, usable_id

T = TypeVar("T")
LARGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A job as somebody asked for it: ``body`` for a queue, and ``whole``, a digest of all that it says."""

    job: Job
    body: bytes
    whole: bytes
    client_id: str | None


async def read(document: Mapping[str, Any], job_id: str, limits: Limits) -> Asked:
    """The job that a document describes, under this id; its own is only what the caller calls it.

    Raises as `parse` does.
    """
    whole = {**document, "id": job_id}

    def work() -> Asked:
        job = parse(whole, fallback_id=job_id, limits=limits)
        body = pydantic_core.to_json(whole)
        return Asked(job, body, hashlib.blake2b(body, digest_size=16).digest(), usable_id(document.get("id")))

    return await in_thread_if_large(document, work)


def pointer_in(document: Mapping[str, Any]) -> str | None:
    """The URL of the real document, where this one only points at it; it may have an id of its own.

    Raises `InvalidJob` for one that is no text.
    """
    return job_url_of({field: value for field, value in document.items() if field != "id"})


async def followed(document: Mapping[str, Any], inputs: Inputs, limits: Limits) -> Mapping[str, Any]:
    """The document itself, or the one that it points at. Raises what fetching raises, and `InvalidJob`."""
    url = pointer_in(document)
    if url is None:
        return document
    body = await inputs.document(url)
    found = await asyncio.to_thread(document_of, body, max_body=limits.max_body)
    return {**found, "id": document["id"]} if "id" in document else found


def owner_of(job: Job) -> Job:
    """The job without what it asks for, which may be large."""
    nothing = {"request": None, "endpoint": None, "workflow": None, "template": None, "checkpoint": None, "models": ()}
    return job.model_copy(update={**nothing, "params": Params(prompt="")})


async def in_thread_if_large(document: Mapping[str, Any], work: Callable[[], T]) -> T:
    """Documents that hold images are read and written beside the event loop."""
    large = sum(len(value) for value in _texts(document)) > LARGE
    return await asyncio.to_thread(work) if large else work()


def _texts(document: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from _texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from _texts(value)
