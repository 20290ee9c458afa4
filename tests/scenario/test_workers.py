"""Several workers on one queue and one store, and several deliveries of one job: effects happen once."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

from tests.support.fakes import FakeEngine, document
from tests.support.virtual import VirtualClock, elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.engines.base import Reach
from worker.errors import EngineCrashed
from worker.live import Hop
from worker.queues.base import Received
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.status import Phase


def second(world: World, name: str = "w2") -> World:
    """Another worker beside this one: same queue, same store, an engine of its own."""
    return World(worker=name, queue=world.queue.beside(name), storage=world.storage)


@virtual
async def test_two_workers_share_the_jobs_and_none_is_done_twice() -> None:
    """Forty jobs over two workers: one result and one success webhook each, both engines at work."""
    one = World()
    two = second(one)
    jobs = [f"job-{n}" for n in range(40)]
    async with one.running(), two.running():
        await one.submit(*jobs)
        await one.ended(*jobs)
    assert sorted(one.engine.generated + two.engine.generated) == sorted(jobs)
    assert sorted(one.receiver.ids("succeeded") + two.receiver.ids("succeeded")) == sorted(jobs)
    assert min(len(one.engine.generated), len(two.engine.generated)) > 10
    assert sorted(one.storage.results()) == sorted(jobs)


@virtual
async def test_a_zombie_settles_nothing_when_it_comes_back() -> None:
    """Cut off past its lease while another does the job: it uploads, marks, tells and answers nothing."""
    zombie = World()
    other = second(zombie)
    zombie.engine.delays[Hop.GENERATE, "a"] = 60
    async with zombie.running():
        await zombie.submit("a")
        await zombie.at(Hop.GENERATE, "a")
        zombie.link.away = True
        async with other.running():
            await other.ended("a")
            standing = dict(zombie.storage.objects)
            calls = list(zombie.storage.calls)
            await zombie.at(Hop.UPLOAD, "a")
            zombie.link.away = False
            await zombie.until(lambda: len(zombie.live) == 0)
    assert zombie.storage.objects == standing
    assert zombie.storage.calls == calls
    assert zombie.receiver.tries.total() == 0
    assert other.receiver.ids("succeeded") == ["a"]
    assert await other.status_of("a") == "done"


@virtual
async def test_a_delivery_that_lay_in_a_frozen_process_is_never_acted_upon() -> None:
    """A lease is worth nothing until it was renewed: what another has taken meanwhile ends silently."""
    frozen = World()
    other = second(frozen)
    received = await _received_by_a_process_that_then_freezes(frozen)
    async with other.running():
        await other.ended("a")
    handed: list[Received] = [received]
    frozen.link.receive = _once(handed, frozen.link.receive)  # type: ignore[method-assign, assignment]
    async with frozen.running():
        await frozen.until(lambda: not handed)
        await elapse(5)
    assert frozen.engine.generated == []
    assert frozen.receiver.tries.total() == 0


async def _received_by_a_process_that_then_freezes(world: World) -> Received:
    await world.submit("a")
    received = await world.queue.receive()
    await elapse(VISIBILITY.total_seconds() + 1)
    return received


def _once(handed: list[Received], then: Callable[[], Awaitable[Received]]) -> Callable[[], Awaitable[Received]]:
    async def receive() -> Received:
        return handed.pop() if handed else await then()

    return receive


@virtual
async def test_a_second_delivery_of_a_job_live_here_waits_for_the_first() -> None:
    """A document that names the id of another delivery's job settles with that job's success, without the GPU."""
    world = World()
    world.engine.delays[Hop.GENERATE, "a"] = 30
    async with world.running():
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        await world.queue.submit("again", document("a"))
        await world.until(lambda: len(world.live) == 2)
        await elapse(10)
        assert world.engine.most_running == 1
        assert [job.hop for job in world.live] == [Hop.GENERATE, Hop.ADMIT]
        await world.ended("a", "again")
    assert world.engine.generated == ["a"] * len(world.engine.generated)
    assert {result.id for result in world.storage.results().values()} == {"a"}
    images = {key for key in world.storage.objects if not key.endswith(".json")}
    assert len(images) == 1


@virtual
async def test_a_standing_success_is_settled_again_without_the_engine() -> None:
    """Its worker vanished between mark and acknowledgement: the next one tells and answers, generating nothing."""
    first = World()
    async with first.running():
        first.receiver.seconds = 3
        await first.submit("a")
        await first.at(Hop.SETTLE, "a")
        first.link.lose("a")
        await first.until(lambda: len(first.live) == 0)
        standing = first.storage.objects["a/result.json"]
        first.supervisor.stop()
    other = second(first)
    async with other.running():
        await other.ended("a")
        state = await other.state("a")
    assert state.status == "done"
    assert other.engine.generated == []
    assert first.storage.objects["a/result.json"] == standing
    assert {*first.receiver.tries, *other.receiver.tries} == set(other.receiver.tries)


@virtual
async def test_the_first_mark_wins_when_two_workers_finish_the_same_job() -> None:
    """Who finds a result standing settles with that one, and its own images are named by nobody."""
    slow = World()
    other = second(slow)
    slow.storage.delays[Hop.UPLOAD, "a"] = 60
    async with slow.running():
        await slow.submit("a")
        await slow.at(Hop.UPLOAD, "a")
        slow.engine.reach = Reach.PORT_CLOSED
        await slow.until(lambda: not slow.status.ready().ok)
        await elapse(1)
        copy = other.queue.beside("w3")
        await copy.submit("b", document("a"))
        async with other.running():
            await other.ended("b", "a")
    results = [json.loads(body) for key, body in slow.storage.objects.items() if key.endswith("result.json")]
    assert [result["worker"]["id"] for result in results] == ["w2"]
    for job in ("a", "b"):
        result = (await slow.state(job)).result
        assert result is not None
        assert result.worker.id == "w2"


@virtual
async def test_another_document_under_a_known_id_is_refused_and_changes_nothing() -> None:
    """Found at the look-up or at the mark: a dead letter, no webhook, no failure document, nothing overwritten."""
    world = World()
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        standing = {key: world.storage.objects[key] for key in ("a/result.json",)}
        taken = len(world.receiver.taken)
        await world.queue.submit("b", document("a", params={"prompt": "something else"}))
        await world.ended("b")
        assert (await world.status_of("b"), await world.code("b")) == ("dead", "id_conflict")
    assert world.storage.objects["a/result.json"] == standing["a/result.json"]
    assert len(world.receiver.taken) == taken
    assert not [key for key in world.storage.objects if "failure" in key]


@virtual
async def test_a_redelivery_with_another_document_is_refused_before_the_engine() -> None:
    """The look-up of a redelivered job compares digests: nothing is generated for it."""
    world = World()
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        await world.queue.submit("b", document("a", params={"prompt": "something else"}))
        world.engine.delays[Hop.ADMIT, "a"] = 60
        await world.at(Hop.ADMIT, "a")
        world.link.lose("b")
        await world.ended("b")
    assert await world.code("b") == "id_conflict"
    assert world.engine.generated == ["a"]


@virtual
async def test_a_job_handed_over_too_often_is_a_dead_letter_that_its_owner_hears_of() -> None:
    """Nodes that vanish are not the job's fault, but there is an end to it."""
    world = World(policy=Policy(visibility=VISIBILITY, max_deliveries=3))
    async with world.running():
        world.engine.delays.update({(Hop.GENERATE, "a"): 60})
        for _ in range(3):
            if not await _is_open(world):
                break
            await world.submit("a")
            await world.at(Hop.GENERATE, "a")
            world.engine.delays[Hop.GENERATE, "a"] = 60
            world.link.lose("a")
            await world.until(lambda: len(world.live) == 0)
        await world.ended("a")
        state = await world.state("a")
    assert (state.status, state.code) == ("dead", "delivery_limit")
    assert [code for code, _ in await world.ends("a")] == [None, None, None, "delivery_limit"]
    assert world.receiver.ids("failed") == ["a"]
    assert state.result is not None
    assert state.result.error is not None
    assert state.result.error.fault == "node"


