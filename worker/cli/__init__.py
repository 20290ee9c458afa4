"""The commands, one file each, imported when they are asked for.

A command is a function of the file's name (``_`` for ``-``), typed for typer, or a `typer.Typer` called ``app`` where
it has commands of its own. To add one: its file, and its name here.
"""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = ("run", "demo", "check", "config", "submit", "queue", "models", "probe", "salad-group", "version")

OK = 0
FAILED = 1
BAD_CONFIGURATION = 64
INTERNAL = 70


def main(argv: Sequence[str]) -> int:
    """Run a command and say its exit code: 64 with every mistake for bad configuration, 1 for other failures.

    Credentials that are refused are bad configuration too.

    Usage errors are typer's 2. What is no `WorkerError` comes out as it is.
    """
    from worker.cli.group import run
    from worker.cli.output import complain
    from worker.errors import AuthFailed, ConfigError, WorkerError

    try:
        return run(argv)
    except ConfigError as error:
        complain(f"{len(error.mistakes)} mistake(s) in the configuration:", *map(str, error.mistakes))
        return BAD_CONFIGURATION
    except WorkerError as error:
        complain(f"{error.code}: {error.message}")
        return BAD_CONFIGURATION if isinstance(error, AuthFailed) else FAILED
