"""The one retry policy: attempts with growing, jittered waits inside a budget of loop time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from worker.errors import DependencyFailed, WorkerError

T = TypeVar("T")
OnRetry = Callable[[WorkerError, int, timedelta], None]
"""Called before each wait with the error, the number of the try that raised it (from 1), and the wait."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How often, and how long between: ``first`` doubles up to ``most``, the last ``jitter`` of each is random."""

    attempts: int = 5
    first: timedelta = timedelta(seconds=0.5)
    most: timedelta = timedelta(seconds=15)
    jitter: float = 0.5

    def wait(self, attempt: int, rng: random.Random, *, at_least: timedelta | None = None) -> timedelta:
        """How long to wait after the failed try of this number (from 1); never less than a server asked for."""
        full = min(self.first.total_seconds() * 2.0 ** min(attempt - 1, 60), self.most.total_seconds())
        wait = timedelta(seconds=full * (1 - self.jitter * rng.random()))
        return max(wait, at_least) if at_least is not None else wait


def is_dependency(error: WorkerError) -> bool:
    """What is usually worth another try."""
    return isinstance(error, DependencyFailed)


async def retrying(
    operation: Callable[[], Awaitable[T]],
    policy: Policy,
    *,
    budget: timedelta,
    rng: random.Random,
    retry_on: Callable[[WorkerError], bool] = is_dependency,
    on_retry: OnRetry | None = None,
    out_of_time: Callable[[str], WorkerError] = DependencyFailed,
) -> T:
    """Run the operation until it succeeds, raises what is not worth a retry, or attempts or budget end.

    Raises the operation's own last error, whichever end it was; ``out_of_time(message)`` only when the budget
    ended within the first try. A wait that would outlast the budget is not begun. ``error.retry_after`` is
    honoured. The budget is loop time, so a virtual clock governs it.
    """
    ends = asyncio.get_running_loop().time() + budget.total_seconds()
    tries = _Tries(policy, ends, rng, retry_on, on_retry)

    async def once() -> T:
        return await operation()

    attempts = AsyncRetrying(
        retry=retry_if_exception(tries.is_worth_another),
        wait=tries.wait,
        stop=tries.is_last,
        sleep=asyncio.sleep,
        before_sleep=tries.announce,
        reraise=True,
    )
    try:
        async with asyncio.timeout_at(ends) as limit:
            return await attempts(once)
    except TimeoutError:
        if not limit.expired():
            raise
        raise tries.error or out_of_time(f"no success within {budget.total_seconds():g} s") from None


@dataclass(slots=True)
class _Tries:
    """One run of tries as tenacity asks about it; ``ends`` in loop time, ``error`` of the latest failed try."""

    policy: Policy
    ends: float
    rng: random.Random
    retry_on: Callable[[WorkerError], bool]
    on_retry: OnRetry | None
    error: WorkerError | None = None

    def is_worth_another(self, failure: BaseException) -> bool:
        if not isinstance(failure, WorkerError):
            return False
        self.error = failure
        return self.retry_on(failure)

    def wait(self, state: RetryCallState) -> float:
        asked = self.error.retry_after if self.error else None
        return self.policy.wait(state.attempt_number, self.rng, at_least=asked).total_seconds()

    def is_last(self, state: RetryCallState) -> bool:
        next_try = asyncio.get_running_loop().time() + state.upcoming_sleep
        return state.attempt_number >= self.policy.attempts or next_try >= self.ends

    def announce(self, state: RetryCallState) -> None:
        if self.on_retry is not None and self.error is not None:
            self.on_retry(self.error, state.attempt_number, timedelta(seconds=state.upcoming_sleep))
