"""What the same jobs would have cost the same nodes under other rules, computed in virtual time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.plan import BYTES, BYTES_A_SECOND, LOAD_S, ROOM, STEP_S, STEPS, Plan, Wanted
from dispatcher.simulate.load import Assumptions, Load, Loss, Speeds, Submission, need
from dispatcher.simulate.policies import policy
from dispatcher.simulate.world import World
from dispatcher.words import Rules, Waiting

COVERAGE_S, POLL_S = 5.0, 0.25


@dataclass(frozen=True, slots=True)
class Costs:
    """Models that servers loaded, files that nodes downloaded, and their bytes."""

    loads: int
    downloads: int
    bytes: int


def computed(name: str, plan: Plan, jobs: Sequence[Wanted], lost: Mapping[str, float]) -> Costs:
    """The costs of a policy of `dispatcher.simulate` over these jobs.

    ``lost``: the nodes that were killed, and when, in seconds after the first submission. A frozen node is left out:
    under any rule it goes on where it stood.
    """
    work_s = STEPS * STEP_S
    nodes = tuple(Speeds(node, 1.0, BYTES / LOAD_S, BYTES_A_SECOND, ROOM * BYTES) for node in plan.nodes)
    submissions = tuple(
        Submission(job.at, Waiting(job.id, (need("checkpoint", job.model, BYTES),), work_s=work_s)) for job in jobs
    )
    losses = tuple(Loss(node, at, math.inf) for node, at in sorted(lost.items(), key=lambda item: item[1]))
    horizon = jobs[-1].at + plan.lease_s + len(jobs) * (work_s + LOAD_S + BYTES / BYTES_A_SECOND)
    assumed = Assumptions(
        heartbeat_s=plan.lease_s / 4,
        lease_s=plan.lease_s,
        node_timeout_s=plan.lease_s,
        plan_s=COVERAGE_S,
        poll_s=POLL_S,
        warm_up=0.0,
    )
    load = Load(nodes, submissions, losses, horizon)
    tally = World(load, policy(name, Rules(), plan.seed), assumed).run().tally
    return Costs(tally.loads, tally.fetched + tally.ordered, int(tally.bytes))
