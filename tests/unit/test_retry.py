"""The retry policy, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.support.virtual import elapse
from tests.support.virtual import run as run_virtual
from worker.errors import DependencyFailed, InvalidJob, UploadFailed, WorkerError
from worker.retry import Policy, retrying

STEADY = Policy(attempts=4, first=timedelta(seconds=1), most=timedelta(seconds=8), jitter=0)
LONG = timedelta(hours=1)


class Flaky:
    """An operation that raises what it is given, in turn, and then succeeds."""

    def __init__(self, *errors: Exception, takes: float = 0.0) -> None:
        self.errors = list(errors)
        self.takes = takes
        self.tried_at: list[float] = []

    async def __call__(self) -> str:
        self.tried_at.append(asyncio.get_running_loop().time())
        await elapse(self.takes)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def run(
    operation: Flaky,
    policy: Policy = STEADY,
    budget: timedelta = LONG,
    retry_on: Callable[[WorkerError], bool] = lambda error: isinstance(error, DependencyFailed),
    seen: list[tuple[str, int, float]] | None = None,
) -> str:
    async def body() -> str:
        return await retrying(
            operation,
            policy,
            budget=budget,
            rng=random.Random(7),
            retry_on=retry_on,
            on_retry=None if seen is None else lambda e, n, w: seen.append((str(e), n, w.total_seconds())),
        )

    return run_virtual(body())


def test_an_operation_may_be_a_plain_function_that_gives_an_awaitable() -> None:
    """A lambda around a coroutine is awaited and retried like a coroutine function."""
    operation = Flaky(UploadFailed())

    async def body() -> str:
        return await retrying(lambda: operation(), STEADY, budget=LONG, rng=random.Random(1))  # noqa: PLW0108

    assert run_virtual(body()) == "done"
    assert operation.tried_at == [0, 1]


def test_waits_double_up_to_the_most() -> None:
    """Each wait is twice the one before, and never longer than the policy's most."""
    policy = Policy(attempts=6, first=timedelta(seconds=1), most=timedelta(seconds=3), jitter=0)
    operation = Flaky(*[UploadFailed() for _ in range(5)])
    assert run(operation, policy) == "done"
    assert operation.tried_at == [0, 1, 3, 6, 9, 12]


def test_jitter_takes_from_the_end_of_a_wait() -> None:
    """A jittered wait lies between its unjittered part and the whole, and differs from try to try."""
    policy = Policy(attempts=9, first=timedelta(seconds=10), most=timedelta(seconds=10), jitter=0.5)
    waits = {policy.wait(attempt, random.Random(attempt)).total_seconds() for attempt in range(1, 9)}
    assert all(5 <= wait <= 10 for wait in waits)
    assert len(waits) == 8


def test_a_high_attempt_number_does_not_overflow() -> None:
    """However often it was tried, the wait is the most."""
    assert STEADY.wait(5000, random.Random(1)) == STEADY.most


def test_the_last_error_comes_out_when_attempts_end() -> None:
    """With all attempts used, the operation's own last error is raised."""
    last = UploadFailed("fourth")
    operation = Flaky(UploadFailed("1"), UploadFailed("2"), UploadFailed("3"), last)
    with pytest.raises(UploadFailed) as caught:
        run(operation)
    assert caught.value is last
    assert len(operation.tried_at) == 4


def test_what_is_not_worth_a_retry_comes_out_at_once() -> None:
    """An error that the predicate refuses ends it at the first try."""
    operation = Flaky(InvalidJob("bad"))
    with pytest.raises(InvalidJob):
        run(operation)
    assert operation.tried_at == [0]


def test_foreign_exceptions_are_never_retried() -> None:
    """What is no WorkerError is a bug and comes out at once, whatever the predicate says."""
    operation = Flaky(KeyError("bug"))
    with pytest.raises(KeyError):
        run(operation, retry_on=lambda error: True)
    assert operation.tried_at == [0]


def test_retry_after_is_honoured_and_backoff_is_the_least() -> None:
    """A server's Retry-After stretches a wait and never shortens it."""
    asked = UploadFailed("later", retry_after=timedelta(seconds=90))
    hasty = UploadFailed("soon", retry_after=timedelta(0))
    operation = Flaky(asked, hasty)
    assert run(operation) == "done"
    assert operation.tried_at == [0, 90, 92]


def test_a_wait_beyond_the_budget_is_not_begun() -> None:
    """When the next try cannot be within the budget, the last error is raised without waiting for it."""
    operation = Flaky(UploadFailed("much later", retry_after=timedelta(hours=2)))

    async def body() -> float:
        with pytest.raises(UploadFailed, match="much later"):
            await retrying(operation, STEADY, budget=LONG, rng=random.Random(1))
        return asyncio.get_running_loop().time()

    assert run_virtual(body()) == 0


def test_the_budget_cuts_a_try_and_raises_the_last_error() -> None:
    """A try that outlasts the budget ends with the error of the one before, not with TimeoutError."""
    operation = Flaky(UploadFailed("first"), takes=8)
    with pytest.raises(UploadFailed, match="first"):
        run(operation, budget=timedelta(seconds=10))
    assert operation.tried_at == [0, 9]


def test_a_first_try_that_outlasts_the_budget_has_its_own_error() -> None:
    """Without any error to raise it says that time ran out, as an error of our own."""
    with pytest.raises(DependencyFailed, match="no success within 5 s"):
        run(Flaky(takes=60), budget=timedelta(seconds=5))


def test_a_timeout_of_the_operation_is_not_mistaken_for_the_budget() -> None:
    """A TimeoutError that the operation itself raises comes out as what it is."""
    with pytest.raises(TimeoutError, match="its own"):
        run(Flaky(TimeoutError("its own")))


def test_each_wait_is_announced() -> None:
    """on_retry hears the error, the number of the failed try and the wait, and nothing of the success."""
    seen: list[tuple[str, int, float]] = []
    assert run(Flaky(UploadFailed("a"), UploadFailed("b")), seen=seen) == "done"
    assert seen == [("a", 1, 1.0), ("b", 2, 2.0)]


def test_cancelling_ends_a_wait() -> None:
    """Cancelled from outside while waiting, it ends as cancelled and does not try again."""
    operation = Flaky(UploadFailed("down"))

    async def body() -> None:
        task = asyncio.create_task(retrying(operation, STEADY, budget=LONG, rng=random.Random(1)), name="test-retrying")
        await asyncio.wait({task}, timeout=0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_virtual(body())
    assert operation.tried_at == [0]
