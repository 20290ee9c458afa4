"""A job's record in the ledger, as `ledger.lua` writes it, and entries of the stream that others wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.errors import InvalidJob
from worker.job import document_of, usable_id
from worker.queues.base import JobState
from worker.queues.policy import HandOver, attempts_of, deliveries_of, fingerprint, open_status
from worker.result import Result

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
MOST_PRIORITY = 2**31

Fields = Sequence[bytes]
"""Of an entry: name, value, name, value, ..."""


def stamp(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def moment(stamped: str | int) -> datetime:
    return _EPOCH + int(stamped) * _MICROSECOND


def span(length: timedelta) -> int:
    """In microseconds."""
    return length // _MICROSECOND


def bounded(priority: int) -> int:
    """As far as the ledger can tell priorities apart."""
    return max(-MOST_PRIORITY, min(priority, MOST_PRIORITY))


@dataclass(frozen=True, slots=True)
class Record:
    """What the ledger knows of a job; ``status`` None while it is not over."""

    entry: str | None
    queued_at: datetime
    visible_at: datetime
    handed: tuple[HandOver, ...]
    run: int
    token: str | None
    status: str | None
    code: str | None

    @classmethod
    def of(cls, raw: bytes) -> Record:
        told: dict[str, Any] = json.loads(raw)
        return cls(
            entry=told.get("entry"),
            queued_at=moment(told["queued"]),
            visible_at=moment(told["visible"]),
            handed=tuple(_hand_over(one) for one in told["handed"]),
            run=told["run"],
            token=told.get("token"),
            status=told.get("status"),
            code=told.get("code"),
        )

    def status_at(self, now: datetime) -> str:
        if self.status is not None:
            return self.status
        return open_status(None if self.token is None else int(self.token), self.visible_at, now)

    def state(self, job_id: str, now: datetime, result: bytes | None) -> JobState:
        return JobState(
            id=job_id,
            status=self.status_at(now),
            deliveries=deliveries_of([one for one in self.handed if one.run == self.run]),
            attempts=attempts_of(self.handed),
            code=self.code,
            result=None if result is None else Result.model_validate_json(result),
        )


def _hand_over(told: Mapping[str, Any]) -> HandOver:
    ended = told.get("ended")
    return HandOver(
        token=int(told["token"]),
        run=told["run"],
        worker=told["worker"],
        ended=None if ended is None else moment(ended),
        code=told.get("code"),
        charged=bool(told.get("charged")),
    )


@dataclass(frozen=True, slots=True)
class Stray:
    """What stands in the stream and in no ledger: an entry's id, its fields, and how many bytes they have.

    The fields of a large one are left out.
    """

    entry: bytes
    fields: Fields
    size: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """An entry of the stream that is no job yet."""

    entry: str
    id: str
    fingerprint: str
    priority: int

    @classmethod
    def of(cls, entry: bytes, fields: Fields) -> Arrival:
        """The id is the entry's field ``id``, else the document's, else the entry's own; so is the priority."""
        named = dict(zip(fields[::2], fields[1::2], strict=False))
        body = document_among(fields)
        document = _document(body)
        own = entry.decode()
        job_id = usable_id(named.get(b"id", b"").decode(errors="replace")) or usable_id(document.get("id")) or own
        return cls(own, job_id, fingerprint(job_id, body), _priority(named.get(b"priority"), document))


def document_among(fields: Fields) -> bytes:
    """The document of an entry, as the ledger finds it: under ``job``, else ``document``, else in the first field."""
    named = dict(zip(fields[::2], fields[1::2], strict=False))
    found: bytes = named.get(b"job", named.get(b"document", fields[1] if len(fields) > 1 else b""))
    return found


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        return document_of(body, max_body=len(body))
    except (InvalidJob, ValueError, RecursionError):
        return {}


def _priority(field: bytes | None, document: Mapping[str, Any]) -> int:
    if field is not None and re.fullmatch(rb"-?\d{1,15}", field):
        return bounded(int(field))
    told = document.get("priority")
    return bounded(told) if isinstance(told, int) and not isinstance(told, bool) else 0
