"""What the fleet is given to do: its models, and jobs that want some of them far more than others. No I/O."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from dispatcher.simulate.load import Zipf

BYTES = 1_200_000
"""Of a model's tensors: the least from which a worker measures its bandwidth is a million."""

ROOM = 5
"""Models that a node's disk takes."""

BYTES_A_SECOND = 1_200_000
LOAD_S, STEPS, STEP_S = 0.5, 8, 0.03
"""A real checkpoint's gigabytes, its load and its picture, in the same proportion, small enough to be shown."""

ZIPF = 1.0
AT_ONCE = 0.4
"""The share of the jobs that is there at the start; the others come one after another, ``GAP_S`` apart."""

GAP_S = 0.06
SIDE = 256
PROMPTS = ("a lighthouse at dusk", "a heron, studio light", "a street in the rain", "an orange on a plate")


@dataclass(frozen=True, slots=True)
class Plan:
    """``run`` is new at every run and part of every id; ``lease_s`` in seconds."""

    run: str
    workers: int = 5
    models: int = 60
    jobs: int = 300
    kills: int = 2
    freezes: int = 1
    lease_s: float = 5.0
    seed: int = 1

    @property
    def nodes(self) -> list[str]:
        return [f"node-{number + 1}" for number in range(self.workers)]

    @property
    def names(self) -> list[str]:
        """The models' file names, the most wanted first."""
        return [f"model-{number + 1:02}.safetensors" for number in range(self.models)]

    @property
    def disturbances(self) -> list[tuple[float, str]]:
        """What happens to nodes (``kill``, ``freeze``), and at which share of the jobs done."""
        acts = sorted(
            [((n + 0.5) / self.kills, "kill") for n in range(self.kills)]
            + [((n + 0.5) / self.freezes, "freeze") for n in range(self.freezes)]
        )
        return [(0.6 * (n + 1) / (len(acts) + 1), act) for n, (_, act) in enumerate(acts)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job, and when it is submitted, in seconds from the first."""

    at: float
    model: str
    document: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.document["id"])


def jobs_of(plan: Plan) -> list[Wanted]:
    """All jobs in the order of their submission; the same for the same seed, but for their ids."""
    return list(_jobs(plan))


def _jobs(plan: Plan) -> Iterator[Wanted]:
    dice, popularity, names = Random(plan.seed), Zipf(plan.models, ZIPF), plan.names
    at_once = int(AT_ONCE * plan.jobs)
    for number in range(plan.jobs):
        model = names[popularity.draw(dice)]
        prompt = PROMPTS[number % len(PROMPTS)]
        params = {"prompt": f"{prompt}, {number + 1}", "width": SIDE, "height": SIDE, "steps": STEPS}
        document = {"v": 1, "id": f"{plan.run}-{number + 1:03}", "checkpoint": model, "params": params}
        yield Wanted(max(0, number + 1 - at_once) * GAP_S, model, document)


def weights(name: str) -> bytes:
    """The model file of this name: a true safetensors header and one tensor, different for each name."""
    tensor = {"dtype": "F16", "shape": [BYTES // 2], "data_offsets": [0, BYTES]}
    header = json.dumps({"__metadata__": {"name": name}, "weight": tensor}).encode()
    block = hashlib.sha256(name.encode()).digest()
    return struct.pack("<Q", len(header)) + header + block * (BYTES // len(block))
