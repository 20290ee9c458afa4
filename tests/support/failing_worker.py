"""A worker that fails at a failpoint: `python -m tests.support.failing_worker [hasty] POINT:HIT:DEED[:JOB] ... run`.

At the HIT-th time that it comes by the failpoint POINT it is killed (``kill``), or says so in its log and stands
there until a byte comes on its standard input (``hold``). With a JOB it fails at that job alone, at the first time
in the job's HIT-th delivery to this process.

A ``hasty`` one hands a job back without a rest, asks SQS for a second at a time, and soon believes that a server which
a killed worker has left without a model will load none by itself. Everything else is the product's own command line,
which knows nothing of this.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from datetime import timedelta
from typing import NamedTuple, Self

import structlog

from worker import failpoints
from worker.errors import WorkerError
from worker.queues.base import Delivery

HASTY = "hasty"
POLL = timedelta(seconds=1)
QUIET_S = 1.0


class Failure(NamedTuple):
    """What happens where, and at which time by."""

    point: str
    hit: int = 1
    deed: str = "kill"
    job: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        point, hit, deed, *job = text.split(":", 3)
        if point not in failpoints.POINTS:
            raise SystemExit(f"there is no failpoint {point}")
        return cls(point, int(hit), deed, *job)

    def __str__(self) -> str:
        return ":".join(map(str, self if self.job else self[:3]))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold() -> None:
    os.write(1, b'{"event": "failpoint_held"}\n')
    os.read(0, 1)


DEEDS = {"kill": kill, "hold": hold}


def arm(*failures: Failure) -> None:
    """Have this process fail so."""
    passed: Counter[str] = Counter()
    received: Counter[str] = Counter()
    over: set[Failure] = set()

    def at(point: str) -> None:
        passed[point] += 1
        job = str(structlog.contextvars.get_contextvars().get("job", ""))
        received[job] += point == "received"
        for failure in failures:
            times = received[job] if failure.job else passed[point]
            if (failure.point, failure.hit) == (point, times) and failure.job in ("", job) and failure not in over:
                over.add(failure)
                DEEDS[failure.deed]()

    failpoints.install(at)


def hurry() -> None:
    """Have this process be hasty."""
    from worker import settlement
    from worker.engines.sdapi import run

    def at_once(error: WorkerError, delivery: Delivery, rng: random.Random) -> timedelta:
        return timedelta(0)

    settlement.retry_delay = at_once
    object.__setattr__(run.NORMAL, "quiet_s", QUIET_S)
    if os.environ.get("WORKER_QUEUE") == "sqs":
        from worker.queues.sqs import SqsQueue

        (SqsQueue.__init__.__kwdefaults__ or {})["wait"] = POLL


if __name__ == "__main__":
    from worker.__main__ import main

    said = sys.argv[1:-1]
    arm(*(Failure.parse(text) for text in said if text != HASTY))
    if HASTY in said:
        hurry()
    sys.argv[1:] = sys.argv[-1:]
    main()
