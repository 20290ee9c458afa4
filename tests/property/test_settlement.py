"""What an error means for a delivery: a total, sane decision over all errors and deliveries."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from worker.errors import (
    ENGINE_FAULT_CODES,
    UNCOUNTED_CODES,
    ConfigError,
    DeliveryLimit,
    Disposition,
    Draining,
    Fault,
    ModelComing,
    UnsupportedDocument,
    WorkerError,
)
from worker.queues.base import Attempt, Delivery
from worker.settlement import final, retry_delay

CODES = ["engine_lost", "engine_stalled", "gpu_fault", "output_empty", "draining", "upload_failed", None]


def concrete(kind: type[WorkerError]) -> list[type[WorkerError]]:
    """The class and everything below it."""
    return [kind, *(one for child in kind.__subclasses__() for one in concrete(child))]


KINDS = [kind for kind in concrete(WorkerError) if kind.__module__ == "worker.errors"]


def made(kind: type[WorkerError]) -> WorkerError:
    return kind("why") if kind is not ConfigError else ConfigError("why")


attempts = st.builds(
    Attempt,
    worker=st.sampled_from(["w1", "w2"]),
    ended=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    code=st.sampled_from(CODES),
    charged=st.booleans(),
)
deliveries = st.builds(
    Delivery,
    id=st.just("a"),
    body=st.just(b""),
    visibility=st.just(timedelta(seconds=120)),
    attempts=st.lists(attempts, max_size=12).map(tuple),
    deliveries=st.none() | st.integers(1, 20),
    redelivered=st.none() | st.booleans(),
    last_attempt=st.none() | st.booleans(),
    last_delivery=st.none() | st.booleans(),
)
errors = st.sampled_from(KINDS).map(made)
verdicts = st.none() | st.tuples(
    st.sampled_from(Fault), st.sampled_from([Disposition.NACK, Disposition.NACK_CHARGED, Disposition.REJECT])
)


def judged(error: WorkerError, verdict: tuple[Fault, Disposition] | None) -> WorkerError:
    return error if verdict is None else error.blamed(*verdict)


@given(errors, verdicts, deliveries)
def test_every_error_has_an_end_for_every_delivery(
    error: WorkerError, verdict: tuple[Fault, Disposition] | None, delivery: Delivery
) -> None:
    """Nothing raises, and the answer carries a code, a fault and a disposition."""
    ended = final(judged(error, verdict), delivery, "w1")
    assert ended.code
    assert ended.fault in Fault
    assert ended.disposition in Disposition
    assert ended.message


@given(errors, verdicts, deliveries)
def test_a_last_attempt_or_delivery_never_goes_round_again(
    error: WorkerError, verdict: tuple[Fault, Disposition] | None, delivery: Delivery
) -> None:
    """A charged end of the last attempt is over; so is every end of the last delivery that counts as one."""
    ended = final(judged(error, verdict), delivery, "w1")
    if delivery.last_attempt:
        assert ended.disposition is not Disposition.NACK_CHARGED
    if delivery.last_delivery and error.code not in UNCOUNTED_CODES:
        assert ended.disposition not in (Disposition.NACK, Disposition.NACK_CHARGED)


@given(errors, deliveries)
def test_what_is_uncharged_stays_so_but_for_servers_that_break_everywhere(
    error: WorkerError, delivery: Delivery
) -> None:
    """Only an engine fault that another node met too becomes the job's; a limit keeps the last cause's fault."""
    before, fault = error.disposition, error.fault
    ended = final(error, delivery, "w1")
    elsewhere = any(a.code in ENGINE_FAULT_CODES and a.worker == "w2" for a in delivery.attempts)
    if before is Disposition.NACK and not (elsewhere and error.code in ENGINE_FAULT_CODES):
        assert ended.disposition is Disposition.NACK or isinstance(ended, DeliveryLimit)
        assert ended.fault is fault
    if before in (Disposition.REJECT, Disposition.ACK, Disposition.ABANDON):
        assert ended is error
        assert ended.disposition is before


@given(errors, deliveries)
def test_drains_coming_models_and_unknown_documents_are_always_given_back(
    error: WorkerError, delivery: Delivery
) -> None:
    """However often the job was handed over, and whatever happened to it."""
    ended = final(error, delivery, "w1")
    if isinstance(error, Draining | ModelComing | UnsupportedDocument):
        assert ended is error
        assert ended.disposition is Disposition.NACK


@given(errors, deliveries, st.none() | st.integers(0, 10**7), st.integers())
def test_the_delay_before_a_redelivery_is_bounded(
    error: WorkerError, delivery: Delivery, asked_s: int | None, seed: int
) -> None:
    """Never negative, none after a drain, never above a quarter of an hour, whatever a server asked for."""
    error.retry_after = None if asked_s is None else timedelta(seconds=asked_s)
    delay = retry_delay(error, delivery, random.Random(seed))
    assert timedelta(0) <= delay <= timedelta(minutes=15)
    assert (delay == timedelta(0)) == (isinstance(error, Draining) or asked_s == 0)


@given(deliveries, st.integers())
def test_the_delay_grows_with_each_earlier_end(delivery: Delivery, seed: int) -> None:
    """One more attempt never shortens it, with the same jitter."""
    later = Delivery(
        "a", b"", delivery.visibility, attempts=(*delivery.attempts, Attempt("w1", None, "output_empty", charged=True))
    )
    error = WorkerError("why")
    assert retry_delay(error, delivery, random.Random(seed)) <= retry_delay(error, later, random.Random(seed))
