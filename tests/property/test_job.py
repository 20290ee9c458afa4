"""Documents of any kind: refused with reasons or understood, and their digest says what they ask for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import InvalidJob, UnsupportedDocument
from worker.job import Job, Limits, digest, document_of, job_url_of, parse, salvage, usable_id

LIMITS = Limits()
text = st.text(max_size=12)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
)
FIELDS = [*Job.model_fields, "x-note", "prompt", "job_url"]
documents = st.dictionaries(st.sampled_from(FIELDS) | text, json_values, max_size=6)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)

params = st.fixed_dictionaries(
    {"prompt": text},
    optional={
        "negative_prompt": text,
        "width": st.integers(64, 2048),
        "height": st.integers(64, 2048),
        "steps": st.integers(1, 150),
        "cfg": st.floats(0, 100),
        "seed": st.integers(-1, 2**64 - 1),
        "batch_size": st.integers(1, 16),
        "loras": st.lists(st.fixed_dictionaries({"name": st.just("l")}, optional={"weight": st.floats(-10, 10)})),
    },
)
sources = st.one_of(
    st.fixed_dictionaries({"params": params}),
    st.fixed_dictionaries({"request": st.dictionaries(text, json_values, max_size=4)}),
    st.fixed_dictionaries({"workflow": st.dictionaries(text, json_values, max_size=4)}),
    st.fixed_dictionaries({"template": st.fixed_dictionaries({"name": st.just("t")})}),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "v": st.just(1),
        "checkpoint": st.just("sd_xl"),
        "webhook": st.just("https://hooks.example/in") | st.just({"url": "https://hooks.example/in"}),
        "timeout": st.integers(1, 3600),
        "deadline": st.just("2026-01-01T00:00:00Z"),
        "priority": st.integers(-(2**31), 2**31 - 1),
        "metadata": json_values,
        "x-anything": json_values,
        "output": st.fixed_dictionaries(
            {}, optional={"format": st.just("png"), "upload_urls": st.just(["https://x/y"])}
        ),
    },
)
valid = st.builds(lambda source, other: source | other, sources, others)


@given(documents)
def test_any_object_is_a_job_or_refused_with_reasons(document: dict[str, Any]) -> None:
    """Nothing else comes out, and every refusal says why."""
    refusal: InvalidJob | None = None
    try:
        job = parse(document, fallback_id="fallback", limits=LIMITS)
    except UnsupportedDocument:
        assert document["v"] > 1
        return
    except InvalidJob as error:
        refusal = error
    if refusal is None:
        assert usable_id(job.id)
        assert len(job.sha256) == 64
    else:
        assert refusal.errors
        assert all(one.message for one in refusal.errors)


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_refused(body: bytes) -> None:
    """Broken JSON, JSON that is no object, and text that is none."""
    try:
        document = document_of(body, max_body=1000)
    except InvalidJob:
        return
    assert isinstance(document, dict)


@given(documents, text)
def test_something_can_be_saved_of_every_document(document: dict[str, Any], fallback: str) -> None:
    """An id that can name files, and a job that whoever settles it can use."""
    saved = salvage(document, fallback_id=fallback)
    assert usable_id(saved.id)
    assert saved.params is not None


@given(valid, ids)
def test_a_job_read_again_from_its_own_words_is_the_same(document: dict[str, Any], fallback: str) -> None:
    """What was understood can be written down and understood again."""
    job = parse(document, fallback_id=fallback, limits=LIMITS)
    again = job.model_dump(mode="json", exclude_unset=True)
    read = parse(again, fallback_id="other", limits=LIMITS)
    assert read.model_copy(update={"sha256": ""}) == job.model_copy(update={"sha256": ""})
    assert read.seed == job.seed
    assert job.id == document.get("id", fallback)


@given(valid, st.randoms())
def test_the_digest_does_not_know_the_order_of_keys(document: dict[str, Any], rng: Any) -> None:
    """Nor does a document change by a trip through JSON."""
    keys = list(document)
    rng.shuffle(keys)
    assert digest({key: document[key] for key in keys}) == digest(document)
    assert digest(json.loads(json.dumps(document))) == digest(document)


@given(valid, st.dictionaries(st.sampled_from(["webhook", "priority", "timeout", "deadline", "x-note"]), text))
def test_the_digest_covers_only_what_is_asked_for(document: dict[str, Any], delivery: dict[str, Any]) -> None:
    """How a job is delivered, and presigned URLs that change at every submit, make no other job of it."""
    output = {**document.get("output", {}), "upload_urls": ["https://other/"], "result_urls": {"put": "p", "get": "g"}}
    plain = {**document, "output": document.get("output", {})}
    assert digest({**plain, "output": output, **delivery}) == digest(plain)


@given(valid, text)
def test_another_prompt_is_another_job(document: dict[str, Any], more: str) -> None:
    """And so is another id."""
    other = {**document, "params": {"prompt": json.dumps(document.get("params")) + more}}
    assert digest(other) != digest(document)
    assert digest({**document, "id": "one"}) != digest({**document, "id": "two"})


@given(json_values)
def test_a_pointer_is_an_object_of_one_string(value: Any) -> None:
    """`job_url` alone points elsewhere; beside anything else it is no pointer."""
    assert job_url_of({"job_url": value, "id": "a"}) is None
    if isinstance(value, str):
        assert job_url_of({"job_url": value}) == value
    else:
        with pytest.raises(InvalidJob, match=r"^job_url: "):
            job_url_of({"job_url": value})


LONG = st.text(st.sampled_from('ab"\\\n\x00\x7fé€😀\ud800'), min_size=0, max_size=6).map(lambda text: text * 20_000)


@given(
    document=st.dictionaries(
        st.text(max_size=3), LONG | st.lists(LONG | st.floats(allow_nan=False), max_size=2), max_size=2
    )
)
@settings(max_examples=20)
def test_the_digest_of_long_texts_is_that_of_the_canonical_text(document: dict[str, Any]) -> None:
    """However it is put together: results that were stored by other versions are found by it."""
    covered = {key: value for key, value in document.items() if not key.startswith("x-")}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest(document) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
