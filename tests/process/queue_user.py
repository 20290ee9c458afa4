"""A process that uses a queue file, for tests that kill it: `python -m tests.process.queue_user FILE WORKER MODE`.

Each line it prints stands for something that the queue has confirmed. ``submit`` puts numbered jobs for ever,
``hold`` takes one job and keeps it, ``drain`` takes and settles jobs until there is none, ``churn`` does
everything at once until it is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from datetime import timedelta
from pathlib import Path

from tests.support.queues import result_of, taken
from worker.clock import SystemClock
from worker.queues.sqlite import SqliteQueue


def say(*words: object) -> None:
    print(*words, flush=True)


async def submit(queue: SqliteQueue) -> None:
    for number in itertools.count():
        await queue.submit(f"j{number}", b"%d" % number)
        say(f"j{number}")


async def hold(queue: SqliteQueue) -> None:
    say((await taken(queue)).id)
    await asyncio.Event().wait()


async def drain(queue: SqliteQueue) -> None:
    while (delivery := (await queue.receive()).delivery) is not None:
        await queue.ack(delivery, result_of(delivery.id))
        say(delivery.id)


async def churn(queue: SqliteQueue) -> None:
    async def produce() -> None:
        for number in itertools.count():
            await queue.submit(f"j{number}", b"%d" % number)
            say("submitted", f"j{number}")

    async def consume() -> None:
        for number in itertools.count():
            delivery = await taken(queue)
            if number % 3 == 0:
                await queue.nack(delivery, timedelta(0), "draining", charged=False)
                continue
            await queue.extend(delivery)
            await queue.ack(delivery, result_of(delivery.id))
            say("done", delivery.id)

    await asyncio.gather(produce(), consume())


async def main(path: str, worker: str, mode: str) -> None:
    wait = timedelta(seconds=0.1 if mode == "drain" else 30)
    queue = SqliteQueue(Path(path), SystemClock(), worker=worker, wait=wait)
    await {"submit": submit, "hold": hold, "drain": drain, "churn": churn}[mode](queue)
    await queue.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
