"""The result document: written compactly, read by those who know less or more."""

from __future__ import annotations

import json

from tests.support.clock import START
from worker.errors import Fault
from worker.result import ErrorResult, FileResult, ImageResult, Result, WorkerResult

IMAGE = ImageResult(index=0, base64="AAAA", format="png", width=1, height=2, bytes=3, sha256="0" * 64)

FILE = FileResult(
    index=1, base64="BBBB", name="clip.mp4", format="mp4", media_type="video/mp4", bytes=3, sha256="1" * 64, node="9"
)


def result(**fields: object) -> Result:
    base = {
        "id": "a",
        "status": "succeeded",
        "worker": WorkerResult(id="w", version="0"),
        "created_at": START,
        "finished_at": START,
    }
    return Result.model_validate({**base, **fields})


def test_what_is_written_is_read_again() -> None:
    """Nothing is lost on the way."""
    whole = result(images=(IMAGE,), files=(FILE,), warnings=("w",), metadata={"n": [1, None]}, job_sha256="f" * 64)
    assert Result.model_validate_json(whole.to_json()) == whole


def test_nothing_is_written_of_what_is_not_there() -> None:
    """Absent, not null; and no timing that was not taken."""
    document = json.loads(result().to_json())
    assert set(document) == {
        "v", "id", "status", "images", "files", "timings", "warnings", "attempts", "worker", "created_at",
        "finished_at",
    }  # fmt: skip
    assert document["timings"] == {}


def test_what_was_made_may_be_left_out_of_what_is_sent() -> None:
    """Everything else of images and files stays."""
    document = json.loads(result(images=(IMAGE,), files=(FILE,)).to_json(base64=False))
    assert "base64" not in document["images"][0]
    assert "base64" not in document["files"][0]
    assert document["images"][0]["sha256"] == IMAGE.sha256
    assert document["files"][0]["name"] == "clip.mp4"


def test_outputs_are_images_and_files_by_index() -> None:
    """Who only counts or names what was made need not tell them apart."""
    assert [one.index for one in result(images=(IMAGE,), files=(FILE,)).outputs] == [0, 1]


def test_a_document_of_an_older_worker_has_no_files() -> None:
    """And is read all the same."""
    document = json.loads(result(images=(IMAGE,)).to_json())
    del document["files"]
    assert Result.model_validate(document) == result(images=(IMAGE,))


def test_unknown_fields_are_ignored() -> None:
    """A newer worker's document is readable."""
    document = json.loads(result(images=(IMAGE,)).to_json())
    document["brush"] = document["images"][0]["brush"] = "broad"
    assert Result.model_validate(document) == result(images=(IMAGE,))


def test_a_failure_says_whose_it_is() -> None:
    """The fault is one of the public words."""
    failed = result(status="failed", error=ErrorResult(code="x", message="y", retryable=False, fault=Fault.JOB))
    assert json.loads(failed.to_json())["error"] == {"code": "x", "message": "y", "retryable": False, "fault": "job"}
