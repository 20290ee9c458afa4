"""Webhooks that the dispatcher owes: of jobs that ended in its own hands, expired, over a limit, or withdrawn in time.

Each letter is taken by one process at a time and sent as a worker would send it. One that nobody takes is tried again
after a minute, five, a quarter of an hour and an hour, and then dropped with a warning in the log.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from dispatcher.metrics import Metrics
from dispatcher.store.base import Letter, Store, StoreUnavailable
from worker.errors import InvalidJob, UnsupportedDocument, UrlForbidden, WebhookFailed
from worker.job import Job, Limits, parse, salvage
from worker.tasks import cancel_all
from worker.webhooks import Sender

log = structlog.get_logger()

AGAIN = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15), timedelta(hours=1))
AT_ONCE = 16
LIMITS = Limits(max_pixels=2**63, max_steps=2**63, max_images=2**63, max_timeout=timedelta.max)


@dataclass(slots=True)
class Outbox:
    """``budget``: of all tries in a row; a letter is this process's for a little longer."""

    store: Store
    sender: Sender
    metrics: Metrics
    budget: timedelta
    every: timedelta = timedelta(seconds=1)

    async def run(self) -> None:
        """Send what is due until cancelled; what is cut off is due again when its lease ends."""
        sending: set[asyncio.Task[None]] = set()
        try:
            while True:
                for letter in await self._due(AT_ONCE - len(sending)):
                    task = asyncio.create_task(self.deliver(letter), name=f"webhook-{letter.job_id}")
                    sending.add(task)
                if sending:
                    done, sending = await asyncio.wait(
                        sending, timeout=self.every.total_seconds(), return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                else:
                    await asyncio.sleep(self.every.total_seconds())
        finally:
            await cancel_all(sending)

    async def _due(self, most: int) -> list[Letter]:
        if most <= 0:
            return []
        try:
            return await self.store.letters(most, self.budget + timedelta(minutes=1))
        except StoreUnavailable:
            return []

    async def deliver(self, letter: Letter) -> None:
        """Send one letter, and note what became of it."""
        outcome, again = await self._sent(letter)
        if outcome != "unwanted":
            self.metrics.webhook(outcome)
        try:
            await self.store.posted(letter.id, again=again)
        except StoreUnavailable as error:
            log.warning("webhook_not_noted", job=letter.job_id, error=str(error))

    async def _sent(self, letter: Letter) -> tuple[str, timedelta | None]:
        job = job_of(letter)
        if not self.sender.wants(letter.event, job):
            return "unwanted", None
        try:
            await self.sender.send(letter.event, job, letter.result)
        except (InvalidJob, UrlForbidden) as error:
            log.warning("webhook_impossible", job=letter.job_id, error=error.message)
            return "impossible", None
        except WebhookFailed as error:
            if letter.tries < len(AGAIN):
                log.info("webhook_postponed", job=letter.job_id, tries=letter.tries + 1, error=error.message)
                return "postponed", AGAIN[letter.tries]
            log.warning("webhook_undelivered", job=letter.job_id, event_type=letter.event, error=error.message)
            return "undelivered", None
        return "delivered", None


def job_of(letter: Letter) -> Job:
    """The job as far as its webhook is concerned."""
    document = dict(letter.document)
    try:
        return parse(document, fallback_id=letter.job_id, limits=LIMITS)
    except (InvalidJob, UnsupportedDocument):
        return salvage(document, fallback_id=letter.job_id)
