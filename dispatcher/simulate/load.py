"""What a simulated fleet is asked to do: its nodes, its models, the jobs and when they come, the nodes it loses.

Everything is drawn from one seed before the clock starts, so that every policy gets the very same load. Seconds and
bytes throughout.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, cycle
from random import Random

from dispatcher.words import Key, Need, Source, Waiting, key_of

SDXL = 6_900_000_000
"""Bytes of the checkpoint in which speeds are told: ``load_s`` and ``download_s`` are of a file of this size."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All that is assumed; each is told in the report.

    ``load`` is the share of what all nodes together could render, were every model in memory; with ``backlog`` that
    many jobs wait at all times instead. ``spread`` is the sigma of the lognormal speeds of nodes (GPU, disk, network;
    means kept), ``work_spread`` that of jobs. ``drift_s``: a model jumps to another rank of popularity that often.
    ``life_s`` is the mean time until a node vanishes; after ``away_s`` an empty one takes its place. 0 stands for
    never, or none. ``families``: the sizes and companions of `FAMILIES`; else each model is one file of `SDXL` bytes.
    ``stock``: what disks hold at the start: every model somewhere, the popular ones on more nodes, as far as there is
    room (``spread``); what each node would have after a while of plain queueing (``popular``); or nothing (``empty``).
    ``parked``: deliveries that a node holds for their models while it renders others. ``warm_up``: the share of the
    run that is not measured.
    """

    nodes: int = 200
    models: int = 2000
    jobs: int = 50_000
    zipf: float = 1.0
    load: float = 0.8
    backlog: int = 0
    seed: int = 1
    render_s: float = 6.0
    work_spread: float = 0.4
    load_s: float = 8.0
    download_s: float = 110.0
    spread: float = 0.25
    cap: int = 50_000_000_000
    families: bool = True
    loras: int = 500
    lora_share: float = 0.2
    burst_share: float = 0.2
    burst: int = 8
    users: int = 20
    urgent_share: float = 0.0
    drift_s: float = 300.0
    life_s: float = 14_400.0
    away_s: float = 600.0
    parked: int = 2
    stock: str = "spread"
    warm_up: float = 0.2
    heartbeat_s: float = 30.0
    lease_s: float = 120.0
    node_timeout_s: float = 90.0
    plan_s: float = 10.0
    poll_s: float = 1.0


def plain(assumed: Assumptions) -> Assumptions:
    """All alike: one size, one speed, one model a job, a steady stream, no losses, and one job at a time."""
    return replace(
        assumed,
        families=False,
        spread=0.0,
        work_spread=0.0,
        lora_share=0.0,
        burst_share=0.0,
        drift_s=0.0,
        life_s=0.0,
        parked=0,
    )


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model, how common it is among models, and the files that all of its models need besides."""

    share: float
    kind: str
    size: int
    companions: tuple[Need, ...] = ()


def need(kind: str, name: str, size: int) -> Need:
    return Need(key_of(kind, name), kind, name, size)


FAMILIES = (
    Family(0.45, "checkpoint", 2_100_000_000),
    Family(0.50, "checkpoint", SDXL),
    Family(
        0.05,
        "unet",
        11_900_000_000,
        (need("clip", "t5xxl_fp8.safetensors", 4_900_000_000), need("vae", "ae.safetensors", 340_000_000)),
    ),
)
"""Shares of models and sizes as they are on the hubs: SD 1.5, SDXL, and Flux in eight bits with its companions."""

PLAIN = (Family(1.0, "checkpoint", SDXL),)


