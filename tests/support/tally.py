"""The account of a mill: every job by itself, then all of them together.

It goes by what queue, store, receiver and image servers saw. What the queue cannot tell of a job is told by the store.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from tests.support.ledger import Told
from tests.support.lines_base import OVER, VISIBILITY_S
from tests.support.mill import AGAIN, Hand, Mill, Planned, Sort
from worker.queues.base import Attempt, JobState
from worker.signature import webhook_id
from worker.wire import NODE_RESTARTED

CANCELLED = "cancelled"
ENDS: dict[Sort, tuple[str, ...]] = {
    "good": ("succeeded",),
    "twice": ("succeeded",),
    "late": ("succeeded",),
    "refused": ("invalid_job",),
    "cancelled": ("succeeded", CANCELLED),
    "faulty": ("succeeded",),
    "hopeless": ("output_empty",),
}
"""How a job of each sort may end. The owner of one that is withdrawn may come too late."""

MOST_CHARGED = 3
LATE_S = 5.0
"""How long after a death its leases may be ended, beside their visibility."""

LOST = (None, NODE_RESTARTED)
"""Codes of a hand-over that was lost."""

Outage = tuple[float, float]


@dataclass(slots=True)
class Evidence:
    """What was seen of one job; times are Unix seconds. ``objects`` are those under its id, by their names there.

    ``again``: what the queue says of the same document where it takes it for another job.
    """

    planned: Planned
    state: JobState | None = None
    again: list[JobState] = field(default_factory=list)
    is_withdrawn: bool = False
    told: list[Told] = field(default_factory=list)
    made: list[float] = field(default_factory=list)
    objects: dict[str, Path] = field(default_factory=dict)

    @property
    def end(self) -> str | None:
        """How the queue says it ended; None where it has not."""
        return None if self.state is None else end_of(self.state)

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Its hand-overs, of which the queue or the store tells."""
        return () if self.state is None else self.state.attempts

    @property
    def pictures(self) -> set[str]:
        return {name for name in self.objects if not name.endswith(".json")}

    def document(self) -> dict[str, Any] | None:
        """The success that is stored of it."""
        path = self.objects.get("result.json")
        found: dict[str, Any] | None = None if path is None else json.loads(path.read_bytes())
        return found


def end_of(state: JobState) -> str | None:
    """How it ended; None where it has not."""
    return None if state.status not in OVER else state.code or "succeeded"


@dataclass
class Tally:
    """``breaches`` are the promises that were not kept, in words; empty when all is well."""

    mill: Mill
    jobs: dict[str, Evidence]
    unknown: list[str]
    keeps_causes: bool
    breaches: list[str] = field(default_factory=list)
    strays: int = 0

    def __post_init__(self) -> None:
        self.breaches += [f"nobody asked for {what}" for what in self.unknown]
        self.breaches += [f"a webhook was refused: {why}" for why in self.mill.hook.refused]
        for one in self.jobs.values():
            self.breaches += [
                f"{one.planned.id} ({one.planned.sort}) {what}"
                for what in breaches_of(one, keeps_ids=self.keeps_causes)
            ]
            self.strays += len(one.pictures - named(one))
        if self.keeps_causes:
            self.breaches += hand_over_breaches(self.jobs, self.mill.hands, self.mill.outages)

    @property
    def ends(self) -> Counter[str]:
        return Counter(one.end or "open" for one in self.jobs.values())

    @property
    def webhooks(self) -> Counter[str]:
        """How often each type was taken."""
        return Counter(told.type for one in self.jobs.values() for told in one.told)

    def figures(self) -> str:
        """One line."""
        mill, lost = self.mill, held(self.jobs, self.mill.hands)
        codes = Counter(attempt.code or "lost" for one in self.jobs.values() for attempt in one.attempts)
        store, hook = mill.store.chance, mill.hook.chance
        said = [
            f"{len(self.jobs)} jobs ({_counted(Counter(one.sort for one in mill.plan))})",
            f"ends {_counted(self.ends)}",
            f"{mill.shop.kills} kills",
            f"{len(mill.outages)} restarts",
            f"store failed {store.met.total()} of {store.asked}",
            f"receiver failed {hook.met.total()} of {hook.asked}",
            f"{codes.total()} hand-overs told of ({_counted(codes)})",
            f"webhooks {_counted(self.webhooks)}",
            f"{self.strays} strays",
        ]
        if self.keeps_causes and lost:
            said.append(f"{mean(lost):.2f} jobs held at a death, {max(lost)} at most")
        return ", ".join([*said, f"{mill.seconds:.0f} s, {len(self.jobs) / mill.seconds:.1f} jobs/s"])


