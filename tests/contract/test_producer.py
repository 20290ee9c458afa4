"""What every queue of ours does for those who submit to it, driver by driver."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.contract.queue_harness import (
    NOW,
    POLICY,
    SOON,
    VISIBILITY,
    Harness,
    body,
    is_empty,
    open_byte_harness,
    open_telling_harness,
    put,
)
from tests.support.clock import START
from tests.support.queues import result_of, taken
from worker.errors import IdConflict, JobCancelled, LeaseLost
from worker.queues.base import Attempt
from worker.result import FileResult, ImageResult

pytest_plugins = ("tests.support.redis_fixtures",)
__all__ = ["open_byte_harness", "open_telling_harness"]


async def test_submit_again(harness: Harness) -> None:
    """The same document under a known id is no new job, whatever state that is in and however it is written."""
    queue = harness.driver()
    await queue.submit("a", b'{"params": {"prompt": "x"}, "webhook": "http://one"}')
    again = b'{"webhook": "http://two", "id": "a", "params":{"prompt":"x"}}'
    assert not await queue.submit("a", again)
    delivery = await taken(queue)
    assert not await queue.submit("a", again)
    await queue.ack(delivery, result_of("a"))
    assert not await queue.submit("a", again)
    assert await is_empty(queue)


async def test_submit_another_document(harness: Harness) -> None:
    """Another document under a known id is a conflict."""
    queue = harness.driver()
    assert await queue.submit("a", body(1))
    assert not await queue.submit("a", body(1))
    with pytest.raises(IdConflict):
        await queue.submit("a", body(2))
    assert harness.document((await taken(queue)).body) == harness.document(body(1))


@pytest.mark.parametrize(("first", "second"), [(b"not json", b"not  json"), (b"[1]", b"[1] "), (b"\xff", body())])
async def test_submit_what_is_no_document(byte_harness: Harness, first: bytes, second: bytes) -> None:
    """What is no document is compared byte for byte."""
    queue = byte_harness.driver()
    assert await queue.submit("a", first)
    assert not await queue.submit("a", first)
    with pytest.raises(IdConflict):
        await queue.submit("a", second)
    assert (await taken(queue)).body == first


async def test_requeue(harness: Harness) -> None:
    """A dead letter that is requeued runs again with fresh counts; that it ran before stays known."""
    queue = harness.driver()
    await put(queue, "a")
    await queue.nack(await taken(queue), NOW, "internal", charged=True)
    await queue.reject(await taken(queue), result_of("a", "failed", code="internal"))
    harness.advance(SOON)
    assert await queue.requeue("a")
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code, state.result, state.deliveries) == ("waiting", None, None, 0)
    assert len(state.attempts) == 2
    delivery = await taken(queue)
    assert harness.document(delivery.body) == harness.document(body())
    assert delivery.queued_at == START + SOON
    assert (delivery.deliveries, delivery.attempts, delivery.last_attempt) == (1, (), False)
    assert delivery.redelivered is True
    await queue.ack(delivery, result_of("a"))
    state = await queue.state("a")
    assert state is not None
    assert [one.code for one in state.attempts] == ["internal", "internal", "succeeded"]


async def test_requeue_of_others(harness: Harness) -> None:
    """Only dead letters can be requeued."""
    queue = harness.driver()
    await put(queue, "waiting", "leased", "done")
    await queue.cancel("waiting")
    await queue.ack(await taken(queue), result_of("leased"))
    await taken(queue)
    assert [await queue.requeue(job_id) for job_id in ("waiting", "leased", "done", "unknown")] == [False] * 4


@pytest.mark.parametrize("is_delayed", [False, True], ids=["waiting", "delayed"])
async def test_cancel_waiting(harness: Harness, is_delayed: bool) -> None:
    """A job that nobody holds is done at once when it is cancelled, without being handed over."""
    queue = harness.driver()
    await put(queue, "a")
    if is_delayed:
        await queue.nack(await taken(queue), SOON, "disk_full", charged=False)
    assert await queue.cancel("a")
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code, state.result) == ("done", "cancelled", None)
    harness.advance(SOON)
    assert await is_empty(queue)
    assert not await queue.cancel("a")


async def test_cancel_leased(harness: Harness) -> None:
    """The holder is told at each extend that the job was cancelled, and keeps it until it has settled it."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    delivery = await taken(queue)
    assert await other.cancel("a")
    for _ in range(2):
        harness.advance(VISIBILITY - SOON)
        with pytest.raises(JobCancelled):
            await queue.extend(delivery)
    assert await is_empty(other)
    await queue.ack(delivery, result_of("a", "cancelled"))
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code) == ("done", "cancelled")


async def test_cancel_leased_then_released(harness: Harness) -> None:
    """A job that was cancelled while held is not handed over again when its holder gives it back."""
    queue = harness.driver()
    await put(queue, "a")
    delivery = await taken(queue)
    await queue.cancel("a")
    await queue.nack(delivery, NOW, "draining", charged=False)
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code) == ("done", "cancelled")
    assert [one.code for one in state.attempts] == ["draining"]
    assert await is_empty(queue)


async def test_cancel_leased_then_vanished(harness: Harness) -> None:
    """A job that was cancelled while held is not handed over again when its holder vanishes."""
    queue = harness.driver()
    await put(queue, "a", "b")
    delivery = await taken(queue)
    await queue.cancel("a")
    harness.advance(VISIBILITY)
    assert (await taken(queue)).id == "b"
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code) == ("done", "cancelled")
    assert state.attempts == (Attempt("w1", START + VISIBILITY, None, charged=False),)
    with pytest.raises(LeaseLost):
        await queue.extend(delivery)


