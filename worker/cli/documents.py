"""Job documents as a person hands them over: read from a file, multiplied, checked before any is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pydantic_core

from worker.errors import FieldError, InvalidJob, UnsupportedDocument
from worker.job import Job, Limits, job_url_of, parse, usable_id

SEEDS = 2**32


def read_documents(text: bytes) -> list[dict[str, Any]]:
    """The documents in a text: one JSON object, a list of them, or one a line. `InvalidJob` otherwise."""
    try:
        found = pydantic_core.from_json(text)
    except ValueError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise InvalidJob(f"not JSON: {error}") from None
        found = [_line(number, line) for number, line in enumerate(lines, 1)]
    documents = found if isinstance(found, list) else [found]
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise InvalidJob("must be a JSON object, a list of objects, or one object a line")
    return documents


def _line(number: int, line: bytes) -> Any:
    try:
        return pydantic_core.from_json(line)
    except ValueError as error:
        raise InvalidJob(f"not JSON: {error}", field=f"line {number}") from None


def multiplied(document: dict[str, Any], count: int, new_id: Callable[[], str]) -> Iterator[dict[str, Any]]:
    """So many copies that ask for different pictures: ids end in ``-0001`` and on, given seeds go up.

    A seed that is left open needs nothing: it is drawn from the id.
    """
    base = document["id"] if "id" in document else new_id()
    for number in range(count):
        copy = {**document, "id": base if count == 1 else f"{base}-{number + 1:04d}"}
        for source in ("params", "request"):
            if number and isinstance(copy.get(source), dict):
                copy[source] = _reseeded(copy[source], number)
        yield copy


def _reseeded(request: dict[str, Any], number: int) -> dict[str, Any]:
    seed = request.get("seed")
    if type(seed) is not int or seed < 0:
        return request
    images = 1
    for name in ("batch_size", "n_iter"):
        value = request.get(name)
        images *= value if type(value) is int and value > 0 else 1
    return {**request, "seed": (seed + number * images) % SEEDS}


def checked(documents: list[dict[str, Any]], limits: Limits) -> list[tuple[str, bytes, int]]:
    """Id, body and priority of each document; `InvalidJob` naming every wrong field of every document."""
    mistakes: list[FieldError] = []
    ready: list[tuple[str, bytes, int]] = []
    for number, document in enumerate(documents, 1):
        where = f"document {number}, " if len(documents) > 1 else ""
        try:
            ready.append(_ready(document, limits))
        except InvalidJob as error:
            mistakes += (FieldError(f"{where}{wrong.field}", wrong.message) for wrong in error.errors)
        except UnsupportedDocument as error:
            mistakes.append(FieldError(f"{where}v", error.message))
    if mistakes:
        raise InvalidJob(errors=tuple(mistakes))
    return ready


def _ready(document: dict[str, Any], limits: Limits) -> tuple[str, bytes, int]:
    pointer = {key: value for key, value in document.items() if key != "id"}
    if job_url_of(pointer) is not None and (job_id := usable_id(document["id"])) is not None:
        return job_id, _body(pointer, limits), 0
    job: Job = parse(document, fallback_id="", limits=limits)
    return job.id, _body(document, limits), job.priority


def _body(document: dict[str, Any], limits: Limits) -> bytes:
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(body) > limits.max_body:
        raise InvalidJob(f"the document has {len(body)} bytes, {limits.max_body} are allowed")
    return body
