"""The tally of a mill sees every kind of broken promise."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.clock import START
from tests.support.ledger import Told
from tests.support.mill import Hand, Planned
from tests.support.queues import result_of
from tests.support.tally import Evidence, breaches_of, hand_over_breaches, held
from worker.queues.base import Attempt, JobState
from worker.result import ImageResult
from worker.signature import webhook_id

PICTURE = b"a picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
NAME = f"0-{DIGEST[:12]}.png"
IMAGE = ImageResult(index=0, key=f"a/{NAME}", format="png", width=8, height=8, bytes=9, sha256=DIGEST, seed=1)
STOOD = 100.0
LOST = Attempt("w1", START, None)


def stored(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    os.utime(path, (STOOD, STOOD))
    return path


def success(folder: Path) -> Evidence:
    """A job that was lost once and then succeeded."""
    result = result_of("a").model_copy(update={"images": (IMAGE,)})
    attempts = (LOST, Attempt("w2", START, "succeeded"))
    return Evidence(
        Planned("a", "good"),
        state=JobState("a", "done", 2, attempts, None, result),
        told=[Told(STOOD + 1, webhook_id("succeeded", "a"), "job.succeeded", json.loads(result.to_json()))],
        made=[STOOD - 5, STOOD - 3],
        objects={"result.json": stored(folder, "result.json", result.to_json()), NAME: stored(folder, NAME, PICTURE)},
    )


def failure(folder: Path) -> Evidence:
    """A job that failed three times by itself."""
    result = result_of("a", "failed", code="output_empty")
    return Evidence(
        Planned("a", "hopeless", 3),
        state=JobState("a", "dead", 3, (Attempt("w1", START, "output_empty", True),) * 3, "output_empty", result),
        told=[Told(STOOD, webhook_id("failed", "a"), "job.failed", json.loads(result.to_json()))],
        made=[STOOD - 5],
        objects={"failure-3.json": stored(folder, "failure-3.json", result.to_json())},
    )


def state(one: Evidence, **changes: Any) -> None:
    assert one.state is not None
    one.state = replace(one.state, **changes)


def other_webhook(one: Evidence) -> None:
    one.told.append(replace(one.told[0], id="succeeded_b"))


def other_image(one: Evidence) -> None:
    one.objects[NAME].write_bytes(b"a pict-re")


def other_result(one: Evidence) -> None:
    images = [{**one.told[0].data["images"][0], "sha256": "0" * 64}]
    one.told.append(replace(one.told[0], data={**one.told[0].data, "images": images}))


Harm = Callable[[Evidence], object]
OF_SUCCESS: dict[str, Harm] = {
    "was lost": lambda one: state(one, status="leased"),
    "ended as output_empty, not as": lambda one: state(one, status="dead", code="output_empty"),
    "ended as cancelled, not as": lambda one: state(one, code="cancelled"),
    "was told of as []": lambda one: one.told.clear(),
    "has the webhook ids": other_webhook,
    "succeeded without a result": lambda one: one.objects.pop("result.json"),
    "which is not so": other_image,
    "has the images": other_result,
    "was made again [2.0] s": lambda one: one.made.append(STOOD + 2),
    "was charged with": lambda one: state(
        one, attempts=(replace(LOST, charged=True), Attempt("w2", START, "succeeded"))
    ),
    "ended early": lambda one: state(one, attempts=(Attempt("w1", START, "succeeded"),) * 2),
    "the same document as": lambda one: one.again.append(JobState("a-again", "dead", 1, (), "output_empty", None)),
}
OF_FAILURE: dict[str, Harm] = {
    "has a result": lambda one: one.objects.update({"result.json": one.objects["failure-3.json"]}),
    "without a document": lambda one: one.objects.clear(),
    "was charged with": lambda one: state(one, attempts=(Attempt("w1", START, "output_empty", True),) * 2),
    "ended as invalid_job and was told": lambda one: state(one, code="invalid_job"),
    "not as ('output_empty',)": lambda one: state(one, status="done", code=None),
}


def found(one: Evidence) -> str:
    return "; ".join(breaches_of(one, keeps_ids=True))


def test_sound_jobs_have_no_breach(tmp_path: Path) -> None:
    """A lost hand-over is none, nor is what was begun before the success stood."""
    assert found(success(tmp_path)) == ""
    assert found(failure(tmp_path)) == ""


@pytest.mark.parametrize("said", OF_SUCCESS)
def test_a_breach_of_a_success(said: str, tmp_path: Path) -> None:
    """What is wrong with a job that succeeded is named."""
    one = success(tmp_path)
    OF_SUCCESS[said](one)
    assert said in found(one)


@pytest.mark.parametrize("said", OF_FAILURE)
def test_a_breach_of_a_failure(said: str, tmp_path: Path) -> None:
    """What is wrong with a job that failed is named."""
    one = failure(tmp_path)
    OF_FAILURE[said](one)
    assert said in found(one)


def test_two_at_once_of_a_queue_without_ids(tmp_path: Path) -> None:
    """Of a document that was submitted twice at once the later one may have been begun late; no other may."""
    one = success(tmp_path)
    one.made.append(STOOD + 2)
    assert "made again" in "".join(breaches_of(one, keeps_ids=False))
    one.planned = Planned("a", "twice")
    assert list(breaches_of(one, keeps_ids=False)) == []
    assert "made again" in found(one)


def test_what_is_lost_is_lost_with_its_worker(tmp_path: Path) -> None:
    """A hand-over without an end belongs to a death of its worker; how many each took with it is known."""
    jobs = {"a": success(tmp_path)}
    hands = [Hand(cast("Any", None), name, {}) for name in ("w1", "w2")]
    assert list(hand_over_breaches(jobs, hands, [])) == ["a was lost by w1, which did not die"]
    hands[0].deaths += [(START - timedelta(hours=1)).timestamp(), (START - timedelta(seconds=1)).timestamp()]
    assert list(hand_over_breaches(jobs, hands, [])) == []
    assert held(jobs, hands) == [0, 1]
    state(jobs["a"], attempts=(LOST,))
    assert list(hand_over_breaches(jobs, hands, [])) == ["a ended as succeeded, and its last hand-over as None"]


def test_an_answer_that_went_with_the_queue(tmp_path: Path) -> None:
    """A hand-over that its worker never heard of belongs to an outage, and no worker misses two at once."""
    jobs = {"a": success(tmp_path)}
    hands = [Hand(cast("Any", None), name, {}) for name in ("w1", "w2")]
    away = (START.timestamp() - 2, START.timestamp() - 1)
    assert list(hand_over_breaches(jobs, hands, [(0.0, 1.0)])) == ["a was lost by w1, which did not die"]
    assert list(hand_over_breaches(jobs, hands, [away])) == []
    jobs["b"] = jobs["a"]
    assert list(hand_over_breaches(jobs, hands, [away])) == ["w1 did not hear of 2 jobs at once"]
