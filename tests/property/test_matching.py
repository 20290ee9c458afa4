"""Whatever waits and whatever a node has: priorities, warm jobs and the bound on skips hold, and all is explained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.matching import Pressure, choose, cost_s, fits, interests, pressure
from dispatcher.matching.index import PRESSED
from dispatcher.words import NO_MODEL, Board, Choice, Demand, Key, Need, NodeView, Option, Rules, Skip, Waiting, Why

GB = 1_000_000_000
MAINS = tuple(f"checkpoint/{name}" for name in "abcdef")
LORAS = ("lora/x", "lora/y")
SIZES = {**{key: (2 + 3 * n) * GB for n, key in enumerate(MAINS)}, **dict.fromkeys(LORAS, GB // 5)}
EXAMPLES = settings(max_examples=60, deadline=None)

rates = st.sampled_from([0.0, 0.001, 0.05, 0.5, 3.0])
sizes_told = st.booleans()


def need(key: Key, *, told: bool = True) -> Need:
    kind, _, name = key.partition("/")
    return Need(key, kind, name, SIZES[key] if told else None)


@st.composite
def jobs(draw: st.DrawFn) -> list[Waiting]:
    """Jobs that wait, with distinct ids and ranks."""
    mains = draw(st.lists(st.sampled_from([NO_MODEL, *MAINS]), max_size=12))
    return [
        Waiting(
            f"job-{number}",
            (() if main == NO_MODEL else (need(main, told=draw(sizes_told)),))
            + (tuple(need(key) for key in draw(st.sets(st.sampled_from(LORAS), max_size=1))) if main else ()),
            priority=draw(st.integers(0, 2)),
            rank=float(draw(st.integers(0, 5))),
            work_s=draw(st.sampled_from([1.0, 6.0, 60.0])),
        )
        for number, main in enumerate(mains)
    ]


@st.composite
def nodes(draw: st.DrawFn) -> NodeView:
    held = draw(st.frozensets(st.sampled_from(MAINS + LORAS)))
    mains = sorted(key for key in held if key in MAINS)
    loaded = draw(st.sampled_from([frozenset(), *(frozenset({key}) for key in mains)]))
    return NodeView(
        "node",
        loaded=loaded,
        held=held,
        free=draw(st.none() | st.integers(0, 40 * GB)),
        cap=draw(st.none() | st.sampled_from([3 * GB, 9 * GB, 40 * GB])),
        resident_s=draw(st.floats(0, 200)),
        used=tuple(draw(st.permutations(sorted(held)))),
        sizes={key: SIZES[key] for key in sorted(held)},
        coming=draw(st.frozensets(st.sampled_from(MAINS), max_size=1)),
        running=draw(st.integers(0, 2)),
        idle_s=draw(st.sampled_from([0.0, 5.0, 500.0])),
    )


def heads_of(waiting: Sequence[Waiting]) -> dict[Key, list[Waiting]]:
    heads: dict[Key, list[Waiting]] = {}
    for job in sorted(waiting, key=lambda job: job.order):
        heads.setdefault(job.key, []).append(job)
    return heads


@st.composite
def boards(draw: st.DrawFn) -> Board:
    waiting = draw(jobs())
    heads = heads_of(waiting)
    demand = {
        key: Demand(
            key,
            waiting=len(heads.get(key, ())),
            work_s=sum(job.work_s for job in heads.get(key, ())),
            arrivals=draw(rates),
            warm=draw(st.integers(0, 3)),
            copies=draw(st.integers(0, 3)),
            coming=draw(st.integers(0, 1)),
            age_s=draw(st.sampled_from([0.0, 30.0, 3000.0])),
        )
        for key in (NO_MODEL, *MAINS)
        if key in heads or draw(st.booleans())
    }
    oldest = min(waiting, key=lambda job: job.order, default=None)
    return Board({key: found[:4] for key, found in heads.items()}, demand, oldest, draw(st.integers(0, 150)))


def is_here(node: NodeView, job: Waiting) -> bool:
    return all(each.key in node.loaded for each in job.needs[:1]) and all(each.key in node.held for each in job.needs)


@EXAMPLES
@given(nodes(), boards())
def test_no_cold_job_goes_before_a_warm_one_of_its_priority(node: NodeView, board: Board) -> None:
    """A job that needs neither swap nor transfer is passed over only for an overdue one or a higher priority."""
    chosen = choose(node, board, Rules()).option
    warm = [job for found in board.heads.values() for job in found if is_here(node, job) and fits(node, job)]
    if chosen is None:
        assert not warm
    elif chosen.why is not Why.OVERDUE and chosen.job.key not in node.loaded | {NO_MODEL}:
        assert all(job.priority < chosen.job.priority for job in warm)


@EXAMPLES
@given(nodes(), boards())
def test_what_cannot_fit_is_never_given(node: NodeView, board: Board) -> None:
    """Not even an overdue job goes to a node whose cache is too small for its models, and that is said."""
    choice = choose(node, board, Rules())
    assert choice.option is None or fits(node, choice.option.job)
    for option in choice.options:
        assert (option.skip is Skip.TOO_LARGE) == (not fits(node, option.job))


@EXAMPLES
@given(nodes(), boards())
def test_an_overdue_job_goes_first_to_whoever_can_hold_it(node: NodeView, board: Board) -> None:
    """Once the first in line was passed over so often, the next node that can hold it gets it, whatever it costs."""
    chosen = choose(node, board, Rules()).option
    if board.oldest is not None and board.passed >= Rules().max_skips and fits(node, board.oldest):
        assert chosen is not None
        assert (chosen.job, chosen.why) == (board.oldest, Why.OVERDUE)


def explained(choice: Choice, node: NodeView, board: Board) -> None:
    first = choice.options[0] if choice.options else None
    assert choice.option is None or choice.option is first
    for option in choice.options:
        assert (option.skip is None) == (option is choice.option)
        assert option.note
        why, cost = cost_s(node, option.job, Rules())
        assert option.cost_s == cost
        assert option.why in (why, Why.OVERDUE)
    weighed = {option.job.id for option in choice.options}
    assert all(found[0].id in weighed for found in board.heads.values())
    assert all(count > 0 and reason in set(Skip) for reason, count in choice.skipped.items())


@EXAMPLES
@given(nodes(), boards())
def test_the_explanation_is_that_of_the_choice(node: NodeView, board: Board) -> None:
    """What was chosen stands first and alone without a reason against it; the first job of each model is weighed."""
    explained(choose(node, board, Rules()), node, board)


@EXAMPLES
@given(nodes(), boards())
def test_the_same_question_has_one_answer(node: NodeView, board: Board) -> None:
    """In whatever order heads and demand are told, and whenever it is asked."""
    told = sorted(board.heads), sorted(board.demand)
    other = Board(
        {key: board.heads[key] for key in reversed(told[0])},
        {key: board.demand[key] for key in reversed(told[1])},
        board.oldest,
        board.passed,
    )
    assert choose(node, board, Rules()) == choose(node, other, Rules()) == choose(node, board, Rules())


@EXAMPLES
@given(nodes(), boards())
def test_a_brief_decision_is_the_same(node: NodeView, board: Board) -> None:
    """What is weighed for the explanation alone changes nothing; without a job everything was weighed."""
    whole, brief = choose(node, board, Rules()), choose(node, board, Rules(), brief=True)
    assert brief.option == whole.option
    assert {option.job.id for option in brief.options} <= {option.job.id for option in whole.options}
    if whole.option is None:
        assert brief == whole


def given_to(node: NodeView, option: Option) -> NodeView:
    """The node when it is through with a job."""
    keys = frozenset(each.key for each in option.job.needs)
    swapped = option.job.key != NO_MODEL and option.job.key not in node.loaded
    return replace(
        node,
        loaded=keys if swapped else node.loaded | keys,
        held=node.held | keys,
        coming=node.coming - keys,
        resident_s=0.0 if swapped else node.resident_s + 6.0,
        idle_s=0.0,
    )


@EXAMPLES
@given(nodes(), boards(), st.integers(1, 5))
def test_a_single_node_does_every_job_in_the_end(node: NodeView, board: Board, skips: int) -> None:
    """None that fits waits for ever, and none at the head of the line is passed over more often than the rule says."""
    rules = Rules(max_skips=skips)
    node = replace(node, running=0, cap=None)
    waiting = sorted((job for found in board.heads.values() for job in found), key=lambda job: job.order)
    passed, rounds, waited = 0, 0, 0.0
    while waiting:
        rounds += 1
        assert rounds < 200
        heads = heads_of(waiting)
        demand = {
            key: replace(
                d,
                waiting=len(heads.get(key, ())),
                work_s=sum(job.work_s for job in heads.get(key, ())),
                age_s=d.age_s + waited,
            )
            for key, d in board.demand.items()
        }
        choice = choose(node, Board(heads, demand, waiting[0], passed), rules)
        if choice.option is None:
            assert choice.again_s is not None
            assert choice.again_s > 0
            node, waited = replace(node, idle_s=node.idle_s + choice.again_s), waited + choice.again_s
            continue
        passed = 0 if choice.option.job is waiting[0] else passed + 1
        assert passed <= skips
        waiting.remove(choice.option.job)
        node = given_to(node, choice.option)


@st.composite
def changes(draw: st.DrawFn) -> list[Demand]:
    """What becomes known of models, one after the other."""
    return [
        Demand(
            key,
            waiting=(waiting := draw(st.integers(0, 3))),
            work_s=6.0 * waiting,
            warm=draw(st.integers(0, 2)),
            copies=draw(st.integers(0, 1)),
            age_s=draw(st.sampled_from([0.0, 60.0])),
        )
        for key in draw(st.lists(st.sampled_from([f"checkpoint/{n}" for n in range(30)] + [NO_MODEL]), max_size=60))
    ]


def first_of(known: Mapping[Key, Demand], count: int, but: frozenset[Key]) -> list[Key]:
    wanted = sorted((-pressure(d), d.key) for d in known.values() if d.waiting and d.key not in {NO_MODEL, *but})
    found = [key for _, key in wanted][:count]
    return found + [key for _, key in wanted if key not in found and not known[key].copies][:count]


@EXAMPLES
@given(changes(), changes(), st.integers(0, 5), st.frozensets(st.sampled_from(["checkpoint/1", "checkpoint/2"])))
def test_the_index_names_what_sorting_all_would(
    begun: list[Demand], put: list[Demand], count: int, but: frozenset[Key]
) -> None:
    """After any sequence of changes the most pressed are those that a sort of everything finds."""
    index, known = Pressure(begun), {d.key: d for d in begun}
    for demand in put:
        index.put(demand)
        known[demand.key] = demand
    assert dict(index) == known
    assert len(index) == len(known)
    assert index.top(count, but=but) == first_of(known, count, but)


@EXAMPLES
@given(nodes(), changes())
def test_interests_are_few_whatever_waits(node: NodeView, demand: list[Demand]) -> None:
    """Each once, all that the node holds and jobs wait for among them, and no more than it holds and a constant."""
    known = {d.key: d for d in demand}
    keys = interests(node, known, Rules())
    assert keys == interests(node, Pressure(known.values()), Rules())
    assert max(Counter(keys).values()) == 1
    assert NO_MODEL in keys
    assert {key for key in node.held if key in known and known[key].waiting} <= set(keys)
    assert len(keys) <= 1 + len(node.held | node.coming) + 2 * PRESSED
