"""The error tree against its table: what each class means to the queue, and whom it is charged to."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.test_settlement import KINDS, made
from worker import errors
from worker.errors import Disposition, Fault, FieldError, InvalidJob, WorkerError

TABLE = {
    "reject job": "invalid_job model_not_found model_forbidden model_too_large model_in_use url_forbidden "
    "upload_forbidden result_too_large generation_rejected expired id_conflict",
    "reject node": "delivery_limit",
    "nack node": "output_empty output_mismatch output_flat wrong_model engine_oom engine_lost engine_stalled "
    "gpu_fault node_killed_oom node_crashed disk_full draining model_coming",
    "nack operator": "unsupported_document config_error auth_failed",
    "nack dependency": "download_failed model_corrupt upload_failed queue_unavailable webhook_failed",
    "nack_charged job": "job_timeout",
    "nack_charged bug": "internal",
    "ack job": "cancelled",
    "abandon node": "lease_lost",
}
"""Disposition and fault, to the codes of which they hold by default."""

GROUPS = {"WorkerError", "JobRefused", "OutputError", "EngineFault", "DependencyFailed"}
LEAVES = [kind for kind in KINDS if kind.__name__ not in GROUPS]


def test_the_table_and_the_tree_hold_the_same_codes() -> None:
    """A new error has to be entered here, with its disposition and fault."""
    told = [code for codes in TABLE.values() for code in codes.split()]
    assert sorted(kind.code for kind in LEAVES) == sorted(told)
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_each_error_means_what_the_table_says(kind: type[WorkerError]) -> None:
    """Disposition and fault, where nobody said otherwise."""
    said = next(meaning for meaning, codes in TABLE.items() if kind.code in codes.split())
    error = made(kind)
    assert f"{error.disposition} {error.fault}" == said


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_code_is_the_class_name_in_snake_case_but_for_four(kind: type[WorkerError]) -> None:
    """The exceptions are part of the public contract."""
    others = {
        "EngineOutOfMemory": "engine_oom",
        "EngineCrashed": "engine_lost",
        "JobCancelled": "cancelled",
        "JobTimedOut": "job_timeout",
        "InternalError": "internal",
        "WorkerError": "internal",
    }
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
    assert kind.code == others.get(kind.__name__, snake)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_without_words_says_what_its_class_is_for(kind: type[WorkerError]) -> None:
    """A user never reads an empty message."""
    if kind is not errors.ConfigError and kind is not InvalidJob:
        assert len(kind().message) > 10
    assert made(kind).message == "why"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_only_what_goes_back_to_the_queue_is_retryable(kind: type[WorkerError]) -> None:
    """As the result document says it."""
    assert made(kind).retryable == (kind.disposition in (Disposition.NACK, Disposition.NACK_CHARGED))


@given(st.sampled_from(KINDS), st.sampled_from(Fault), st.sampled_from(Disposition))
def test_blame_stays_with_the_one_error(kind: type[WorkerError], fault: Fault, disposition: Disposition) -> None:
    """The verdict on one job never changes what the class means for the next."""
    before = (kind.fault, kind.disposition)
    error = made(kind)
    assert error.blamed(fault, disposition) is error
    assert (error.fault, error.disposition) == (fault, disposition)
    assert (kind.fault, kind.disposition) == before


@given(st.lists(st.tuples(st.text(max_size=20), st.text(min_size=1, max_size=20)), min_size=1, max_size=5))
def test_an_invalid_job_names_every_wrong_field(mistakes: list[tuple[str, str]]) -> None:
    """All of them at once, in their order."""
    found = tuple(FieldError(field, message) for field, message in mistakes)
    error = InvalidJob(errors=found)
    assert error.errors == found
    assert error.message == "; ".join(f"{field}: {message}" if field else message for field, message in mistakes)


def test_a_wait_that_a_server_asked_for_is_carried() -> None:
    """`Retry-After` travels with the error."""
    assert errors.UploadFailed("503", retry_after=timedelta(seconds=7)).retry_after == timedelta(seconds=7)
    assert WorkerError().retry_after is None