def _counted(counter: Mapping[str, int]) -> str:
    return " ".join(f"{count} {name}" for name, count in sorted(counter.items()))


async def tallied(mill: Mill) -> Tally:
    """Everything as it stands now."""
    jobs = {one.id: Evidence(one) for one in mill.plan}
    for withdrawn in mill.withdrawn:
        jobs[withdrawn.id].is_withdrawn = True
    unknown = [*_stored(mill, jobs), *await _queued(mill, jobs)]
    for told in mill.hook.told:
        if told.data["id"] in jobs:
            jobs[told.data["id"]].told.append(told)
        else:
            unknown.append(f"{told}")
    for simulator in mill.shop.simulators:
        for one in simulator.stats.generations:
            if one.prompt in jobs:
                jobs[one.prompt].made.append(one.started)
    return Tally(mill, jobs, unknown, keeps_causes=mill.shop.line.keeps_causes)


def _stored(mill: Mill, jobs: Mapping[str, Evidence]) -> list[str]:
    """Give each job what is stored under its id; what belongs to none."""
    unknown = []
    for path in mill.shop.stored.glob("*/*"):
        if path.parent.name in jobs:
            jobs[path.parent.name].objects[path.name] = path
        else:
            unknown.append(str(path))
    return unknown


async def _queued(mill: Mill, jobs: Mapping[str, Evidence]) -> list[str]:
    """Give each job what the queue says of it; what belongs to none."""
    unknown = []
    objects = {f"{name}/{file}": path for name, one in jobs.items() for file, path in one.objects.items()}
    documents = {key: path.read_bytes() for key, path in objects.items() if key.endswith(".json")}
    for state in await mill.shop.line.states(jobs, documents):
        one = jobs.get(state.id.removesuffix(AGAIN))
        if one is None or (one.state is not None and one.planned.sort not in ("twice", "late")):
            unknown.append(f"{state} in the queue")
        elif one.state is None:
            one.state = state
        else:
            one.again.append(state)
    return unknown


def named(one: Evidence) -> set[str]:
    """The pictures that its result names."""
    document = one.document()
    return set() if document is None else {image["key"].rpartition("/")[2] for image in document["images"]}


def breaches_of(one: Evidence, *, keeps_ids: bool) -> Iterator[str]:
    """Which promises were not kept about this job.

    A queue that does not tell jobs by their ids may hand one to two workers at once when it was submitted twice at
    once: the one that marks it later may have begun to make it after it stood.
    """
    end = one.end
    if end is None:
        yield f"was lost: {one.state}"
        return
    if any(end_of(state) != end for state in one.again):
        yield f"ended as {end}, and the same document as {one.again}"
    allowed = ENDS[one.planned.sort]
    if end not in allowed or (end == CANCELLED and not one.is_withdrawn):
        yield f"ended as {end}, not as {allowed}"
    types = {told.type for told in one.told}
    due = {"succeeded": {"job.succeeded"}, CANCELLED: set[str]()}.get(end, {"job.failed"})
    if types != due:
        yield f"ended as {end} and was told of as {sorted(types)}"
    ids = {told.id for told in one.told}
    if ids != {webhook_id(kind.removeprefix("job."), one.planned.id) for kind in due}:
        yield f"has the webhook ids {sorted(ids)}"
    may_race = one.planned.sort == "twice" and not keeps_ids
    yield from _of_success(one, may_race=may_race) if end == "succeeded" else _of_failure(one, end)
    yield from _of_attempts(one)


def _of_success(one: Evidence, *, may_race: bool) -> Iterator[str]:
    document = one.document()
    if document is None or (document["id"], document["status"]) != (one.planned.id, "succeeded"):
        yield f"succeeded without a result: {document}"
        return
    versions = [document["images"], *(told.data["images"] for told in one.told)]
    queued = [state.result for state in (one.state, *one.again) if state is not None and state.result is not None]
    versions += [result.model_dump(mode="json")["images"] for result in queued]
    digests = {tuple(image["sha256"] for image in images) for images in versions}
    if len(digests) != 1 or len(document["images"]) != 1:
        yield f"has the images {digests}"
    for image in document["images"]:
        path = one.objects.get(image["key"].rpartition("/")[2])
        data = b"" if path is None else path.read_bytes()
        if (len(data), hashlib.sha256(data).hexdigest()) != (image["bytes"], image["sha256"]):
            yield f"names {image['key']}, which is not so"
    stood = min([one.objects["result.json"].stat().st_mtime, *(told.at for told in one.told)])
    late = [round(at - stood, 3) for at in one.made if at > stood]
    if late and not may_race:
        yield f"was made again {late} s after its success stood"


