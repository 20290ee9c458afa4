"""Who tells the owners of HTTP jobs how they ended: those who wait hear it first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from worker.desk.tickets import Tickets
from worker.job import Job
from worker.result import Result
from worker.webhooks import Notifier, Updates


class DeskNotifier:
    """Webhooks of HTTP jobs: by the job's own notifier where its caller brought one, else by the worker's.

    ``on_settled`` is told of a result that is safe before any webhook is tried: who waits need not wait for those.
    """

    def __init__(self, notifier: Notifier, tickets: Tickets, on_settled: Callable[[Result], None]) -> None:
        self._notifier = notifier
        self._tickets = tickets
        self._on_settled = on_settled

    def wants(self, event: str, job: Job) -> bool:
        return self.of(job).wants(event, job)

    async def accepts(self, job: Job) -> None:
        await self.of(job).accepts(job)

    async def send(
        self, event: str, job: Job, result: Result, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> tuple[str, ...]:
        self._on_settled(result)
        return await self.of(job).send(event, job, result, before_try=before_try)

    def updates(
        self, job: Job, *, before_try: Callable[[], Awaitable[None]] | None = None
    ) -> AbstractAsyncContextManager[Updates]:
        return self.of(job).updates(job, before_try=before_try)

    def of(self, job: Job) -> Notifier:
        """Who tells this job's owner."""
        ticket = self._tickets.find(job.id)
        return self._notifier if ticket is None or ticket.notifier is None else ticket.notifier
