"""`sd-worker queue`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.support.queues import result_of, taken
from tests.unit.cli.conftest import Command
from worker.clock import SystemClock
from worker.queues.sqlite import SqliteQueue


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_QUEUE", "sqlite")


@pytest.fixture
def deaths(tmp_path: Path) -> list[str]:
    """Two dead jobs, and one that waits."""

    async def die() -> list[str]:
        queue = SqliteQueue(tmp_path / "sd-worker.db", SystemClock(), worker="w1")
        try:
            for job_id in ("a", "b"):
                await queue.submit(job_id, b"{}")
                delivery = await taken(queue)
                await queue.reject(delivery, result_of(job_id, "failed", code="invalid_job"))
            await queue.submit("c", b"{}")
        finally:
            await queue.aclose()
        return ["a", "b"]

    return asyncio.run(die())


def test_list_shows_every_job_or_those_of_a_status(command: Command, deaths: list[str]) -> None:
    """A line a job, separated by tabs."""
    every = [line.split("\t")[:2] for line in command("queue", "list").out.splitlines()]
    assert sorted(every) == [["a", "dead"], ["b", "dead"], ["c", "waiting"]]
    assert [line.split("\t")[0] for line in command("queue", "list", "--status", "waiting").out.splitlines()] == ["c"]
    assert len(command("queue", "list", "--limit", "1").out.splitlines()) == 1


def test_dead_says_why(command: Command, deaths: list[str]) -> None:
    """Code and message of the result that the job died with."""
    rows = [line.split("\t") for line in command("queue", "dead").out.splitlines()]
    assert sorted(row[0] for row in rows) == deaths
    assert all(row[-2:] == ["invalid_job", "why"] for row in rows)


def test_a_terminal_gets_a_table(command: Command, deaths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    head, *rows = command("queue", "dead").out.splitlines()
    assert head.split() == ["id", "deliveries", "attempts", "code", "reason"]
    assert len(rows) == len(deaths)


def test_requeued_jobs_wait_again(command: Command, deaths: list[str]) -> None:
    """Those that are named; one that is not dead is told and ends with 1."""
    ran = command("queue", "requeue", "a", "c", "nobody")
    assert (ran.code, ran.out, ran.err) == (1, "a\n", "c is not dead\nnobody is not dead\n")
    assert [line.split("\t")[0] for line in command("queue", "dead").out.splitlines()] == ["b"]


def test_requeue_all_leaves_none_dead(command: Command, deaths: list[str]) -> None:
    """And nothing to do is no failure."""
    ran = command("queue", "requeue", "--all")
    assert (ran.code, sorted(ran.out.split())) == (0, deaths)
    assert command("queue", "dead").out == ""
    assert command("queue", "requeue", "--all") == (0, "", "")


@pytest.mark.parametrize("argv", [(), ("a", "--all")])
def test_requeue_wants_ids_or_all(argv: tuple[str, ...], command: Command) -> None:
    """Not both, and not nothing: that would be a guess."""
    assert command("queue", "requeue", *argv).code == 2
