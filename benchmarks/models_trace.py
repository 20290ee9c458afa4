"""`python -m benchmarks.models_trace`: how often is a model on disk already, and how long does it take to plan?

One seeded trace of uses, popularity by Zipf's law, goes through four caches of the same size: ours, where
`worker.models.plan` decides each use while the server holds the checkpoint used last; first in first out; one that
knows the future; and a bound that no cache can pass. With sizes that differ the true optimum is NP-hard, so it is
enclosed: from below by Belady's rule for sizes (whatever has the largest size times distance to its next use goes
first), from above by the bound PFOO-L of Berger, Beckmann and Harchol-Balter (2018): hits are bought in the order of
what they cost in bytes times uses, and only the sum over all time must fit. Hit rates can be compared anywhere; times
are this machine's.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.mentions import Place
from worker.models.base import Entry
from worker.models.plan import Fetch, Need, Plan, Ready, Refuse, Shelf, UnloadFirst, Wait, plan

GB = 1_000_000_000
NEVER = 2**62


@dataclass(frozen=True, slots=True)
class Trace:
    """``uses`` are indices into ``sizes``, which are bytes."""

    sizes: Sequence[int]
    kinds: Sequence[str]
    uses: Sequence[int]

    @property
    def nexts(self) -> list[int]:
        """For each use the index of the next one of the same model, `NEVER` where there is none."""
        after: dict[int, int] = {}
        found = [NEVER] * len(self.uses)
        for index in range(len(self.uses) - 1, -1, -1):
            found[index] = after.get(self.uses[index], NEVER)
            after[self.uses[index]] = index
        return found


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of uses, and of the bytes used, that were on disk."""

    name: str
    uses: float
    size: float


@dataclass(frozen=True, slots=True)
class Times:
    """Of one call of `plan`: the processor's time, in microseconds, so that a busy machine does not count."""

    name: str
    p50: float
    p99: float
    most: float


def made_trace(seed: int, models: int, uses: int, exponent: float = 1.0) -> Trace:
    """Six LoRAs to four checkpoints, a third of those SDXL: 0.1 to 7 GB; popularity has nothing to do with size."""
    rng = random.Random(seed)
    kinds = rng.choices(("lora", "checkpoint", "sdxl"), weights=(60, 27, 13), k=models)
    spans = {"lora": (0.1, 0.3), "checkpoint": (1.6, 4.3), "sdxl": (6.2, 7.0)}
    sizes = [int(rng.uniform(*spans[kind]) * GB) for kind in kinds]
    weights = [1 / rank**exponent for rank in range(1, models + 1)]
    shown = ["lora" if kind == "lora" else "checkpoint" for kind in kinds]
    return Trace(sizes, shown, rng.choices(range(models), weights=weights, k=uses))


def rates(name: str, trace: Trace, hits: Sequence[bool]) -> Rates:
    used = [trace.sizes[model] for model in trace.uses]
    return Rates(name, sum(hits) / len(hits), sum(itertools.compress(used, hits)) / sum(used))


class Ours:
    """A cache as its owner keeps it, with files that arrive at once."""

    def __init__(self, cap: int, clock: Callable[[], int] = time.thread_time_ns) -> None:
        self.entries: OrderedDict[Place, Entry] = OrderedDict()
        self.counted = 0
        self.loaded: tuple[Place, ...] = ()
        self.took: list[int] = []
        self._cap = cap
        self._clock = clock

    def shelf(self) -> Shelf:
        free = self._cap - self.counted
        return Shelf(self.entries, self.counted, {}, (), self.loaded, self._cap, free)

    def use(self, place: Place, size: int, at: int) -> bool:
        """Whether it was there; afterwards it is."""
        decided = self._planned([Need(place, size)])
        if isinstance(decided, UnloadFirst):
            self.loaded = ()
            decided = self._planned([Need(place, size)])
        if isinstance(decided, Fetch):
            for gone in decided.evict:
                self.counted -= self.entries.pop(gone).size
            self.counted += size
        elif not isinstance(decided, Ready):
            raise RuntimeError(f"a single model fits, yet it was {decided}")
        self.entries[place] = Entry(place, size, at)
        self.entries.move_to_end(place)
        if place.kind == "checkpoint":
            self.loaded = (place,)
        return isinstance(decided, Ready)

    def _planned(self, needs: list[Need]) -> Plan:
        shelf = self.shelf()
        began = self._clock()
        decided = plan(needs, shelf)
        self.took.append(self._clock() - began)
        return decided


def ours(trace: Trace, cap: int) -> tuple[list[bool], list[int]]:
    """Which uses hit, and the nanoseconds of each decision."""
    places = [Place(kind, f"{index}.safetensors") for index, kind in enumerate(trace.kinds)]
    cache = Ours(cap)
    hits = [cache.use(places[model], trace.sizes[model], at) for at, model in enumerate(trace.uses)]
    return hits, cache.took


def fifo(trace: Trace, cap: int) -> list[bool]:
    """What came first goes first, however often it is used."""
    there: OrderedDict[int, int] = OrderedDict()
    taken, hits = 0, []
    for model in trace.uses:
        hits.append(model in there)
        if model not in there:
            there[model] = trace.sizes[model]
            taken += trace.sizes[model]
        while taken > cap:
            taken -= there.popitem(last=False)[1]
    return hits


