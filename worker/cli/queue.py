"""`sd-worker queue`: what waits, what died, and having it run again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer

from worker.cli.output import complain, print_rows
from worker.cli.start import asking, read_settings
from worker.clock import CorrectedClock, SystemClock
from worker.queues import open_producer
from worker.queues.base import JobState, Producer

T = TypeVar("T")
_AT_A_TIME = 500

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The embedded queue and its dead letters.")
Limit = Annotated[int, typer.Option(min=1, help="At most so many jobs.")]


@app.command("list")
def list_jobs(
    status: Annotated[
        str | None, typer.Option(help="Only these: `waiting`, `delayed`, `leased`, `done` or `dead`.")
    ] = None,
    limit: Limit = 100,
) -> None:
    """List the jobs that the queue knows."""
    jobs = _with_producer(lambda producer: producer.jobs(status, limit))
    print_rows(
        ("id", "status", "deliveries", "attempts", "code"),
        [(j.id, j.status, str(j.deliveries), str(_charged(j)), j.code or "") for j in jobs],
    )


@app.command()
def dead(limit: Limit = 100) -> None:
    """List the dead letters, and why each of them died."""
    jobs = _with_producer(lambda producer: producer.jobs("dead", limit))
    print_rows(
        ("id", "deliveries", "attempts", "code", "reason"),
        [(j.id, str(j.deliveries), str(_charged(j)), j.code or "", _reason(j)) for j in jobs],
    )


@app.command()
def requeue(
    ids: Annotated[list[str] | None, typer.Argument(help="Dead jobs.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead job.")] = False,
) -> None:
    """Have dead jobs run again, their counts begun anew."""
    if everything == bool(ids):
        raise typer.BadParameter("name dead jobs, or say --all")
    missed = _with_producer(lambda producer: _requeue_all(producer) if everything else _requeue(producer, ids or []))
    complain(*(f"{job_id} is not dead" for job_id in missed))
    if missed:
        sys.exit(1)


async def _requeue(producer: Producer, ids: list[str]) -> list[str]:
    """Requeue these; the ones that could not be."""
    missed = []
    for job_id in ids:
        if await producer.requeue(job_id):
            print(job_id)
        else:
            missed.append(job_id)
    return missed


async def _requeue_all(producer: Producer) -> list[str]:
    """Requeue until nothing is dead but what somebody else took meanwhile."""
    missed: list[str] = []
    while found := [job.id for job in await producer.jobs("dead", _AT_A_TIME + len(missed)) if job.id not in missed]:
        missed += await _requeue(producer, found)
    return []


def _with_producer(use: Callable[[Producer], Awaitable[T]]) -> T:
    async def opened() -> T:
        settings = read_settings(elsewhere=True).queue
        producer = open_producer(settings, CorrectedClock(SystemClock()))
        try:
            with asking(settings):
                return await use(producer)
        finally:
            await producer.aclose()

    return asyncio.run(opened())


def _charged(job: JobState) -> int:
    return sum(attempt.charged for attempt in job.attempts)


def _reason(job: JobState) -> str:
    return job.result.error.message if job.result is not None and job.result.error is not None else ""
