"""`sd-worker run`: the daemon, an image's entrypoint."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

import typer
from pydantic import SecretStr

from worker import log
from worker.errors import ConfigError, FieldError
from worker.settings.groups import Settings, secrets_of
from worker.settings.http import HttpSettings
from worker.settings.inherited import COMMAND, Inherited
from worker.settings.source import Reading, read_environment
from worker.signals import Signals
from worker.tasks import run_guarded


def run(
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the server's command, run as our child.")
    ] = None,
) -> None:
    """Take jobs and have the image server do them, until a signal says otherwise."""
    words = tuple(command or ())
    reading = configured(read_environment(), words)
    settings = reading.settings if reading.salad else reading.whole()
    log.hide(secrets_of(settings))
    log.setup(settings.node.log_level, settings.node.log_format, sys.stdout)
    sys.exit(asyncio.run(daemon(reading, words)))


def configured(reading: Reading, command: tuple[str, ...]) -> Reading:
    """What was read, with the command line that stands after ``--``, where there is one."""
    try:
        return replace(reading, settings=with_command(reading.settings, command))
    except ConfigError as error:
        return replace(reading, mistakes=(*reading.mistakes, *error.mistakes))


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


class _Stopped(Exception):
    """A signal came while no worker was there to drain."""


class _Stop:
    """What a signal means before the worker hears it, and after."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    def ask(self) -> None:
        if self._asked.is_set():
            _stop_at_once()
        log.get().info("stop_asked")
        self._asked.set()

    async def asked(self) -> None:
        """A guard."""
        await self._asked.wait()
        raise _Stopped


async def daemon(reading: Reading, command: tuple[str, ...]) -> int:
    """The worker until its end, which a signal may bring at any moment; its exit code."""
    signals, stop = Signals(), _Stop()
    work = _stayed(reading, command, signals) if reading.salad else _worked(reading.settings, signals)
    with signals.heard(stop.ask):
        try:
            return await run_guarded(work, stop.asked(), name="daemon")
        except _Stopped:
            log.get().info("stopped", exit_code=0)
            return 0


async def _worked(settings: Settings, signals: Signals) -> int:
    from worker.app import run as run_worker

    tell(settings)
    listening = _listening(settings.http.host)
    return await run_worker(settings, stop_at_once=_stop_at_once, on_listening=listening, signals=signals)


async def _stayed(reading: Reading, command: tuple[str, ...], signals: Signals) -> int:
    """The worker where an exit bans the node: a mistake of the operator's is told there, and stayed with."""
    from worker.api.blocked import blocked_app
    from worker.app import run as run_worker
    from worker.blocked import Front, Stay, Tenure
    from worker.memory import start_over
    from worker.node import Gpu
    from worker.outfit import identity_of
    from worker.platforms import open_platform
    from worker.status import Status

    settings, status, usual = reading.settings, Status(), HttpSettings()
    platform = open_platform(settings)
    me = identity_of(settings, platform, Gpu())
    log.identify(worker=me.id, machine=me.machine, instance=me.instance, **platform.labels())
    stay = Stay(status, limit=settings.node.blocked_for, rng=random.Random(), forget=start_over)
    app = blocked_app(status, me, guarded(reading), stay.described)
    place, instead = (settings.http.host, settings.http.port), (usual.host, usual.port)
    front = Front(app, place, instead=instead, on_listening=lambda at: _listening(at[0])(at[1]))

    async def read() -> Settings:
        return await _read(front.open, lambda: configured(read_environment(), command))

    async def start(settings: Settings) -> int:
        return await run_worker(settings, stop_at_once=_stop_at_once, signals=signals, tenure=Tenure(status, front))

    try:
        return await run_guarded(stay.run(read, start), front.broken(), name="stay")
    finally:
        await front.aclose()
        await platform.aclose()


async def _read(listen: Callable[[], Awaitable[None]], read: Callable[[], Reading]) -> Settings:
    """The settings, told to the log, once the probes are answered; `ConfigError` with what is in the way of either."""
    unheard: tuple[FieldError, ...] = ()
    try:
        await listen()
    except ConfigError as error:
        unheard = error.mistakes
    reading = await asyncio.to_thread(read)
    settings = replace(reading, mistakes=(*reading.mistakes, *unheard)).whole()
    log.hide(secrets_of(settings))
    tell(settings)
    return settings


def guarded(reading: Reading) -> HttpSettings:
    """How HTTP is served while the settings are wrong: where they do not tell the key, nobody has it."""
    http = reading.settings.http
    if http.api_key is None and any("WORKER_API_KEY" in str(one) for one in reading.mistakes):
        return http.model_copy(update={"api_key": SecretStr(secrets.token_hex(32))})
    return http


def _listening(host: str) -> Callable[[int], None]:
    return lambda port: log.get().info("listening", port=port, host=host)


def _stop_at_once() -> None:
    """A second signal: leases run out by themselves, so nothing is lost."""
    sys.stdout.flush()
    os._exit(0)
