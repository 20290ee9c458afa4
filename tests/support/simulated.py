"""Small simulated fleets in round numbers: a gigabyte a second from disk, 100 megabytes from the network."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dispatcher.simulate.account import Life, Measures
from dispatcher.simulate.load import Assumptions, Load, Loss, Speeds, Submission, need
from dispatcher.simulate.policies import Policy
from dispatcher.simulate.world import World
from dispatcher.words import Need, Waiting

GB = 1_000_000_000
ASSUMED = Assumptions(warm_up=0.0)


def model(name: str, gb: float = 8.0) -> Need:
    """Its load takes a second for each gigabyte, its transfer ten."""
    return need("checkpoint", f"{name}.safetensors", int(gb * GB))


A, B, C = model("a"), model("b"), model("c")


def node(number: int = 0, *, render: float = 1.0, gb: float = 50.0) -> Speeds:
    return Speeds(f"n{number}", render, 1.0 * GB, 0.1 * GB, int(gb * GB))


def job(name: str, *needs: Need, work_s: float = 6.0, user: str = "", priority: int = 0) -> Waiting:
    return Waiting(id=name, needs=needs, work_s=work_s, user=user, priority=priority)


def load(
    jobs: Mapping[float, Waiting],
    *nodes: Speeds,
    stock: Mapping[str, tuple[Need, ...]] | None = None,
    losses: tuple[Loss, ...] = (),
    horizon: float = 1000.0,
    backlog: int = 0,
) -> Load:
    """Jobs by when they are submitted; without ``stock`` all disks are empty."""
    submissions = tuple(Submission(at, each) for at, each in jobs.items())
    return Load(nodes or (node(),), submissions, losses, horizon, stock or {}, backlog)


def run(given: Load, policy: Policy, assumed: Assumptions = ASSUMED) -> Measures:
    return World(given, policy, assumed).run()


def first_steps(measures: Measures) -> dict[str, float]:
    """When each job had its first step."""
    return {name: _step(life) for name, life in measures.lives.items()}


def _step(life: Life) -> float:
    return math.nan if life.first_step is None else round(life.first_step, 3)
