"""`sd-worker config`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def config(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table of all variables.")] = False,
) -> None:
    """Print the settings in effect, secrets masked; or every mistake in them."""
    from worker.settings.table import markdown_table

    if markdown:
        print(markdown_table())
        return
    from worker.cli.start import read_settings
    from worker.settings.table import Row, effective

    settings = read_settings()
    rows = list(effective(settings))
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            print(f"{row.variable}={row.value}")
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("variable", "value", "", box=None)
    for row in rows:
        table.add_row(row.variable, Text(row.value), "set" if row.changed else "", style="bold" if row.changed else "")
    Console().print(table)
