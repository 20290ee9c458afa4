"""Dispatchers killed again and again while a crowd works, until every job is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.balance import Balance
from tests.support.crowd import DEEDS, documents, gathered
from tests.support.posts import Post, Watch, posted, read_books
from tests.support.virtual import takes
from tests.support.waiting import wait_until
from tests.support.workshop import Hook
from worker.clock import SystemClock, isoformat

EVENTS = ["succeeded", "failed", "cancelled"]
PATIENCE_S = 180
"""A webhook that was on its way when its dispatcher was killed is another's after a minute and its budget."""


@dataclass(frozen=True)
class Plan:
    """``jobs`` good ones and ``kinds`` of others; ``kills``: how many, None: until all is over.

    ``again``: those that were killed are begun anew after that; one that is not is missed by nobody. ``frozen``: the
    share that is not killed, but stands still for longer than a lease.
    """

    names: tuple[str, ...]
    jobs: int
    kinds: Mapping[str, int]
    nodes: int
    lease_s: float
    seed: int
    kills: int | None = None
    again: bool = True
    frozen: float = 0.0
    pause_s: tuple[float, float] = (1.0, 8.0)
    deeds: Mapping[str, int] = field(default_factory=lambda: DEEDS)

    def documents(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        return documents(kind, self.kinds.get(kind, 0), **fields)


@dataclass(frozen=True)
class Felled:
    """What came of it; ``kills`` and ``freezes`` of dispatchers."""

    balance: Balance
    kills: int
    freezes: int

    def line(self) -> str:
        """The figures of a run."""
        return f"{self.kills} kills, {self.freezes} freezes, {self.balance.line()}"


async def felled(url: str, folder: Path, plan: Plan) -> Felled:
    """A crowd works off a plan while its dispatchers are killed and frozen."""
    rng = random.Random(plan.seed)
    watch = Watch(url)
    variables = {"LEASE": f"{plan.lease_s}s", "WEBHOOK_BUDGET": "20s"}
    async with (
        Hook() as hook,
        posted(url, folder, *plan.names, **variables) as posts,
        gathered(lambda: [post.url for post in posts if post.url], rng, plan.nodes, plan.lease_s, plan.deeds) as crowd,
    ):
        await crowd.submit(documents("good", plan.jobs))
        await crowd.submit(plan.documents("bad"))
        await crowd.submit(plan.documents("cursed", **_told(hook)))
        await _kill(posts, watch, rng, plan, plan.kills)
        past = isoformat(SystemClock().now().replace(year=2020))
        await crowd.submit(plan.documents("late", deadline=past, priority=-1, **_told(hook)))
        gone = plan.documents("gone", priority=-1, **_told(hook))
        await crowd.submit(gone)
        await asyncio.gather(*(crowd.withdraw(one["id"]) for one in gone))
        await _kill(posts, watch, rng, plan, None if plan.kills is None else 0)

        async def over() -> bool:
            await takes(0.1)
            return await watch.left() == (0, 0)

        await wait_until(over, timeout=PATIENCE_S)
    watch.close()
    balance = Balance(crowd, await asyncio.to_thread(read_books, url), hook.told, hook.refused)
    return Felled(balance, sum(post.kills for post in posts), sum(post.freezes for post in posts))


def _told(hook: Hook) -> dict[str, Any]:
    return {"webhook": {"url": hook.url("/hook"), "events": EVENTS}}


async def _kill(posts: list[Post], watch: Watch, rng: random.Random, plan: Plan, kills: int | None) -> None:
    """Kill one of them, begin it anew, and so on; with one alone nobody answers meanwhile."""
    done = 0
    while done != kills:
        await takes(rng.uniform(*plan.pause_s))
        if kills is None and (await watch.left())[0] == 0:
            break
        post = rng.choice(posts)
        if rng.random() < plan.frozen:
            await post.freeze(1.5 * plan.lease_s)
            continue
        await post.kill()
        if plan.again:
            await post.begin()
        else:
            post.desert()
        done += 1
