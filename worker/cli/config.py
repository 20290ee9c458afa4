"""`sd-worker config`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def config(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table of all variables.")] = False,
) -> None:
    """Print the settings in effect, secrets masked; or every mistake in them."""
    from worker.settings.table import effective, markdown_table

    if markdown:
        print(markdown_table())
        return
    from worker.cli.output import complain, print_rows
    from worker.cli.start import read_settings

    settings = read_settings()
    if sys.stdout.isatty():
        print_rows(
            ("variable", "value", ""),
            [(row.variable, row.value, "set" if row.changed else "") for row in effective(settings)],
        )
    else:
        for row in effective(settings):
            print(f"{row.variable}={row.value}")
    complain(*(f"note: {one}" for one in settings.inherited))
    complain(*(f"warning: {warning}" for warning in settings.warnings))
