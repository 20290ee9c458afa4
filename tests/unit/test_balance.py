"""The ledger of the killed dispatchers sees every kind of broken promise."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from tests.support.balance import HERE, Balance
from tests.support.crowd import Crowd, Hand
from tests.support.ledger import Told
from tests.support.posts import Books
from tests.support.queues import result_of
from worker.result import WorkerResult
from worker.signature import webhook_id


class Run:
    """A job that was lost once and then done, one that always failed, and one that nobody began in time."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.crowd = Crowd(list, random.Random(1), 1.0, client, {})
        self.crowd.submitted |= {"good-0", "bad-0", "late-0"}
        for hand in (_hand(1, "good-0"), _hand(2, "good-0"), *(_hand(token, "bad-0") for token in (3, 4, 5))):
            self.crowd.hands[hand.token] = hand
        self.hand(2).told.append(("result", "succeeded", 204))
        for token in (3, 4, 5):
            self.hand(token).told.append(("release", "job_timeout", 204))
        done = result_of("good-0").model_copy(update={"metadata": {"token": 2}, "worker": _worker("n2")})
        failed = result_of("bad-0", "failed", code="job_timeout").model_copy(update={"worker": _worker("n5")})
        late = result_of("late-0", "failed", code="expired").model_copy(update={"worker": _worker(HERE)})
        self.jobs = {
            "good-0": _job("good-0", "done", None, 2, 2),
            "bad-0": _job("bad-0", "dead", "job_timeout", 3, 5),
            "late-0": _job("late-0", "dead", "expired", 0, None),
        }
        self.tried = {
            "good-0": [_tried(1, None), _tried(2, "succeeded")],
            "bad-0": [_tried(token, "job_timeout", charged=True) for token in (3, 4, 5)],
        }
        self.results = {one.id: one for one in (done, failed, late)}
        self.told = [Told(1.0, webhook_id("failed", "late-0"), "job.failed", {"id": "late-0"})]
        self.leased = self.owed = 0
        self.uneven: dict[str, int] = {}

    def hand(self, token: int) -> Hand:
        return self.crowd.hands[token]

    def breaches(self) -> list[str]:
        jobs: dict[str, Any] = dict(self.jobs)
        tried: dict[str, Any] = dict(self.tried)
        books = Books(jobs, tried, self.results, self.leased, self.owed, self.uneven)
        return Balance(self.crowd, books, self.told).breaches


def _worker(name: str) -> WorkerResult:
    return WorkerResult(id=name, version="test")


def _hand(token: int, job: str) -> Hand:
    return Hand(job, token, f"n{token}", 0, 0.0, 0.0)


def _job(id: str, status: str, code: str | None, handed: int, token: int | None) -> SimpleNamespace:
    return SimpleNamespace(id=id, status=status, code=code, handed=handed, deliveries=handed, token=token)


def _tried(token: int, code: str | None, *, charged: bool = False) -> SimpleNamespace:
    return SimpleNamespace(token=token, worker=f"n{token}", ended_at=token, code=code, charged=charged)


@pytest.fixture(name="run")
async def open_run() -> AsyncIterator[Run]:
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(404))) as client:
        yield Run(client)


async def test_a_sound_run_has_no_breach(run: Run) -> None:
    """A lost node, a job that fails to its end and one that expired are none."""
    assert run.breaches() == []


def _of_token(run: Run, token: int) -> None:
    run.results["good-0"] = run.results["good-0"].model_copy(update={"metadata": {"token": token}})


BREACHES: dict[str, tuple[Callable[[Run], Any], str]] = {
    "a job was lost": (lambda run: run.jobs.pop("late-0"), "were lost"),
    "a lease is left": (lambda run: setattr(run, "leased", 1), "leases are left"),
    "a webhook is owed": (lambda run: setattr(run, "owed", 1), "owed still"),
    "the backlog is wrong": (lambda run: run.uneven.update(key=1), "is off by"),
    "it never ended": (lambda run: setattr(run.jobs["good-0"], "status", "waiting"), "ended as waiting"),
    "it has no result": (lambda run: run.results.pop("bad-0"), "has no result"),
    "it was charged too seldom": (lambda run: setattr(run.tried["bad-0"][0], "charged", False), "was charged 2"),
    "a hand-over is missing": (lambda run: run.tried["good-0"].pop(0), "handed over 2 times, 1 ended"),
    "it is counted wrong": (lambda run: setattr(run.jobs["good-0"], "deliveries", 1), "counts 1 deliveries"),
    "another token is its last": (lambda run: setattr(run.jobs["good-0"], "token", 1), "has the token 1, not 2"),
    "two held it at once": (lambda run: setattr(run.tried["good-0"][0], "ended_at", 9), "before the last hand-over"),
    "it ended twice": (lambda run: setattr(run.tried["good-0"][0], "code", "succeeded"), "was ended 2 times"),
    "a stale result stands": (lambda run: _of_token(run, 1), "has the result of {'token': 1}"),
    "a hand-over stands nowhere": (lambda run: run.crowd.hands.update({9: _hand(9, "good-0")}), "stands nowhere"),
    "a hand-over is another's": (lambda run: setattr(run.hand(1), "node", "n9"), "is another's"),
    "what was taken does not stand": (
        lambda run: run.hand(1).told.append(("release", "disk_full", 204)),
        "its node says {'disk_full'}",
    ),
    "nobody said so": (lambda run: run.hand(2).told.clear(), "ended as succeeded, its node says {None}"),
    "a stranger ended it": (lambda run: run.crowd.hands.pop(2), "never received, ended as succeeded"),
    "a webhook was not told": (lambda run: run.told.clear(), "webhooks were told of {'late-0'}"),
    "a webhook was told in vain": (
        lambda run: run.told.append(Told(1.0, webhook_id("succeeded", "good-0"), "", {"id": "good-0"})),
        "webhooks were told of {'good-0'}",
    ),
}


@pytest.mark.parametrize(("breaking", "words"), BREACHES.values(), ids=BREACHES)
async def test_every_breach_is_seen(run: Run, breaking: Callable[[Run], Any], words: str) -> None:
    """Each promise that is broken is told in words of its own."""
    breaking(run)
    assert any(words in breach for breach in run.breaches()), run.breaches()
