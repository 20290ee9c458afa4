"""`sd-worker check`: every mistake in the configuration, then a try of each part, a line each."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, NamedTuple

import typer

from worker.cli import BAD_CONFIGURATION, FAILED, OK, fitness, sources, workflows
from worker.cli.local import Finding, clock_offset, disk, gpu, image_findings
from worker.cli.output import print_rows
from worker.cli.run import with_command
from worker.cli.start import read_settings
from worker.engines.base import EngineState, Reach
from worker.errors import AuthFailed, ConfigError, WorkerError
from worker.settings.groups import Settings

LIMIT_S = 30.0
Opened = Callable[..., AbstractAsyncContextManager[Any]]


class Report(NamedTuple):
    """What was found of one part; ``code`` is the exit code that it asks for."""

    part: str
    finding: Finding
    code: int = OK


def check(
    command: Annotated[
        list[str] | None, typer.Argument(help="After `--`: the server's command, as `run` is given it.")
    ] = None,
    image: Annotated[bool, typer.Option("--image", help="Only what a Docker build can know.")] = False,
) -> None:
    """Tell every configuration mistake, then try each configured part.

    Exit 64: bad configuration or refused credentials; 1: a part failed.
    """
    settings = with_command(read_settings(), tuple(command or ()))
    sys.exit(asyncio.run(_print_all(settings, image)))


async def _print_all(settings: Settings, image: bool) -> int:
    worst = OK
    print_rows((), _rows(_settings_reports(settings)))
    for reports in (workflow_reports(settings), image_reports(settings) if image else part_reports(settings, _open)):
        async for report in reports:
            print_rows((), _rows([report]))
            worst = max(worst, report.code)
    return worst


def _rows(reports: list[Report]) -> Iterator[tuple[str, str, str]]:
    for report in reports:
        yield f"{report.finding.verdict:<6}", f"{report.part:<8}", report.finding.text


def _settings_reports(settings: Settings) -> list[Report]:
    notes = [Report("settings", Finding.note(str(odd))) for odd in (*settings.warnings, *settings.inherited)]
    return notes or [Report("settings", Finding.ok("no mistakes"))]


def _open(settings: Settings, parts: set[str]) -> AbstractAsyncContextManager[Any]:
    from worker.app import opened

    return opened(settings, parts=parts)


async def workflow_reports(settings: Settings) -> AsyncIterator[Report]:
    """Each custom workflow that cannot be used, by file and line."""
    async for finding in workflows.findings(settings):
        yield Report("workflow", finding, FAILED if finding.verdict == "FAILED" else OK)


async def image_reports(settings: Settings) -> AsyncIterator[Report]:
    """What a Docker build can know: libc, folders, user, ports, the server's command, its models."""
    models = sources.in_image(settings)
    for part, finding in (*image_findings(settings), *([("models", models)] if models is not None else [])):
        yield Report(part, finding, FAILED if finding.verdict == "FAILED" else OK)


async def part_reports(settings: Settings, opened: Opened, limit_s: float = LIMIT_S) -> AsyncIterator[Report]:
    """Each configured part in turn, each within the limit and whatever became of the one before."""
    tries: Mapping[str, Callable[[], Any]] = {
        "engine": lambda: _engine(settings, opened),
        "queue": lambda: _driver(settings, opened, "queue"),
        "storage": lambda: _driver(settings, opened, "storage"),
        "webhook": lambda: _webhook(settings),
        "models": lambda: sources.models(settings),
        "sources": lambda: sources.sources(settings),
        "disk": lambda: _at_once(disk(settings)),
        "clock": lambda: clock_offset(settings),
        "gpu": gpu,
    }
    if fitness.is_asked(settings):
        tries = {**tries, "fitness": lambda: fitness.fitness(settings, opened)}
    for part, attempt in tries.items():
        yield await _tried(part, attempt, limit_s)


async def _tried(part: str, attempt: Callable[[], Any], limit_s: float) -> Report:
    try:
        async with asyncio.timeout(limit_s):
            finding = await attempt()
    except TimeoutError:
        return Report(part, Finding.failed(f"no answer within {limit_s:g} s"), FAILED)
    except (ConfigError, AuthFailed) as error:
        return Report(part, Finding.failed(f"{error.code}: {error.message}"), BAD_CONFIGURATION)
    except WorkerError as error:
        return Report(part, Finding.failed(f"{error.code}: {error.message}"), FAILED)
    return Report(part, finding, FAILED if finding.verdict == "FAILED" else OK)


async def _engine(settings: Settings, opened: Opened) -> Finding:
    async with opened(settings, {"engine"}) as parts:
        program = parts.process.check()
        state: EngineState = await parts.engine.look()
    if parts.process.owned and state.reach is Reach.PORT_CLOSED:
        return Finding.note(f"not running; the worker starts {program}")
    said = " ".join(filter(None, (state.name, state.version, state.model, state.detail))) or settings.engine.address
    if state.reach is Reach.READY:
        return Finding.ok(said)
    if state.reach is Reach.MODEL_NOT_LOADED:
        return Finding.note(f"{state.reach}: {said}")
    return Finding.failed(f"{state.reach}: {said}")


async def _driver(settings: Settings, opened: Opened, part: str) -> Finding:
    async with opened(settings, {part}) as parts:
        return Finding.ok(await getattr(parts, part).check())


async def _webhook(settings: Settings) -> Finding:
    """URL and secrets were checked with the settings; nobody is called, since a receiver might act on it."""
    secret = settings.webhook.secret
    signed = f"signed with {len(secret.get_secret_value().split())} secret(s)" if secret else "not signed"
    if settings.webhook.url is None:
        return Finding.note(f"no default; those of jobs are {signed}")
    return Finding.ok(f"{settings.webhook.url}, {signed}, not called")


async def _at_once(finding: Finding) -> Finding:
    return finding
