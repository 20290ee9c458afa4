"""`sd-worker submit`."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.queues import result_of, taken
from tests.support.storage import a_file_artifact, an_artifact
from tests.support.waiting import wait_until
from tests.unit.cli.conftest import Command
from worker.cli import main, submit
from worker.cli.documents import multiplied, read_documents
from worker.cli.submit import follow
from worker.clock import SystemClock
from worker.errors import AuthFailed, InvalidJob, QueueUnavailable
from worker.queues.base import JobState
from worker.queues.memory import MemoryQueue
from worker.queues.sqlite import SqliteQueue
from worker.queues.sqs.errors import QueueRefused

DOCUMENT = {"id": "a", "params": {"prompt": "a cat", "seed": 7}}


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_QUEUE", "sqlite")


def queued(path: Path) -> dict[str, dict[str, Any]]:
    """The documents on the queue by id, each taken off it."""

    async def take() -> dict[str, dict[str, Any]]:
        queue = SqliteQueue(path, SystemClock(), worker="w1")
        found: dict[str, dict[str, Any]] = {}
        try:
            while any(job.status != "done" for job in await queue.jobs()):
                delivery = await taken(queue)
                found[delivery.id] = json.loads(delivery.body)
                await queue.ack(delivery, result_of(delivery.id))
            return found
        finally:
            await queue.aclose()

    return asyncio.run(take())


def test_a_prompt_becomes_a_job_and_its_id_is_printed(command: Command, tmp_path: Path) -> None:
    """The id on stdout is the one on the queue."""
    ran = command("submit", "--prompt", "a cat")
    (job_id,) = ran.out.split()
    assert ran.code == 0
    assert queued(tmp_path / "sd-worker.db") == {job_id: {"id": job_id, "params": {"prompt": "a cat"}}}


def test_count_makes_jobs_of_their_own(command: Command, tmp_path: Path) -> None:
    """Ids are numbered, and each asks for another picture."""
    (tmp_path / "job.json").write_text(json.dumps(DOCUMENT))
    ran = command("submit", "job.json", "--count", "3")
    assert ran.out.split() == ["a-0001", "a-0002", "a-0003"]
    found = queued(tmp_path / "sd-worker.db")
    assert sorted(job["params"]["seed"] for job in found.values()) == [7, 8, 9]


@pytest.mark.parametrize(
    ("text", "ids"),
    [('{"id": "a"}', ["a"]), ('[{"id": "a"}, {"id": "b"}]', ["a", "b"]), ('{"id": "a"}\n\n{"id": "b"}\n', ["a", "b"])],
)
def test_a_file_holds_one_document_a_list_or_one_a_line(text: str, ids: list[str]) -> None:
    """What people have at hand."""
    assert [document["id"] for document in read_documents(text.encode())] == ids


@pytest.mark.parametrize("text", ["", "[]", "[1]", '"x"', "{", '{"id": "a"}\n{"id": \n'])
def test_anything_else_is_refused(text: str) -> None:
    """With the line, where there are lines."""
    with pytest.raises(InvalidJob, match=r"JSON"):
        read_documents(text.encode())


@pytest.mark.parametrize(
    ("document", "seeds"),
    [
        ({"params": {"seed": 5, "batch_size": 4}}, [5, 9, 13]),
        ({"request": {"seed": 5, "batch_size": 2, "n_iter": 3}}, [5, 11, 17]),
        ({"params": {"seed": 2**32 - 1}}, [2**32 - 1, 0, 1]),
        ({"params": {"seed": -1}}, [-1, -1, -1]),
        ({"params": {}}, [None, None, None]),
    ],
)
def test_given_seeds_go_up_past_the_images_of_a_job(document: dict[str, Any], seeds: list[int | None]) -> None:
    """No two images of all the jobs share one; a seed left open is drawn from the id, which differs."""
    copies = list(multiplied(document, 3, lambda: "x"))
    assert [copy.get("params", copy.get("request", {})).get("seed") for copy in copies] == seeds
    assert [copy["id"] for copy in copies] == ["x-0001", "x-0002", "x-0003"]


def test_a_wrong_document_is_told_by_field_and_nothing_is_sent(command: Command, tmp_path: Path) -> None:
    """Every wrong field of every document; the good ones wait for the others."""
    wrong = [DOCUMENT, {"id": "../b", "params": {"prompt": "x", "widht": 1}}, {"v": 2, "params": {"prompt": "x"}}]
    (tmp_path / "jobs.json").write_text(json.dumps(wrong))
    ran = command("submit", "jobs.json")
    assert ran.code == 1
    assert "document 2, id" in ran.err
    assert "document 2, params.widht: unknown field" in ran.err
    assert "document 3, v" in ran.err
    assert command("queue", "list").out == ""


def test_limits_of_the_settings_hold(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the worker would refuse is refused here."""
    monkeypatch.setenv("WORKER_MAX_STEPS", "10")
    monkeypatch.setenv("WORKER_MAX_BODY", "60")
    (tmp_path / "job.json").write_text(json.dumps({"params": {"prompt": "x" * 60}}))
    assert "60 are allowed" in command("submit", "job.json").err
    (tmp_path / "job.json").write_text('{"params": {"prompt": "x", "steps": 11}}')
    assert "params.steps" in command("submit", "job.json").err


