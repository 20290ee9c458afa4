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
from worker.settings.inherited import COMMAND, Inherited
from worker.settings.source import from_environment


def run(
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the server's command, run as our child.")
    ] = None,
) -> None:
    """Take jobs and have the image server do them, until a signal says otherwise."""
    settings = with_command(from_environment(), tuple(command or ()))
    log.hide(secrets_of(settings))
    log.setup(settings.node.log_level, settings.node.log_format, sys.stdout)
    sys.exit(asyncio.run(_daemon(settings)))


def with_command(settings: Settings, command: tuple[str, ...]) -> Settings:
    """The settings with the command line that stands after ``--``, where there is one."""
    if not command:
        return settings
    others = tuple(one for one in settings.inherited if one.variable != COMMAND or not one.honoured)
    if settings.engine.command and others == settings.inherited:
        raise ConfigError((FieldError("WORKER_ENGINE_COMMAND", "is set beside -- COMMAND; one of them must go"),))
    if others != settings.inherited:
        others = (*others, Inherited(COMMAND, "has no effect beside -- COMMAND"))
    engine = settings.engine.model_copy(update={"command": command})
    return settings.model_copy(update={"engine": engine, "inherited": others})


def tell(settings: Settings) -> None:
    """Log what is odd in the environment, and what becomes of other images' variables in it."""
    logger = log.get()
    for warning in settings.warnings:
        logger.warning("setting_doubtful", variable=warning.field, detail=warning.message)
    for one in settings.inherited:
        event = "variable_honoured" if one.honoured else "variable_without_effect"
        logger.info(event, variable=one.variable, detail=one.note)


async def _daemon(settings: Settings) -> int:
    from worker.app import run as run_worker

    logger = log.get()
    tell(settings)
    return await run_worker(
        settings,
        stop_at_once=_stop_at_once,
        on_listening=lambda port: logger.info("listening", port=port, host=settings.http.host),
    )


def _stop_at_once() -> None:
    """A second signal: leases run out by themselves, so nothing is lost."""
    sys.stdout.flush()
    os._exit(0)