def _of_failure(one: Evidence, end: str) -> Iterator[str]:
    if "result.json" in one.objects:
        yield f"ended as {end} and has a result"
    if end != CANCELLED and not any(name.startswith("failure-") for name in one.objects):
        yield "failed without a document"
    codes = {(told.data.get("error") or {}).get("code") for told in one.told}
    if codes - {end}:
        yield f"ended as {end} and was told of as {codes}"


def _of_attempts(one: Evidence) -> Iterator[str]:
    """No node's loss is charged, and all that are charged are those that the plan has."""
    charged = [attempt.code for attempt in one.attempts if attempt.charged]
    due = {"refused": ["invalid_job"], "hopeless": ["output_empty"] * MOST_CHARGED}.get(one.planned.sort, [])
    if one.planned.sort == "faulty":
        due = ["output_empty"] * min(len(charged), one.planned.faults)
    if charged != due:
        yield f"was charged with {charged}, not {due}"
    early = [attempt.code for attempt in one.attempts[:-1] if attempt.code in ("succeeded", "invalid_job", CANCELLED)]
    if early:
        yield f"ended early: {early}"


def hand_over_breaches(jobs: Mapping[str, Evidence], hands: Sequence[Hand], outages: Sequence[Outage]) -> Iterator[str]:
    """Every hand-over has an end that is accounted for.

    One that was lost was lost with its worker, or its worker heard so, or it never heard of it at all: a queue that
    goes away may take an answer with it, at most one of each worker.
    """
    abandoned = {name for hand in hands for name in _abandoned(hand)}
    unheard: Counter[tuple[str, Outage]] = Counter()
    for name, one in jobs.items():
        ended = one.attempts[-1].code if one.attempts else None
        if one.end != CANCELLED and ended != one.end:
            yield f"{name} ended as {one.end}, and its last hand-over as {ended}"
        for attempt in _lost(one):
            if _death(attempt, hands) is not None or name in abandoned:
                continue
            outage = next((outage for outage in outages if _ended_within(attempt, *outage)), None)
            if outage is None:
                yield f"{name} was lost by {attempt.worker}, which did not die"
            else:
                unheard[attempt.worker, outage] += 1
    yield from (f"{worker} did not hear of {count} jobs at once" for (worker, _), count in unheard.items() if count > 1)


def _lost(one: Evidence) -> Iterator[Attempt]:
    return (attempt for attempt in one.attempts if attempt.code in LOST)


def _ended_within(attempt: Attempt, began: float, ended: float) -> bool:
    """Whether a lease that was not renewed after these times has ended then."""
    at = 0.0 if attempt.ended is None else attempt.ended.timestamp()
    return began - 1 <= at <= ended + VISIBILITY_S + LATE_S


def _abandoned(hand: Hand) -> Iterator[str]:
    """Jobs whose lease this worker heard was lost."""
    for log in hand.logs:
        for line in log.read_text().splitlines():
            if '"job_abandoned"' in line:
                yield json.loads(line)["job"]


def _death(attempt: Attempt, hands: Sequence[Hand]) -> tuple[str, float] | None:
    """The worker and the time of the death by which a hand-over was lost."""
    hand = next(hand for hand in hands if hand.name == attempt.worker)
    before = [death for death in hand.deaths if _ended_within(attempt, death, death)]
    return (hand.name, before[-1]) if before else None


def held(jobs: Mapping[str, Evidence], hands: Sequence[Hand]) -> list[int]:
    """How many jobs each killed worker held at its death."""
    lost: Counter[tuple[str, float]] = Counter()
    for attempt in (attempt for one in jobs.values() for attempt in _lost(one)):
        if (death := _death(attempt, hands)) is not None:
            lost[death] += 1
    return [lost[hand.name, death] for hand in hands for death in hand.deaths]
