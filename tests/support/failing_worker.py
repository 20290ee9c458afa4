"""A worker that fails at a failpoint: `python -m tests.support.failing_worker POINT:HIT:DEED ... run`.

At the HIT-th time that it comes by the failpoint POINT it is killed (``kill``), or says so in its log and stands
there until a byte comes on its standard input (``hold``). Everything else is the product's own command line, which
knows nothing of this.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from typing import NamedTuple, Self

from worker import failpoints


class Failure(NamedTuple):
    """What happens where, and at which time by."""

    point: str
    hit: int = 1
    deed: str = "kill"

    @classmethod
    def parse(cls, text: str) -> Self:
        point, hit, deed = text.split(":")
        if point not in failpoints.POINTS:
            raise SystemExit(f"there is no failpoint {point}")
        return cls(point, int(hit), deed)

    def __str__(self) -> str:
        return ":".join(map(str, self))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hold() -> None:
    os.write(1, b'{"event": "failpoint_held"}\n')
    os.read(0, 1)


DEEDS = {"kill": kill, "hold": hold}


def arm(*failures: Failure) -> None:
    """Have this process fail so."""
    passed: Counter[str] = Counter()

    def at(point: str) -> None:
        passed[point] += 1
        for failure in failures:
            if (failure.point, failure.hit) == (point, passed[point]):
                DEEDS[failure.deed]()

    failpoints.install(at)


if __name__ == "__main__":
    from worker.__main__ import main

    arm(*(Failure.parse(text) for text in sys.argv[1:-1]))
    sys.argv[1:] = sys.argv[-1:]
    main()
