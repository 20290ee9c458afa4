"""Structured concurrency: the first to finish wins, errors come out bare, and nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import elapse, virtual
from worker.errors import Draining, LeaseLost
from worker.tasks import Budget, cancel_all, first_of, gather_bare, run_guarded


async def answers(seconds: float, value: int = 7) -> int:
    await elapse(seconds)
    return value


async def raises(seconds: float, error: Exception) -> None:
    await elapse(seconds)
    raise error


@virtual
async def test_a_body_that_ends_first_gives_its_result() -> None:
    """Its guards are cancelled."""
    assert await run_guarded(answers(1), raises(2, LeaseLost())) == 7


@virtual
async def test_a_guard_that_raises_ends_the_body_with_its_own_error() -> None:
    """Bare, and only after the body has cleaned up."""
    cleaned: list[float] = []

    async def body() -> None:
        try:
            await elapse(100)
        finally:
            await elapse(3)
            cleaned.append(asyncio.get_running_loop().time())

    with pytest.raises(LeaseLost):
        await run_guarded(body(), raises(2, LeaseLost()), raises(50, Draining()))
    assert cleaned == [5]


@virtual
async def test_a_guard_that_returns_is_spent() -> None:
    """The body goes on, under the guards that are left."""
    assert await run_guarded(answers(5), answers(1), answers(2)) == 7
    with pytest.raises(Draining):
        await run_guarded(answers(5), answers(1), raises(2, Draining()))


@virtual
async def test_a_body_that_raises_comes_out_bare() -> None:
    """Even when a guard fails in the same instant."""
    with pytest.raises(KeyError):
        await run_guarded(raises(1, KeyError()), raises(1, LeaseLost()))


@virtual
async def test_without_guards_it_is_only_the_body() -> None:
    """Nothing is waited for that is not there."""
    assert await run_guarded(answers(1)) == 7


@virtual
async def test_a_cancelled_shell_cancels_everything_inside() -> None:
    """And waits until all of it has ended."""
    shell = asyncio.create_task(run_guarded(answers(100), answers(100)), name="shell")
    await elapse(1)
    shell.cancel()
    await asyncio.wait({shell})
    assert shell.cancelled()


@virtual
async def test_results_come_in_order_and_the_first_error_ends_the_rest() -> None:
    """Bare as well."""
    assert await gather_bare([answers(3, 1), answers(1, 2)], name="some") == [1, 2]
    assert await gather_bare([], name="none") == []
    with pytest.raises(KeyError):
        await gather_bare([answers(100), raises(1, KeyError()), answers(2)], name="some")
    assert asyncio.get_running_loop().time() == 4


@virtual
async def test_the_first_wait_that_ends_ends_them_all() -> None:
    """And its error comes out."""
    await first_of(answers(1), answers(100))
    assert asyncio.get_running_loop().time() == 1
    with pytest.raises(KeyError):
        await first_of(answers(100), raises(1, KeyError()))


@virtual
async def test_cancelling_nothing_is_nothing() -> None:
    """An empty set, and tasks that have ended."""
    await cancel_all(set())
    done = asyncio.create_task(answers(0), name="done")
    await done
    await cancel_all({done})
    assert done.result() == 7


@virtual
async def test_a_budget_is_shared_and_given_back() -> None:
    """Who does not fit waits; who wants more than all of it waits for all of it, and gets it."""
    budget = Budget(10)
    order: list[str] = []

    async def use(name: str, amount: int, seconds: float) -> None:
        async with budget.take(amount):
            order.append(name)
            assert budget.taken <= 10
            await elapse(seconds)

    await gather_bare([use("a", 6, 5), use("huge", 1000, 1), use("b", 4, 1)], name="use")
    assert order == ["a", "b", "huge"]
    assert budget.taken == 0


@virtual
async def test_a_budget_is_given_back_by_what_fails_or_is_cancelled() -> None:
    """Nothing of it is lost for ever."""
    budget = Budget(10)
    with pytest.raises(KeyError):
        async with budget.take(10):
            raise KeyError
    async with budget.take(10):
        waiting = asyncio.create_task(budget.take(1).__aenter__(), name="waiting")
        await elapse(1)
        await cancel_all({waiting})
    assert budget.taken == 0


@virtual
async def test_a_share_that_turns_out_larger_keeps_others_waiting() -> None:
    """It waits for nothing itself, overdraws what there is, and gives all of it back."""
    budget = Budget(10)
    order: list[str] = []

    async def small() -> None:
        async with budget.take(1):
            order.append("small")

    async with budget.take(4) as share:
        share.at_least(25)
        share.at_least(7)
        assert budget.taken == 25
        waiting = asyncio.create_task(small(), name="small")
        await elapse(1)
        order.append("large is done")
    await waiting
    assert order == ["large is done", "small"]
    assert budget.taken == 0
