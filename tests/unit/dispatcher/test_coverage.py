"""Plans whose reasons can be followed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dispatcher.coverage import copies_for, plan, targets_of, value
from dispatcher.words import NO_MODEL, Demand, Key, Measured, NodeOrders, NodeView, Rules, Source

GB = 1_000_000_000
RULES = Rules()
DIGEST = "d" * 64
A, B, C = (Source("checkpoint", f"{name}.safetensors", f"https://cdn.example/{name}", size=4 * GB) for name in "abc")
CATALOGUE = {source.key: source for source in (A, B, C)}


def node(name: str, *held: Source, free: int = 0, network: float = 60e6) -> NodeView:
    return NodeView(
        name,
        held=frozenset(source.key for source in held),
        measured=Measured(network=network),
        free=free * GB,
        cap=(4 * len(held) + free) * GB,
        sizes={source.key: source.size or 0 for source in held},
    )


def wanted(source: Source, waiting: int = 1, arrivals: float = 0.0) -> Demand:
    return Demand(source.key, waiting, 6.0 * waiting, arrivals, size=source.size)


def asked(*demand: Demand) -> dict[Key, Demand]:
    return {each.key: each for each in demand}


def fetched(orders: dict[str, NodeOrders]) -> dict[str, list[Key]]:
    return {name: [need.key for need in each.download] for name, each in orders.items()}


def test_an_order_says_all_that_the_catalogue_knows() -> None:
    """Key, kind, name, URL and size of the file to be fetched."""
    (order,) = plan([node("n", free=10)], asked(wanted(A)), CATALOGUE, RULES).values()
    (need,) = order.download
    assert (need.key, need.kind, need.name, need.url, need.size) == (A.key, A.kind, A.name, A.url, A.size)
    assert order.evict == ()


def test_nothing_is_ordered_of_what_nobody_asks_for_or_nobody_has() -> None:
    """No demand, no catalogue entry, jobs of no model: no orders."""
    fleet = [node("n", free=10)]
    assert plan(fleet, {}, CATALOGUE, RULES) == {}
    assert plan(fleet, asked(Demand(A.key)), CATALOGUE, RULES) == {}
    assert plan(fleet, asked(wanted(A)), {}, RULES) == {}
    assert plan(fleet, asked(Demand(NO_MODEL, 9, 54.0)), CATALOGUE, RULES) == {}
    assert plan([], asked(wanted(A)), CATALOGUE, RULES) == {}


def test_the_fastest_node_with_room_fetches_it() -> None:
    """By measured bandwidth; a node whose jobs keep it busy counts as slower; what has no room does not count."""
    fleet = [node("full", B), node("slow", free=10, network=10e6), node("fast", free=10, network=100e6)]
    orders = plan(fleet, asked(wanted(A), wanted(B)), CATALOGUE, Rules(coverage=1))
    assert fetched(orders) == {"fast": [A.key]}
    busy = replace(node("fast", B, free=10, network=100e6), loaded=frozenset({B.key}))
    fleet = [busy, node("idle", free=10, network=80e6)]
    hot = asked(wanted(A), wanted(B, 0, arrivals=0.05))
    assert fetched(plan(fleet, hot, CATALOGUE, Rules(coverage=1)))["idle"] == [A.key]


def test_copies_rise_with_demand() -> None:
    """At least the rule's; then as many as the work keeps busy, with some to spare for chance and for lost nodes."""
    assert copies_for(wanted(A), 100, RULES) == 2
    assert copies_for(wanted(A, 0, arrivals=1.0), 100, RULES) == 10
    assert copies_for(wanted(A, 0, arrivals=4.0), 100, RULES) == 31
    assert copies_for(wanted(A, 0, arrivals=4.0), 20, RULES) == 20
    assert copies_for(Demand(A.key), 100, RULES) == 0


def test_a_further_copy_is_worth_less_than_one_that_the_work_needs() -> None:
    """Those that are needed share the work; what waits long counts more."""
    hot = wanted(A, 0, arrivals=1.0)
    assert value(hot, 1) == value(hot, 9) > value(hot, 10) > value(hot, 11)
    assert value(replace(wanted(A), age_s=600.0), 1) > value(wanted(A), 1)
    assert value(wanted(A), 2) < value(wanted(A), 1)


