"""The words of the dispatcher: models, nodes, waiting jobs and demand as its decisions see them. No I/O.

A model's **key** is one text by which jobs and nodes name it alike: ``kind@sha256`` where the digest is known (from the
job or the catalogue), else ``kind/name``, the path below the kind's folder without the file's extension. A node's file
offers all that it may be called by: `dispatcher.needs.Catalogue.keys_of`. ``NO_MODEL`` is the key of jobs that name
none: any node has it loaded. Kinds are those of the job document, with folders' names and refiners mapped as
`worker.mentions.place_of` does.

Times are seconds; durations and costs too. Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from worker.mentions import place_of, stem_of

Key = str
NO_MODEL: Key = ""


def key_of(kind: str, name: str, sha256: str | None = None) -> Key:
    place = place_of(kind, name.replace("\\", "/"))
    return f"{place.kind}@{sha256}" if sha256 else f"{place.kind}/{stem_of(place.name)}"


@dataclass(frozen=True, slots=True)
class Need:
    """A model that a job needs. ``size`` None where nobody knows it yet."""

    key: Key
    kind: str
    name: str
    size: int | None = None
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits. ``needs`` has the model that takes the memory first (checkpoint, or unet); it may be empty.

    Within a ``priority`` (higher first) the smaller ``rank`` comes first: the fair order among users, fixed when the
    job was submitted. ``work_s`` is what its generation is expected to take. ``since`` is when it was submitted.
    """

    id: str
    needs: tuple[Need, ...]
    priority: int = 0
    rank: float = 0.0
    work_s: float = 6.0
    user: str = ""
    since: datetime | None = None

    @property
    def key(self) -> Key:
        """The model by which it queues."""
        return self.needs[0].key if self.needs else NO_MODEL

    @property
    def order(self) -> tuple[int, float, str]:
        """Its place in line."""
        return (-self.priority, self.rank, self.id)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a node measured of itself, and defaults for what it did not: bytes a second, seconds a load, a step."""

    disk: float = 500e6
    network: float = 60e6
    load: float = 8.0
    step: float = 0.2


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as decisions see it.

    ``loaded``: keys of the models in the server's memory, as it last reported; ``held``: of all it has, those included.
    ``used`` orders held keys by when this node last used them here, the longest ago first; keys that are missing were
    never used. ``free`` is what more models may take without evicting, ``cap`` the whole; None: unknown.
    ``resident_s``: for how long its present checkpoint has been loaded. ``coming``: keys that it was ordered to fetch.
    ``running``: jobs that it holds now. ``same``: of a held file with several keys, each further one and the first;
    ``sizes`` has the first. ``idle_s``: for how long it has had room for a job and got none; it bounds for how long a
    decision leaves a node idle for work that is expected.
    """

    id: str
    loaded: frozenset[Key] = frozenset()
    held: frozenset[Key] = frozenset()
    measured: Measured = Measured()
    free: int | None = None
    cap: int | None = None
    resident_s: float = 0.0
    used: tuple[Key, ...] = ()
    sizes: Mapping[Key, int] = field(default_factory=dict)
    coming: frozenset[Key] = frozenset()
    running: int = 0
    vram_gb: float | None = None
    same: Mapping[Key, Key] = field(default_factory=dict)
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What waits for one model and who could do it.

    ``waiting`` jobs with ``work_s`` seconds of generation in all; ``arrivals`` a second, smoothed over minutes.
    ``warm`` nodes have it in memory (or were just given a job that loads it), ``copies`` nodes on disk, the warm ones
    included. ``coming``: nodes that were ordered to fetch it. ``age_s``: for how long its first job has waited, as far
    as is known. ``size`` None where nobody knows it.
    """

    key: Key
    waiting: int = 0
    work_s: float = 0.0
    arrivals: float = 0.0
    warm: int = 0
    copies: int = 0
    size: int | None = None
    coming: int = 0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Board:
    """What a decision for one node looks at.

    ``heads``: the first waiting jobs, in order, of each key that `matching.interests` named. ``oldest``: the first of
    all in line, and ``passed`` how often another was given away before it since it became that.
    """

    heads: Mapping[Key, Sequence[Waiting]]
    demand: Mapping[Key, Demand]
    oldest: Waiting | None = None
    passed: int = 0


class Why(StrEnum):
    """Why a node got a job; also the word in `explain` and metrics."""

    WARM = "warm"
    DISK = "disk"
    DOWNLOAD = "download"
    OVERDUE = "overdue"


class Skip(StrEnum):
    """Why a waiting job was not given to a node; the words of `skipped`."""

    WARM_ELSEWHERE = "warm_elsewhere"
    SWAP_NOT_WORTH = "swap_not_worth"
    TOO_LARGE = "too_large"
    COMING = "coming"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True)
class Option:
    """A waiting job weighed for a node: what it would cost here before its first step, and why it was passed over."""

    job: Waiting
    why: Why
    cost_s: float
    gain_s: float
    skip: Skip | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a node gets: ``option`` None for nothing. ``options`` are all that were weighed, the best first.

    ``skipped`` counts waiting jobs by why this node did not get them. ``again_s``: where it got nothing though jobs
    wait, after how many more idle seconds the same question may be answered otherwise.
    """

    option: Option | None
    options: tuple[Option, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    again_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decides of matching and coverage; also what is assumed where nothing is known.

    ``residency`` in loads: how many times its load time a model stays in memory before it is swapped by choice.
    ``patience`` in loads: how much work is to wait for a model that no node has in memory before it is worth a load,
    and for how long at most an idle node leaves it for that, where more work than that waits for each node.
    ``size``: bytes of a checkpoint whose size nobody knows; ``cap``: of the cache of a node that does not tell.
    """

    max_skips: int = 100
    coverage: int = 2
    residency: float = 3.0
    patience: float = 8.0
    size: int = 4_000_000_000
    cap: int = 50_000_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is to be had: one entry of the catalogue."""

    kind: str
    name: str
    url: str | None = None
    sha256: str | None = None
    size: int | None = None
    base: str | None = None

    @property
    def key(self) -> Key:
        return key_of(self.kind, self.name, self.sha256)


@dataclass(frozen=True, slots=True)
class NodeOrders:
    """What one node is asked to fetch, the most urgent first, and to drop."""

    download: tuple[Need, ...] = ()
    evict: tuple[Need, ...] = ()