def belady(trace: Trace, cap: int) -> list[bool]:
    """Whatever has the largest size times distance to its next use goes first; one just used may go at once."""
    there: dict[int, int] = {}
    taken, hits = 0, []
    for at, (model, after) in enumerate(zip(trace.uses, trace.nexts, strict=True)):
        hits.append(model in there)
        taken += 0 if model in there else trace.sizes[model]
        there[model] = after
        while taken > cap:
            worst = max(there, key=lambda one: (there[one] - at) * trace.sizes[one])
            taken -= trace.sizes[worst]
            del there[worst]
    return hits


def bound(trace: Trace, cap: int, *, by_size: bool) -> float:
    """A share of uses, or of bytes, that no cache of this size can pass (PFOO-L, the last hit counted whole)."""
    pairs = [
        (after - at, trace.sizes[model]) for at, (model, after) in enumerate(zip(trace.uses, trace.nexts, strict=True))
    ]
    again = sorted((p for p in pairs if p[0] < NEVER - len(pairs)), key=lambda p: p[0] if by_size else p[0] * p[1])
    volume, gained = cap * len(trace.uses), 0
    for distance, size in again:
        if volume <= 0:
            break
        volume -= distance * size
        gained += size if by_size else 1
    return gained / (sum(trace.sizes[model] for model in trace.uses) if by_size else len(trace.uses))


def times(name: str, took: Sequence[int]) -> Times:
    """Of nanoseconds."""
    order = sorted(took)
    return Times(name, order[len(order) // 2] / 1e3, order[len(order) * 99 // 100] / 1e3, order[-1] / 1e3)


def crowded(entries: int, calls: int) -> list[Times]:
    """Each kind of decision, over so many files of which 16 are pinned, four loaded and the oldest five baked in."""
    size = 5_000_000
    places = [Place("lora", f"{index}.safetensors") for index in range(entries)]
    files = OrderedDict((p, Entry(p, size, n, baked=n < 5)) for n, p in enumerate(places))
    counted = size * (entries - 5)
    pinned, loaded = frozenset(places[5:21]), frozenset(places[21:25])
    shelf = Shelf(files, counted, {}, pinned, loaded, cap=counted, free=counted)
    new = Place("checkpoint", "new.safetensors")
    asked: dict[str, tuple[type, list[Need]]] = {
        "all there": (Ready, [Need(p) for p in places[-4:]]),
        "evicts one": (Fetch, [Need(new, size)]),
        "evicts 100": (Fetch, [Need(new, size * 100)]),
        "unloads": (UnloadFirst, [Need(new, counted - size * 16)]),
        "waits": (Wait, [Need(new, counted - size)]),
        "refuses": (Refuse, [Need(new, counted + 1)]),
    }
    return [
        times(f"{entries} files: {name}", _took(needs, shelf, kind, calls)) for name, (kind, needs) in asked.items()
    ]


def _took(needs: list[Need], shelf: Shelf, kind: type, calls: int) -> list[int]:
    took = []
    for _ in range(calls):
        began = time.thread_time_ns()
        decided = plan(needs, shelf)
        took.append(time.thread_time_ns() - began)
        if not isinstance(decided, kind):
            raise RuntimeError(f"expected {kind.__name__}, got {decided}")
    return took


def measured(trace: Trace, cap: int) -> tuple[list[Rates], list[Times]]:
    hits, took = ours(trace, cap)
    shown = [
        rates("first in, first out", trace, fifo(trace, cap)),
        rates("ours", trace, hits),
        rates("optimum, at least (Belady's rule for sizes)", trace, belady(trace, cap)),
        Rates(
            "optimum, at most (PFOO-L)",
            bound(trace, cap, by_size=False),
            bound(trace, cap, by_size=True),
        ),
    ]
    return shown, [times("each use of the trace", took)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uses", type=int, default=100_000)
    parser.add_argument("--models", type=int, default=5_000)
    parser.add_argument("--cap-gb", type=int, default=50)
    parser.add_argument("--exponent", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=4)
    args = parser.parse_args()
    trace = made_trace(args.seed, args.models, args.uses, args.exponent)
    found, spent = measured(trace, args.cap_gb * GB)
    print(
        f"{args.uses} uses over {args.models} models of {sum(trace.sizes) / 1e12:.1f} TB, Zipf {args.exponent}, "
        f"{args.cap_gb} GB cap, seed {args.seed}\n"
    )
    print(f"{'hit rate':<46}{'uses':>9}{'bytes':>9}")
    for rate in found:
        print(f"{rate.name:<46}{rate.uses:>9.2%}{rate.size:>9.2%}")
    print(f"\n{'planning, microseconds of CPU':<46}{'p50':>9}{'p99':>9}{'max':>9}")
    for took in spent + crowded(10_000, 2_000):
        print(f"{took.name:<46}{took.p50:>9.1f}{took.p99:>9.1f}{took.most:>9.1f}")


if __name__ == "__main__":
    main()
