"""What became of a job before, where the queue keeps no causes: read from the documents of its failures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from worker.job import Job
from worker.patience import Patience
from worker.queues.base import Attempt, Delivery
from worker.queues.policy import is_charged
from worker.result import Result
from worker.storage.base import Archive, Storage


async def informed(
    delivery: Delivery, job: Job, storage: Storage, patience: Patience
) -> tuple[Delivery, Result | None]:
    """The delivery with the attempts that its queue could not tell, and how they ended the job, if they did.

    They stand in the store, which every worker sees. Where it keeps none, every delivery counts. Raises as `Storage`
    does.
    """
    most = delivery.attempts_most
    if most is None:
        return delivery, None
    if not isinstance(storage, Archive):
        deliveries = delivery.deliveries
        return replace(delivery, last_attempt=deliveries is not None and deliveries >= most), None
    archive, found = storage, list[Result]()
    if delivery.redelivered or (delivery.redelivered is None and delivery.deliveries != 1):
        found = of_run(await patience.once(storage, lambda: archive.find_failures(job.id)), job, delivery)
    attempts = attempts_told(found)
    charged = sum(one.charged for one in attempts)
    told = replace(delivery, attempts=attempts, last_attempt=charged + 1 >= most)
    return told, end_told(found, is_used_up=charged >= most)


def of_run(failures: Iterable[Result], job: Job, delivery: Delivery) -> list[Result]:
    """Those of this submission of the job: none of another document under its id, none from before a requeue."""
    return [
        one
        for one in failures
        if one.error is not None and one.run == delivery.run and one.job_sha256 in (None, job.sha256)
    ]


def attempts_told(failures: Sequence[Result]) -> tuple[Attempt, ...]:
    """Every attempt that the documents tell of, the earliest first; each tells of its own and of those before it.

    All of them are asked: of two workers that failed at the same time neither knew of the other.
    """
    told: dict[tuple[str, object, str | None], Attempt] = {}
    for failure in failures:
        for one in failure.attempts:
            told[one.worker, one.ended, one.code] = Attempt(one.worker, one.ended, one.code, bool(one.charged))
        own = own_attempt(failure)
        told[own.worker, own.ended, own.code] = own
    return tuple(sorted(told.values(), key=lambda one: (one.ended is not None, one.ended)))


def own_attempt(failure: Result) -> Attempt:
    """The attempt whose end the document is."""
    code = None if failure.error is None else failure.error.code
    return Attempt(failure.worker.id, failure.finished_at, code, is_charged(failure))


def end_told(failures: Sequence[Result], *, is_used_up: bool) -> Result | None:
    """The failure that ended the job, where its worker was lost before it could tell the queue."""
    ends = [one for one in failures if one.error is not None and not one.error.retryable]
    if not ends and is_used_up:
        ends = [one for one in failures if is_charged(one)]
    if not ends or ends[-1].error is None:
        return None
    return ends[-1].model_copy(update={"error": ends[-1].error.model_copy(update={"retryable": False})})
