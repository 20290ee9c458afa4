"""Decisions whose reasons can be followed by hand."""

from __future__ import annotations

from dataclasses import replace

from dispatcher.matching import Pressure, choose, cost_s, fits
from dispatcher.words import NO_MODEL, Board, Choice, Demand, Key, Measured, Need, NodeView, Rules, Skip, Waiting, Why

GB = 1_000_000_000
RULES = Rules(size=4 * GB)
SPEEDS = Measured(disk=1e9, network=100e6, load=8.0)
A, B, C = "checkpoint/a", "checkpoint/b", "checkpoint/c"
NODE = NodeView("node", frozenset({A}), frozenset({A, B}), SPEEDS, free=20 * GB, cap=50 * GB, resident_s=1000.0)


def need(key: Key, size: int | None = 4 * GB) -> Need:
    kind, _, name = key.partition("/")
    return Need(key, kind, name, size)


def job(name: str, *keys: Key, priority: int = 0, rank: float = 0.0, size: int | None = 4 * GB) -> Waiting:
    needs = tuple(need(key, size if number == 0 else GB // 5) for number, key in enumerate(keys))
    return Waiting(name, needs, priority=priority, rank=rank)


def board(*waiting: Waiting, demand: tuple[Demand, ...] = (), passed: int = 0) -> Board:
    """Jobs in line, with the demand that follows from them alone unless it is given."""
    line = sorted(waiting, key=lambda each: each.order)
    heads: dict[Key, list[Waiting]] = {}
    for each in line:
        heads.setdefault(each.key, []).append(each)
    known = {key: Demand(key, len(jobs), sum(j.work_s for j in jobs)) for key, jobs in heads.items()}
    return Board(heads, known | {d.key: d for d in demand}, line[0] if line else None, passed)


def chosen(choice: Choice) -> str | None:
    return choice.option.job.id if choice.option is not None else None


def reasons(choice: Choice) -> dict[str, Skip | None]:
    return {option.job.id: option.skip for option in choice.options}


def test_what_a_job_costs_follows_from_what_the_node_measured() -> None:
    """Nothing in memory, a load from disk, a transfer and a load for what is missing; small files their reading."""
    assert cost_s(NODE, job("x", A), RULES) == (Why.WARM, 0.0)
    assert cost_s(NODE, job("x", B), RULES) == (Why.DISK, 8.0)
    assert cost_s(NODE, job("x", B, size=2 * GB), RULES) == (Why.DISK, 4.0)
    assert cost_s(NODE, job("x", C), RULES) == (Why.DOWNLOAD, 48.0)
    why, seconds = cost_s(NODE, job("x", A, "lora/x"), RULES)
    assert (why, round(seconds, 6)) == (Why.DOWNLOAD, 2.2)
    has_lora = replace(NODE, held=NODE.held | {"lora/x"})
    why, seconds = cost_s(has_lora, job("x", A, "lora/x"), RULES)
    assert (why, round(seconds, 6)) == (Why.WARM, 0.2)
    assert cost_s(NODE, job("x"), RULES) == (Why.WARM, 0.0)


def test_a_slow_disk_is_slow_whatever_loads_were_measured() -> None:
    """No model loads faster than the disk gives its bytes."""
    slow = replace(NODE, measured=replace(SPEEDS, disk=0.1e9))
    assert cost_s(slow, job("x", B), RULES) == (Why.DISK, 40.0)


def test_a_transfer_under_way_counts_half_and_unknown_sizes_as_usual() -> None:
    """What was ordered is expected sooner; of a file of which nobody knows the size its kind tells."""
    coming = replace(NODE, coming=frozenset({C}))
    assert cost_s(coming, job("x", C), RULES) == (Why.DOWNLOAD, 28.0)
    assert cost_s(NODE, job("x", C, size=None), RULES) == (Why.DOWNLOAD, 48.0)


def test_sizes_that_are_known_decide_whether_a_job_fits() -> None:
    """By the whole cache, not by what is free; what is all there fits, and so may what nobody knows."""
    small = replace(NODE, cap=4 * GB)
    assert fits(small, job("x", C))
    assert not fits(small, job("x", C, "lora/x"))
    assert fits(small, job("x", C, size=None))
    assert fits(replace(small, held=frozenset({C, "lora/x"})), job("x", C, "lora/x"))
    assert fits(replace(NODE, cap=None), job("x", C, size=900 * GB))


def test_memory_goes_before_disk_and_disk_before_a_download() -> None:
    """Though the others came first and more of them wait."""
    cold = [job(f"c{n}", C, rank=0.0) for n in range(4)]
    disk, others = [job("b", B, rank=1.0)], (Demand("checkpoint/z", warm=50),)
    assert chosen(choose(NODE, board(*cold, *disk, job("a", A, rank=2.0)), RULES)) == "a"
    assert chosen(choose(NODE, board(*cold, *disk, demand=others), RULES)) == "b"
    assert chosen(choose(NODE, board(*cold, demand=others), RULES)) == "c0"


def test_of_two_models_on_disk_the_one_with_more_work_for_each_warm_node_goes_first() -> None:
    """Many jobs that several nodes are warm for are less pressing than some that none is."""
    node = replace(NODE, held=frozenset({A, B, C}))
    demand = (Demand(B, 20, 120.0, warm=5), Demand(C, 5, 30.0))
    assert chosen(choose(node, board(job("b", B), job("c", C, rank=1.0), demand=demand), RULES)) == "c"
    demand = (Demand(B, 20, 120.0, warm=2), Demand(C, 5, 30.0))
    assert chosen(choose(node, board(job("b", B), job("c", C, rank=1.0), demand=demand), RULES)) == "b"


def test_within_a_model_jobs_go_in_their_order() -> None:
    """By priority, then rank; one of no model takes its turn with those in memory."""
    waiting = [job("late", A, rank=2.0), job("early", A, rank=1.0), job("urgent", A, rank=3.0, priority=1)]
    assert chosen(choose(NODE, board(*waiting), RULES)) == "urgent"
    assert chosen(choose(NODE, board(*waiting[:2]), RULES)) == "early"
    assert chosen(choose(NODE, board(*waiting[:2], job("none", rank=0.5)), RULES)) == "none"


def test_a_higher_priority_goes_first_from_disk_too() -> None:
    """Even where what is in memory is still needed."""
    demand: tuple[Demand, ...] = (Demand(A, 1, 6.0, arrivals=5.0, warm=1), Demand(B, 1, 6.0))
    urgent = job("b", B, priority=1)
    assert chosen(choose(NODE, board(job("a", A), urgent, demand=demand), RULES)) == "b"
    thin = (Demand(A, warm=1), Demand("checkpoint/z", 200, 1200.0), Demand(B, 1, 6.0), Demand(C, 1, 6.0))
    node = replace(NODE, held=frozenset({A, B, C}))
    assert chosen(choose(node, board(urgent, job("c", C), demand=thin), RULES)) == "b"
    assert chosen(choose(node, board(job("b", B), job("c", C), demand=thin), RULES)) is None


def test_a_swap_must_outweigh_what_is_in_memory() -> None:
    """With jobs for it coming all the time the node waits for them, unless more work waits than that, or too long."""
    hot = Demand(A, arrivals=1.0, warm=1)
    little = board(job("b", B), demand=(hot, Demand(B, 1, 6.0)))
    choice = choose(NODE, little, RULES)
    assert (chosen(choice), reasons(choice)) == (None, {"b": Skip.SWAP_NOT_WORTH})
    assert choice.skipped == {Skip.SWAP_NOT_WORTH: 1}
    assert choice.again_s == 16.0
    assert "needed" in choice.options[0].note
    assert chosen(choose(NODE, board(job("b", B), demand=(hot, Demand(B, 50, 300.0))), RULES)) == "b"
    assert chosen(choose(replace(NODE, idle_s=16.0), little, RULES)) == "b"


def test_where_others_can_do_without_this_node_it_leaves() -> None:
    """The model in memory has nodes enough without it, or hardly a job for it will come meanwhile."""
    for victim in (Demand(A, arrivals=0.3, warm=9), Demand(A, arrivals=0.01, warm=1), Demand(A, warm=1)):
        assert chosen(choose(NODE, board(job("b", B), demand=(victim, Demand(B, 1, 6.0))), RULES)) == "b"


def test_a_model_stays_for_its_minimum_residency_if_jobs_for_it_come() -> None:
    """Just loaded, it is not given up for one job; a model that nobody asks for may go at once."""
    fresh = replace(NODE, resident_s=0.0)
    victim, other = Demand(A, arrivals=0.05, warm=1), Demand(B, 1, 6.0)
    assert chosen(choose(fresh, board(job("b", B), demand=(victim, other)), RULES)) is None
    assert chosen(choose(NODE, board(job("b", B), demand=(victim, other)), RULES)) == "b"
    assert chosen(choose(fresh, board(job("b", B), demand=(Demand(A, warm=1), other)), RULES)) == "b"


def test_of_several_models_in_memory_the_longest_unused_is_what_a_swap_costs() -> None:
    """A server that holds two lets go of the one that it used the longest ago."""
    both = replace(NODE, loaded=frozenset({A, C}), held=frozenset({A, B, C}), used=(A, C))
    hot = (Demand(A, arrivals=1.0, warm=1), Demand(B, 1, 6.0))
    assert chosen(choose(both, board(job("b", B), demand=hot), RULES)) is None
    assert chosen(choose(replace(both, used=(C, A)), board(job("b", B), demand=hot), RULES)) == "b"


def test_what_a_warm_node_will_take_sooner_is_left_to_it() -> None:
    """Until its first job has waited so long that it will not, or where more waits than warm nodes can do."""
    warm = Demand(B, 1, 6.0, warm=1)
    choice = choose(NODE, board(job("b", B), demand=(warm,)), RULES)
    assert (chosen(choice), reasons(choice)) == (None, {"b": Skip.WARM_ELSEWHERE})
    assert chosen(choose(NODE, board(job("b", B), demand=(replace(warm, age_s=16.0),)), RULES)) == "b"
    assert chosen(choose(NODE, board(job("b", B), demand=(Demand(B, 20, 120.0, warm=1),)), RULES)) == "b"


def test_thin_work_waits_for_more_only_while_the_fleet_has_other_work() -> None:
    """One job is not worth a load while a backlog waits for each node; where little else waits it is."""
    busy = (Demand(A, 0, 0.0, warm=10), Demand("checkpoint/z", 200, 1200.0, warm=1), Demand(B, 1, 6.0))
    thin = board(job("b", B), demand=busy)
    assert reasons(choose(NODE, thin, RULES)) == {"b": Skip.SWAP_NOT_WORTH}
    assert choose(NODE, thin, RULES).again_s == 64.0
    assert chosen(choose(replace(NODE, idle_s=64.0), thin, RULES)) == "b"
    assert chosen(choose(replace(NODE, loaded=frozenset()), thin, RULES)) == "b"
    assert chosen(choose(NODE, board(job("b", B), demand=(*busy[:2], replace(busy[2], age_s=600.0))), RULES)) == "b"
    quiet = (busy[0], Demand("checkpoint/z", 80, 480.0, warm=1), busy[2])
    assert chosen(choose(NODE, board(job("b", B), demand=quiet), RULES)) == "b"


def test_what_lies_on_other_disks_is_not_fetched_here() -> None:
    """Unless those nodes have too much of it to do, or leave its first job waiting."""
    copies = Demand(C, 1, 6.0, copies=2)
    choice = choose(NODE, board(job("c", C), demand=(copies,)), RULES)
    assert (chosen(choice), reasons(choice)) == (None, {"c": Skip.WARM_ELSEWHERE})
    assert chosen(choose(NODE, board(job("c", C), demand=(Demand(C, 50, 300.0, copies=2),)), RULES)) == "c"
    assert chosen(choose(NODE, board(job("c", C), demand=(replace(copies, age_s=50.0),)), RULES)) == "c"


def test_what_is_coming_is_waited_for() -> None:
    """Here, or on another node; a small file may be fetched besides, but not by a node whose job waits for the link."""
    coming = replace(NODE, coming=frozenset({C}))
    assert reasons(choose(coming, board(job("c", C)), RULES)) == {"c": Skip.COMING}
    elsewhere = Demand(C, 1, 6.0, coming=1)
    assert reasons(choose(NODE, board(job("c", C), demand=(elsewhere,)), RULES)) == {"c": Skip.COMING}
    large = replace(NODE, coming=frozenset({"checkpoint/z"}), sizes={"checkpoint/z": 20 * GB})
    assert reasons(choose(large, board(job("c", C)), RULES)) == {"c": Skip.COMING}
    assert chosen(choose(large, board(job("a", A, "lora/x")), RULES)) == "a"
    assert reasons(choose(replace(large, running=1), board(job("a", A, "lora/x")), RULES)) == {"a": Skip.COMING}
    assert chosen(choose(replace(large, idle_s=500.0), board(job("c", C)), RULES)) == "c"


def test_nothing_is_fetched_that_would_drop_what_serves_more() -> None:
    """The cache drops what was used the longest ago: not the only copy of a model that more jobs come for."""
    full = replace(NODE, free=0, used=(B, A), sizes={A: 4 * GB, B: 4 * GB})
    wanted = Demand(B, arrivals=0.5, copies=1)
    choice = choose(full, board(job("c", C), demand=(wanted,)), RULES)
    assert reasons(choice) == {"c": Skip.SWAP_NOT_WORTH}
    assert "drop" in choice.options[0].note
    assert chosen(choose(full, board(job("c", C), demand=(replace(wanted, copies=9),)), RULES)) == "c"
    assert chosen(choose(replace(full, free=None), board(job("c", C), demand=(wanted,)), RULES)) == "c"


def test_a_job_whose_lora_is_missing_does_not_hold_up_those_behind_it() -> None:
    """Where it has to wait for the link, the next job of its model that needs nothing goes."""
    busy = replace(NODE, running=1, coming=frozenset({"checkpoint/z"}))
    choice = choose(busy, board(job("first", A, "lora/x"), job("second", A, rank=1.0)), RULES)
    assert chosen(choice) == "second"
    assert reasons(choice)["first"] is Skip.COMING
    assert chosen(choose(NODE, board(job("first", A, "lora/x"), job("second", A, rank=1.0)), RULES)) == "first"


def test_the_first_in_line_is_not_passed_over_for_ever() -> None:
    """At the bound it goes to any node that can hold it, at half of it to one that needs no transfer for it."""
    waiting = (job("cold", C), job("a", A, rank=1.0))
    assert chosen(choose(NODE, board(*waiting, passed=99), RULES)) == "a"
    overdue = choose(NODE, board(*waiting, passed=100), RULES)
    assert chosen(overdue) == "cold"
    assert overdue.option is not None
    assert overdue.option.why is Why.OVERDUE
    assert chosen(choose(replace(NODE, cap=3 * GB), board(*waiting, passed=100), RULES)) == "a"
    waiting = (job("disk", B), job("a", A, rank=1.0))
    assert chosen(choose(NODE, board(*waiting, passed=50), RULES)) == "disk"


def test_the_first_in_line_is_weighed_though_its_model_is_not_on_the_board() -> None:
    """A board has the heads of the models that concern a node, and the oldest of all besides."""
    oldest = job("cold", C)
    alone = replace(board(job("a", A, rank=1.0)), oldest=oldest, passed=100)
    assert chosen(choose(NODE, alone, RULES)) == "cold"
    small = choose(replace(NODE, cap=3 * GB, held=frozenset({A})), alone, RULES)
    assert chosen(small) == "a"
    assert reasons(small)["cold"] is Skip.TOO_LARGE


def test_what_is_too_large_lets_the_next_of_its_model_through() -> None:
    """Counted and explained, and no obstacle."""
    small = replace(NODE, cap=5 * GB)
    choice = choose(small, board(job("large", C, size=6 * GB), job("fits", C, rank=1.0)), RULES)
    assert chosen(choice) == "fits"
    assert reasons(choice)["large"] is Skip.TOO_LARGE
    assert choice.skipped[Skip.TOO_LARGE] == 1


def test_nothing_waits() -> None:
    """No job, no reason, and no time after which to ask again."""
    assert choose(NODE, board(), RULES) == Choice(None)


def test_what_is_left_behind_is_counted_by_reason() -> None:
    """The others of the chosen model are behind; of the rest each counts with the reason of its first job."""
    demand = (Demand(A, 5, 30.0, warm=1), Demand(B, 3, 18.0, warm=4))
    choice = choose(NODE, board(job("a", A), job("b", B, rank=1.0), demand=demand), RULES)
    assert choice.skipped == {Skip.BEHIND: 4, Skip.WARM_ELSEWHERE: 3}


def test_a_backlog_is_what_waits_for_each_node() -> None:
    """Work of all models, by the nodes that have a main model in memory; LoRAs in memory are no nodes."""
    index = Pressure([Demand(A, 2, 12.0, warm=3), Demand(NO_MODEL, 1, 6.0), Demand("lora/x", warm=7)])
    assert index.backlog_s == 6.0
    index.put(Demand(A, 4, 30.0, warm=6))
    assert index.backlog_s == 6.0
    assert Pressure().backlog_s == 0.0


def test_rare_models_cause_few_loads_beside_a_popular_one() -> None:
    """With work for the popular one always there, each tenth job of another model costs no two loads each.

    A picker that ignored what the victim is needed for had one in a hundred requests cause two thirds of all loads.
    """
    rules, node, loads, passed = replace(RULES, max_skips=50), NODE, 0, 0
    rare: list[Waiting] = []
    for number in range(1000):
        if number % 10 == 0:
            rare.append(job(f"b{number:04}", B, rank=float(number)))
        waiting = board(*rare, job(f"a{number:04}", A, rank=float(number)), passed=passed)
        option = choose(node, waiting, rules).option
        assert option is not None
        loads += option.job.key not in node.loaded
        node = replace(node, loaded=frozenset({option.job.key}))
        passed = 0 if option.job is waiting.oldest else passed + 1
        rare = [each for each in rare if each.id != option.job.id]
    assert 0 < loads <= 1000 / 25 * 2


def test_a_file_of_several_keys_is_one_file() -> None:
    """Its size is known under each, and what a swap would take out of memory is wanted under each."""
    alias = "checkpoint@" + "a" * 64
    node = replace(NODE, loaded=frozenset({A, alias}), held=NODE.held | {alias}, same={alias: A}, sizes={A: 2 * GB})
    assert cost_s(replace(node, loaded=frozenset()), job("x", alias, size=None), RULES) == (Why.DISK, 4.0)
    hot = (Demand(alias, arrivals=2.0, warm=1), Demand(B, 1, 6.0))
    assert chosen(choose(node, board(job("b", B), demand=hot), RULES)) is None
    full = replace(NODE, loaded=frozenset(), held=frozenset({B, "checkpoint/b2"}), free=0, used=(B, "checkpoint/b2"))
    full = replace(full, same={"checkpoint/b2": B})
    assert chosen(choose(full, board(job("c", C), demand=(Demand(B, arrivals=0.5, copies=1),)), RULES)) is None
