"""Automatic1111's answers, as its clients read them."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.native import TellingEngine as Engine
from tests.support.native import ended, native_of, stored
from worker.api.native import (
    OURS,
    Native,
    as_the_caller_wrote,
    document_of_request,
    lies_elsewhere,
    told_to_the_caller,
)
from worker.api.sdapi import CHANGES, READINGS, REFRESHES, WORK, images_document, single_document
from worker.errors import FieldError, InvalidJob, ModelNotFound
from worker.job import Job
from worker.live import Hop
from worker.result import ErrorResult
from worker.simulators.dialects import DIALECTS
from worker.simulators.fields import request_fields


def encoded(*datas: bytes) -> list[str]:
    return [base64.b64encode(data).decode() for data in datas]


def test_the_answer_is_the_servers() -> None:
    """Its keys in its order, bare base64, the very text of its info, and its own extra pictures at the end."""
    info = '{"seed": 7, "infotexts": ["a \\"cat\\""]}'
    native = {"parameters": {"prompt": "a cat", "seed": 7}, "info": info, "images_beside": ("map==",)}
    document = json.loads(images_document(ended(b"one", b"two", native=native), True))
    assert list(document) == ["images", "parameters", "info"]
    assert document["images"] == [*encoded(b"one", b"two"), "map=="]
    assert (document["parameters"], document["info"]) == (native["parameters"], info)


def test_images_may_not_be_wanted() -> None:
    """``send_images`` false is for callers who have them stored."""
    end = ended(b"one", native={"info": "i", "images_beside": ("map==",)})
    document = json.loads(images_document(end, False))
    assert document == {"images": [], "parameters": {}, "info": "i"}


def test_one_image_has_an_answer_of_its_own() -> None:
    """As ``extra-single-image`` gives it."""
    document = json.loads(single_document(ended(b"large", native={"html_info": "<p>"}), True))
    assert document == {"html_info": "<p>", "image": encoded(b"large")[0]}


def test_images_that_are_not_at_hand() -> None:
    """They are taken from the result where that holds them; else the caller is told where they lie."""
    end = ended(b"one")
    inline = stored(end, base64=encoded(b"one")[0])
    assert (lies_elsewhere(end), lies_elsewhere(inline)) == (None, None)
    assert json.loads(images_document(inline, True))["images"] == encoded(b"one")
    problem = lies_elsewhere(stored(end, url="https://cdn.example/0.png"))
    assert problem is not None
    told = json.loads(bytes(problem.body))
    assert (problem.status_code, told["code"]) == (503, "images_stored")
    assert told["result"]["images"][0]["url"] == "https://cdn.example/0.png"


def test_our_fields_stand_beside_the_servers() -> None:
    """They are the job's; everything else is the request."""
    body = {"prompt": "x", "models": [], "output": {"format": "jpeg"}, "metadata": 3, "override_settings": {}}
    assert document_of_request(body, "img2img") == {
        "request": {"prompt": "x", "override_settings": {}},
        "endpoint": "img2img",
        "models": [],
        "output": {"format": "jpeg"},
        "metadata": 3,
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_server_has_a_field_of_our_names(dialect: str) -> None:
    """Otherwise its own could not be said any more."""
    assert set(Job.model_fields) >= OURS
    for image in (True, False):
        assert OURS.isdisjoint(request_fields(DIALECTS[dialect], image=image))


def test_mistakes_name_the_fields_that_the_caller_wrote() -> None:
    """He knows nothing of a request within a job."""
    error = InvalidJob(errors=(FieldError("request.steps", "too many"), FieldError("output.prefix", "bad")))
    assert as_the_caller_wrote(error).message == "steps: too many; output.prefix: bad"
    other = ModelNotFound("request.x: gone")
    assert as_the_caller_wrote(other) is other
    result = ended(b"one").result
    assert told_to_the_caller(result) is result
    said = "request.steps: too many; request.alwayson_scripts.x: none. Bad request."
    error_of = ErrorResult(code="invalid_job", message=said, retryable=False, fault=error.fault)
    told = told_to_the_caller(result.model_copy(update={"error": error_of})).error
    assert told is not None
    assert told.message == "steps: too many; alwayson_scripts.x: none. Bad request."


def test_what_is_read_changes_nothing() -> None:
    """No path is in two tables, and none but lists and states is read freely."""
    tables = [set(READINGS), set(WORK), {path for method, path in CHANGES if method == "POST"}, set(REFRESHES)]
    posted = [path for table in tables[1:] for path in table]
    assert len(posted) == len(set(posted))
    assert all("clear" not in names and "refresh" not in names for names in READINGS.values())
    assert set(READINGS).isdisjoint({f"/sdapi/v1/{name}" for name in ("log", "file", "png-info", "history", "motd")})


class Cancelling:
    """A desk with jobs at these hops."""

    def __init__(self, *hops: Hop | None) -> None:
        self.tickets = [SimpleNamespace(id=f"job-{i}") for i in range(len(hops))]
        self._hops = hops
        self.cancelled: list[str] = []

    def held(self, job_id: str) -> Any:
        hop = self._hops[int(job_id[-1])]
        return None if hop is None else SimpleNamespace(hop=hop)

    async def cancel(self, job_id: str) -> bool:
        self.cancelled.append(job_id)
        return True


@pytest.mark.parametrize(
    ("hops", "cancelled"),
    [((None, Hop.UPLOAD, Hop.GENERATE, Hop.WAITING), ["job-2"]), ((Hop.WAITING, None), []), ((), [])],
)
async def test_only_the_http_job_that_generates_is_stopped(hops: tuple[Hop | None, ...], cancelled: list[str]) -> None:
    """What waits, is past the engine, or came from a queue goes on."""
    base = native_of(Engine())
    desk = Cancelling(*hops)
    native = Native(cast("Any", desk), base.engine, base.gate, base.kind, base.relay)
    assert await native.stop_running() is bool(cancelled)
    assert desk.cancelled == cancelled
