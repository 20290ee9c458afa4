"""What a simulation found: figures for each policy, as a table and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from dispatcher.simulate.account import Life, Measures
from dispatcher.simulate.bound import frontier
from dispatcher.simulate.load import Assumptions, Load
from dispatcher.words import Key, Rules

CLASSES = ("head", "middle", "rare")
"""Models by what was asked of them: the first half of the jobs, what is between, the last tenth."""

WAITS_S = (10.0, 60.0, 300.0, 900.0)
"""The longest waits for which the clairvoyant bound is told."""

HOW_TO_READ = (
    "Loads to idle are for each 1,000 jobs done: main models loaded, files fetched for jobs and by order, gigabytes, "
    "and seconds of GPUs that loaded, that waited for the models of their jobs, and that held nothing while jobs "
    "waited. Waits run from a job's submission to its first step; all policies end at the same moment, and the wait of "
    "what has not begun by then counts as long as it is, which flatters whoever is behind."
)


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds from the submission of a job to its first step; of those that had none, until the end of the run."""

    jobs: int
    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Waits:
        ordered = sorted(seconds)
        at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0 for share in (0.5, 0.99, 1)]
        return cls(len(ordered), *at)


@dataclass(frozen=True, slots=True)
class Summary:
    """A policy's figures. ``per_1000`` jobs done: loads, fetched and ordered files, gigabytes, GPU-seconds lost.

    ``rendered``: jobs done in seconds of an average node, as a share of what all nodes could have rendered. ``gpu``:
    shares of the time of all GPUs. ``taken``: shares of grants by where the models were. ``curve``: the waits that
    1 %, 2 % ... 99 % of the jobs stayed below.
    """

    policy: str
    done: int
    waiting: int
    rendered: float
    per_1000: Mapping[str, float]
    gpu: Mapping[str, float]
    taken: Mapping[str, float]
    waits: Waits
    by_class: Mapping[str, Waits]
    passed: int
    deaths: int
    held_mean: float
    held_max: int
    curve: tuple[float, ...] = field(repr=False, default=())


def classes(load: Load) -> dict[Key, str]:
    """The class of each model, by the jobs of the whole load."""
    asked = Counter(sent.job.key for sent in load.submissions)
    found, before, total = dict[Key, str](), 0, len(load.submissions)
    for key, count in sorted(asked.items(), key=lambda item: (-item[1], item[0])):
        found[key] = "head" if before < total / 2 else "middle" if before < 0.9 * total else "rare"
        before += count
    return found


def waited(life: Life, over: float) -> float:
    started = life.first_step is not None and life.first_step <= over
    return (life.first_step if started and life.first_step is not None else over) - life.submitted


