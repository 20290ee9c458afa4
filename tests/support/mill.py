"""Very many jobs through several workers, while workers, the queue's server, the store and the receiver fail."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from tests.support.lines import Kind
from tests.support.lines_salad import Pushed
from tests.support.shaky import Chance, ShakyHook, ShakyStore, shaky_store
from tests.support.waiting import wait_until
from tests.support.workshop import MODEL, Life, Workshop, workshop
from worker.retry import Policy, retrying
from worker.simulators import Knobs

T = TypeVar("T")
Sort = Literal["good", "twice", "late", "refused", "cancelled", "faulty", "hopeless"]
"""good       made at once
twice      submitted a second time at once, the same document
late       submitted a second time once it is over
refused    no engine takes it
cancelled  its owner withdraws it as soon as it is submitted
faulty     the server hands over nothing for one or two attempts of it
hopeless   the server hands over nothing for any of them
"""
SHARES: dict[Sort, float] = {
    "good": 90.5,
    "twice": 1.5,
    "late": 1.5,
    "refused": 2.5,
    "cancelled": 2.5,
    "faulty": 1.0,
    "hopeless": 0.5,
}
SLOW: tuple[Sort, ...] = ("faulty", "hopeless")
"""They rest between their attempts, so none of them is among the last tenth."""

AGAIN = "-again"
"""Ends the platform's name of the second job of one document."""

STEPS = 2
STOCK = 1000
"""Jobs that are submitted and not over."""

AWHILE_S = 900.0
LATEST_S = 0.3
"""Kills come up to so long after the end of a job that they follow, so that they hit at any instant."""

TRIES = Policy(attempts=10_000, first=timedelta(seconds=0.05), most=timedelta(seconds=0.5))


@dataclass(frozen=True, slots=True)
class Planned:
    """One job; ``faults``: how many attempts fail."""

    id: str
    sort: Sort
    faults: int = 0


def planned(count: int, rng: random.Random, shares: Mapping[Sort, float] = SHARES) -> list[Planned]:
    """So many jobs of these sorts, none of whose ids is within another."""
    plan = []
    for number in range(count):
        sort = rng.choices(list(shares), list(shares.values()))[0]
        if sort in SLOW and number > count * 0.9:
            sort = "good"
        faults = {"faulty": rng.choice((1, 2)), "hopeless": 3}.get(sort, 0)
        plan.append(Planned(f"job-{number:05d}", sort, faults))
    return plan


@dataclass(eq=False)
class Hand:
    """One worker's place: whoever dies there is followed by another one under the same node id.

    ``deaths`` are the times of the kills, in Unix seconds.
    """

    shop: Workshop
    name: str
    changes: dict[str, Any]
    life: Life | None = None
    deaths: list[float] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)

    async def keep(self, over: asyncio.Event) -> None:
        """One life after the other, until all is over; then the last one drains."""
        while not over.is_set():
            async with self.shop.worker(self.name, **self.changes) as life:
                self.life = life
                self.logs.append(life.log)
                await wait_until(lambda: life.over or over.is_set(), AWHILE_S)
                if life.over:
                    assert life.process.returncode == -signal.SIGKILL, f"{self.name} ended by itself\n{life.tail()}"
                else:
                    assert await life.stop() == 0, life.tail()

    def kill(self) -> bool:
        """Kill whoever is there; False where nobody is just now."""
        life = self.life
        if life is None or life.over:
            return False
        life.process.kill()
        self.deaths.append(time.time())
        self.shop.kills += 1
        return True


