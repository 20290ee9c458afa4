"""`sd-worker submit`: puts jobs on the configured queue, and waits for them where asked to."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.documents import checked, multiplied, read_documents
from worker.cli.output import complain, print_rows
from worker.cli.start import asking, read_settings
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, ConfigError, IdConflict, QueueUnavailable, UploadFailed, WorkerError
from worker.job import Limits
from worker.queues import open_producer
from worker.queues.base import JobState, Producer
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.cli.ends import Ends

LOOK_EVERY_S = 0.25
LOOK_INTO_STORE_EVERY_S = 1.0
OVER = ("done", "dead")

ANY = Limits(10**12, 10**9, 10**9, timedelta(days=365), 10**9)
"""What a server behind a URL allows is known to it alone."""


def submit(
    file: Annotated[
        str | None, typer.Argument(help="Documents: an object, a list, or one a line; `-` reads stdin.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Instead of a file: a picture of this.")] = None,
    count: Annotated[int, typer.Option(min=1, max=9999, help="So many of each, with different seeds.")] = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Until all have ended; exit 1 if one failed.")] = False,
    url: Annotated[
        str | None,
        typer.Option(help="Post to the worker, gateway or scheduling server there; its key is WORKER_API_KEY."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --url: the folder for images that come in answers.")] = None,
) -> None:
    """Put jobs on the configured queue, or post them to a URL, and print their ids."""
    if out is not None and url is None:
        raise typer.BadParameter("--out is for --url; a worker of a queue stores images where its settings say")
    if (file is None) == (prompt is None):
        raise typer.BadParameter("give a FILE, `-` for stdin, or --prompt")
    settings = read_settings(elsewhere=True)
    given = _read(file) if file is not None else [{"params": {"prompt": prompt}}]
    documents = [copy for document in given for copy in multiplied(document, count, _new_id)]
    if url is not None:
        key = settings.http.api_key
        jobs = checked(documents, ANY)
        sys.exit(asyncio.run(_post(url, None if key is None else key.get_secret_value(), jobs, wait, out)))
    jobs = checked(documents, settings.limits)
    sys.exit(asyncio.run(_queue(settings, jobs, wait)))


def _new_id() -> str:
    return f"job-{uuid.uuid4().hex[:12]}"


def _read(file: str) -> list[dict[str, Any]]:
    try:
        return read_documents(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from None


async def _post(url: str, key: str | None, jobs: Sequence[tuple[str, bytes, int]], wait: bool, out: Path | None) -> int:
    """Post to a worker, or to a scheduling server where none answers there."""
    from worker.cli.posting import Poster, base_of, posted, saved
    from worker.queues.availability import AvailabilityProducer

    async with Poster(url, key, wait=wait) as poster:
        if not await poster.is_worker():
            return await _run(AvailabilityProducer(base_of(url), SystemClock(), token=key), jobs, wait)
        with _progress(len(jobs)) as advance:
            told = await posted(poster, jobs, advance)
    ended = told if out is None else [saved(one, out) for one in told]
    print_rows(("id", "status", "seconds", "result"), [one.row() for one in ended])
    return 1 if any(one.failed for one in ended) else 0


async def _queue(settings: Settings, jobs: Sequence[tuple[str, bytes, int]], wait: bool) -> int:
    """Put them on the configured queue."""
    from worker.cli.ends import open_ends

    clock = CorrectedClock(SystemClock())
    async with open_ends(settings, clock, wanted=wait) as ends:
        with asking(settings.queue):
            return await _run(open_producer(settings.queue, clock, store=settings.store), jobs, wait, ends)


async def _run(producer: Producer, jobs: Sequence[tuple[str, bytes, int]], wait: bool, ends: Ends | None = None) -> int:
    try:
        conflicts = await send(producer, jobs)
        sent = [job_id for job_id, _, _ in jobs if job_id not in conflicts]
        waited = await follow(producer, sent, ends) if wait else []
    finally:
        await producer.aclose()
    return 1 if conflicts or any(not _succeeded(job) for job in waited) else 0


async def send(producer: Producer, jobs: Sequence[tuple[str, bytes, int]]) -> set[str]:
    """Submit all, each id printed as it is taken; the ids under which another document stands.

    Where one cannot be submitted it is told, and that those after it were not.
    """
    conflicts = set()
    for number, (job_id, body, priority) in enumerate(jobs, 1):
        try:
            is_new = await producer.submit(job_id, body, priority=priority)
        except IdConflict as error:
            conflicts.add(job_id)
            complain(f"{job_id}: {error.message}")
            continue
        except WorkerError:
            rest = f", nor were the {len(jobs) - number} after it" if number < len(jobs) else ""
            complain(f"{job_id}: was not submitted{rest}")
            raise
        print(job_id, flush=True)
        if not is_new:
            complain(f"{job_id}: was submitted before")
    return conflicts


async def follow(producer: Producer, ids: Sequence[str], ends: Ends | None = None) -> list[JobState | None]:
    """Wait until each of these jobs has ended, showing how far they are; how they ended, None where nobody knows.

    A queue or a store that is away is waited for. Raises `AuthFailed` and `ConfigError`.
    """
    ended: dict[str, JobState | None] = {}
    patience = _Patience()
    with _progress(len(ids)) as advance, _left_alone(ids, ended):
        while running := [job_id for job_id in ids if job_id not in ended]:
            with patience:
                for job_id in running:
                    is_over, job = await _end_of(job_id, producer, ends)
                    if is_over:
                        ended[job_id] = job
                        advance()
            if len(ended) < len(ids):
                await asyncio.sleep(LOOK_EVERY_S if ends is None else LOOK_INTO_STORE_EVERY_S)
    print_rows(("id", "status", "seconds", "result"), [_row(job_id, ended[job_id]) for job_id in ids])
    return [ended[job_id] for job_id in ids]


async def _end_of(job_id: str, producer: Producer, ends: Ends | None) -> tuple[bool, JobState | None]:
    """Whether the job is over, and how."""
    job = await producer.state(job_id)
    if ends is not None and (job is None or (job.status in OVER and job.result is None)):
        found = await ends.of(job_id)
        if found is not None or (job is None and ends.alone):
            return found is not None, found
    return job is None or job.status in OVER, job


class _Patience:
    """Bears with what may pass, and says so once until it has passed."""

    def __init__(self) -> None:
        self._said = False

    def __enter__(self) -> None:
        """A look at all jobs begins."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        passes = isinstance(error, QueueUnavailable | UploadFailed) and not isinstance(error, AuthFailed | ConfigError)
        if passes and not self._said:
            complain(f"still waiting: {error}")
        self._said = passes
        return passes


@contextmanager
def _left_alone(ids: Sequence[str], ended: Collection[str]) -> Iterator[None]:
    """Who is interrupted is told that the jobs are not."""
    try:
        yield
    except asyncio.CancelledError:
        complain(f"not waited for any more: {len(ids) - len(ended)} job(s), which go on")
        raise


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, else nothing; yields what to call for each job that ended."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)
    ) as bar:
        task = bar.add_task("jobs", total=total)
        yield lambda: bar.advance(task)


def _succeeded(job: JobState | None) -> bool:
    return job is not None and job.result is not None and job.result.status == "succeeded"


def _row(job_id: str, job: JobState | None) -> tuple[str, str, str, str]:
    if job is None:
        return job_id, "gone", "", "the queue does not know it any more"
    if job.result is None:
        return job_id, job.status, "", job.code or ""
    result = job.result
    seconds = "" if result.timings.total is None else f"{result.timings.total:.1f}"
    made = " ".join(output.key or output.url or f"output {output.index}" for output in result.outputs)
    return job_id, result.status, seconds, made if result.error is None else str(result.error.message)