def test_stdin_is_a_file_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-`, as everywhere."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(DOCUMENT).encode())))
    assert command("submit", "-").out == "a\n"


def test_a_document_may_only_point_at_the_real_one(command: Command, tmp_path: Path) -> None:
    """`job_url` goes out as it is, under an id of ours."""
    (tmp_path / "job.json").write_text('{"job_url": "https://example.com/job.json"}')
    (job_id,) = command("submit", "job.json").out.split()
    assert queued(tmp_path / "sd-worker.db") == {job_id: {"job_url": "https://example.com/job.json"}}


def test_the_same_document_again_changes_nothing(command: Command, tmp_path: Path) -> None:
    """A submit that is repeated is no second job; another document under the id is a failure."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(DOCUMENT))
    assert command("submit", "job.json").code == 0
    again = command("submit", "job.json")
    assert (again.code, again.err) == (0, "a: was submitted before\n")
    path.write_text(json.dumps({**DOCUMENT, "params": {"prompt": "a dog"}}))
    other = command("submit", "job.json", "--wait")
    assert (other.code, other.out) == (1, "")
    assert other.err.startswith("a: ")


@pytest.mark.parametrize(
    "argv",
    [
        ("submit",),
        ("submit", "x", "--prompt", "y"),
        ("submit", "--out", "pictures", "--prompt", "x"),
        ("submit", "no.json"),
    ],
)
def test_what_cannot_be_submitted_is_wrong_usage(argv: tuple[str, ...], command: Command) -> None:
    """One source, that can be read; a folder for images is for answers that hold them."""
    assert command(*argv).code == 2


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_waiting_ends_with_the_last_job(
    fails: bool, is_terminal: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 0 only when every job succeeded; a line for each says how it ended."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    queue = SqliteQueue(tmp_path / "sd-worker.db", SystemClock(), worker="w1")
    waiting = asyncio.create_task(
        asyncio.to_thread(main, ["submit", "--prompt", "x", "--count", "2", "--wait"]), name="submit"
    )
    try:
        await wait_until((tmp_path / "sd-worker.db").exists)
        first = await taken(queue)
        await queue.ack(first, result_of(first.id))
        second = await taken(queue)
        assert not waiting.done()
        if fails:
            await queue.reject(second, result_of(second.id, "failed", code="invalid_job"))
        else:
            await queue.ack(second, result_of(second.id))
        assert await waiting == int(fails)
    finally:
        await queue.aclose()
    said = capsys.readouterr().out
    assert said.count("succeeded") == 2 - int(fails)
    assert said.count("failed") == int(fails)


class Forgetful(MemoryQueue):
    """A queue that keeps no results, and of one job nothing at all."""

    async def state(self, job_id: str) -> JobState | None:
        return JobState(job_id, "dead", 1, (), "internal", None) if job_id == "a" else None


async def test_jobs_that_end_without_a_result_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """The code is told, or that the queue does not know the job any more."""
    queue = Forgetful(SystemClock())
    ended = await follow(queue, ["a", "b"])
    assert [job.status if job else None for job in ended] == ["dead", None]
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [["a", "dead"], ["b", "gone"]]
    assert rows[0][-1] == "internal"


class Interrupted(MemoryQueue):
    """A queue that is away at every other look, and then tells of the end; it is asked ``looks`` times."""

    looks = 0

    async def state(self, job_id: str) -> JobState | None:
        self.looks += 1
        if self.looks % 2 and self.looks < 6:
            raise QueueUnavailable("no answer")
        status = "done" if self.looks > 6 else "leased"
        return JobState(job_id, status, 1, (), None, result_of(job_id) if status == "done" else None)


async def test_waiting_outlasts_a_queue_that_is_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each outage is told of once; credentials that are refused end it."""
    monkeypatch.setattr(submit, "LOOK_EVERY_S", 0)
    queue = Interrupted(SystemClock())
    [ended] = await follow(queue, ["a"])
    assert ended is not None
    assert ended.result is not None
    assert capsys.readouterr().err == "still waiting: no answer\n" * 3
    monkeypatch.setattr(queue, "state", Refusing(SystemClock()).state)
    with pytest.raises(AuthFailed):
        await follow(queue, ["a"])


class Refusing(MemoryQueue):
    async def state(self, job_id: str) -> JobState | None:
        raise QueueRefused("no")


async def test_who_is_interrupted_is_told_that_the_jobs_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    """They are on the queue, whoever waits for them."""
    queue = MemoryQueue(SystemClock())
    for job_id in ("a", "b"):
        await queue.submit(job_id, b'{"params": {"prompt": "x"}}')
    delivery = await taken(queue)
    await queue.ack(delivery, result_of(delivery.id))
    waiting = asyncio.create_task(follow(queue, ["a", "b"]), name="follow")
    await asyncio.wait({waiting}, timeout=0)
    await asyncio.wait({waiting}, timeout=0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert capsys.readouterr().err == "not waited for any more: 1 job(s), which go on\n"


@pytest.mark.parametrize(("kind", "instead"), [("none", "--url"), ("salad", "the platform's API")])
def test_queues_that_nobody_submits_to(
    kind: str, instead: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do instead is told, wherever it is asked."""
    monkeypatch.setenv("WORKER_QUEUE", kind)
    for argv in (("submit", "--prompt", "x"), ("queue", "dead"), ("queue", "requeue", "a")):
        ran = command(*argv)
        assert (ran.code, "WORKER_QUEUE: is " + kind in ran.err, instead in ran.err) == (64, True, True)


async def test_a_row_names_images_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    """By their keys, else by where they are, else by their number."""
    image = an_artifact(0).result(key="a/0.png")
    video, text = a_file_artifact(1).result(url="https://cdn.example/1.mp4"), a_file_artifact(2).result()
    queue = MemoryQueue(SystemClock(), worker="w1")
    await queue.submit("a", b'{"params": {"prompt": "x"}}')
    done = result_of("a").model_copy(update={"images": (image,), "files": (video, text)})
    await queue.ack(await taken(queue), done)
    await follow(queue, ["a"])
    assert capsys.readouterr().out.strip().endswith("\ta/0.png https://cdn.example/1.mp4 output 2")
