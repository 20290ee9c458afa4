"""Models that were asked for over HTTP: bounded, remembered, and ended with the worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import structlog

from tests.support.cache import wanted
from tests.support.virtual import virtual
from tests.support.waiting import wait_until
from worker.api.fetches import FAILED_MOST, PENDING_MOST, Fetches, TooManyFetches
from worker.errors import Draining, ModelNotFound
from worker.mentions import Place
from worker.models.none import NoCache

SHORT, LONG = timedelta(0), timedelta(seconds=30)


class Failing(NoCache):
    """``go`` holds the failure up."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.go = asyncio.Event()

    async def fetch(self, *_: Any, **__: Any) -> Any:
        await self.go.wait()
        raise self.error


class Waiting(NoCache):
    async def fetch(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


async def test_only_so_much_is_asked_for_at_once() -> None:
    """More is refused; who waits when the worker ends is told that it does."""
    fetches = Fetches(Waiting(), SHORT)
    for number in range(PENDING_MOST):
        assert await fetches.fetched(wanted(f"{number}.safetensors"), wait=False) is None
    with pytest.raises(TooManyFetches):
        await fetches.fetched(wanted("x.safetensors"), wait=False)
    waiting = asyncio.create_task(fetches.fetched(wanted("0.safetensors"), wait=True), name="waiting")
    await fetches.aclose()
    with pytest.raises(Draining):
        await waiting


@virtual
async def test_nobody_waits_longer_than_an_answer_may_take() -> None:
    """It is still coming then, which is no failure."""
    fetches = Fetches(Waiting(), SHORT)
    assert await fetches.fetched(wanted("a.safetensors"), wait=True, longest=timedelta(seconds=95)) is None
    assert asyncio.get_running_loop().time() >= 95
    await fetches.aclose()


async def test_only_the_last_failures_are_remembered() -> None:
    """Each under its place."""
    models = Failing(ModelNotFound("no"))
    models.go.set()
    failing = Fetches(models, LONG)
    for number in range(FAILED_MOST + 1):
        with pytest.raises(ModelNotFound):
            await failing.fetched(wanted(f"{number}.safetensors"), wait=True)
    assert [len(failing.failed), Place("lora", "0.safetensors") in failing.failed] == [FAILED_MOST, False]


async def test_a_bug_that_nobody_waits_for_is_logged() -> None:
    """It is no failure of the model's, and does not get lost."""
    models = Failing(KeyError("oops"))
    fetches = Fetches(models, SHORT)
    with structlog.testing.capture_logs() as logs:
        assert await fetches.fetched(wanted("a.safetensors"), wait=False) is None
        models.go.set()
        await wait_until(lambda: logs)
    assert [(one["event"], one["model"]) for one in logs] == [("internal_error", "lora/a.safetensors")]
    assert not fetches.failed
