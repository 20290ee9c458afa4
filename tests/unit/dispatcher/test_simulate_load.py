"""What simulated fleets are asked to do: generated, from a trace, and the bound on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest

from dispatcher.simulate.bound import fewest_loads, frontier
from dispatcher.simulate.line import Line
from dispatcher.simulate.load import FAMILIES, SDXL, Assumptions, generated
from dispatcher.simulate.policies import Fifo, Index, Scheduled
from dispatcher.simulate.report import classes
from dispatcher.simulate.trace import BadTrace, read
from dispatcher.simulate.world import World
from dispatcher.words import Need, Rules
from tests.support.simulated import ASSUMED, A, B, C, job, load, node, run

FEW = Assumptions(nodes=5, models=30, jobs=2000)


def test_the_load_is_the_asked_share_of_what_nodes_render() -> None:
    """Work that comes in a second, over what the nodes could do in it, is the load asked for."""
    found = generated(replace(FEW, jobs=20_000, load=0.6))
    capacity = sum(each.render for each in found.nodes)
    work = sum(sent.job.work_s for sent in found.submissions)
    assert work / (capacity * found.horizon) == pytest.approx(0.6, rel=0.1)


def test_popularity_follows_zipf() -> None:
    """Without drift the second model is asked for half as often as the first, the tenth a tenth as often."""
    plain = replace(FEW, jobs=30_000, burst_share=0.0, drift_s=0.0)
    asked = Counter(sent.job.key for sent in generated(plain).submissions)
    first = asked["checkpoint/model-00000"]
    ranked = [count for _, count in asked.most_common()]
    assert first == ranked[0]
    assert ranked[1] / first == pytest.approx(1 / 2, rel=0.2)
    assert ranked[9] / first == pytest.approx(1 / 10, rel=0.3)


def test_popularity_drifts() -> None:
    """With drift the models that are asked for most at the end are others than at the start."""
    moving = generated(replace(FEW, drift_s=5.0, burst_share=0.0)).submissions
    early, late = (Counter(sent.job.key for sent in part).most_common(3) for part in (moving[:500], moving[-500:]))
    assert {key for key, _ in early} != {key for key, _ in late}


def test_bursts_are_of_one_user_and_one_model() -> None:
    """A share of the jobs comes in batches, and the total stays what it was."""
    found = generated(replace(FEW, burst_share=1.0, burst=10)).submissions
    alone = generated(replace(FEW, burst_share=0.0)).submissions
    same = sum(one.job.key == two.job.key for one, two in pairwise(found))
    different = sum(one.job.key == two.job.key for one, two in pairwise(alone))
    assert same > 2 * different
    assert found[-1].at == pytest.approx(alone[-1].at, rel=0.3)


def test_families_bring_their_companions_and_loras_their_sizes() -> None:
    """Jobs need the files of their model's family first, then a LoRA in the asked share."""
    found = generated(replace(FEW, models=200, lora_share=0.5)).submissions
    kinds = Counter(sent.job.needs[0].kind for sent in found)
    assert set(kinds) == {"checkpoint", "unet"}
    flux = [sent.job.needs for sent in found if sent.job.needs[0].kind == "unet"]
    assert all(needs[1:3] == FAMILIES[2].companions for needs in flux)
    with_lora = sum(sent.job.needs[-1].kind == "lora" for sent in found)
    assert with_lora / len(found) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("stock", ["spread", "popular"])
def test_stock_fills_disks_and_never_overfills_them(stock: str) -> None:
    """At the start each disk holds distinct models within its room."""
    found = generated(replace(FEW, stock=stock))
    for each in found.nodes:
        held = found.stock[each.id]
        assert len({model.key for model in held}) == len(held)
        assert each.cap * 0.5 < sum(model.size or 0 for model in held) <= each.cap


def test_stock_is_every_model_or_the_popular_ones_or_none() -> None:
    """Spread it has each model somewhere, the popular ones more often; else as drawn by popularity, or nothing."""
    roomy = replace(FEW, nodes=40, families=False)

    def copies(stock: str) -> Counter[str]:
        found = generated(replace(roomy, stock=stock)).stock
        return Counter(each.key for held in found.values() for each in held)

    spread, popular = copies("spread"), copies("popular")
    assert len(spread) == FEW.models
    assert popular["checkpoint/model-00000"] >= spread["checkpoint/model-00000"] > spread["checkpoint/model-00029"] >= 1
    assert not copies("empty")


def test_nodes_are_lost_at_the_asked_rate_and_one_after_the_other() -> None:
    """A node that vanishes was there; none vanishes while it is away."""
    found = generated(replace(FEW, nodes=50, jobs=20_000, life_s=300.0, away_s=60.0))
    expected = 50 * found.horizon / 360
    assert len(found.losses) == pytest.approx(expected, rel=0.35)
    back: dict[str, float] = {}
    for loss in found.losses:
        assert loss.at >= back.get(loss.node, 0.0)
        back[loss.node] = loss.back
    assert all(loss.back == math.inf for loss in generated(replace(FEW, life_s=50.0, away_s=0.0)).losses)


def test_a_line_keeps_the_order_of_priority_and_rank() -> None:
    """Higher priorities first, then ranks; removing one leaves the order of the others."""
    line = Line()
    jobs = [job("low", A), job("high", B, priority=2), job("none"), job("late", A)]
    for number, each in enumerate(jobs):
        line.add(replace(each, rank=float(number)))
    assert [each.id for each in line.ahead(9)] == ["high", "low", "none", "late"]
    assert [each.id for each in line.heads(A.key, 5)] == ["low", "late"]
    line.remove(line[1])
    assert [each.id for each in line.heads(A.key, 5)] == ["late"]
    assert (len(line), line.first and line.first.id) == (3, "high")
    with pytest.raises(KeyError):
        line.remove(jobs[0])


