"""A model cache at work in processes that are killed and stopped at chosen instants, and what must hold after each.

`python -m tests.support.model_life ROOT URL` takes an `Order` a line on its standard input, forks a life of its own
for each, and answers with an `End`. Forked lives begin within milliseconds, and are killed by who is not asleep.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import select
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.cache import FakeServer, FakeTally, sha256
from tests.support.made import safetensors
from worker import log
from worker.clock import CorrectedClock, SystemClock
from worker.errors import Owner
from worker.mentions import Place
from worker.models.acts import Acts
from worker.models.base import Tempo, Wanted
from worker.models.cache import Cache
from worker.models.download import Downloads
from worker.models.find import Sources
from worker.models.folders import Folders
from worker.models.layout import LAYOUTS
from worker.models.open import cache_of
from worker.models.pieces import Sizes
from worker.settings.source import load_settings
from worker.urls import Guard

KIB = 1024
CAP = 1500 * KIB
SIZES = Sizes(piece_least=64 * KIB, piece_most=64 * KIB, turn=16 * KIB, step=64 * KIB)
TEMPO = Tempo(first=timedelta(milliseconds=5), most=timedelta(milliseconds=50))
CHECKPOINT = timedelta(milliseconds=20)
ROOT = Path(__file__).parents[2]
AIMS = ("spawn", "served", "begin", "land", "delete", "drop")
"""A life may be killed from its first instant on, or after the first or a later of these."""


def _files() -> dict[Place, bytes]:
    """What there is to be had: six models of 180 to 580 KiB, of which about three fit."""
    kinds = ("checkpoint", "lora")
    sizes = {Place(kinds[n % 2], f"deep/m{n}.safetensors"): (180 + 80 * n) * KIB for n in range(6)}
    return {place: safetensors(random.Random(str(place)).randbytes(size)) for place, size in sizes.items()}


FILES = _files()
DIGESTS = {place: sha256(body) for place, body in FILES.items()}


def path_of(place: Place) -> str:
    return f"/{place.kind}/{place.name}"


def want(place: Place) -> Wanted:
    """Of the loras the hash is known beforehand."""
    return Wanted(*place, owner=Owner.OPERATOR, sha256=DIGESTS[place] if place.kind == "lora" else None)


def folders_at(root: Path) -> Folders:
    return Folders(root, LAYOUTS["comfyui"])


@asynccontextmanager
async def cache_at(root: Path, url: str, cap: int = CAP) -> AsyncIterator[Cache]:
    """The product's cache over real transfers from ``url``, at the pace of tests."""
    settings = load_settings(
        {
            "WORKER_MODELS_SOURCE": f"{url}/{{kind}}/{{name}}",
            "WORKER_MODELS_MAX_SIZE": str(cap),
            "WORKER_MODELS_CONNECTIONS": "3",
        }
    )
    guard, rng, clock = Guard(), random.Random(1), CorrectedClock(SystemClock())
    async with AsyncExitStack() as opening:
        finder = Sources(settings.models, guard=guard, clock=clock, rng=rng)
        opening.push_async_callback(finder.aclose)
        fetcher = Downloads(
            settings.models, guard, clock=clock, rng=rng, tempo=TEMPO, sizes=SIZES, checkpoint=CHECKPOINT
        )
        opening.push_async_callback(fetcher.aclose)
        cache = await cache_of(settings, folders_at(root), finder, fetcher, FakeServer(), FakeTally(), opening)
        opening.push_async_callback(cache.aclose)
        yield cache


@dataclass(frozen=True)
class Order:
    """A life with this seed, killed ``after_s`` from the ``hit``-th time that it does what it is ``aim``-ed at.

    ``stops``: it is stopped first, until it is looked at.
    """

    seed: int
    aim: str
    hit: int = 1
    after_s: float = 0.0
    stops: bool = False


@dataclass(frozen=True)
class End:
    """How a life ended: the signal, or 0 when it ended by itself. ``did`` is all that it began, in order."""

    signal: int
    did: list[str] = field(default_factory=list)


async def life(root: Path, url: str, seed: int, tell: Callable[[str], None]) -> None:
    """Two users of models, for ever, who begin with what the last life did not get; ends when one gets wrong bytes."""
    async with cache_at(root, url) as cache:
        folders, left = folders_at(root), [transfer.place for transfer in cache.transfers()]

        async def use(rng: random.Random) -> None:
            while True:
                places = [left.pop()] if left else rng.sample(sorted(FILES), rng.randint(1, 2))
                async with cache.provided([want(place) for place in places]) as provided:
                    tell("served")
                    for place in provided.places:
                        assert sha256(folders.path(place).read_bytes()) == DIGESTS[place], place

        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(use(random.Random(seed * 2 + number)), name=f"user-{number}")


def _begun(root: Path, url: str, seed: int, events: int) -> None:
    """A forked life; what it is about to do is told first."""

    def tell(what: str) -> None:
        os.write(events, f"{what}\n".encode())

    def telling(name: str, place_of: Callable[..., object]) -> None:
        act = getattr(Acts, name)

        def told(*args: Any) -> Any:
            tell(f"{name} {place_of(*args)}")
            return act(*args)

        setattr(Acts, name, told)

    telling("begin", lambda acts, transfer, before: transfer.place)
    telling("drop", lambda acts, transfer: transfer.place)
    telling("land", lambda acts, partial, entry, transfer: entry.place)
    telling("delete", lambda acts, place: place)
    tell("spawn")
    asyncio.run(life(root, url, seed, tell))


def _lived(root: Path, url: str, order: Order, answer: Callable[[object], None]) -> End:
    """One life from its fork to its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _begun(root, url, order.seed, writing)
        os._exit(0)
    os.close(writing)
    told = b""
    while sum(line.startswith(order.aim) for line in told.decode().splitlines()) < order.hit:
        more = os.read(reading, 65536) if select.select([reading], [], [], 60)[0] else b""
        if not more:
            break
        told += more
    time.sleep(order.after_s)
    if order.stops:
        os.kill(child, signal.SIGSTOP)
        os.waitid(os.P_PID, child, os.WSTOPPED)
        answer("stopped")
        sys.stdin.readline()
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while more := os.read(reading, 65536):
        told += more
    os.close(reading)
    return End(status & 0x7F, told.decode().splitlines())


def main(root: Path, url: str) -> None:
    log.setup("error")

    def answer(document: object) -> None:
        print(json.dumps(document), flush=True)

    while line := sys.stdin.readline():
        answer(dataclasses.asdict(_lived(root, url, Order(**json.loads(line)), answer)))


class Lives:
    """What forks the lives of a cache; one life at a time. ``look`` sees the folder of one that stands still."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def one(self, order: Order, look: Callable[[], Coroutine[Any, Any, object]]) -> End:
        await self._say(json.dumps(dataclasses.asdict(order)))
        heard = await self._heard()
        if heard == "stopped":
            await look()
            await self._say("on")
            heard = await self._heard()
        return End(**heard)

    async def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        await self._process.stdin.drain()

    async def _heard(self) -> Any:
        assert self._process.stdout is not None
        async with asyncio.timeout(90):
            return json.loads(await self._process.stdout.readline())


@asynccontextmanager
async def lives(root: Path, url: str) -> AsyncIterator[Lives]:
    module = ("-m", "tests.support.model_life", str(root), url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, *module, cwd=ROOT, stdin=PIPE, stdout=PIPE, limit=1 << 24
    )
    try:
        yield Lives(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
