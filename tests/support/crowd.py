"""Many nodes as light as can be: they speak `worker.wire` to several dispatchers, and remember all that was said.

They work, keep what takes long, give back, vanish, and freeze until another holds their job. What they remember is
held against the database by `tests.support.balance`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.dispatching import AS_NODE, AS_USER, a_node, a_result
from tests.support.virtual import takes
from worker.wire import Ended, Heartbeat, NodeInfo, Release, Running

MODELS = tuple(f"model-{number:02d}.safetensors" for number in range(12))
SLOTS = 2
POLL_S = 1.0
AGAIN_S = 0.3
MOST_ATTEMPTS = 3
LONGEST_S = 0.03
RELEASE = "disk_full"
TIMED_OUT = "job_timeout"
DEEDS = {"work": 86, "keep": 3, "release": 5, "drain": 2, "vanish": 2, "freeze": 2}


@dataclass(eq=False)
class Hand:
    """One handing-over, as its node knows it. ``told``: verb, code and the status it was answered with, None: none.

    ``sure_until``, in loop time: for how long the node may think that the job is its own.
    """

    job: str
    token: int
    node: str
    charged: int
    got_at: float
    sure_until: float
    told: list[tuple[str, str, int | None]] = field(default_factory=list)
    over: bool = False
    ending: bool = False
    """Whether an end of it is on its way, or was: another may have it before anybody is told."""

    def accepted(self) -> set[str]:
        """The codes of ends that were taken."""
        return {code for _, code, status in self.told if status == 204}

    def possible(self) -> set[str]:
        """The codes of ends that may have been taken, though nobody said so."""
        return {code for _, code, status in self.told if status is None}


@dataclass
class Crowd:
    """Nodes, and users who submit and withdraw; ``urls`` are the dispatchers' present addresses."""

    urls: Callable[[], Sequence[str]]
    rng: random.Random
    lease_s: float
    client: httpx.AsyncClient
    deeds: Mapping[str, int]
    hands: dict[int, Hand] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    submitted: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)
    breaches: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    _moved: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    # users

    async def submit(self, documents: Sequence[dict[str, Any]]) -> None:
        """Put them there, however often that has to be said."""
        for at in range(0, len(documents), 500):
            part = list(documents[at : at + 500])
            answer = await self._said("POST", "/jobs", part, AS_USER)
            assert answer.status_code in (200, 201), answer.text
            self.submitted |= {document["id"] for document in part}

    async def withdraw(self, job: str) -> None:
        answer = await self._said("DELETE", f"/jobs/{job}", None, AS_USER)
        assert answer.status_code in (204, 409), answer.text
        self.withdrawn.add(job)

    # nodes

    async def node(self, name: str) -> None:
        """One node, until the crowd goes home; what it holds then it brings to an end."""
        loaded: list[str] = []
        held: dict[int, Hand] = {}
        async with asyncio.TaskGroup() as work:
            while not self.closing.is_set():
                if len(held) >= SLOTS:
                    await takes(LONGEST_S / 4)
                    continue
                given = await self._ask(name, loaded, held)
                if given is None:
                    continue
                hand, checkpoint = given
                loaded[:] = [checkpoint, *(one for one in loaded if one != checkpoint)][:4]
                held[hand.token] = hand
                work.create_task(self._do(hand, held), name=f"{name}-{hand.token}")

    async def _ask(self, name: str, loaded: list[str], held: dict[int, Hand]) -> tuple[Hand, str] | None:
        running = [{"id": hand.job, "token": hand.token} for hand in held.values()]
        body = a_node(name, loaded=tuple(loaded[:1]), disk=tuple(loaded[1:]), wait=POLL_S, running=running)
        began = asyncio.get_running_loop().time()
        answer = await self._once("POST", "/availability", body, AS_NODE)
        if answer is None or answer.status_code >= 500:
            self.counts["requests for work unanswered"] += 1
            await takes(AGAIN_S)
            return None
        found = answer.json()
        given = found.get("generation")
        if given is None:
            await takes(min(found.get("retry_after") or 0.0, AGAIN_S))
            return None
        charged = sum(one["charged"] for one in given["attempts"])
        now = asyncio.get_running_loop().time()
        hand = Hand(given["id"], given["token"], name, charged, now, began + given["lease"])
        self._take(hand)
        return hand, given["checkpoint"]

    def _take(self, hand: Hand) -> None:
        earlier = self.hands.get(hand.token)
        self._expect(earlier is None, f"the token {hand.token} was given twice")
        self.hands[hand.token] = hand
        before = self.hands.get(self.newest.get(hand.job, 0))
        if before is not None:
            self._expect(before.token < hand.token, f"{hand.job}: {hand.token} came after {before.token}")
            sure = before.sure_until if not before.ending else 0.0
            self._expect(sure <= hand.got_at, f"{hand.job}: {before.node} was sure of it when {hand.node} got it")
        self.newest[hand.job] = max(hand.token, self.newest.get(hand.job, 0))
        self._moved[hand.job].set()
        self._moved[hand.job] = asyncio.Event()

    async def _do(self, hand: Hand, held: dict[int, Hand]) -> None:
        deed = self._deed(hand)
        self.counts[deed] += 1
        match deed:
            case "vanish":
                del held[hand.token]
            case "freeze":
                del held[hand.token]
                await self._freeze(hand)
            case "release" | "drain":
                await takes(self.rng.uniform(0, LONGEST_S))
                del held[hand.token]
                await self._release(hand, RELEASE if deed == "release" else "draining", charged=False)
            case "fail":
                del held[hand.token]
                await self._fail(hand)
            case _:
                kept = await self._keep(hand, held, self.lease_s * 1.3 if deed == "keep" else 0.0)
                del held[hand.token]
                if kept is not None:
                    await self._end(hand, kept)
        hand.over = True

    def _deed(self, hand: Hand) -> str:
        kind = hand.job.partition("-")[0]
        if kind == "cursed":
            return "vanish"
        if kind == "bad":
            return "fail"
        return self.rng.choices(list(self.deeds), list(self.deeds.values()))[0]

    async def _keep(self, hand: Hand, held: dict[int, Hand], seconds: float) -> str | None:
        """Work for a while, renewing; how it is to end, None where it was lost."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (seconds or self.rng.uniform(0, LONGEST_S))
        while (left := until - loop.time()) > 0:
            await takes(min(left, self.lease_s / 4))
            if seconds:
                lost, cancelled = await self._beat(hand.node, list(held.values()))
                if hand.job in lost:
                    self.counts["lost while kept"] += 1
                    return None
                if hand.job in cancelled:
                    return "cancelled"
        return "succeeded"

    async def _beat(self, node: str, hands: Sequence[Hand]) -> tuple[set[str], set[str]]:
        running = tuple(Running(id=one.job, token=one.token, progress=0.5) for one in hands)
        sent = asyncio.get_running_loop().time()
        stale = {one.job for one in hands if self._is_stale(one)}
        body = Heartbeat(node=NodeInfo(id=node), running=running).model_dump(mode="json", exclude_none=True)
        answer = await self._once("POST", "/heartbeat", body, AS_NODE)
        if answer is None or answer.status_code != 200:
            self.counts["heartbeats unanswered"] += 1
            return set(), set()
        lost, cancelled = set(answer.json()["lost"]), set(answer.json()["cancel"])
        for one in hands:
            if one.job not in lost:
                self._expect(one.job not in stale, f"{one.job}: the stale token {one.token} was renewed")
                one.sure_until = sent + self.lease_s
        return lost, cancelled

    async def _freeze(self, hand: Hand) -> None:
        """Stand still until another holds the job, or long past the lease; then do everything that one may not."""
        moved = self._moved[hand.job]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.lease_s * 3):
                await moved.wait()
        self.counts["woken with a stale token"] += self._is_stale(hand)
        deeds: list[Callable[[], Any]] = [
            lambda: self._beat(hand.node, [hand]),
            lambda: self._end(hand, "succeeded"),
            lambda: self._release(hand, RELEASE, charged=True),
        ]
        self.rng.shuffle(deeds)
        for deed in deeds:
            await deed()

    async def _fail(self, hand: Hand) -> None:
        """An end that is the job's own doing: charged, and the last one is a dead letter."""
        if hand.charged + 1 < MOST_ATTEMPTS:
            await self._release(hand, TIMED_OUT, charged=True)
        else:
            await self._end(hand, "failed")

    async def _end(self, hand: Hand, status: str) -> None:
        code = {"failed": TIMED_OUT, "cancelled": "cancelled"}.get(status)
        error = {"code": code, "message": "why", "retryable": False, "fault": "job"}
        result = a_result(
            hand.job,
            status,
            metadata={"token": hand.token},
            worker={"id": hand.node, "version": "0"},
            **({"error": error} if code else {}),
        )
        body = Ended(token=hand.token, result=result, dead=status == "failed").model_dump(mode="json")
        await self._tell(hand, "result", code or status, body)

    async def _release(self, hand: Hand, code: str, *, charged: bool) -> None:
        delay = self.rng.choice((0.0, 0.0, 0.2))
        body = Release.of(hand.token, code, delay, charged=charged, worker=hand.node).model_dump(mode="json")
        await self._tell(hand, "release", code, body)

    async def _tell(self, hand: Hand, verb: str, code: str, body: Any) -> None:
        """Say how it ended until somebody answers. The same end twice is one, so no answer may be repeated."""
        while True:
            stale = self._is_stale(hand)
            hand.ending = True
            answer = await self._once("POST", f"/jobs/{hand.job}/{verb}", body, AS_NODE)
            status = None if answer is None or answer.status_code >= 500 else answer.status_code
            hand.told.append((verb, code, status))
            if status is not None:
                self._expect(status in (204, 409), f"{hand.job}: {verb} was answered {status}")
                again = code in hand.accepted() and (verb, code, 204) in hand.told[:-1]
                unsure = any(told is None for _, _, told in hand.told[:-1])
                self._expect(
                    not (stale and status == 204 and not again and not unsure),
                    f"{hand.job}: {verb} under the stale token {hand.token} was taken",
                )
                return
            self.counts["ends unanswered"] += 1
            await takes(AGAIN_S)

    def _is_stale(self, hand: Hand) -> bool:
        return self.newest[hand.job] > hand.token

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.breaches.append(otherwise)

    # the way there

    async def _said(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
        while True:
            answer = await self._once(method, path, body, headers)
            if answer is not None and answer.status_code < 500:
                return answer
            await takes(AGAIN_S)

    async def _once(self, method: str, path: str, body: Any, headers: dict[str, str]) -> httpx.Response | None:
        """Ask any of the dispatchers; None where no answer came."""
        url = self.rng.choice(self.urls())
        try:
            return await self.client.request(method, url + path, json=body, headers=headers)
        except httpx.TransportError:
            return None


@asynccontextmanager
async def gathered(
    urls: Callable[[], Sequence[str]], rng: random.Random, nodes: int, lease_s: float, deeds: Mapping[str, int]
) -> AsyncIterator[Crowd]:
    """A crowd at work; at the end of the block everybody brings to an end what he holds."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=20, limits=limits) as client:
        crowd = Crowd(urls, rng, lease_s, client, deeds)
        async with asyncio.TaskGroup() as group:
            for number in range(nodes):
                group.create_task(crowd.node(f"node-{number:03d}"), name=f"node-{number:03d}")
            try:
                yield crowd
            finally:
                crowd.closing.set()


def documents(kind: str, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Job documents of a kind: ``good``, ``bad`` (always fail), ``cursed`` (whoever holds one vanishes), or a name."""
    return [
        {
            "id": f"{kind}-{number:05d}",
            "params": {"prompt": "a cat", "steps": 20},
            "checkpoint": MODELS[number * number % len(MODELS)],
            **fields,
        }
        for number in range(count)
    ]
