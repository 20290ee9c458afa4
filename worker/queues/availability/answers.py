"""What is said to a scheduling server and what its answers mean, as pure functions of documents."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pydantic_core
import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from worker.errors import QueueUnavailable
from worker.job import field_errors
from worker.node import Identity, Orders, Report
from worker.queues.base import Attempt, Delivery, JobState
from worker.queues.policy import Policy
from worker.result import Result
from worker.wire import (
    LEASED,
    Answer,
    Availability,
    Generation,
    Heartbeat,
    HeartbeatAnswer,
    HeldModel,
    NodeInfo,
    Running,
    Tier,
    category_of,
)

log = structlog.get_logger()

_MAKERS = frozenset({"nvidia", "geforce", "gpu"})
_LONGEST_S = 86_400.0
_TIME: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


class _Ended(BaseModel):
    """An earlier end of a job, as the server tells it."""

    model_config = ConfigDict(extra="ignore")

    worker: str = ""
    ended: AwareDatetime | None = None
    code: str | None = None
    charged: bool = False

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.worker, self.ended, self.code, self.charged)


class _JobDocument(BaseModel):
    """A job as the server shows it to a user; the rest of what it shows is ignored."""

    model_config = ConfigDict(extra="ignore")

    id: str
    status: str
    deliveries: int = 0
    attempts: tuple[_Ended, ...] = ()
    code: str | None = None
    result: Result | None = None

    @property
    def state(self) -> JobState:
        attempts = tuple(one.attempt for one in self.attempts)
        return JobState(self.id, self.status, self.deliveries, attempts, self.code, self.result)


_JOBS: TypeAdapter[list[_JobDocument]] = TypeAdapter(list[_JobDocument])
_ATTEMPTS: TypeAdapter[tuple[_Ended, ...]] = TypeAdapter(tuple[_Ended, ...])


def availability(identity: Identity, report: Report, running: Iterable[Running], wait_s: float) -> bytes:
    """The body of a request for work."""
    return Availability(
        node=node_info(identity, report),
        vram_models=_names(report.models, "vram"),
        disk_models=_names(report.models, "disk"),
        models=report.models,
        disk=report.disk,
        running=tuple(running),
        stats=dict(report.stats) or None,
        wait=round(wait_s, 3),
    ).to_json()


def heartbeat(identity: Identity, report: Report, running: Iterable[Running], *, away: bool = False) -> bytes:
    """The body of a heartbeat for everything that is held."""
    return Heartbeat(
        node=node_info(identity, report),
        running=tuple(running),
        models=report.models,
        disk=report.disk,
        stats=dict(report.stats) or None,
        away=away or None,
    ).to_json()


def node_info(identity: Identity, report: Report) -> NodeInfo:
    """The node as the published example names one, and what more is known of it."""
    rates = report.rates
    return NodeInfo(
        id=identity.id,
        gpu=None if identity.gpu is None else gpu_word(identity.gpu),
        vram_gb=report.vram_gb,
        instance=identity.instance or None,
        version=identity.version,
        rates=rates if any(value is not None for _, value in rates) else None,
    )


def gpu_word(name: str) -> str:
    """A GPU's name as the published example writes it: ``NVIDIA GeForce RTX 4090`` is ``rtx4090``."""
    words = name.lower().split()
    return "".join(word for word in words if word not in _MAKERS) or "".join(words)


def _names(models: Iterable[HeldModel], tier: Tier) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for model in models:
        if model.tier == tier:
            category = category_of(model.kind)
            found[category] = (*found.get(category, ()), model.name)
    return found


def answer_of(document: Any) -> Answer:
    """What a request for work brought. A job is taken though the orders beside it cannot be read.

    Raises `QueueUnavailable` for what is no answer at all.
    """
    if document is None:
        return Answer()
    try:
        return Answer.model_validate(document)
    except ValidationError as error:
        mistakes = _fields(error)
    if isinstance(document, dict):
        try:
            answer = Answer.model_validate({"generation": document.get("generation")})
        except ValidationError:
            pass
        else:
            log.warning("orders_not_understood", fields=mistakes)
            return answer
    raise QueueUnavailable(f"the scheduling server's answer is not understood: {', '.join(mistakes)}")


