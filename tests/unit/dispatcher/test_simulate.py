"""The simulated fleet: small worlds whose every second is computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from dispatcher.simulate.load import Assumptions, Loss, generated
from dispatcher.simulate.policies import AtRandom, Fifo, Index, LookAhead, Policy, Scheduled, policy
from dispatcher.simulate.report import classes, summed_up
from dispatcher.simulate.world import World
from dispatcher.words import Rules
from tests.support.simulated import ASSUMED, GB, A, B, C, first_steps, job, load, model, node, run

STOCKED = {"n0": (A, B)}


def test_fifo_swaps_for_each_job_in_turn() -> None:
    """In the order of submission each change of model costs a load, and nothing overtakes."""
    measures = run(load({0.0: job("a1", A), 1.0: job("b", B), 2.0: job("a2", A)}, stock=STOCKED), Fifo())
    assert first_steps(measures) == {"a1": 8.0, "b": 14.0 + 8, "a2": 28.0 + 8}
    assert measures.tally.loads == 3
    assert measures.taken == {"disk": 3}
    assert (measures.spent.load, measures.spent.render) == (24.0, 18.0)


def test_a_look_ahead_does_what_is_warm_first() -> None:
    """Of those that wait the one whose model is in memory overtakes one that needs a swap."""
    given = load({0.0: job("a1", A), 1.0: job("b", B), 2.0: job("a2", A)}, stock=STOCKED)
    for each in (LookAhead(32), Index(50)):
        measures = run(given, each)
        assert first_steps(measures) == {"a1": 8.0, "a2": 14.0, "b": 28.0}
        assert measures.tally.loads == 2
        assert measures.passed == 1


def test_the_index_ends_overtaking_at_its_bound() -> None:
    """The first in line is passed over so many times and no more."""
    jobs = {0.0: job("a0", A), 1.0: job("b", B)} | {1.0 + n: job(f"a{n}", A) for n in range(1, 6)}
    measures = run(load(jobs, stock=STOCKED), Index(2))
    assert measures.passed == 2
    steps = first_steps(measures)
    assert sorted(steps, key=steps.__getitem__)[:4] == ["a0", "a1", "a2", "b"]


def test_a_download_is_waited_for_beside_other_jobs() -> None:
    """A job whose model comes is held aside, and others run meanwhile; without such places the GPU waits."""
    given = load({0.0: job("c", C), 1.0: job("a1", A), 2.0: job("a2", A)}, stock=STOCKED)
    beside = run(given, Fifo(), replace(ASSUMED, parked=2))
    assert first_steps(beside) == {"a1": 9.0, "a2": 15.0, "c": 88.0}
    assert beside.tally.fetched == 1
    assert beside.spent.download == pytest.approx(1.0 + 80 - 21)
    alone = run(given, Fifo(), replace(ASSUMED, parked=0))
    assert first_steps(alone) == {"c": 88.0, "a1": 94.0 + 8, "a2": 108.0}
    assert alone.spent.download == pytest.approx(80.0)


def test_the_disk_gives_up_what_was_used_the_longest_ago() -> None:
    """A full disk drops the oldest model for a new one, which costs a transfer when it is asked for again."""
    small = node(gb=20)
    given = load({0.0: job("a1", A), 100.0: job("c", C), 300.0: job("a2", A), 400.0: job("b", B)}, small, stock=STOCKED)
    measures = run(given, Fifo())
    assert first_steps(measures) == {"a1": 8.0, "c": 100.0 + 88, "a2": 308.0, "b": 400.0 + 88}


def test_a_faster_node_renders_faster() -> None:
    """Seconds of work are those of an average node."""
    measures = run(load({0.0: job("a1", A), 0.5: job("a2", A)}, node(render=2.0), stock=STOCKED), Fifo())
    assert first_steps(measures) == {"a1": 8.0, "a2": 11.0}
    assert measures.capacity_s == 2000.0


def test_the_jobs_of_a_node_that_vanished_wait_for_their_leases() -> None:
    """Nobody knows before the lease ends; then they run elsewhere, and the death is counted with what it held."""
    given = load({0.0: job("a", A)}, node(), node(1), stock={"n0": (A,), "n1": (A,)}, losses=(Loss("n0", 5.0, 500.0),))
    measures = run(given, Fifo(), replace(ASSUMED, heartbeat_s=30.0, lease_s=120.0))
    assert first_steps(measures) == {"a": 120.0 + 8}
    assert measures.held == [1]
    assert measures.spent.load == 5.0 + 8
    assert measures.capacity_s == 5.0 + 500 + 1000


def test_a_node_comes_back_with_nothing() -> None:
    """What takes the place of a vanished node has an empty disk."""
    given = load({0.0: job("a1", A), 100.0: job("a2", A)}, stock=STOCKED, losses=(Loss("n0", 50.0, 60.0),))
    measures = run(given, Fifo())
    assert first_steps(measures) == {"a1": 8.0, "a2": 188.0}
    assert measures.held == [0]


def test_ours_sends_a_job_where_its_model_is() -> None:
    """Of two idle nodes the one that has the model in memory gets the job, whoever called first."""
    given = load(
        {0.0: job("a1", A), 0.1: job("b1", B), 100.0: job("b2", B), 100.1: job("a2", A)},
        node(),
        node(1),
        stock={"n0": (A, B), "n1": (A, B)},
    )
    measures = run(given, Scheduled(Rules()))
    assert first_steps(measures)["b2"] == 100.0
    assert first_steps(measures)["a2"] == pytest.approx(100.1)
    assert measures.tally.loads == 2


def test_ours_ranks_users_fairly_and_queues_do_not() -> None:
    """A user's second batch does not wait behind the thousandth job of another."""
    jobs = {0.001 * n: job(f"many{n}", A, user="many") for n in range(20)} | {1.0: job("one", A, user="one")}
    fair = first_steps(run(load(jobs, stock=STOCKED), Scheduled(Rules())))
    plain = first_steps(run(load(jobs, stock=STOCKED), Fifo()))
    assert sum(step < fair["one"] for step in fair.values()) <= 2
    assert plain["one"] == max(plain.values())