def summed_up(policy: str, measures: Measures, sorts: Mapping[Key, str]) -> Summary:
    """The figures of one run."""
    begun, over = measures.begun, measures.over
    done = [life for life in measures.lives.values() if life.ended is not None and life.ended > begun]
    new = [life for life in measures.lives.values() if life.submitted >= begun]
    seconds = sorted(waited(life, over) for life in new)
    each, tally, spent = 1000 / max(len(done), 1), measures.tally, measures.spent
    gpu_s = spent.render + spent.load + spent.download + spent.idle
    lost = {"load_s": spent.load, "download_s": spent.download, "idle_s": measures.backed_up}
    files = {"loads": tally.loads, "fetched": tally.fetched, "ordered": tally.ordered, "gb": tally.bytes / 1e9}
    granted = sum(measures.taken.values())
    return Summary(
        policy=policy,
        done=len(done),
        waiting=measures.waiting,
        rendered=_share(sum(life.work_s for life in done), measures.capacity_s),
        per_1000={name: value * each for name, value in {**files, **lost}.items()},
        gpu={name: _share(value, gpu_s) for name, value in asdict(spent).items()},
        taken={tier: _share(count, granted) for tier, count in sorted(measures.taken.items())},
        waits=Waits.of(seconds),
        by_class={sort: Waits.of(waited(life, over) for life in new if sorts[life.key] == sort) for sort in CLASSES},
        passed=measures.passed,
        deaths=len(measures.held),
        held_mean=_share(sum(measures.held), len(measures.held)),
        held_max=max(measures.held, default=0),
        curve=tuple(seconds[len(seconds) * percent // 100] for percent in range(1, 100)) if seconds else (),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def bounds(load: Load, assumed: Assumptions) -> Mapping[float, float]:
    """The clairvoyant bound over the part that is measured; none with a backlog, whose jobs have no times."""
    begun = assumed.warm_up * load.horizon
    waits_s = [wait_s for wait_s in WAITS_S if begun + 2 * wait_s < load.horizon]
    return {} if load.backlog else frontier(load, waits_s, begun)


def as_json(
    summaries: Sequence[Summary], bound: Mapping[float, float], load: Load, assumed: Assumptions, rules: Rules
) -> str:
    """Everything, as one JSON document; the same for the same seed."""
    document: dict[str, Any] = {
        "assumptions": asdict(assumed),
        "rules": asdict(rules),
        "nodes": len(load.nodes),
        "jobs": len(load.submissions),
        "horizon_s": load.horizon,
        "losses": len(load.losses),
        "policies": [asdict(summary) for summary in summaries],
        "fewest_loads_per_1000": [{"longest_wait_s": wait, "loads": loads} for wait, loads in bound.items()],
    }
    return json.dumps(document, indent=2)


def table(summaries: Sequence[Summary]) -> Table:
    """A column a policy, a row a measure: five policies are legible in eighty columns, and in a pipe."""
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("", no_wrap=True)
    for summary in summaries:
        found.add_column(summary.policy, justify="right")
    for measure in zip(_MEASURES, *map(_cells, summaries), strict=True):
        found.add_row(*measure)
    return found


_MEASURES = (
    *("done", "waiting", "of render", "loads", "fetched", "ordered", "GB", "load s", "download s", "idle s"),
    *("p50", "p99", "max", "rare max", "skips", "held at death"),
)


def _cells(summary: Summary) -> list[str]:
    per, waits = summary.per_1000, summary.waits
    return [
        str(summary.done),
        str(summary.waiting),
        f"{100 * summary.rendered:.1f} %",
        *(f"{per[name]:.0f}" for name in ("loads", "fetched", "ordered", "gb", "load_s", "download_s", "idle_s")),
        *(f"{value:.0f} s" for value in (waits.p50, waits.p99, waits.max, summary.by_class["rare"].max)),
        str(summary.passed),
        f"{summary.held_mean:.1f} ({summary.held_max})",
    ]


def classes_table(summaries: Sequence[Summary]) -> Table:
    """Waits by how popular the models are."""
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("waits: p50, p99, longest", no_wrap=True)
    for sort in CLASSES:
        found.add_column(sort, justify="right")
    for summary in summaries:
        waits = (summary.by_class[sort] for sort in CLASSES)
        found.add_row(summary.policy, *(f"{each.p50:.0f}, {each.p99:.0f}, {each.max:.0f} s" for each in waits))
    return found


def told(load: Load, assumed: Assumptions, rules: Rules, bound: Mapping[float, float]) -> list[str]:
    """The assumptions, how to read the table, and the bound, in sentences."""
    given = ", ".join(f"{name} {value}" for name, value in asdict(assumed).items())
    begun_s = assumed.warm_up * load.horizon
    size = f"{len(load.nodes)} nodes, {len(load.submissions)} jobs, {load.horizon:.0f} s"
    lines = [
        f"{size}, of which the first {begun_s:.0f} s do not count; {len(load.losses)} nodes vanish.",
        f"Assumed: {given}.",
        f"Rules: {', '.join(f'{name} {value}' for name, value in asdict(rules).items())}.",
        HOW_TO_READ,
    ]
    if bound:
        found = ", ".join(f"{loads:.0f} where none waits over {wait:.0f} s" for wait, loads in bound.items())
        lines.append(f"Knowing all arrivals, nobody could do with fewer loads for 1,000 jobs than: {found}.")
    return lines
