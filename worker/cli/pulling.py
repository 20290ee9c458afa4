"""Several models fetched at a time, with a bar each on a terminal and lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from worker import http
from worker.cli.output import complain
from worker.cli.shelf import Shelf
from worker.errors import ModelTooLarge, Owner, WorkerError
from worker.mentions import Place, is_source
from worker.models.base import Entry, InFlight, Wanted
from worker.models.identity import name_of, reference_of
from worker.models.kinds import is_told_by_hub, kind_of_folder, kind_of_url
from worker.models.manifest import checked_url
from worker.provisioning import progress_text
from worker.tasks import gather_bare, run_guarded

TOGETHER = 4
LOOK_EVERY_S = 0.25
LINE_EVERY_S = 10.0

Tell = Callable[[Sequence[InFlight]], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What became of one: an entry, or an error."""

    wanted: Wanted
    entry: Entry | None = None
    error: WorkerError | None = None


def wanted_of(text: str, kind: str | None, sha256: str | None, name: str | None) -> Wanted:
    """What a word of the command line asks for: a URL or an AIR name, ``KIND/NAME``, or a name beside ``kind``.

    Raises `ValueError`, worded for whoever typed it.
    """
    if is_source(text) or text.lower().startswith("air:"):
        known = kind or kind_of_url(checked_url(text))
        if known is None and not is_told_by_hub(text):
            raise ValueError("its URL does not tell the kind: add --kind")
        return Wanted(known or "", name or name_of(text), text, sha256, owner=Owner.OPERATOR)
    if kind is None:
        folder, slash, rest = text.partition("/")
        known = kind_of_folder(folder) if slash and rest else None
        if known is None:
            raise ValueError("write KIND/NAME, add --kind, or give a URL")
        return Wanted(known, rest, sha256=sha256, owner=Owner.OPERATOR)
    return Wanted(kind, text, sha256=sha256, owner=Owner.OPERATOR)


def shown(wanted: Wanted) -> str:
    """What was asked for, without what may be secret in a URL."""
    if wanted.url is None:
        return str(wanted.place)
    reference = reference_of(wanted.url)
    return http.shown(wanted.url) if reference is None else str(reference)


async def pull(shelf: Shelf, wanted: Sequence[Wanted], told: Callable[[Pulled], None]) -> list[Pulled]:
    """Fetch all, some at a time; ``told`` hears of each as it ends. Cut off, what has come can be resumed."""
    slots = asyncio.Semaphore(TOGETHER)

    async def one(wish: Wanted) -> Pulled:
        async with slots:
            try:
                pulled = Pulled(wish, entry=await shelf.fetch(wish))
            except WorkerError as error:
                pulled = Pulled(wish, error=error)
        told(pulled)
        return pulled

    with _progress() as (tell, every_s):

        async def watch() -> None:
            while True:
                await asyncio.sleep(every_s)
                tell(await _transfers(shelf))

        pulled = await run_guarded(gather_bare([one(wish) for wish in wanted], name="pull"), watch(), name="pull")
    return [await _still_there(shelf, one) for one in pulled]


async def _transfers(shelf: Shelf) -> Sequence[InFlight]:
    """Those under way; none where a worker cannot be asked just now."""
    try:
        return await shelf.transfers()
    except WorkerError:
        return ()


async def _still_there(shelf: Shelf, pulled: Pulled) -> Pulled:
    """That it did not have to make room for another one of the same command."""
    entry = pulled.entry
    if entry is None or not entry.size or await shelf.holds(entry.place):
        return pulled
    error = ModelTooLarge(f"{entry.place} had to give way to the others: all do not fit (WORKER_MODELS_MAX_SIZE)")
    return Pulled(pulled.wanted, error=error)


@contextmanager
def _progress() -> Iterator[tuple[Tell, float]]:
    """What to tell of transfers, and how often in seconds."""
    if not sys.stderr.isatty():
        yield lambda transfers: complain(*map(progress_text, transfers)), LINE_EVERY_S
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, redirect_stdout=sys.stdout.isatty()) as bars:
        tasks: dict[Place, TaskID] = {}

        def tell(transfers: Sequence[InFlight]) -> None:
            for one in transfers:
                if one.place not in tasks:
                    tasks[one.place] = bars.add_task(one.place.name)
                bars.update(tasks[one.place], completed=one.done, total=one.reserved)
            for place in tasks.keys() - {one.place for one in transfers}:
                bars.remove_task(tasks.pop(place))

        yield tell, LOOK_EVERY_S
