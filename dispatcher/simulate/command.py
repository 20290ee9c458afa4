"""``sd-dispatcher simulate``: the decisions in virtual time, beside plain queues and a clairvoyant bound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from dispatcher.simulate import report
from dispatcher.simulate.load import Assumptions, Load, generated, plain
from dispatcher.simulate.policies import Policy, policy
from dispatcher.simulate.trace import BadTrace, read
from dispatcher.simulate.world import World
from dispatcher.words import Rules

DEFAULT = Assumptions()
STOCKS = ("spread", "popular", "empty")
POSITIVE = ("nodes", "models", "jobs", "load", "render_s", "load_s", "download_s", "heartbeat_s", "plan_s", "poll_s")
"""Assumptions that must not be 0."""

POLICIES = ("sd-dispatcher", "fifo", "random", "look-ahead-32")


def simulate(
    nodes: Annotated[int, typer.Option(min=1, max=100_000, help="Nodes with a GPU each.")] = DEFAULT.nodes,
    models: Annotated[int, typer.Option(min=1, max=1_000_000, help="Models that jobs ask for.")] = DEFAULT.models,
    jobs: Annotated[int, typer.Option(min=1, max=10_000_000, help="Jobs.")] = DEFAULT.jobs,
    zipf: Annotated[float, typer.Option(min=0, max=5, help="How unevenly: 0 all alike.")] = DEFAULT.zipf,
    load: Annotated[float, typer.Option(min=0.001, max=10, help="Share of the render capacity.")] = DEFAULT.load,
    backlog: Annotated[int, typer.Option(min=0, help="So many jobs wait at all times, instead.")] = DEFAULT.backlog,
    seed: Annotated[int, typer.Option(help="The same seed, the same numbers.")] = DEFAULT.seed,
    uniform: Annotated[
        bool, typer.Option("--plain", help="All nodes, models and jobs alike, no losses, one job at a time.")
    ] = False,
    assume: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Any other assumption that the report lists.")
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", help="`sd-dispatcher`, `fifo`, `random`, `look-ahead-N`, `index-N`; may be repeated."),
    ] = None,
    max_skips: Annotated[int, typer.Option(min=0, help="DISPATCHER_MAX_SKIPS.")] = Rules().max_skips,
    coverage: Annotated[int, typer.Option(min=0, help="DISPATCHER_COVERAGE.")] = Rules().coverage,
    trace: Annotated[Path | None, typer.Option(help="Jobs and lost nodes from a file of JSON lines.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write an SVG of loads over waiting.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Compare this dispatcher's decisions with plain queues, in virtual time."""
    chosen = Assumptions(nodes, models, jobs, zipf, load, backlog, seed)
    assumed, rules = (
        _assumed(plain(chosen) if uniform else chosen, assume or ()),
        replace(Rules(), max_skips=max_skips, coverage=coverage),
    )
    compared = [_policy(name, rules, seed) for name in policies or POLICIES]
    given = _traced(trace, assumed) if trace else generated(assumed)
    summaries = _run(given, compared, assumed)
    bound = report.bounds(given, assumed)
    if plot is not None:
        _draw(plot, summaries, bound, f"{len(given.nodes)} nodes, {len(given.submissions)} jobs")
    if as_json:
        typer.echo(report.as_json(summaries, bound, given, assumed, rules))
        return
    console = Console(soft_wrap=True)
    for shown in (report.table(summaries), report.classes_table(summaries), *report.told(given, assumed, rules, bound)):
        console.print(shown, highlight=False, markup=False)
        console.print()


def _assumed(chosen: Assumptions, pairs: Iterable[str]) -> Assumptions:
    names = [each.name for each in dataclasses.fields(Assumptions)]
    for pair in pairs:
        name, is_pair, text = pair.partition("=")
        if name not in names or not is_pair:
            raise typer.BadParameter(f"{pair}: write NAME=VALUE with one of {', '.join(names)}")
        changed: dict[str, Any] = {name: _value(name, text)}
        chosen = replace(chosen, **changed)
    return chosen


def _value(name: str, text: str) -> float | bool | str:
    """Of the kind that the assumption's default has."""
    kind = type(getattr(DEFAULT, name))
    if kind is str:
        if text not in STOCKS:
            raise typer.BadParameter(f"{name}={text}: write one of {', '.join(STOCKS)}")
        return text
    if kind is bool:
        return text.lower() in ("1", "true", "yes")
    try:
        value: float = kind(float(text))
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{name}={text}: that is no number") from None
    if not 0 <= value < math.inf or (name in POSITIVE and not value):
        raise typer.BadParameter(f"{name}={text}: must {'be positive' if name in POSITIVE else 'not be negative'}")
    return value


def _policy(name: str, rules: Rules, seed: int) -> Policy:
    try:
        return policy(name, rules, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _traced(path: Path, assumed: Assumptions) -> Load:
    try:
        with path.open(encoding="utf-8") as lines:
            return read(lines, assumed)
    except (OSError, UnicodeError, BadTrace) as error:
        raise typer.BadParameter(f"{path}: {error}") from None


def _run(load: Load, compared: Iterable[Policy], assumed: Assumptions) -> list[report.Summary]:
    sorts, found = report.classes(load), list[report.Summary]()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for each in compared:
            task = progress.add_task(each.name, total=None)
            found.append(report.summed_up(each.name, World(load, each, assumed).run(), sorts))
            progress.update(task, total=1, completed=1)
    return found


def _draw(path: Path, summaries: list[report.Summary], bound: Mapping[float, float], title: str) -> None:
    from dispatcher.simulate.plot import drawn

    try:
        path.write_bytes(drawn(summaries, bound, title))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
