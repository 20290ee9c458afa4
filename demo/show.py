"""How the demo shows what happens: a bar on a terminal, else a line for each tenth of the jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Show(Protocol):
    """``total`` jobs in all."""

    def done(self, count: int, doing: str) -> None:
        """So many jobs are done by now, and this is what goes on."""
        ...

    def tell(self, line: str) -> None:
        """Something happened."""
        ...


class Lines:
    """For logs and pipes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._tenth = 0

    def done(self, count: int, doing: str) -> None:
        if (tenth := 10 * count // self._total) > self._tenth:
            self._tenth = tenth
            self.tell(f"{count}/{self._total} {doing}")

    def tell(self, line: str) -> None:
        print(line, flush=True)


class Bar:
    """For people."""

    def __init__(self, progress: Any, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def done(self, count: int, doing: str) -> None:
        self._progress.update(self._task, completed=count, description=doing)

    def tell(self, line: str) -> None:
        self._progress.print(line, highlight=False)


@contextmanager
def showing(total: int) -> Iterator[Show]:
    """Whichever suits what stdout is."""
    if not sys.stdout.isatty():
        yield Lines(total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")) as bar:
        yield Bar(bar, total)
