"""A simulated node by itself: its disk, its link and what it reports."""

from __future__ import annotations

import pytest

from dispatcher.simulate.machine import Machine
from dispatcher.words import NodeOrders
from tests.support.simulated import GB, A, B, C, job, model, node

LORA = model("lora", 1.0)


def machine(*stock: object, gb: float = 50.0) -> Machine:
    return Machine("n0", node(gb=gb), tuple(each for each in (A, B, C, LORA) if each in stock), parked=2)


def test_a_node_reports_what_it_has() -> None:
    """Held and loaded models, room, rates and order of use are those of the moment."""
    n0 = machine(A, B)
    n0.take(job("b", B), 0.0)
    n0.start(0.0)
    n0.accept(NodeOrders(download=(C,)))
    view = n0.view(10.0, idle_s=3.0)
    assert view.loaded == {B.key}
    assert view.held == {A.key, B.key}
    assert view.used == (A.key, B.key)
    assert (view.free, view.cap) == (34 * GB, 50 * GB)
    assert (view.resident_s, view.idle_s, view.running) == (10.0, 3.0, 1)
    assert view.coming == {C.key}
    assert (view.measured.disk, view.measured.network, view.measured.load) == (GB, 0.1 * GB, 4.0)


def test_only_what_is_not_in_memory_is_loaded() -> None:
    """A LoRA beside the model in memory costs its own bytes; another model costs all of the job's files."""
    n0 = machine(A, B, LORA)
    costs = []
    for at, needs in enumerate(((A,), (A, LORA), (A, LORA), (B, LORA))):
        n0.take(job(f"j{at}", *needs), float(at))
        started = n0.start(float(at))
        assert started is not None
        costs.append(started[1])
        n0.finish(float(at))
    assert costs == [8.0, 1.0, 0.0, 9.0]
    assert n0.tally.loads == 2


def test_an_order_stops_for_a_job_and_goes_on_where_it_was() -> None:
    """The link is a job's first; what was ordered keeps the bytes that it had."""
    n0 = machine()
    n0.accept(NodeOrders(download=(A,)))
    assert n0.pull(0.0) == pytest.approx(80.0)
    n0.take(job("b", B), 30.0)
    assert n0.pull(30.0) == pytest.approx(80.0)
    n0.arrived(110.0)
    assert n0.pull(110.0) == pytest.approx(50.0)
    assert n0.start(110.0) is not None
    n0.arrived(160.0)
    assert (n0.tally.fetched, n0.tally.ordered, n0.tally.bytes) == (1, 1, 16 * GB)
    assert n0.view(160.0).held == {A.key, B.key}


def test_a_job_takes_over_the_transfer_of_its_model() -> None:
    """What is ordered and moving already is not begun anew for a job that wants it."""
    n0 = machine()
    n0.accept(NodeOrders(download=(A,)))
    n0.pull(0.0)
    n0.take(job("a", A), 30.0)
    assert n0.pull(30.0) is None
    n0.arrived(80.0)
    assert (n0.tally.fetched, n0.tally.ordered) == (1, 0)
    assert n0.pull(80.0) is None
    assert [each.id for each in n0.ready] == ["a"]


def test_evictions_spare_what_is_in_use() -> None:
    """An order to drop a model that is in memory, or that a job here needs, is not carried out."""
    n0 = machine(A, B, C)
    n0.take(job("a", A), 0.0)
    n0.start(0.0)
    n0.finish(14.0)
    n0.take(job("b", B), 14.0)
    n0.accept(NodeOrders(evict=(A, B, C)))
    assert n0.view(14.0).held == {A.key, B.key}
    assert n0.view(14.0).free == 34 * GB


def test_no_order_takes_the_place_of_what_is_in_memory() -> None:
    """An order for which there is no room without that is dropped, and nothing for it."""
    n0 = machine(A, gb=10)
    n0.take(job("a", A), 0.0)
    n0.start(0.0)
    n0.finish(14.0)
    n0.accept(NodeOrders(download=(B,)))
    assert n0.pull(14.0) is None
    assert n0.view(14.0).held == {A.key}
    assert not n0.view(14.0).coming


def test_a_job_that_finds_no_room_waits_until_another_is_done() -> None:
    """What runs keeps its model; when it is over the transfer begins, and the memory's model goes."""
    n0 = machine(A, gb=10)
    n0.take(job("a", A), 0.0)
    n0.start(0.0)
    n0.take(job("b", B), 1.0)
    assert n0.pull(1.0) is None
    n0.finish(14.0)
    assert n0.pull(14.0) == pytest.approx(80.0)
    assert n0.view(14.0).loaded == frozenset()


def test_a_stopped_order_gives_its_room_to_a_job() -> None:
    """Where nothing else may go, bytes of an order that stands still are given up."""
    n0 = machine(gb=15)
    n0.accept(NodeOrders(download=(A,)))
    n0.pull(0.0)
    n0.take(job("b", B), 10.0)
    assert n0.pull(10.0) == pytest.approx(80.0)
    n0.arrived(90.0)
    assert n0.pull(90.0) is None
    assert n0.view(90.0).held == {B.key}


def test_a_node_asks_until_too_many_wait_for_models() -> None:
    """It holds so many jobs aside and one more; with something to render it does not ask."""
    n0 = machine(A)
    asked = []
    for at, each in enumerate((B, C, LORA)):
        asked.append(n0.calls)
        n0.take(job(f"j{at}", each), 0.0)
    assert [*asked, n0.calls] == [True, True, True, False]


def test_a_node_with_something_to_render_does_not_ask() -> None:
    """From the moment it has a job that is ready until that is over."""
    n0 = machine(A)
    n0.take(job("a", A), 0.0)
    asked = [n0.calls]
    n0.start(0.0)
    asked.append(n0.calls)
    n0.finish(14.0)
    assert [*asked, n0.calls] == [False, False, True]
    with pytest.raises(RuntimeError, match="nothing runs"):
        n0.finish(15.0)
