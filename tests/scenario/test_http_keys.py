"""What an `Idempotency-Key` promises."""

from __future__ import annotations

from tests.support.office import HOOK, PATH, Office, asking, document, shared, until_over
from tests.support.virtual import elapse, virtual
from worker.errors import EngineStalled, GenerationRejected, UploadFailed
from worker.status import Phase


@virtual
async def test_the_same_key_joins_the_job_and_replays_its_end() -> None:
    """One generation for any number of calls, while it runs and after; another document is a conflict."""
    office = Office()
    async with office.open() as client:
        first, second = [asking(client, document(), idempotency_key="k") for _ in range(2)]
        answers = [await first, await second, await asking(client, document(), idempotency_key="k")]
        other = await asking(client, document("other"), idempotency_key="k")
        alone = await asking(client, document(), idempotency_key="l")
    ids = [answer.json()["id"] for answer in answers]
    assert office.engine.generated == [ids[0], alone.json()["id"]]
    assert len(set(ids)) == 1
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


@virtual
async def test_a_failure_of_the_jobs_own_is_replayed() -> None:
    """As long as nothing at all was changed: another timeout is another try."""
    office = Office()
    office.engine.trouble("bad", GenerationRejected("no such sampler"))
    async with office.open() as client:
        failed = await asking(client, document("bad"), idempotency_key="b")
        replayed = await asking(client, document("bad"), idempotency_key="b")
        changed = await asking(client, document("bad", timeout=60), idempotency_key="b")
    assert [one.status_code for one in (failed, replayed, changed)] == [422, 422, 200]


@virtual
async def test_a_failure_that_may_pass_is_not_replayed() -> None:
    """The node's fault now, and a success under the same id when it is asked again."""
    office = Office()
    async with office.open() as client:
        office.engine.trouble("x", EngineStalled(), EngineStalled())
        first = await asking(client, document(), idempotency_key="k")
        assert (first.status_code, first.json()["code"]) == (503, "delivery_limit")
        assert first.headers["retry-after"]
        await office.status.reached(Phase.READY)
        second = await asking(client, document(), idempotency_key="k")
    assert second.status_code == 200
    assert second.json()["id"] == first.json()["result"]["id"]


@virtual
async def test_a_job_that_was_cancelled_with_its_caller_is_done_when_asked_again() -> None:
    """Who lost the connection and calls again wants the picture; a job that was promised to nobody waiting stays
    cancelled."""
    office = Office(hook=HOOK)
    async with office.open() as client:
        office.engine.seconds = 100
        caller = asking(client, document(), idempotency_key="k")
        await office.until(lambda: len(tuple(office.desk.tickets)) == 1)
        (ticket,) = office.desk.tickets
        await client.delete(f"{PATH}/{ticket.id}")
        assert (await caller).status_code == 409
        office.engine.seconds = 1
        assert (await asking(client, document(), idempotency_key="k")).status_code == 200
        promised = await asking(client, document("y"), idempotency_key="l", prefer="respond-async")
        await client.delete(f"{PATH}/{promised.json()['id']}")
        await until_over(office, client, promised.json()["id"])
        again = await asking(client, document("y"), idempotency_key="l", prefer="respond-async")
    assert again.json()["status"] == "cancelled"


@virtual
async def test_another_replica_finds_the_success_by_its_mark() -> None:
    """Ids come from API key and Idempotency-Key alone, so no picture is made twice; nor is one given out wrong."""
    mine, other = shared(), shared()
    other.storage.objects = mine.storage.objects
    async with mine.open() as client:
        first = await asking(client, document(), idempotency_key="k")
    async with other.open() as client:
        second = await asking(client, document(), idempotency_key="k")
        wrong = await asking(client, document("other"), idempotency_key="k2")
        third = await asking(client, document("another"), idempotency_key="k")
    assert first.json()["images"][0]["key"] == second.json()["images"][0]["key"]
    assert len(other.engine.generated) == 1
    assert wrong.status_code == 200
    assert (third.status_code, third.json()["code"]) == (409, "id_conflict")


@virtual
async def test_a_job_whose_end_was_dropped_is_done_again() -> None:
    """Memory is bounded; never a wrong answer."""
    office = Office()
    async with office.open() as client:
        first = await asking(client, document(), idempotency_key="k")
        office.desk.tickets.drop(first.json()["id"])
        second = await asking(client, document(), idempotency_key="k")
    assert len(office.engine.generated) == 2
    assert first.json()["images"][0]["sha256"] == second.json()["images"][0]["sha256"]


@virtual
async def test_links_are_signed_anew_before_they_run_out() -> None:
    """A success that is asked for again, by its key or its id, is found by its mark; nothing is made again."""
    office = shared()
    async with office.open() as client:
        first = (await asking(client, document(), idempotency_key="k")).json()
        looked = office.storage.calls.count("find_result") + office.storage.calls.count("find_mark")
        await asking(client, document(), idempotency_key="k")
        await client.get(f"{PATH}/{first['id']}")
        assert office.storage.calls.count("find_result") + office.storage.calls.count("find_mark") == looked
        await elapse(3600)
        state = (await client.get(f"{PATH}/{first['id']}")).json()
        assert (state["status"], office.storage.calls[-1]) == ("succeeded", "find_result")
        again = await asking(client, document(), idempotency_key="k")
        assert (again.status_code, office.storage.calls[-1]) == (200, "find_mark")
        office.storage.down = UploadFailed("down")
        old = await client.get(f"{PATH}/{first['id']}")
        office.storage.down = None
    assert old.json()["status"] == "succeeded"
    assert again.json()["images"] == first["images"]
    assert len(office.engine.generated) == 1
