"""`sd-worker run`: the daemon, an image's entrypoint."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Annotated

import typer

from worker import log
from worker.errors import ConfigError, FieldError
from worker.settings.groups import Settings, secrets_of
from worker.settings.source import from_environment


def run(
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the server's command; not in this version.")
    ] = None,
) -> None:
    """Take jobs and have the image server do them, until a signal says otherwise."""
    if command:
        mistake = "starting the server is not in this version; start it beside the worker"
        raise ConfigError((FieldError("-- COMMAND", mistake),))
    settings = from_environment()
    log.hide(secrets_of(settings))
    log.setup(settings.node.log_level, settings.node.log_format, sys.stdout)
    sys.exit(asyncio.run(_daemon(settings)))


async def _daemon(settings: Settings) -> int:
    from worker.app import run as run_worker

    logger = log.get()
    for warning in settings.warnings:
        logger.warning("setting_doubtful", variable=warning.field, detail=warning.message)
    return await run_worker(
        settings,
        stop_at_once=_stop_at_once,
        on_listening=lambda port: logger.info("listening", port=port, host=settings.http.host),
    )


def _stop_at_once() -> None:
    """A second signal: leases run out by themselves, so nothing is lost."""
    sys.stdout.flush()
    os._exit(0)
