"""Whatever a fleet holds and is asked for: plans keep within disks, come to rest, and never undo themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.coverage import copies_for, plan, targets_of
from dispatcher.words import Demand, Key, NodeOrders, NodeView, Rules, Source

GB = 1_000_000_000
SOURCES = tuple(
    Source("checkpoint", f"{name}.safetensors", size=(2 + n % 3 * 3) * GB) for n, name in enumerate("abcdefgh")
)
CATALOGUE = {source.key: source for source in SOURCES}
SIZES = {key: source.size or 0 for key, source in CATALOGUE.items()}
KEYS = tuple(CATALOGUE)
RULES = Rules()
EXAMPLES = settings(max_examples=80, deadline=None)


def taken(held: frozenset[Key]) -> int:
    return sum(SIZES[key] for key in held)


@st.composite
def fleets(draw: st.DrawFn) -> list[NodeView]:
    fleet = []
    for number in range(draw(st.integers(1, 6))):
        held = draw(st.frozensets(st.sampled_from(KEYS), max_size=5))
        cap = taken(held) + draw(st.integers(0, 12)) * GB
        fleet.append(
            NodeView(
                f"node-{number}",
                loaded=draw(st.sampled_from([frozenset(), *(frozenset({key}) for key in sorted(held))])),
                held=held,
                free=cap - taken(held),
                cap=cap,
                sizes={key: SIZES[key] for key in sorted(held)},
                coming=draw(st.sampled_from([frozenset(), frozenset(), frozenset({KEYS[0]})])),
            )
        )
    return fleet


@st.composite
def wishes(draw: st.DrawFn) -> dict[Key, Demand]:
    return {
        key: Demand(
            key,
            waiting=(waiting := draw(st.sampled_from([0, 0, 1, 20]))),
            work_s=6.0 * waiting,
            arrivals=draw(st.sampled_from([0.0, 0.001, 0.1, 1.0])),
            size=SIZES[key],
        )
        for key in draw(st.lists(st.sampled_from(KEYS), unique=True))
    }


def obeyed(fleet: Sequence[NodeView], orders: Mapping[str, NodeOrders]) -> list[NodeView]:
    """The fleet when all orders, and what was coming before, have been carried out."""
    after = []
    for node in fleet:
        asked = orders.get(node.id, NodeOrders())
        held = (node.held - {each.key for each in asked.evict}) | {each.key for each in asked.download}
        cap = node.cap or 0
        sizes = {key: SIZES[key] for key in sorted(held)}
        after.append(replace(node, held=held, free=cap - taken(held), sizes=sizes, coming=frozenset()))
    return after


@EXAMPLES
@given(fleets(), wishes())
def test_orders_fit_the_node_that_gets_them(fleet: list[NodeView], demand: dict[Key, Demand]) -> None:
    """One file at a time, none that is there, no room but what is free or freed, nothing out of the server's memory."""
    by_id = {node.id: node for node in fleet}
    for name, orders in plan(fleet, demand, CATALOGUE, RULES).items():
        node, wanted = by_id[name], [each.key for each in orders.download]
        dropped = {each.key for each in orders.evict}
        assert len(wanted) == 1
        assert not node.coming - node.held
        assert wanted[0] not in node.held
        assert dropped <= node.held - node.loaded
        assert SIZES[wanted[0]] <= (node.free or 0) + sum(SIZES[key] for key in dropped)


@EXAMPLES
@given(fleets(), wishes())
def test_only_what_is_too_many_is_dropped(fleet: list[NodeView], demand: dict[Key, Demand]) -> None:
    """After all drops of a plan each model has the copies that are to be kept; and no source is asked too often."""
    orders = plan(fleet, demand, CATALOGUE, RULES)
    targets = targets_of(demand.values(), len(fleet), sum(node.cap or 0 for node in fleet), RULES)
    there = Counter(key for node in fleet for key in node.held)
    coming = Counter(key for node in fleet for key in node.coming - node.held)
    dropped = Counter(each.key for asked in orders.values() for each in asked.evict)
    fetched = Counter(each.key for asked in orders.values() for each in asked.download)
    assert all(there[key] - count >= targets.keep.get(key, 0) for key, count in dropped.items())
    assert all(count + coming[key] <= 1 + there[key] for key, count in fetched.items())
    assert all(there[key] + coming[key] + count <= targets.want[key] for key, count in fetched.items())