@dataclass
class Mill:
    """``run`` brings the plan to its end; what is seen then is for the tally.

    ``outages`` are the restarts of the queue, from when to when it was away, in Unix seconds.
    """

    shop: Workshop
    store: ShakyStore
    hook: ShakyHook
    plan: Sequence[Planned]
    rng: random.Random
    hands: list[Hand] = field(default_factory=list)
    submitted: int = 0
    all_submitted: bool = False
    withdrawn: list[Planned] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, *, kills: int, restarts: int) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for hand in self.hands:
                group.create_task(hand.keep(self._over), name=f"hand-{hand.name}")
            group.create_task(self._submit_all(), name="submitting")
            await self._harm(kills, restarts)
            await wait_until(self._is_over, AWHILE_S, self._story)
            self.seconds = time.monotonic() - began
            self._over.set()

    @property
    def ended(self) -> int:
        """How many jobs are known to be over."""
        told = self.hook.ended()
        return len(told) + sum(one.id not in told for one in self.withdrawn)

    async def _submit_all(self) -> None:
        once_more: list[Planned] = []
        for one in self.plan:
            await wait_until(lambda: self.submitted - self.ended < STOCK, AWHILE_S, self._story)
            await self._submit(one)
            self.submitted += 1
            once_more += [one] if one.sort == "late" else []
            over = self.hook.ended()
            for late in [late for late in once_more if late.id in over]:
                await self._submit_again(late)
                once_more.remove(late)
        for late in once_more:
            await wait_until(lambda: late.id in self.hook.ended(), AWHILE_S, self._story)  # noqa: B023
            await self._submit_again(late)
        self.all_submitted = True

    async def _submit(self, one: Planned) -> None:
        codes = {"refused": "invalid_job", "cancelled": "cancelled", "hopeless": "output_empty"}
        steps = 10_000 if one.sort == "refused" else STEPS
        if one.faults:
            times = None if one.sort == "hopeless" else 2 * one.faults
            self.shop.simulators[0].knobs.arm("empty", times=times, prompt=one.id)
        submit = self.shop.submit
        await self._surely(lambda: submit(one.id, code=codes.get(one.sort), steps=steps))
        if one.sort == "twice":
            await self._submit_again(one)
        if one.sort == "cancelled" and await self._surely(lambda: self.shop.producer.cancel(one.id)):
            self.withdrawn.append(one)

    async def _submit_again(self, one: Planned) -> None:
        """The same document; the platform knows jobs by names of its own, and so has another one then."""
        line = self.shop.line
        if isinstance(line, Pushed):
            line.service.submit(one.id + AGAIN, line.service.jobs[one.id].input)
        else:
            await self._surely(lambda: self.shop.submit(one.id, steps=STEPS))

    async def _surely(self, call: Callable[[], Awaitable[T]]) -> T:
        """The queue may be away."""
        return await retrying(call, TRIES, budget=timedelta(seconds=60), rng=self.rng)

    async def _harm(self, kills: int, restarts: int) -> None:
        """Kill and restart as the work goes on, at seeded points of it."""
        harms = ["kill"] * kills + ["restart"] * restarts
        self.rng.shuffle(harms)
        first, last = len(self.plan) // 50, len(self.plan) * 19 // 20
        for at, harm in zip(sorted(self.rng.sample(range(first, last), len(harms))), harms, strict=True):
            await wait_until(lambda: self.ended >= at, AWHILE_S, self._story)  # noqa: B023
            if harm == "restart":
                began = time.time()
                await self.shop.line.restart()
                self.outages.append((began, time.time()))
            else:
                due = time.monotonic() + self.rng.uniform(0, LATEST_S)
                await wait_until(lambda: time.monotonic() >= due)  # noqa: B023
                await wait_until(lambda: self.rng.choice(self.hands).kill(), 60)

    async def _is_over(self) -> bool:
        if not self.all_submitted or self.ended < len(self.plan):
            return False
        line = self.shop.line
        open_jobs = [await line.producer.jobs(status, 1) for status in ("waiting", "delayed", "leased")]
        return not (any(open_jobs) or await line.waiting() or await line.hand_overs())

    def _story(self) -> str:
        ended = self.hook.ended() | {one.id for one in self.withdrawn}
        silent = [one.id for one in self.plan[: self.submitted] if one.id not in ended]
        tails = "\n".join(hand.life.tail()[-1500:] for hand in self.hands if hand.life is not None)
        return f"{self.ended} of {self.submitted} submitted jobs ended; nothing of {silent[:10]}\n{tails}"


@asynccontextmanager
async def milling(
    folder: Path, queue: Kind, count: int, seed: int, *, workers: int = 3, shares: Mapping[Sort, float] = SHARES
) -> AsyncIterator[Mill]:
    """Workers' places, each with an image server; the store and the receiver fail every now and then."""
    rng = random.Random(seed)
    knobs = Knobs(step_seconds=0.0, load_seconds=0.0, gzip=False)
    chances = [Chance(rng.getrandbits(32)) for _ in range(2)]
    async with (
        workshop(folder, knobs, models=(MODEL,) * workers, queue=queue) as shop,
        ShakyHook(chances[0]) as hook,
        shaky_store(shop.bucket.endpoint_url, chances[1]) as store,
    ):
        shop.receiver = hook
        mill = Mill(shop, store, hook, planned(count, rng, shares), rng)
        for number, simulator in enumerate(shop.simulators, 1):
            changes = {"WORKER_ENGINE_URL": simulator.url, "WORKER_S3_ENDPOINT_URL": store.url}
            mill.hands.append(Hand(shop, f"w{number}", changes))
        yield mill
