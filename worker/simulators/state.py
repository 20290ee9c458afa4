"""What the server knows of the job that runs, the lock that jobs queue for, and what the simulator counts."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any


def stamp() -> str:
    """The servers' time stamp, local time."""
    return time.strftime("%Y%m%d%H%M%S")


@dataclass
class State:
    """The global state of the server: it belongs to whatever runs now, not to a request."""

    id: str = ""
    job: str = ""
    job_count: int = 0
    job_no: int = 0
    job_timestamp: str = "0"
    sampling_step: int = 0
    sampling_steps: int = 0
    interrupted: bool = False
    skipped: bool = False
    total: int = 0
    began: float = 0.0
    preview: bool = False
    """A poll of the progress has made a picture of the unfinished work."""

    def begin(self, job: str, count: int, identity: str) -> None:
        """A job, or a part of one, starts: flags that were raised before are lost."""
        self.id, self.job, self.job_count, self.job_no = identity, job, count, 0
        self.sampling_step = self.sampling_steps = 0
        self.interrupted = self.skipped = False
        self.job_timestamp, self.began = stamp(), time.monotonic()
        self.preview = False
        self.total += 1

    @property
    def sampling(self) -> bool:
        """Whether a job is among its steps."""
        return self.job_count != 0 and self.sampling_steps > 0

    def end(self) -> None:
        """Nothing runs any more; the flags and the steps stay for who looks, until the next job."""
        self.id, self.job, self.job_count, self.job_no = "", "", 0, 0
        self.preview = False

    def fraction(self) -> float:
        """How far, from the start of the first step on, 0 when nothing runs."""
        if self.job_count == 0:
            return 0.0
        if self.job_count < 0 or self.sampling_steps == 0:
            return 0.01
        inside = self.sampling_step / self.sampling_steps / self.job_count
        return min(0.01 + self.job_no / self.job_count + inside, 1.0)

    def eta(self) -> float:
        """Seconds left as the server reckons them."""
        done = self.fraction()
        spent = time.monotonic() - self.began
        return spent / done - spent if done > 0 else 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that depends on the clock and on knobs that may turn meanwhile."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


class TurnLock:
    """The lock around all work. A fair one serves in order; an unfair one, a plain thread lock, picks anyone."""

    def __init__(self, *, fair: bool, rng: random.Random) -> None:
        self._fair = fair
        self._rng = rng
        self._held = False
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            else:
                self._waiting.remove(turn)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        if not self._waiting:
            self._held = False
            return
        index = 0 if self._fair else self._rng.randrange(len(self._waiting))
        self._waiting.pop(index).set_result(None)


@dataclass
class Generation:
    """One piece of work under the lock. Times are Unix seconds; ``finished`` is None while it runs."""

    endpoint: str
    prompt: str
    seed: int
    model: str
    width: int
    height: int
    steps: int
    started: float
    finished: float | None = None
    interrupted: bool = False
    images: int = 0
    fault: str | None = None


@dataclass
class Stats:
    """What the simulator saw, for tests and for the figure of the GPU's duty."""

    generations: list[Generation] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    options_posts: list[dict[str, Any]] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    max_in_flight: int = 0
    interrupts: int = 0
    starts: int = 0

    @property
    def busy_seconds(self) -> float:
        """Time spent in finished generations."""
        return sum(g.finished - g.started for g in self.generations if g.finished is not None)

    @property
    def duty(self) -> float | None:
        """The share of generating in the time from the first start to the last end; None before an end."""
        ends = [g.finished for g in self.generations if g.finished is not None]
        span = max(ends) - self.generations[0].started if ends else 0.0
        return self.busy_seconds / span if span else None

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self) | {"requests": dict(self.requests), "busy_seconds": self.busy_seconds, "duty": self.duty}