@EXAMPLES
@given(fleets(), wishes())
def test_a_plan_that_was_carried_out_is_not_undone(fleet: list[NodeView], demand: dict[Key, Demand]) -> None:
    """The next plan drops nothing that this one fetched and fetches nothing that it dropped, on any node."""
    orders = plan(fleet, demand, CATALOGUE, RULES)
    following = plan(obeyed(fleet, orders), demand, CATALOGUE, RULES)
    fetched = {each.key for asked in orders.values() for each in asked.download}
    dropped = {each.key for asked in orders.values() for each in asked.evict}
    assert not fetched & {each.key for asked in following.values() for each in asked.evict}
    assert not dropped & {each.key for asked in following.values() for each in asked.download}


@EXAMPLES
@given(fleets(), wishes())
def test_plans_come_to_rest(fleet: list[NodeView], demand: dict[Key, Demand]) -> None:
    """With the same demand there is soon nothing left to order."""
    fleet = [replace(node, coming=frozenset()) for node in fleet]
    for _ in range(len(fleet) * len(KEYS)):
        orders = plan(fleet, demand, CATALOGUE, RULES)
        if not orders:
            break
        fleet = obeyed(fleet, orders)
    assert plan(fleet, demand, CATALOGUE, RULES) == {}


@EXAMPLES
@given(wishes(), st.integers(1, 6))
def test_with_room_for_all_every_model_in_demand_is_covered(demand: dict[Key, Demand], count: int) -> None:
    """Each comes to have as many copies as its demand asks for, and at least `Rules.coverage` where there are nodes."""
    fleet = [NodeView(f"node-{n}", free=100 * GB, cap=100 * GB) for n in range(count)]
    while orders := plan(fleet, demand, CATALOGUE, RULES):
        fleet = obeyed(fleet, orders)
    copies = Counter(key for node in fleet for key in node.held)
    for key, asked in demand.items():
        assert copies[key] == copies_for(asked, count, RULES)
        assert copies[key] >= min(count, RULES.coverage) or not (asked.waiting or asked.arrivals)


@EXAMPLES
@given(fleets(), wishes())
def test_a_plan_does_not_depend_on_the_order_of_things(fleet: list[NodeView], demand: dict[Key, Demand]) -> None:
    """The same fleet and demand, told the other way round, get the same orders."""
    turned = {key: demand[key] for key in reversed(demand)}
    sources = {key: CATALOGUE[key] for key in reversed(CATALOGUE)}
    assert plan(fleet, demand, CATALOGUE, RULES) == plan(fleet[::-1], turned, sources, RULES)


@EXAMPLES
@given(wishes(), st.integers(1, 60), st.floats(0.5, 1.5))
def test_targets_keep_what_they_want_and_fit_the_disks(demand: dict[Key, Demand], room: int, change: float) -> None:
    """Never more than the disks take; what is wanted is kept, also when demand changes by less than a third."""
    targets = targets_of(demand.values(), 4, room * GB, RULES)
    assert sum(SIZES[key] * count for key, count in targets.want.items()) <= room * GB
    assert all(targets.keep[key] >= count for key, count in targets.want.items())
    assert set(targets.want) <= set(demand)
    less = {key: replace(d, arrivals=d.arrivals * min(1.0, max(change, 0.7))) for key, d in demand.items()}
    spacious = targets_of(demand.values(), 4, 1000 * GB, RULES)
    after = targets_of(less.values(), 4, 1000 * GB, RULES)
    assert all(after.keep.get(key, 0) >= count for key, count in spacious.want.items())
