"""`sd-dispatcher`: the scheduling service, and its decisions in virtual time.

Exit codes are the worker's: 0 a clean end, 1 another failure of ours, 64 bad configuration, 70 a bug.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from worker import __version__, log
from worker.errors import ConfigError, WorkerError

OK = 0
FAILED = 1
BAD_CONFIGURATION = 64
INTERNAL = 70
EXTRA = frozenset({"alembic", "httptools", "jwt", "psycopg", "pygal", "sqlalchemy"})
"""What only the extra `dispatcher` brings."""


def main() -> NoReturn:
    """Run the command line and end the process; threads that hang in a database do not keep it."""
    code = INTERNAL
    try:
        code = command_line(sys.argv[1:])
    finally:
        if (error := sys.exception()) is not None:
            _report(error)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def command_line(argv: Sequence[str]) -> int:
    """Run a command; its exit code. What is no error of ours comes out as it is."""
    try:
        return _run(argv)
    except ConfigError as error:
        _complain(f"{len(error.mistakes)} mistake(s) in the configuration:", *map(str, error.mistakes))
        return BAD_CONFIGURATION
    except WorkerError as error:
        _complain(f"{error.code}: {error.message}")
        return FAILED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        _complain(f"sd-dispatcher needs {error.name}: install it with `pip install 'sd-worker[dispatcher]'`")
        return BAD_CONFIGURATION


def _run(argv: Sequence[str]) -> int:
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, help="Gives each node the job whose model it already has."
    )
    app.callback()(_root)
    app.command()(serve)
    if argv[:1] == ["simulate"] or not argv or "--help" in argv[:1]:
        from dispatcher.simulate.command import simulate

        app.command()(simulate)
    code: object = OK
    try:
        get_command(app).main(args=list(argv), prog_name="sd-dispatcher")
    except SystemExit as ended:
        code = ended.code
    return code if isinstance(code, int) else int(code is not None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sd-dispatcher {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Gives each node the job whose model it already has."""


def serve() -> None:
    """Take jobs from users and give them to nodes, until a signal says otherwise."""
    from dispatcher.service import run
    from dispatcher.settings import from_environment, secrets_of

    settings = from_environment()
    log.hide(secrets_of(settings))
    log.setup(settings.serve.log_level, settings.serve.log_format, sys.stdout)
    logger = log.get()
    for warning in settings.warnings:
        logger.warning("setting_doubtful", variable=warning.field, detail=warning.message)
    code = asyncio.run(
        run(
            settings,
            on_listening=lambda port: logger.info("listening", port=port, host=settings.host),
            stop_at_once=_stop_at_once,
        )
    )
    raise typer.Exit(code)


def _stop_at_once() -> None:
    """A second signal: leases run out by themselves, so nothing is lost."""
    sys.stdout.flush()
    os._exit(OK)


def _complain(*lines: str) -> None:
    for line in lines:
        typer.echo(log.redact(line), err=True)


def _report(error: BaseException) -> None:
    import traceback

    sys.stderr.write(log.redact("".join(traceback.format_exception(error))))


if __name__ == "__main__":
    main()
