"""What a node counts as having between two of its reports."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from dispatcher.fleet import Fleet
from dispatcher.steps import whole
from dispatcher.words import Key, Need, Waiting, key_of
from worker.clock import SystemClock
from worker.wire import Availability, HeldModel, NodeInfo, Running

A, B, C = (key_of("checkpoint", name) for name in "abc")


def fleet() -> Fleet:
    return Fleet(SystemClock(), timedelta(seconds=90))


def job(id: str, *names: str) -> Waiting:
    return Waiting(id, tuple(Need(key_of("checkpoint", name), "checkpoint", name) for name in names))


def asks(loaded: str, disk: str = "", running: Iterable[str] = ()) -> Availability:
    models = [HeldModel(kind="checkpoint", name=name, tier="vram") for name in loaded]
    models += [HeldModel(kind="checkpoint", name=name) for name in disk]
    held = tuple(Running(id=one, hop="models") for one in running)
    return Availability(node=NodeInfo(id="n"), models=tuple(models), running=held)


def has(nodes: Fleet) -> tuple[set[Key], set[Key], set[Key]]:
    """In memory, on disk, on their way; the counts of all nodes agree."""
    view = nodes.view(nodes["n"])
    for key in (A, B, C):
        assert (nodes.warm(key), nodes.copies(key), nodes.coming(key)) == (
            int(key in view.loaded),
            int(key in view.held),
            int(key in view.coming),
        )
    return set(view.loaded), set(view.held), set(view.coming)


async def test_a_job_whose_file_is_there_has_it_loaded() -> None:
    """From the moment at which it is given, until the job is over and the node's own word counts again."""
    nodes = fleet()
    nodes.asked(asks("a", "b"))
    nodes.gave("n", job("1", "b"))
    assert has(nodes) == ({B}, {A, B}, set())
    nodes.asked(asks("a", "b", running="1"))
    assert has(nodes) == ({B}, {A, B}, set())
    nodes.over("1")
    assert has(nodes) == ({A}, {A, B}, set())


async def test_a_job_that_waits_for_its_file_leaves_the_memory_to_others() -> None:
    """Its model is on its way, so no second job for it counts as cheap here, and one for what is loaded still does."""
    nodes = fleet()
    nodes.asked(asks("a"))
    nodes.gave("n", job("1", "b"))
    assert has(nodes) == ({A}, {A}, {B})
    nodes.asked(asks("a", running="1"))
    nodes.gave("n", job("2", "a"))
    nodes.gave("n", job("3", "c"))
    assert has(nodes) == ({A}, {A}, {B, C})
    nodes.over("3")
    assert has(nodes) == ({A}, {A}, {B})


async def test_when_the_file_has_come_its_job_is_next() -> None:
    """Then it counts as loaded, though the node has not said so yet."""
    nodes = fleet()
    nodes.asked(asks("a"))
    nodes.gave("n", job("1", "b"))
    nodes.asked(asks("a", "b", running="1"))
    assert has(nodes) == ({B}, {A, B}, set())
    nodes.over("1")
    assert has(nodes) == ({A}, {A, B}, set())


async def test_a_node_that_no_longer_holds_a_job_says_so() -> None:
    """What it does not name when it asks for more does not count, whichever way it was lost."""
    nodes = fleet()
    nodes.asked(asks("a", "b"))
    nodes.gave("n", job("1", "c"))
    nodes.gave("n", job("2", "b"))
    nodes.asked(asks("a", "b", running="1"))
    assert has(nodes) == ({A}, {A, B}, {C})
    nodes.asked(asks("a", "b"))
    assert has(nodes) == ({A}, {A, B}, set())
    nodes.over("1")
    nodes.over("2")
    assert has(nodes) == ({A}, {A, B}, set())


async def test_what_was_not_told_to_the_end_is_not_saved() -> None:
    """Who stops in the middle of the unsaved ones has all of them again; what is heard meanwhile comes next time."""
    nodes = fleet()
    for number in range(20):
        nodes.asked(named(f"n{number}"))
    begun = nodes.unsaved()
    next(begun)
    begun.close()
    begun = nodes.unsaved()
    next(begun)
    nodes.asked(named("n3"))
    assert len(whole(begun)) == 20
    assert [row.id for row in whole(nodes.unsaved())] == ["n3"]
    assert whole(nodes.unsaved()) == []


def named(node: str) -> Availability:
    return asks("a").model_copy(update={"node": NodeInfo(id=node)})