def test_classes_part_the_jobs_by_popularity() -> None:
    """The first half of the jobs is the head's, the last tenth that of the rare models."""
    jobs = {float(n): job(f"j{n:03}", *((A,) if n < 60 else (B,) if n < 92 else (C,))) for n in range(100)}
    assert classes(load(jobs)) == {A.key: "head", B.key: "middle", C.key: "rare"}


# a trace


def test_a_trace_is_read_in_any_order() -> None:
    """Jobs stand in the order of time, counted from the first line, with what is left out as assumed."""
    lines = [
        json.dumps({"t": 110.0, "model": "dreamshaper_8"}),
        "",
        json.dumps({"t": 104.0, "lost": 1, "back": 130.0}),
        json.dumps({"t": 105.0, "lost": 0}),
        json.dumps(
            {
                "t": 100.0,
                "id": "x",
                "user": "ann",
                "priority": 3,
                "work": 2.5,
                "needs": [{"kind": "checkpoint", "name": "sd", "size": 5}, {"kind": "lora", "name": "ink"}],
            }
        ),
    ]
    found = read(lines, FEW)
    assert [(sent.at, sent.job.id) for sent in found.submissions] == [(0.0, "x"), (10.0, "job-0000001")]
    first, second = (sent.job for sent in found.submissions)
    assert (first.user, first.priority, first.work_s) == ("ann", 3, 2.5)
    assert [(each.key, each.size) for each in first.needs] == [("checkpoint/sd", 5), ("lora/ink", 200_000_000)]
    assert (second.work_s, second.needs[0].size) == (FEW.render_s, SDXL)
    assert [(loss.at, loss.back) for loss in found.losses] == [(4.0, 30.0), (5.0, math.inf)]
    assert len(found.nodes) == FEW.nodes


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", "line 2"),
        ('{"model": "a"}', "line 2: t"),
        ('{"t": 1, "modle": "a"}', "line 2: modle"),
        ('{"t": 1, "model": "a", "needs": [{"kind": "lora", "name": "b"}]}', "line 2: say model or needs"),
        ('{"t": 5, "lost": 1, "back": 5}', "line 2: back"),
        ('{"t": 1, "lost": 5}', "line 2: there are 5 nodes"),
        ('{"t": 2, "id": "same", "model": "a"}', "twice"),
    ],
)
def test_a_wrong_line_is_named(line: str, names: str) -> None:
    """Whoever wrote the trace hears which line is wrong, and in what."""
    with pytest.raises(BadTrace, match=names):
        read(['{"t": 1, "id": "same", "model": "a"}', line], FEW)


def test_a_trace_without_jobs_is_refused() -> None:
    """There is nothing to simulate then."""
    with pytest.raises(BadTrace, match="no job"):
        read(['{"t": 1, "lost": 0}'], FEW)


@pytest.mark.parametrize("back", ["", ', "back": 9'])
def test_a_node_is_lost_only_while_it_is_there(back: str) -> None:
    """A trace that loses a node twice at once is wrong, whether it comes back later or never."""
    lines = ['{"t": 1, "model": "a"}', f'{{"t": 2, "lost": 3{back}}}', '{"t": 5, "lost": 3}']
    with pytest.raises(BadTrace, match="line 3: node 3 is away"):
        read(lines, FEW)


# the bound


def test_a_model_in_memory_bridges_what_memory_allows() -> None:
    """One node, two models in turn: of the gaps those are bridged that its memory has time for."""
    turns = {float(at): job(f"j{at}", *((A,) if at % 200 == 0 else (B,))) for at in range(0, 1000, 100)}
    given = load(turns, node(), horizon=1000.0)
    assert fewest_loads(given, 0.0) == pytest.approx(1 + 8 - 1000 / 200)
    assert fewest_loads(given, 150.0) == pytest.approx(1 + 6 - 6)


def test_waiting_lets_jobs_share_a_load() -> None:
    """Who may wait as long as the jobs of a model are apart needs one load for all of them."""
    sparse = {float(at): job(f"j{at}", *((A,) if at < 90 else (B,) if at < 180 else (C,))) for at in range(0, 270, 30)}
    given = load(sparse, node(), horizon=10_000.0)
    assert fewest_loads(given, 60.0) == 2.0
    assert list(frontier(given, (1.0, 60.0))) == [1.0, 60.0]
    assert frontier(load({}), (1.0,)) == {}


def test_no_policy_is_below_the_bound() -> None:
    """Whatever a policy does, its loads are at least those bounded for the longest wait that it caused."""
    assumed = replace(ASSUMED, nodes=6, models=40, jobs=600, loras=0, cap=500 * SDXL, life_s=0.0, drift_s=0.0, load=0.5)
    given = generated(assumed)
    roomy = replace(given, stock={each.id: _everything(given.stock) for each in given.nodes})
    for policy in (Fifo(), Index(100), Scheduled(Rules())):
        measures = World(roomy, policy, assumed).run()
        longest = max(
            (life.first_step if life.first_step is not None else measures.over) - life.submitted
            for life in measures.lives.values()
        )
        assert measures.tally.loads >= fewest_loads(roomy, longest)


def _everything(stock: Mapping[str, tuple[Need, ...]]) -> tuple[Need, ...]:
    return tuple({model.key: model for held in stock.values() for model in held}.values())


def test_a_run_needs_no_jobs_with_models() -> None:
    """Jobs that name no model run anywhere at once and load nothing."""
    measures = run(load({0.0: job("plain"), 1.0: job("more")}), Scheduled(Rules()))
    assert measures.tally.loads == 0
    assert measures.taken == {"warm": 2}
