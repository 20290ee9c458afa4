"""What became of a job before, where the queue keeps no causes: read from the documents of its failures."""

from __future__ import annotations

from dataclasses import replace

from worker.job import Job
from worker.patience import Patience
from worker.queues.base import Attempt, Delivery
from worker.queues.policy import is_charged
from worker.result import Result
from worker.storage.base import Archive, Storage


async def informed(delivery: Delivery, job: Job, storage: Storage, patience: Patience) -> Delivery:
    """The delivery with the attempts that its queue could not tell.

    They stand in the store: each failure's document has those before it. Where the store keeps none, every
    delivery counts. Raises as `Storage` does.
    """
    most = delivery.attempts_most
    if most is None:
        return delivery
    if not isinstance(storage, Archive):
        deliveries = delivery.deliveries
        return replace(delivery, last_attempt=deliveries is not None and deliveries >= most)
    archive, found = storage, None
    if delivery.redelivered is not False:
        found = await patience.once(storage, lambda: archive.find_result(job.id))
    attempts = attempts_told(found, job, delivery)
    return replace(delivery, attempts=attempts, last_attempt=sum(one.charged for one in attempts) + 1 >= most)


def attempts_told(failure: Result | None, job: Job, delivery: Delivery) -> tuple[Attempt, ...]:
    """Every attempt that the latest failure's document tells of, its own the last.

    None of another document under the same id, and none from before the job was put on the queue anew.
    """
    if failure is None or failure.error is None or failure.job_sha256 not in (None, job.sha256):
        return ()
    if delivery.queued_at is not None and failure.created_at < delivery.queued_at:
        return ()
    own = Attempt(failure.worker.id, failure.finished_at, failure.error.code, is_charged(failure))
    return (*(Attempt(one.worker, one.ended, one.code, bool(one.charged)) for one in failure.attempts), own)