async def _is_open(world: World) -> bool:
    state = await world.queue.state("a")
    return state is None or state.status not in ("done", "dead")


@virtual
async def test_engine_faults_are_charged_from_the_second_different_node_on() -> None:
    """What breaks one server is the server's fault; what breaks every server it meets is the job's."""
    policy = Policy(visibility=VISIBILITY, max_attempts=2)
    world = World(policy=policy)
    workers = [world, second(world, "w2"), second(world, "w3")]
    await world.submit("a")
    for each in workers:
        each.engine.trouble("a", EngineCrashed())
        async with each.running():
            await each.until(lambda each=each: len(each.engine.generated) == 1)  # type: ignore[misc]
            await each.until(lambda each=each: len(each.live) == 0)  # type: ignore[misc]
    assert await world.ends("a") == [("engine_lost", False), ("engine_lost", True), ("engine_lost", True)]
    assert await world.code("a") == "engine_lost"
    assert workers[-1].receiver.ids("failed") == ["a"]


@virtual
async def test_engine_faults_on_the_same_node_are_never_charged() -> None:
    """A node whose server breaks again and again does not use up the job's attempts."""
    world = World()
    world.engine.trouble("a", *[EngineCrashed()] * 4)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.ends("a") == [("engine_lost", False)] * 4 + [("succeeded", False)]


@virtual
async def test_a_cancellation_that_comes_after_the_mark_was_sent_comes_too_late() -> None:
    """The mark may stand although its answer is still out: no other end may follow it."""
    world = World()
    world.storage.mark_answer_s = 10
    async with world.running():
        await world.submit("a")
        await world.until(lambda: "a/result.json" in world.storage.objects)
        assert world.live.cancel("a")
        await world.ended("a")
        state = await world.state("a")
    assert state.result is not None
    assert state.result.status == "succeeded"
    assert world.receiver.ids("succeeded") == ["a"]


@virtual
async def test_a_worker_asks_for_a_job_only_while_it_can_take_one() -> None:
    """With slow generations one delivery is held until shortly before its end; the other worker gets the next."""
    engine = FakeEngine(seconds=120)
    world = World(engine=engine)
    async with world.running():
        await world.submit("warm")
        await world.ended("warm")
        jobs = ["a", "b", "c"]
        await world.submit(*jobs)
        await world.until(lambda: engine.running == 1)
        for _ in range(100):
            await elapse(1)
            assert len(world.live) == 1
        await world.until(lambda: len(world.live) == 2)
        assert engine.running == 1
        world.engine.seconds = 1
        await world.ended(*jobs)


@virtual
async def test_a_worker_with_a_memory_of_its_own_is_not_disturbed_by_another() -> None:
    """Priority goes first among what waits, and jobs of equal rank in the order of their coming."""
    clock = VirtualClock()
    queue = MemoryQueue(clock, worker="w1", policy=Policy(visibility=timedelta(seconds=20)))
    for n, priority in enumerate((0, 0, 5, 1)):
        await queue.submit(f"job-{n}", document(f"job-{n}"), priority=priority)
    world = World(queue=queue)
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        await world.ended(*(f"job-{n}" for n in range(4)))
    assert world.engine.generated == ["job-2", "job-3", "job-0", "job-1"]
