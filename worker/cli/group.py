"""The command line's root: a typer group that imports a command when it is called or listed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from worker.cli import COMMANDS


class Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f"worker.cli.{name}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer(add_completion=False)
            app.command(cmd_name)(getattr(module, name))
        command = get_command(app)
        command.name = cmd_name
        return command


def _print_version(wanted: bool) -> None:
    if wanted:
        from worker.cli.version import version

        version()
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Turns an SD.Next or Automatic1111 server on an interruptible GPU into a dependable worker."""


def run(argv: Sequence[str]) -> int:
    """Run the command that ``argv`` names, in typer's way; the exit code."""
    app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True)
    app.callback()(root)
    code: object = 0
    try:
        get_command(app).main(args=list(argv), prog_name="sd-worker")
    except SystemExit as ended:
        code = ended.code
    return code if isinstance(code, int) else int(code is not None)