async def test_cancel_after_expiry(harness: Harness) -> None:
    """A job whose lease ran out is nobody's: cancelling ends it at once."""
    queue = harness.driver()
    await put(queue, "a")
    delivery = await taken(queue)
    harness.advance(VISIBILITY)
    assert await queue.cancel("a")
    with pytest.raises(LeaseLost):
        await queue.ack(delivery, result_of("a"))


async def test_requeue_after_cancel(harness: Harness) -> None:
    """A cancellation that came too late does not follow a job into its next run."""
    queue = harness.driver()
    await put(queue, "a")
    delivery = await taken(queue)
    await queue.cancel("a")
    await queue.reject(delivery, result_of("a", "failed", code="invalid_job"))
    assert not await queue.cancel("a")
    assert await queue.requeue("a")
    assert await queue.extend(await taken(queue)) is None


async def test_unknown_job(harness: Harness) -> None:
    """What was never submitted has no state and cannot be cancelled."""
    queue = harness.driver()
    assert await queue.state("a") is None
    assert not await queue.cancel("a")


async def test_list(harness: Harness) -> None:
    """Jobs are listed by status: open ones in the order of hand-over, then ended ones, the latest first."""
    queue, vanishing = harness.driver(), harness.driver("w2")
    for job_id in ("dead", "done", "leased", "expired", "delayed", "second", "first"):
        await queue.submit(job_id, body(), priority=1 if job_id == "first" else 0)
        harness.advance(timedelta(seconds=1))
    held = {}
    await queue.cancel("first")
    harness.advance(SOON)
    for holder in (queue, queue, queue, vanishing, queue):
        delivery = await taken(holder)
        held[delivery.id] = delivery
    await queue.reject(held["dead"], result_of("dead", "failed", code="invalid_job"))
    harness.advance(SOON)
    await queue.ack(held["done"], result_of("done"))
    await queue.nack(held["delayed"], VISIBILITY * 2, "disk_full", charged=False)
    harness.advance(VISIBILITY - SOON)
    await queue.extend(held["leased"])
    harness.advance(SOON)

    async def ids(status: str | None = None, limit: int = 100) -> list[str]:
        return [state.id for state in await queue.jobs(status, limit)]

    assert await ids() == ["leased", "expired", "delayed", "second", "done", "dead", "first"]
    assert await ids("waiting") == ["expired", "second"]
    assert await ids("delayed") == ["delayed"]
    assert await ids("leased") == ["leased"]
    assert await ids("done") == ["done", "first"]
    assert await ids("dead") == ["dead"]
    assert await ids("waiting", 1) == ["expired"]


async def test_forgetting_by_age(harness: Harness) -> None:
    """Jobs that were done long ago are forgotten; dead letters never are."""
    queue = harness.driver()
    await put(queue, "dead", "old", "new")
    await queue.reject(await taken(queue), result_of("dead", "failed", code="invalid_job"))
    await queue.ack(await taken(queue), result_of("old"))
    harness.advance(POLICY.keep_for + SOON)
    await queue.ack(await taken(queue), result_of("new"))
    assert {state.id for state in await queue.jobs()} == {"dead", "new"}
    assert await queue.submit("old", body(7))


async def test_forgetting_by_number(harness: Harness) -> None:
    """No more than so many jobs that are done are remembered, the latest ones."""
    queue = harness.driver()
    for number in range(POLICY.keep_done + 3):
        await put(queue, f"j{number}")
        await queue.ack(await taken(queue), result_of(f"j{number}"))
    assert {state.id for state in await queue.jobs("done")} == {f"j{n}" for n in range(3, POLICY.keep_done + 3)}


async def test_inline_images(harness: Harness) -> None:
    """Images within results can be read of the latest few jobs; of the others all but the images."""
    queue = harness.driver()
    image = ImageResult(index=0, base64="AAAA", format="png", width=1, height=1, bytes=3, sha256="0" * 64)
    results = {f"j{number}": result_of(f"j{number}").model_copy(update={"images": (image,)}) for number in range(4)}
    for job_id, result in results.items():
        await put(queue, job_id)
        await queue.ack(await taken(queue), result)
    read = {state.id: state.result for state in [await queue.state(job_id) for job_id in results] if state}
    assert {job_id: result.images[0].base64 for job_id, result in read.items() if result} == {
        "j0": None,
        "j1": None,
        "j2": "AAAA",
        "j3": "AAAA",
    }
    listed = [state.result.images[0] for state in await queue.jobs() if state.result]
    assert listed == [image.model_copy(update={"base64": None})] * 4


async def test_inline_files(harness: Harness) -> None:
    """Files within results are kept as long as images are."""
    queue = harness.driver()
    file = FileResult(
        index=0, base64="AAAA", name="a.mp3", format="mp3", media_type="audio/mpeg", bytes=3, sha256="0" * 64
    )
    for number in range(3):
        await put(queue, f"j{number}")
        await queue.ack(await taken(queue), result_of(f"j{number}").model_copy(update={"files": (file,)}))
    states = [await queue.state(f"j{number}") for number in range(3)]
    assert [state.result.files[0].base64 for state in states if state and state.result] == [None, "AAAA", "AAAA"]
    listed = [state.result.files[0] for state in await queue.jobs() if state.result]
    assert listed == [file.model_copy(update={"base64": None})] * 3


async def test_requeue_with_inline_images(harness: Harness) -> None:
    """Images of a result that was rejected do not outlive it."""
    queue = harness.driver()
    image = ImageResult(index=0, base64="AAAA", format="png", width=1, height=1, bytes=3, sha256="0" * 64)
    await put(queue, "a")
    for _ in range(2):
        result = result_of("a", "failed", code="result_too_large").model_copy(update={"images": (image,)})
        await queue.reject(await taken(queue), result)
        assert await queue.requeue("a")
        state = await queue.state("a")
        assert state is not None
        assert state.result is None
