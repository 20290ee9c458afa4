"""Documents that are refused, with the field and the reason, and those that are understood."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.errors import InvalidJob, UnsupportedDocument
from worker.job import Limits, digest, document_of, is_before, job_url_of, parse, salvage, usable_id

LIMITS = Limits(max_pixels=1_000_000, max_steps=50, max_images=4, max_timeout=timedelta(minutes=30))
PARAMS = {"prompt": "a hill"}


def refusal(document: dict[str, Any], fallback: str = "a") -> InvalidJob:
    with pytest.raises(InvalidJob) as caught:
        parse(document, fallback_id=fallback, limits=LIMITS)
    return caught.value


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "given: none"),
    ({"params": PARAMS, "request": {}}, "", "given: params and request"),
    ({"params": PARAMS, "endpoint": "img2img"}, "", "endpoint belongs to request"),
    ({"request": {}, "endpoint": "../options"}, "endpoint", "match"),
    ({"params": PARAMS, "colour": "red"}, "colour", "unknown field"),
    ({"params": {**PARAMS, "seeed": 1}}, "params.seeed", "unknown field"),
    ({"params": {}}, "params.prompt", "required"),
    ({"params": {**PARAMS, "width": 100_000, "height": 100_000}}, "params.width", "pixels"),
    ({"params": {**PARAMS, "width": 63}}, "params.width", "64"),
    ({"params": {**PARAMS, "steps": 51}}, "params.steps", "51 is more than 50"),
    ({"params": {**PARAMS, "steps": 0}}, "params.steps", "1"),
    ({"params": {**PARAMS, "batch_size": 5}}, "params.batch_size", "5 images"),
    ({"params": {**PARAMS, "cfg": float("nan")}}, "params.cfg", "finite"),
    ({"params": {**PARAMS, "seed": 2**64}}, "params.seed", "less than"),
    ({"params": {**PARAMS, "denoise": 0.5}}, "params", "need an image"),
    ({"params": {**PARAMS, "mask": "AAAA"}}, "params", "need an image"),
    ({"params": PARAMS, "id": "../etc/passwd"}, "id", "match"),
    ({"params": PARAMS, "id": "a\n"}, "id", "match"),
    ({"params": PARAMS, "id": "a" * 129}, "id", "match"),
    ({"params": PARAMS, "id": 7}, "id", "string"),
    ({"params": PARAMS, "timeout": 0}, "timeout", "greater than 0"),
    ({"params": PARAMS, "timeout": 1801}, "timeout", "longer than 0:30:00"),
    ({"params": PARAMS, "deadline": "2026-01-01T00:00:00"}, "deadline", "timezone"),
    ({"params": PARAMS, "models": [{"kind": "lora", "name": "../x"}]}, "models.0", "relative"),
    ({"params": PARAMS, "models": [{"kind": "lora", "name": "/x"}]}, "models.0", "relative"),
    ({"params": PARAMS, "models": [{"kind": "lora", "name": "a\\b"}]}, "models.0", "relative"),
    ({"params": PARAMS, "models": [{"kind": "lora", "name": "x", "sha256": "ABC"}]}, "models.0.sha256", "match"),
    ({"params": PARAMS, "output": {"prefix": "a//b"}}, "output.prefix", "match"),
    ({"params": PARAMS, "output": {"prefix": "a/../b"}}, "output.prefix", "match"),
    ({"params": PARAMS, "output": {"format": "gif"}}, "output.format", "keep"),
    ({"params": PARAMS, "webhook": {"url": "https://x/", "events": ["ended"]}}, "webhook.events.0", "started"),
    ({"params": PARAMS, "priority": 2**31}, "priority", "less than"),
    ({"params": PARAMS, "v": 0}, "v", "1"),
    ({"params": PARAMS, "v": "1"}, "v", "whole number"),
    ({"params": PARAMS, "v": True}, "v", "whole number"),
    ({"params": {**PARAMS, "steps": True}}, "params.steps", "integer"),
    ({"params": {**PARAMS, "steps": "20"}}, "params.steps", "integer"),
    ({"params": {**PARAMS, "cfg": "7"}}, "params.cfg", "number"),
    ({"params": {**PARAMS, "batch_size": True}}, "params.batch_size", "integer"),
]


@pytest.mark.parametrize(("document", "field", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_names_the_field_and_the_reason(document: dict[str, Any], field: str, reason: str) -> None:
    """So that whoever wrote the document can mend it."""
    found = refusal(document).errors
    assert any(one.field == field and reason in one.message for one in found), found


def test_all_mistakes_are_told_at_once_and_no_value_with_them() -> None:
    """A value may hold a prompt, an image or a secret."""
    error = refusal({"params": {"prompt": 7, "steps": "many secrets"}, "colour": "a secret", "id": "/secret"})
    assert {one.field for one in error.errors} == {"params.prompt", "params.steps", "colour", "id"}
    assert "secret" not in error.message


def test_a_version_of_the_future_is_no_mistake() -> None:
    """Another worker may know it; only a whole number is a version."""
    with pytest.raises(UnsupportedDocument, match="version 2"):
        parse({"v": 2, "anything": 1}, fallback_id="a", limits=LIMITS)
    assert refusal({"v": 1.5, "params": PARAMS}).errors[0].field == "v"


def test_extensions_are_ignored_everywhere() -> None:
    """Fields that begin with `x-`, also inside."""
    job = parse({"x-a": 1, "params": {**PARAMS, "x-b": 2}, "output": {"x-c": 3}}, fallback_id="a", limits=LIMITS)
    assert (job.id, job.params and job.params.prompt) == ("a", "a hill")


def test_a_webhook_may_be_a_plain_url() -> None:
    """The shorthand and the object are the same."""
    short = parse({"params": PARAMS, "webhook": "https://x/"}, fallback_id="a", limits=LIMITS)
    long = parse({"params": PARAMS, "webhook": {"url": "https://x/"}}, fallback_id="a", limits=LIMITS)
    assert short == long


def test_a_seed_that_is_left_to_us_depends_on_the_id_alone() -> None:
    """A second run asks for the same picture."""
    one, other = (parse({"params": PARAMS}, fallback_id=name, limits=LIMITS) for name in ("a", "b"))
    assert one.seed == parse({"params": {"prompt": "x"}}, fallback_id="a", limits=LIMITS).seed
    assert one.seed != other.seed
    assert 0 <= one.seed < 2**32


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b'{"id": ', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"a": NaN}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b'{"a": "' + b"x" * 2000 + b'"}', "bytes, 1500 are allowed"),
    ],
    ids=["empty", "cut", "list", "text", "nan", "no text", "deep", "large"],
)
def test_a_body_that_holds_no_object_is_refused(body: bytes, reason: str) -> None:
    """Before anything of it is looked at."""
    with pytest.raises(InvalidJob, match=reason):
        document_of(body, max_body=10_000 if body[:1] == b"[" else 1500)


def test_a_pointer_to_the_document_is_told_from_a_document() -> None:
    """`job_url` and nothing else."""
    assert job_url_of({"job_url": "s3://b/k"}) == "s3://b/k"
    assert job_url_of({"job_url": "s3://b/k", "id": "a"}) is None
    with pytest.raises(InvalidJob, match="must be a string"):
        job_url_of({"job_url": 7})


def test_what_can_be_saved_is_saved() -> None:
    """Id, webhook, output and metadata, each for itself; an unusable id is replaced by one that always is the same."""
    saved = salvage(
        {"id": "mine", "webhook": "https://x/", "output": {"format": "gif"}, "metadata": [1], "params": 7},
        fallback_id="delivery",
    )
    assert (saved.id, saved.webhook and saved.webhook.url, saved.metadata) == ("mine", "https://x/", [1])
    assert saved.output.format is None
    assert salvage({"id": "../x"}, fallback_id="delivery").id == "delivery"
    unusable = salvage({}, fallback_id="/also/unusable").id
    assert usable_id(unusable)
    assert unusable == salvage({}, fallback_id="/also/unusable").id


def test_the_digest_is_of_what_is_asked_for() -> None:
    """Lists keep their order, numbers their kind, and text that is no Unicode does not break it."""
    assert digest({"models": [1, 2]}) != digest({"models": [2, 1]})
    assert digest({"params": {"cfg": 7}}) != digest({"params": {"cfg": "7"}})
    assert len(digest({"params": {"prompt": "\ud800"}})) == 64
    assert digest({"output": {"upload_urls": ["a"]}}) == digest({"output": {}})
    assert digest({"output": {"prefix": "a"}}) != digest({"output": {}})


def test_a_deadline_is_the_last_moment_to_start() -> None:
    """None is never over."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert is_before(None, at)
    assert is_before(at + timedelta(seconds=1), at)
    assert not is_before(at, at)
