"""What the operator configured fails: nothing is charged to a job, and nothing finished is thrown away."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.fakes import HOOK, FakeStorage
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.errors import AuthFailed, DiskFull, Draining, InvalidJob, OutputEmpty, UploadFailed, WebhookFailed
from worker.live import Hop
from worker.queues.policy import Policy
from worker.status import Phase
from worker.supervisor import ExitCode

MINUTE = 60.0


@virtual
async def test_a_store_away_for_more_than_an_hour_gives_the_job_back_uncharged() -> None:
    """Finished images wait an hour under their lease; then the job goes back, and is done when the store is."""
    world = World()
    async with world.running():
        world.storage.down = UploadFailed("503")
        await world.submit("a")
        await world.at(Hop.UPLOAD, "a")
        await elapse(59 * MINUTE)
        assert await world.status_of("a") == "leased"
        await elapse(3 * MINUTE)
        assert await world.ends("a") == [("upload_failed", False)]
        world.storage.down = None
        await world.ended("a")
        assert await world.status_of("a") == "done"
    assert world.engine.generated == ["a", "a"]
    assert world.receiver.ids("failed") == []


@virtual
async def test_refused_credentials_pause_at_the_first_and_resume_when_they_are_right() -> None:
    """One refusal is enough: not ready for `auth_failed`, no new generation, everything done afterwards."""
    world = World()
    jobs = [f"job-{n}" for n in range(10)]
    async with world.running():
        world.storage.down = AuthFailed("403")
        await world.submit(*jobs)
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        assert world.storage.calls.count("put_artifact") == 1
        await elapse(10 * MINUTE)
        assert world.status.ready().reasons == ("auth_failed",)
        assert len(world.engine.generated) <= world.window
        world.storage.down = None
        await world.ended(*jobs)
        assert {await world.status_of(job) for job in jobs} == {"done"}
    assert world.metrics.value("sd_worker_pauses_total", code="auth_failed") == 1


@virtual
async def test_a_full_disk_gives_jobs_back_uncharged_and_pauses_until_there_is_space() -> None:
    """The node's fault: nothing is charged, and no other job is taken to fail the same way."""
    world = World()
    async with world.running():
        world.storage.down = DiskFull()
        await world.submit("a", "b")
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        await elapse(5 * MINUTE)
        assert world.status.ready().reasons == ("disk_full",)
        assert len(world.engine.generated) <= 2
        world.storage.down = None
        await world.ended("a", "b")
        ends = await world.ends("a") + await world.ends("b")
    assert not any(charged for _, charged in ends)
    assert ("disk_full", False) in ends


@virtual
async def test_one_failure_of_the_store_pauses_nothing() -> None:
    """A single 503 is retried in place, without a new generation and without leaving READY."""
    world = World()
    failures = [UploadFailed("503")]
    real = world.storage.put_artifact

    async def flaky(*args: object) -> object:
        if failures:
            raise failures.pop()
        return await real(*args)  # type: ignore[arg-type]

    world.storage.put_artifact = flaky  # type: ignore[method-assign, assignment]
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert Phase.PAUSED not in world.status.story
    assert world.engine.generated == ["a"]


@virtual
async def test_a_queue_that_fails_twice_pauses_the_intake_until_it_answers() -> None:
    """Not ready with `queue_unavailable`; the first answer makes it ready again and jobs flow."""
    world = World()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.link.away = True
        await world.until(lambda: world.status.phase is Phase.PAUSED, 60)
        assert world.status.ready().reasons == ("queue_unavailable",)
        await elapse(10 * MINUTE)
        world.link.away = False
        await world.until(lambda: world.status.ready().ok, 130)
        await world.submit("a")
        await world.ended("a")
        assert await world.status_of("a") == "done"


@virtual
async def test_a_queue_that_is_away_when_the_drain_ends_leaves_the_job_to_its_lease() -> None:
    """The process ends in time all the same; the job is handed over again once its lease has run out."""
    world = World(drain_s=5)
    async with world.running() as process:
        world.receiver.seconds = 2
        await world.submit("a")
        await world.at(Hop.SETTLE, "a")
        world.link.away = True
        began = asyncio.get_running_loop().time()
        world.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began <= 11
        assert process.result() is ExitCode.CLEAN
        await elapse(30)
        assert await world.status_of("a") == "waiting"
    assert world.storage.results()["a"].status == "succeeded"


@virtual
async def test_a_webhook_that_is_down_during_a_drain_is_left_to_the_next_delivery() -> None:
    """The success stands: the job goes back as drained, and another worker only has to tell."""
    world = World(drain_s=10)
    world.receiver.down_for_ever()
    async with world.running() as process:
        await world.submit("a")
        await world.at(Hop.SETTLE, "a")
        began = asyncio.get_running_loop().time()
        world.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began <= 16
        assert await world.ends("a") == [(Draining.code, False)]
    other = World(worker="w2", queue=world.queue.beside("w2"), storage=world.storage)
    async with other.running():
        await other.ended("a")
        assert await other.status_of("a") == "done"
    assert other.engine.generated == []
    assert set(world.receiver.tries) == set(other.receiver.tries)


@virtual
async def test_a_failure_that_a_drain_keeps_from_being_told_is_told_by_the_next_delivery() -> None:
    """Its owner would never hear of it otherwise."""
    world = World(drain_s=10)
    world.receiver.down_for_ever()
    async with world.running() as process:
        await world.submit("a", params={"prompt": "a", "steps": 10_000})
        await world.at(Hop.SETTLE, "a")
        world.supervisor.stop()
        await asyncio.wait({process})
        assert await world.ends("a") == [(Draining.code, False)]
    other = World(worker="w2", queue=world.queue.beside("w2"), storage=world.storage)
    async with other.running():
        await other.ended("a")
    assert other.receiver.ids("failed") == ["a"]
    assert await other.code("a") == "invalid_job"


