"""`/v1/jobs`: what is said about requests and answers without any of them."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator

from worker.api.answers import fields_in
from worker.api.jobs import EXAMPLES, prefers_async
from worker.api.schemas import job_schema
from worker.errors import FieldError, InvalidJob
from worker.job import Limits, parse


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([], False),
        (["respond-async"], True),
        (["return=minimal, Respond-Async ; x=1"], True),
        (["wait=5", "respond-async"], True),
        (['respond-async="yes"'], True),
        (["respond-asynchronously", "wait=respond-async"], False),
    ],
)
def test_preferences_are_read_as_the_rfc_has_them(headers: list[str], wanted: bool) -> None:
    """Several headers, several preferences in each, in any case, with values and parameters."""
    assert prefers_async(headers) is wanted


@pytest.mark.parametrize(
    ("code", "message", "fields"),
    [
        ("invalid_job", "params.width: too large; models.0.url: no; really", ["params.width", "models.0.url"]),
        ("invalid_job", "not JSON: at line 1", []),
        ("url_forbidden", "webhook.url: host 'x' is not public; x: y", ["webhook.url"]),
        ("url_forbidden", "host 'x: y' is not public", []),
        ("engine_lost", "params.width: no", []),
    ],
)
def test_the_fields_of_a_message_are_told_apart(code: str, message: str, fields: list[str]) -> None:
    """Each stands before what is wrong with it; other errors name none."""
    found = fields_in(code, message)
    assert [one.field for one in found] == fields
    assert all(f"{one.field}: {one.message}" in message for one in found)


def test_what_several_fields_say_is_what_was_said_of_them() -> None:
    """Nothing is lost on the way from the error to the answer."""
    errors = (FieldError("a", "is missing"), FieldError("b.c", "has 2: too many"))
    assert fields_in("invalid_job", InvalidJob(errors=errors).message) == errors


def test_the_schema_of_the_job_document_is_one_and_the_examples_hold() -> None:
    """Whole, without references; what it lets pass is a job, and what no job may say it refuses."""
    schema = job_schema()
    Draft202012Validator.check_schema(schema)
    assert "$ref" not in str(schema)
    validator = Draft202012Validator(schema)
    for example in EXAMPLES.values():
        assert list(validator.iter_errors(example["value"])) == []
        assert parse(example["value"], fallback_id="a", limits=Limits()).sha256
    good = {"params": {"prompt": "x", "x-note": 1}, "x-mine": {}, "webhook": "https://x", "timeout": 5}
    assert validator.is_valid(good)
    for wrong in ({"params": {"prompt": 1}}, {"nope": 1}, {"params": {"prompt": "x", "nope": 1}}, {"sha256": "x"}):
        assert not validator.is_valid(wrong)
