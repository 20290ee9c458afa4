"""How commands print: tables for people on a terminal, plain lines for everything else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from worker.log import redact


def print_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, else one line a row, separated by tabs and without the head."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_one_line(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None)
    for row in rows:
        table.add_row(*(Text(_one_line(cell)) for cell in row))
    Console().print(table)


def complain(*lines: str) -> None:
    """Say it on stderr, without any registered secret."""
    for line in lines:
        print(redact(line), file=sys.stderr)


def _one_line(cell: str) -> str:
    return " ".join(redact(cell).split())