@virtual
async def test_a_receiver_that_comes_back_hears_of_the_success_once() -> None:
    """Down for ten minutes: the webhook arrives with a later delivery, the picture is made once."""
    world = World()
    world.receiver.down_for_ever()
    async with world.running():
        await world.submit("a")
        await elapse(10 * MINUTE)
        assert await world.status_of("a") in ("delayed", "leased")
        world.receiver.up_again()
        await world.ended("a")
        ends = await world.ends("a")
    assert world.receiver.ids("succeeded") == ["a"]
    assert world.engine.generated == ["a"]
    assert [code for code, _ in ends] == ["webhook_undelivered"] * (len(ends) - 1) + ["succeeded"]
    assert len(set(world.receiver.tries)) == 1


@virtual
async def test_without_a_mark_a_dead_receiver_is_only_a_warning() -> None:
    """Where no success can stand, a redelivery would generate again: the job is acknowledged with the warning."""
    storage = FakeStorage()
    storage.keeps_marks = False
    world = World(storage=storage)
    world.receiver.down_for_ever()
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        state = await world.state("a")
    assert state.status == "done"
    assert state.result is not None
    assert state.result.warnings == ("webhook_undelivered",)
    assert world.engine.generated == ["a"]


@virtual
async def test_the_last_attempt_rejects_and_its_owner_hears_of_it() -> None:
    """Charged attempts are kept as failures, the last of them as a dead letter with one failed webhook."""
    world = World(policy=Policy(visibility=timedelta(seconds=20), max_attempts=2))
    world.engine.trouble("a", *[OutputEmpty()] * 4)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        state = await world.state("a")
    assert (state.status, state.code) == ("dead", "output_empty")
    assert await world.ends("a") == [("output_empty", True), ("output_empty", True)]
    assert world.receiver.ids("failed") == ["a"]
    assert set(world.storage.objects) == {"a/failure-1.json", "a/failure-2.json"}


@virtual
async def test_a_failure_that_cannot_be_told_is_a_dead_letter_all_the_same() -> None:
    """A failed job has its webhook's budget once; then it ends with the warning, not with another delivery."""
    world = World()
    world.receiver.down_for_ever()
    async with world.running():
        await world.submit("a", params={"prompt": "a", "steps": 10_000})
        await world.ended("a")
        state = await world.state("a")
    assert (state.status, state.code, state.deliveries) == ("dead", "invalid_job", 1)
    assert state.result is not None
    assert state.result.warnings == ("webhook_undelivered",)


@virtual
async def test_a_failure_is_told_although_it_cannot_be_stored() -> None:
    """The store is away: the failed webhook and the dead letter say it."""
    world = World()
    async with world.running():
        world.storage.down = UploadFailed("503")
        await world.submit("a", params={"prompt": "a", "steps": 10_000})
        await world.ended("a")
        assert await world.code("a") == "invalid_job"
    assert world.receiver.ids("failed") == ["a"]


@virtual
async def test_a_document_that_is_no_job_is_reported_to_the_webhook_that_it_names() -> None:
    """What can be saved of it is used: its id and its webhook."""
    world = World()
    async with world.running():
        await world.queue.submit("delivery", b'{"id": "mine", "webhook": "' + HOOK.encode() + b'", "prompt": 1}')
        await world.queue.submit("broken", b'{"id": ')
        await world.ended("delivery", "broken")
        assert {await world.code(one) for one in ("delivery", "broken")} == {InvalidJob.code}
    assert sorted(world.receiver.ids("failed")) == ["broken", "mine"]


@virtual
async def test_a_document_of_a_later_version_waits_for_a_newer_worker() -> None:
    """Given back uncharged, again and again, and never counted against the delivery limit."""
    world = World(policy=Policy(visibility=timedelta(seconds=20), max_deliveries=3))
    async with world.running():
        await world.queue.submit("a", b'{"v": 2, "id": "a", "brush": "broad"}')
        await elapse(30 * MINUTE)
        ends = await world.ends("a")
        assert await world.status_of("a") in ("waiting", "delayed", "leased")
    assert len(ends) > 10
    assert set(ends) == {("unsupported_document", False)}
    assert world.receiver.tries.total() == 0
    assert Phase.PAUSED not in world.status.story


@virtual
async def test_a_document_behind_a_url_is_fetched_and_bound_to_the_same_limits() -> None:
    """`job_url` points at the real document, which is checked like any other."""
    world = World()
    world.inputs.bodies["https://documents.example/good"] = b'{"id": "good", "params": {"prompt": "x"}}'
    world.inputs.bodies["https://documents.example/bad"] = b'{"id": "bad", "params": {"prompt": "x", "steps": 10000}}'
    async with world.running():
        for name in ("good", "bad"):
            await world.queue.submit(name, b'{"job_url": "https://documents.example/' + name.encode() + b'"}')
        await world.ended("good", "bad")
        assert [await world.code(name) for name in ("good", "bad")] == [None, "invalid_job"]
    assert world.receiver.ids("succeeded") == ["good"]


@virtual
async def test_a_webhook_that_a_job_names_pauses_nothing() -> None:
    """One customer's dead receiver costs nobody else anything."""
    world = World()
    world.receiver.answer = lambda message: WebhookFailed("down") if b'"theirs"' in message.body else None
    async with world.running():
        await world.submit("theirs", webhook="https://dead.example/hook")
        others = [f"job-{n}" for n in range(20)]
        await world.submit(*others)
        await world.ended(*others, "theirs")
        assert await world.code("theirs") == "webhook_undelivered"
        assert Phase.PAUSED not in world.status.story
    assert sorted(world.receiver.ids("succeeded")) == sorted(others)
