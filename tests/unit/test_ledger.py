"""The ledger of the crash tests sees every kind of broken promise."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support.clock import START
from tests.support.ledger import Ledger, Made, Told
from tests.support.queues import result_of
from worker.queues.base import Attempt, JobState
from worker.result import ImageResult

PICTURE = b"a picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
KEY = f"a/0-{DIGEST[:12]}.png"
IMAGE = ImageResult(index=0, key=KEY, format="png", width=8, height=8, bytes=len(PICTURE), sha256=DIGEST, seed=1)


def sound() -> Ledger:
    """One job that was lost once and then succeeded, and one that was refused."""
    result = result_of("a").model_copy(update={"images": (IMAGE,)})
    lost, done = Attempt("w1", START, None), Attempt("w2", START, "succeeded")
    refusal = Attempt("w2", START, "invalid_job", charged=True)
    failed = result_of("b", "failed", code="invalid_job")
    return Ledger(
        wanted={"a": None, "b": "invalid_job"},
        states=[
            JobState("a", "done", 2, (lost, done), None, result),
            JobState("b", "dead", 1, (refusal,), "invalid_job", failed),
        ],
        objects={"a/result.json": result.to_json(), KEY: PICTURE, "b/failure-1.json": failed.to_json()},
        stood_since={"a/result.json": 10.0},
        told=[
            Told(11.0, "succeeded_a", "job.succeeded", json.loads(result.to_json())),
            Told(11.0, "failed_b", "job.failed", json.loads(failed.to_json())),
        ],
        made=[Made(5.0, "a"), Made(8.0, "a")],
        refused=[],
    )


def test_a_sound_run_has_no_breach_and_no_stray() -> None:
    """A lost node and a generation begun before the success stood are no breaches."""
    assert sound().breaches() == []
    assert sound().strays() == set()


def _state(ledger: Ledger, index: int = 0, **changes: Any) -> None:
    states = list(ledger.states)
    states[index] = replace(states[index], **changes)
    ledger.states = states


def _told(ledger: Ledger, *more: Told) -> None:
    ledger.told = [*ledger.told, *more]


def _images(ledger: Ledger, **changes: Any) -> dict[str, Any]:
    data = copy.deepcopy(ledger.told[0].data)
    data["images"][0].update(changes)
    return data


ATTEMPTS = sound().states[0].attempts
BREACHES: dict[str, tuple[Callable[[Ledger], Any], str]] = {
    "a job was lost": (lambda led: setattr(led, "states", led.states[1:]), "jobs were lost"),
    "it never ended": (lambda led: _state(led, status="waiting"), "is waiting"),
    "it ended as dead": (lambda led: _state(led, status="dead", code="delivery_limit"), "has the code delivery_limit"),
    "it ended twice": (lambda led: _state(led, attempts=(ATTEMPTS[1], ATTEMPTS[1])), "ended as"),
    "a lost node was charged": (
        lambda led: _state(led, attempts=(replace(ATTEMPTS[0], charged=True), ATTEMPTS[1])),
        "charged for the loss",
    ),
    "no result document": (lambda led: led.objects.pop("a/result.json"), "without a result"),
    "an image is missing": (lambda led: led.objects.pop(KEY), "does not exist"),
    "an image is half": (lambda led: led.objects.update({KEY: PICTURE[:4]}), "is not the image"),
    "no webhook": (lambda led: setattr(led, "told", led.told[1:]), "success webhook ids"),
    "two ids": (lambda led: _told(led, replace(led.told[0], id="other")), "success webhook ids"),
    "a failure was told": (lambda led: _told(led, replace(led.told[0], type="job.failed")), "a failure was told"),
    "told of another image": (
        lambda led: _told(led, replace(led.told[0], data=_images(led, sha256="0" * 64))),
        "results that differ",
    ),
    "told of litter": (
        lambda led: _told(led, replace(led.told[0], data=_images(led, key="a/.tmp"))),
        "a/.tmp, which does not exist",
    ),
    "generated again": (lambda led: setattr(led, "made", [*led.made, Made(10.5, "a")]), "generated again"),
    "a failed job has a result": (
        lambda led: led.objects.update({"b/result.json": led.objects["a/result.json"]}),
        "failed and has a result",
    ),
    "a failure untold": (lambda led: setattr(led, "told", led.told[:1]), "failure webhook ids"),
    "a failure unkept": (lambda led: led.objects.pop("b/failure-1.json"), "without a document"),
    "a bad signature": (lambda led: setattr(led, "refused", ["no match"]), "a webhook was refused"),
}


@pytest.mark.parametrize("what", BREACHES)
def test_a_breach_is_seen(what: str) -> None:
    """Each promise that is broken is named."""
    ledger = sound()
    spoil, words = BREACHES[what]
    spoil(ledger)
    assert any(words in found for found in ledger.breaches())


def test_strays_are_counted() -> None:
    """An object that no result names is told apart from those that are named."""
    ledger = sound()
    ledger.objects = {**ledger.objects, "a/0-000000000000.png": b"late"}
    assert ledger.breaches() == []
    assert ledger.strays() == {"a/0-000000000000.png"}
