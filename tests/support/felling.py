"""Dispatchers killed again and again while a crowd works, until every job is over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.balance import Balance
from tests.support.crowd import documents, gathered
from tests.support.posts import Post, Watch, posted, read_books
from tests.support.virtual import takes
from tests.support.waiting import wait_until
from tests.support.workshop import Hook
from worker.clock import SystemClock, isoformat

EVENTS = ["succeeded", "failed", "cancelled"]
PATIENCE_S = 180
"""A webhook that was on its way when its dispatcher was killed is another's after a good minute."""


async def felled(
    url: str,
    folder: Path,
    rng: random.Random,
    *,
    names: tuple[str, ...],
    jobs: int,
    nodes: int,
    lease_s: float,
    kills: int | None = None,
    pause_s: tuple[float, float] = (0.5, 4.0),
    most_deliveries: int = 6,
    kinds: Mapping[str, int],
) -> tuple[Balance, int]:
    """So many good jobs, and some of other kinds; dispatchers are killed ``kills`` times, None: until all is over.

    The balance of it all, and the number of kills.
    """
    watch = Watch(url)
    variables = {"LEASE": f"{lease_s}s", "MAX_DELIVERIES": str(most_deliveries), "WEBHOOK_BUDGET": "5s"}
    async with (
        Hook() as hook,
        posted(url, folder, *names, **variables) as posts,
        gathered(lambda: [post.url for post in posts], rng, nodes=nodes, lease_s=lease_s) as crowd,
    ):
        await crowd.submit(documents("good", jobs))
        await crowd.submit(documents("bad", kinds.get("bad", 0)))
        await crowd.submit(documents("cursed", kinds.get("cursed", 0), **_told(hook)))
        done = await _kill(posts, watch, rng, kills, pause_s)
        yesterday = isoformat(SystemClock().now().replace(year=2020))
        await crowd.submit(documents("late", kinds.get("late", 0), deadline=yesterday, priority=-1, **_told(hook)))
        gone = documents("gone", kinds.get("gone", 0), priority=-1, **_told(hook))
        await crowd.submit(gone)
        await asyncio.gather(*(crowd.withdraw(one["id"]) for one in gone))
        done += await _kill(posts, watch, rng, None if kills is None else 0, pause_s)

        async def over() -> bool:
            await takes(0.1)
            return await watch.left() == (0, 0)

        await wait_until(over, timeout=PATIENCE_S)
    watch.close()
    return Balance(crowd, await asyncio.to_thread(read_books, url), hook.told), done


def _told(hook: Hook) -> dict[str, Any]:
    return {"webhook": {"url": hook.url("/hook"), "events": EVENTS}}


async def _kill(
    posts: list[Post], watch: Watch, rng: random.Random, kills: int | None, pause_s: tuple[float, float]
) -> int:
    """Kill one of them, begin it anew, and so on; with one alone nobody answers meanwhile."""
    done = 0
    while done != kills:
        await takes(rng.uniform(*pause_s))
        if kills is None and (await watch.left())[0] == 0:
            break
        post = rng.choice(posts)
        await post.kill()
        await post.begin()
        done += 1
    return done
