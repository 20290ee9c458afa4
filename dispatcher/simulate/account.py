"""What a simulated run is measured by."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from dispatcher.words import Key


@dataclass(slots=True)
class Spent:
    """Seconds of a GPU: rendering, loading, idle while it held jobs whose models were on their way, and idle."""

    render: float = 0.0
    load: float = 0.0
    download: float = 0.0
    idle: float = 0.0

    def add(self, other: Spent) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class Tally:
    """What was done to have models: main models loaded, files fetched for jobs and by order, bytes of both."""

    loads: int = 0
    fetched: int = 0
    ordered: int = 0
    bytes: float = 0.0

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class Life:
    """What became of a job: when it was submitted, the first step of its last run, its end."""

    key: Key
    submitted: float
    work_s: float
    first_step: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Measures:
    """What was counted between ``begun`` and ``over``, both absolute seconds; ``lives`` has all jobs of the run.

    ``taken`` counts grants by where the job's models were: ``warm``, ``disk``, ``download``. ``held``: how many jobs
    each node had that vanished. ``backed_up``: seconds of GPUs that held nothing while work waited. ``capacity_s``:
    seconds of rendering on an average node that the nodes could have done. ``passed``: the most often that the first
    in line was passed over.
    """

    begun: float = 0.0
    over: float = 0.0
    lives: dict[str, Life] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    tally: Tally = field(default_factory=Tally)
    backed_up: float = 0.0
    capacity_s: float = 0.0
    passed: int = 0
    waiting: int = 0