def beat_of(document: Any) -> HeartbeatAnswer:
    """What a heartbeat brought; `QueueUnavailable` for what is no answer, so that no lease is believed renewed."""
    try:
        return HeartbeatAnswer.model_validate({} if document is None else document)
    except ValidationError as error:
        mistakes = ", ".join(_fields(error))
        raise QueueUnavailable(f"the answer to a heartbeat is not understood: {mistakes}") from None


def _fields(error: ValidationError) -> list[str]:
    return [str(mistake) for mistake in field_errors(error)]


def orders_of(answer: Answer) -> Orders | None:
    """The orders of an answer; None where it gives none."""
    orders = Orders(answer.downloads, answer.evict or (), answer.cancel or ())
    return None if orders == Orders() else orders


def merged(first: Orders | None, second: Orders | None) -> Orders | None:
    """Both, each order once."""
    if first is None or second is None:
        return first or second
    return Orders(
        tuple(dict.fromkeys((*first.download, *second.download))),
        tuple(dict.fromkeys((*first.evict, *second.evict))),
        tuple(dict.fromkeys((*first.cancel, *second.cancel))),
    )


def delivery_of(generation: Generation, fallback_id: str, policy: Policy) -> Delivery:
    """The delivery that a generation is.

    ``policy`` has what is in effect where the server does not say. Without an id the server keeps no account of the
    job: this is its only hand-over, under ``fallback_id``.
    """
    body = pydantic_core.to_json(document_of(generation))
    if generation.id is None:
        return Delivery(
            id=fallback_id,
            body=body,
            visibility=policy.visibility,
            queued_at=_moment(generation.queued_at),
            deliveries=1,
            redelivered=False,
            last_attempt=True,
            last_delivery=True,
            sources=generation.sources or (),
        )
    deliveries, attempts = generation.deliveries, _attempts_of(generation)
    most = generation.max_deliveries or policy.max_deliveries
    ran_before = (deliveries or 0) > 1 or bool(attempts)
    charged = sum(attempt.charged for attempt in attempts)
    max_attempts = generation.max_attempts or policy.max_attempts
    lease = generation.lease
    return Delivery(
        id=generation.id,
        body=body,
        visibility=policy.visibility if lease is None else timedelta(seconds=min(lease, _LONGEST_S)),
        receipt=generation.token,
        queued_at=_moment(generation.queued_at),
        attempts=attempts,
        deliveries=deliveries,
        redelivered=True if ran_before else generation.redelivered,
        last_attempt=None if generation.attempts is None else charged + 1 >= max_attempts,
        last_delivery=None if deliveries is None else deliveries >= most,
        over_limit=deliveries is not None and deliveries > most,
        sources=generation.sources or (),
    )


def document_of(generation: Generation) -> dict[str, Any]:
    """The job document within a generation: all but what is about its lease, and its id only where it has one.

    One that only points at the real document stands alone, without an id.
    """
    whole = generation.model_dump(mode="json", exclude=set(LEASED))
    if generation.id is None or set(whole) == {"id", "job_url"}:
        del whole["id"]
    return whole


def _attempts_of(generation: Generation) -> tuple[Attempt, ...]:
    try:
        return tuple(one.attempt for one in _ATTEMPTS.validate_python(generation.attempts or ()))
    except ValidationError as error:
        log.warning("attempts_not_understood", job=generation.id, fields=_fields(error))
        return ()


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else _TIME.validate_python(text)
    except ValidationError:
        return None


def state_of(document: Any) -> JobState:
    """A job as `Producer.state` has it; `QueueUnavailable` where it cannot be read."""
    return states_of([document])[0]


def states_of(documents: Any) -> list[JobState]:
    """Jobs from a list, or from the ``jobs`` of an object; `QueueUnavailable` where they cannot be read."""
    listed = documents.get("jobs") if isinstance(documents, dict) else documents
    try:
        return [one.state for one in _JOBS.validate_python(listed)]
    except ValidationError as error:
        mistakes = ", ".join(_fields(error))
        raise QueueUnavailable(f"the scheduling server's jobs are not understood: {mistakes}") from None