def test_orders_are_carried_out_in_the_background() -> None:
    """Coverage has a second copy fetched while nobody waits for it, at the network's speed."""
    jobs = {float(n): job(f"a{n}", A) for n in range(0, 200, 10)}
    given = load(jobs, node(), node(1), stock={"n0": (A,), "n1": (B,)}, horizon=400.0)
    measures = run(given, Scheduled(Rules(coverage=2)))
    assert measures.tally.ordered == 1
    assert measures.tally.fetched == 0
    assert measures.tally.bytes == 8 * GB


def test_a_backlog_is_kept_at_its_size() -> None:
    """With a backlog each job that is taken makes room for the next."""
    jobs = {float(n): job(f"j{n:03}", A) for n in range(100)}
    measures = run(load(jobs, stock=STOCKED, horizon=100.0, backlog=5), Fifo())
    assert measures.waiting == 5
    assert sum(life.ended is not None for life in measures.lives.values()) == 15


def test_what_fits_nowhere_is_never_given() -> None:
    """A job larger than a node's room stands in nobody's way."""
    jobs = {0.0: job("huge", model("huge", 60))} | {1.0 + n: job(f"a{n}", A) for n in range(9)}
    for each in (Fifo(), AtRandom(1), LookAhead(8), Index(3), Scheduled(Rules())):
        steps = first_steps(run(load(jobs, stock=STOCKED), each))
        assert math.isnan(steps.pop("huge"))
        assert sorted(steps.values()) == [9.0 + 6 * n for n in range(9)]


def test_the_same_seed_gives_the_same_numbers() -> None:
    """Two runs agree in every figure, another seed does not."""
    few = Assumptions(nodes=8, models=40, jobs=300, life_s=600.0)

    def figures(assumed: Assumptions) -> object:
        given = generated(assumed)
        return summed_up("x", World(given, Scheduled(Rules()), assumed).run(), classes(given))

    assert figures(few) == figures(few)
    assert figures(few) != figures(replace(few, seed=2))


def test_every_second_of_a_gpu_is_booked_once() -> None:
    """Rendering, loading, waiting for models and idling add up to the time that the nodes were there."""
    assumed = Assumptions(nodes=10, models=50, jobs=400, spread=0.0, life_s=0.0, warm_up=0.25)
    given = generated(assumed)
    for each in (Scheduled(Rules()), Fifo(), AtRandom(2)):
        measures = World(given, each, assumed).run()
        spent = measures.spent
        booked = spent.render + spent.load + spent.download + spent.idle
        assert booked == pytest.approx(10 * 0.75 * given.horizon)
        assert measures.backed_up <= spent.idle + 1e-6


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd-dispatcher", Scheduled),
        ("fifo", Fifo),
        ("random", AtRandom),
        ("look-ahead-8", LookAhead),
        ("index-200", Index),
    ],
)
def test_policies_have_names(name: str, kind: type[Policy]) -> None:
    """Each policy is to be had by its name."""
    assert isinstance(policy(name, Rules(), 1), kind)


@pytest.mark.parametrize("name", ["", "best", "look-ahead", "look-ahead-0", "index-x"])
def test_other_names_are_refused(name: str) -> None:
    """What is no policy is named."""
    with pytest.raises(ValueError, match="no policy"):
        policy(name, Rules(), 1)