@dataclass(frozen=True, slots=True)
class Speeds:
    """A node: how fast it renders (1: as assumed), bytes a second of its disk and network, and its room for models."""

    id: str
    render: float
    disk: float
    network: float
    cap: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A node that vanishes, and when an empty one takes its place (infinite: never)."""

    node: str
    at: float
    back: float


@dataclass(frozen=True, slots=True)
class Submission:
    """A job and when it is submitted. Its rank is given by the line that it joins."""

    at: float
    job: Waiting


@dataclass(frozen=True, slots=True)
class Load:
    """A whole run. ``stock``: what lies on each node's disk at the start. Submissions are in the order of time.

    With ``backlog`` the times of submissions do not count: so many wait at all times, until the ``horizon``.
    """

    nodes: tuple[Speeds, ...]
    submissions: tuple[Submission, ...]
    losses: tuple[Loss, ...]
    horizon: float
    stock: Mapping[str, tuple[Need, ...]] = field(default_factory=dict)
    backlog: int = 0

    @property
    def catalogue(self) -> dict[Key, Source]:
        """Where each model is to be had, for all that jobs need."""
        needs = {each.key: each for sent in self.submissions for each in sent.job.needs}
        return {key: Source(each.kind, each.name, sha256=each.sha256, size=each.size) for key, each in needs.items()}


class Zipf:
    """Ranks 0 to ``count`` - 1, drawn with a weight of 1 / (rank + 1) ** ``exponent``."""

    def __init__(self, count: int, exponent: float) -> None:
        self._sums = list(accumulate((rank + 1) ** -exponent for rank in range(count)))

    def draw(self, dice: Random) -> int:
        return min(bisect_left(self._sums, dice.uniform(0, self._sums[-1])), len(self._sums) - 1)


def spread_around(mean: float, sigma: float, dice: Random) -> float:
    """A lognormal of this mean."""
    return mean * math.exp(dice.gauss(-sigma * sigma / 2, sigma)) if sigma else mean


def generated(assumed: Assumptions) -> Load:
    """The load that these assumptions describe; the same for the same seed."""
    dice = Random(assumed.seed)
    nodes = tuple(_nodes(assumed, dice))
    models = _models(assumed, dice)
    submissions = tuple(_submissions(assumed, sum(node.render for node in nodes), models, dice))
    busy_s = assumed.render_s * assumed.jobs / sum(node.render for node in nodes)
    horizon = busy_s if assumed.backlog else submissions[-1].at
    losses = tuple(sorted(_losses(assumed, nodes, horizon, dice), key=lambda loss: (loss.at, loss.node)))
    stock = _stocked(nodes, models, assumed, dice)
    return Load(nodes, submissions, losses, horizon, stock, assumed.backlog)


def _nodes(assumed: Assumptions, dice: Random) -> Iterator[Speeds]:
    for number in range(assumed.nodes):
        render, disk, network = (spread_around(1.0, assumed.spread, dice) for _ in range(3))
        yield Speeds(
            id=f"node-{number:04}",
            render=render,
            disk=disk * SDXL / assumed.load_s,
            network=network * SDXL / assumed.download_s,
            cap=assumed.cap,
        )


def _models(assumed: Assumptions, dice: Random) -> list[tuple[Need, ...]]:
    """What a job for each model needs, the most popular first."""
    families = FAMILIES if assumed.families else PLAIN
    drawn = dice.choices(families, [family.share for family in families], k=assumed.models)
    return [
        (need(family.kind, f"model-{number:05}.safetensors", family.size), *family.companions)
        for number, family in enumerate(drawn)
    ]


def _stocked(
    nodes: Sequence[Speeds], models: Sequence[tuple[Need, ...]], assumed: Assumptions, dice: Random
) -> dict[str, tuple[Need, ...]]:
    shelves = {node.id: _Shelf(node.cap) for node in nodes}
    if assumed.stock == "spread":
        _spread(shelves.values(), models, assumed)
    if assumed.stock in ("spread", "popular"):
        popularity = Zipf(len(models), assumed.zipf)
        for shelf in shelves.values():
            for _ in models:
                if not shelf.put(models[popularity.draw(dice)]):
                    break
    return {node: tuple(shelf.held.values()) for node, shelf in shelves.items()}


def _spread(shelves: Collection[_Shelf], models: Sequence[tuple[Need, ...]], assumed: Assumptions) -> None:
    """Half as many copies again as nodes that work on a model on average, one at least; the popular ones first."""
    weights = [(rank + 1) ** -assumed.zipf for rank in range(len(models))]
    busy = 1.5 * min(assumed.load, 1.0) * len(shelves) / sum(weights)
    around = cycle(shelves)
    for model, weight in zip(models, weights, strict=True):
        lacking = min(math.ceil(busy * weight), len(shelves))
        for shelf, _ in zip(around, shelves, strict=False):
            lacking -= shelf.put(model)
            if lacking <= 0:
                break


class _Shelf:
    """A disk that is filled."""

    def __init__(self, cap: int) -> None:
        self.held: dict[Key, Need] = {}
        self._left = cap

    def put(self, model: tuple[Need, ...]) -> bool:
        """Whether it is there now."""
        new = [each for each in model if each.key not in self.held]
        size = sum(each.size or 0 for each in new)
        if size > self._left:
            return False
        self.held |= {each.key: each for each in new}
        self._left -= size
        return True


def _submissions(
    assumed: Assumptions, capacity: float, models: list[tuple[Need, ...]], dice: Random
) -> Iterator[Submission]:
    popularity, tastes = Zipf(assumed.models, assumed.zipf), Zipf(max(assumed.loras, 1), assumed.zipf)
    users, order = Zipf(max(assumed.users, 1), assumed.zipf), list(models)
    loras = [need("lora", f"lora-{n:04}.safetensors", 20_000_000 * dice.randint(1, 15)) for n in range(assumed.loras)]
    share, mean = assumed.burst_share, max(assumed.burst, 2)
    bursts = share / (mean + share - share * mean)
    gap_s = assumed.render_s / (assumed.load * capacity) * (1 - bursts + bursts * mean)
    found, now, drift = list[Submission](), 0.0, assumed.drift_s or math.inf
    while len(found) < assumed.jobs:
        now += dice.expovariate(1 / gap_s)
        while now >= drift:
            order.insert(popularity.draw(dice), order.pop(dice.randrange(len(order))))
            drift += assumed.drift_s
        needs, user = order[popularity.draw(dice)], f"user-{users.draw(dice):02}"
        size = 2 + int(dice.expovariate(1) * (mean - 2)) if dice.random() < bursts else 1
        for number in range(min(size, assumed.jobs - len(found))):
            extra = (loras[tastes.draw(dice)],) if loras and dice.random() < assumed.lora_share else ()
            job = Waiting(
                id=f"job-{len(found):07}",
                needs=(*needs, *extra),
                priority=int(dice.random() < assumed.urgent_share),
                work_s=spread_around(assumed.render_s, assumed.work_spread, dice),
                user=user,
            )
            found.append(Submission(now + 0.2 * number, job))
    yield from sorted(found, key=lambda sent: (sent.at, sent.job.id))


def _losses(assumed: Assumptions, nodes: Sequence[Speeds], horizon: float, dice: Random) -> Iterator[Loss]:
    if not assumed.life_s:
        return
    for node in nodes:
        at = dice.expovariate(1 / assumed.life_s)
        while at < horizon:
            back = at + assumed.away_s if assumed.away_s else math.inf
            yield Loss(node.id, at, back)
            at = back + dice.expovariate(1 / assumed.life_s)