def test_a_source_is_not_stormed() -> None:
    """The first copy is fetched alone; the more there are, the more are fetched at once."""
    fleet = [node(f"n{n}", free=10) for n in range(9)]
    hot = asked(wanted(A, 500))
    assert len(plan(fleet, hot, CATALOGUE, RULES)) == 1
    coming = [replace(fleet[0], coming=frozenset({A.key})), *fleet[1:]]
    assert plan(coming, hot, CATALOGUE, RULES) == {}
    two = [node("h0", A, free=6), node("h1", A, free=6), *fleet[2:]]
    assert len(plan(two, hot, CATALOGUE, RULES)) == 3


def test_a_node_fetches_one_file_at_a_time() -> None:
    """Neither two at once, nor one while another is still on its way."""
    fleet = [node("n", free=20)]
    assert len(fetched(plan(fleet, asked(wanted(A), wanted(B)), CATALOGUE, RULES))["n"]) == 1
    assert plan([replace(fleet[0], coming=frozenset({B.key}))], asked(wanted(A)), CATALOGUE, RULES) == {}


def test_what_nobody_asks_for_makes_room_and_what_is_in_memory_does_not() -> None:
    """The least needed goes, only where room is needed, and named so that the node knows it."""
    full = node("n", B, C)
    orders = plan([full], asked(wanted(A), wanted(C)), CATALOGUE, Rules(coverage=1))
    assert [(need.kind, need.name) for need in orders["n"].evict] == [(B.kind, B.name)]
    assert plan([replace(full, loaded=frozenset({B.key, C.key}))], asked(wanted(A)), CATALOGUE, RULES) == {}
    roomy = plan([node("n", B, C, free=4)], asked(wanted(A), wanted(C)), CATALOGUE, Rules(coverage=1))
    assert roomy["n"].evict == ()


@pytest.mark.parametrize(
    ("key", "name"), [("checkpoint/sub/old", ("checkpoint", "sub/old")), (f"lora@{DIGEST}", ("lora", DIGEST))]
)
def test_what_the_catalogue_does_not_have_is_dropped_by_its_key(key: Key, name: tuple[str, str]) -> None:
    """A key tells the kind, and the name or the digest."""
    held = replace(node("n", B), held=frozenset({key}), sizes={key: 4 * GB})
    (order,) = plan([held], asked(wanted(A)), CATALOGUE, RULES).values()
    assert [(need.kind, need.name) for need in order.evict] == [name]


def test_a_file_that_jobs_know_by_another_name_is_needed() -> None:
    """All keys of a file count: it is not dropped under one of them while jobs wait for it under another."""
    same = replace(node("n", B), held=frozenset({B.key, "checkpoint/alias"}), same={"checkpoint/alias": B.key})
    demand = asked(wanted(A), Demand("checkpoint/alias", 50, 300.0, size=4 * GB))
    assert plan([same], demand, CATALOGUE, Rules(coverage=1)) == {}
    assert plan([same], asked(wanted(A)), CATALOGUE, RULES) != {}


def test_two_nodes_do_not_both_drop_what_one_must_keep() -> None:
    """Each drop counts for the rest of the plan."""
    other = replace(node("n2", B), held=frozenset({"checkpoint/z"}), loaded=frozenset({"checkpoint/z"}))
    fleet = [node("n0", B), node("n1", B), other]
    demand = asked(wanted(A), wanted(B), wanted(C))
    dropped = [need.key for each in plan(fleet, demand, CATALOGUE, Rules(coverage=1)).values() for need in each.evict]
    assert dropped == [B.key]


def test_disks_too_small_for_all_go_to_what_is_asked_for_most() -> None:
    """By jobs a second for each byte; the rest is not wanted, and nothing is dropped for it."""
    demand = [wanted(A, 10), wanted(B, 5), wanted(C, 1)]
    targets = targets_of(demand, 3, 10 * GB, Rules(coverage=1))
    assert targets.want == {A.key: 1, B.key: 1}
    assert targets.keep[A.key] >= 1


def test_a_node_that_tells_nothing_of_its_disk_has_the_usual_cache() -> None:
    """As the published example: names of models, no sizes and no room."""
    bare = NodeView("bare", held=frozenset({B.key}))
    assert fetched(plan([bare], asked(wanted(A)), CATALOGUE, RULES)) == {"bare": [A.key]}
    crowded = replace(bare, held=frozenset(f"lora/{n}" for n in range(20)))
    assert fetched(plan([crowded], asked(wanted(A)), CATALOGUE, Rules(cap=50 * GB))) == {"bare": [A.key]}
    assert fetched(plan([replace(bare, free=10 * GB)], asked(wanted(A)), CATALOGUE, RULES)) == {"bare": [A.key]}
    assert plan([bare], asked(wanted(A)), CATALOGUE, Rules(cap=3 * GB)) == {}
