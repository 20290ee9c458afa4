"""Keys keep jobs and contents apart, and lead nowhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.storage import a_job, a_result, an_artifact
from worker.errors import ConfigError, IdConflict, InvalidJob, UnsupportedDocument
from worker.job import ID
from worker.storage.keys import Keys, joined, standing


def test_the_default_pattern_is_the_public_one() -> None:
    """``<prefix>/<job id>/<index>-<12 hex of sha256>.<ext>``."""
    artifact = an_artifact(3)
    key = Keys(prefix="/out//renders/").artifact(a_job("abc"), artifact)
    assert key == f"out/renders/abc/3-{artifact.sha256[:12]}.png"


def test_a_jobs_prefix_goes_below_the_operators() -> None:
    """For images; the result document stays where the id alone finds it."""
    job, keys = a_job("abc", prefix="customer-7/may"), Keys(prefix="out")
    assert keys.artifact(job, an_artifact()).startswith("out/customer-7/may/abc/0-")
    assert keys.mark(job) == keys.mark(a_job("abc")) == "out/abc/result.json"


def test_result_documents_may_go_elsewhere() -> None:
    """They hold the prompt, which a public bucket need not show."""
    keys = Keys(prefix="out", result_prefix="private")
    assert keys.mark(a_job()) == "private/job-1/result.json"
    assert keys.failure(a_job(), 2) == "private/job-1/failure-2.json"
    assert Keys(prefix="out", result_prefix="").mark(a_job()) == "job-1/result.json"


def test_without_any_prefix_no_key_begins_with_a_slash() -> None:
    """Empty parts leave no trace."""
    keys = Keys()
    assert keys.artifact(a_job(), an_artifact()).startswith("job-1/0-")
    assert keys.mark(a_job()) == "job-1/result.json"
    assert joined("", "/a/", "b//c") == "a/b/c"


def test_another_content_has_another_key() -> None:
    """So that a late writer cannot change what a result names."""
    keys = Keys()
    assert keys.artifact(a_job(), an_artifact(text="one")) != keys.artifact(a_job(), an_artifact(text="two"))


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{prefix}/{index}-{hash}.{ext}", "{id} is required"),
        ("{id}/{hash}", "{index} is required"),
        ("{id}/{index}.{ext}", "{hash} is required"),
        ("{id}/{index}-{hash}-{seed}", "{seed} is not known"),
        ("{id}/{index}-{hash}-{}", "{} is not known"),
        ("{id.x}/{index}-{hash}", "{id.x} is not known"),
        ("{id}/{index:03}-{hash}", "a placeholder is a name alone"),
        ("{id!r}/{index}-{hash}", "a placeholder is a name alone"),
        ("{id}/{index}-{hash", "write it like"),
        ("../{id}/{index}-{hash}", "must be relative"),
        ("/{id}/{index}-{hash}", "must be relative"),
        ("{id}\\{index}-{hash}", "backslash"),
        ("{id}{index}-{hash}", "between"),
    ],
)
def test_a_pattern_that_cannot_work_is_named_at_start(pattern: str, says: str) -> None:
    """Every mistake with its variable."""
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        Keys(pattern=pattern)
    assert [mistake.field for mistake in caught.value.mistakes] == ["WORKER_S3_KEY"]


@pytest.mark.parametrize(
    ("given", "variable"),
    [
        ({"prefix": "../elsewhere"}, "WORKER_S3_PREFIX"),
        ({"prefix": "a\nb"}, "WORKER_S3_PREFIX"),
        ({"result_prefix": "a/./b"}, "WORKER_RESULT_PREFIX"),
    ],
)
def test_a_prefix_that_leads_elsewhere_is_named_at_start(given: dict[str, Any], variable: str) -> None:
    """Also the operator's own."""
    with pytest.raises(ConfigError) as caught:
        Keys(**given)
    assert caught.value.mistakes[0].field == variable


def test_a_key_that_no_store_takes_is_the_jobs_fault() -> None:
    """S3 keys end at 1024 bytes."""
    keys = Keys(prefix="p" * 600)
    with pytest.raises(InvalidJob, match="1024 bytes"):
        keys.artifact(a_job(prefix="/".join(["q" * 100] * 5)), an_artifact())


ids = st.from_regex(ID, fullmatch=True)


@given(one=ids, other=ids, prefix=st.lists(ids, min_size=1, max_size=2))
def test_keys_of_different_jobs_never_meet(one: str, other: str, prefix: list[str]) -> None:
    """Whatever ids and prefixes jobs choose, no image is a result document, and no two marks are one."""
    keys = Keys(prefix="out")
    first, second = a_job(one, prefix="/".join(prefix)), a_job(other)
    images = {keys.artifact(first, an_artifact()), keys.artifact(second, an_artifact())}
    marks = {keys.mark(first), keys.mark(second)}
    assert not images & marks
    assert len(marks) == (1 if one == other else 2)
    assert all(key.startswith("out/") and ".." not in key.split("/") for key in images | marks)


def test_a_success_is_read_again() -> None:
    """With fields of later versions left aside."""
    job = a_job()
    body = a_result(job).to_json().replace(b'{"v":1', b'{"later":[1],"v":1')
    assert standing(job, body) == a_result(job)


def test_a_success_that_names_no_document_is_this_jobs() -> None:
    """Nothing says that it is another's."""
    job = a_job()
    anonymous = a_result(job).model_copy(update={"job_sha256": None})
    assert standing(job, anonymous.to_json()) == anonymous


def test_a_success_of_another_document_is_a_conflict() -> None:
    """The digest tells, not the id."""
    with pytest.raises(IdConflict):
        standing(a_job(prompt="other"), a_result(a_job()).to_json())


def test_a_success_that_cannot_be_read_is_no_absence() -> None:
    """A newer worker may know it."""
    with pytest.raises(UnsupportedDocument):
        standing(a_job(), b'{"status": "succeeded"}')


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'{"status": "failed"}', b"{}", b"\xff\xfe"])
def test_anything_else_is_no_mark(body: bytes) -> None:
    """Only a success stands."""
    assert standing(a_job(), body) is None
