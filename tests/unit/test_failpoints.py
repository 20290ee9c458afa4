"""Every effect of a job stands between two failpoints: in the source, and in what a running worker does."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from tests.support.virtual import virtual
from tests.support.world import World
from worker import failpoints, pipeline, settlement
from worker.errors import OutputEmpty, UploadFailed
from worker.failpoints import POINTS, Effect

VERBS = {
    "put_artifact": Effect.UPLOAD,
    "put_mark": Effect.MARK,
    "put_failure": Effect.FAILURE,
    "send": Effect.WEBHOOK,
    "ack": Effect.ACK,
    "nack": Effect.NACK,
    "reject": Effect.REJECT,
}
"""The calls by which a job shows itself to others, and what each is called among the effects."""

STORY = (pipeline, settlement)
Parents = dict[ast.AST, ast.AST]


@pytest.fixture(autouse=True)
def unhooked() -> Iterator[None]:
    """No hook outlives its test."""
    yield
    failpoints.install(None)


def parents_of(tree: ast.AST) -> Parents:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def above(node: ast.AST, parents: Parents) -> Iterator[ast.AST]:
    while (parent := parents.get(node)) is not None:
        yield parent
        node = parent


def verbs_in(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS:
            yield node


def effect_entered(node: ast.With | ast.AsyncWith) -> str | None:
    """The text of the effect that a `with` statement enters by `lease.effect(...)`."""
    for item in node.items:
        call = item.context_expr
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "effect":
            return ast.unparse(call.args[0])
    return None


def guard_of(verb: ast.Call, tree: ast.Module, parents: Parents) -> str | None:
    """The effect under which a verb is called, None when it is called bare.

    The verb stands in the block of a `lease.effect(...)` within its own function, or it is a lambda handed, with
    the effect before it, to a function that calls its parameter in such a block.
    """
    for node in above(verb, parents):
        if isinstance(node, ast.AsyncWith) and (effect := effect_entered(node)) is not None:
            return effect
        if isinstance(node, ast.Lambda):
            call = parents[node]
            return ast.unparse(call.args[0]) if isinstance(call, ast.Call) and calls_guarded(call, tree) else None
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return None
    return None


def calls_guarded(call: ast.Call, tree: ast.Module) -> bool:
    """Whether the called function takes an effect and a callable, and calls that under this effect and nowhere else."""
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    found = [one for one in tree.body if isinstance(one, ast.AsyncFunctionDef) and one.name == name]
    if not found:
        return False
    effect, callee = (argument.arg for argument in found[0].args.args[:2])
    inner = parents_of(found[0])
    calls = [
        node
        for node in ast.walk(found[0])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == callee
    ]
    guards = [[effect_entered(one) for one in above(node, inner) if isinstance(one, ast.AsyncWith)] for node in calls]
    return bool(guards) and all(effect in guard for guard in guards)


def bare_verbs(source: str) -> list[str]:
    """Every verb that is not called under its own effect."""
    tree = ast.parse(source)
    parents = parents_of(tree)
    found = []
    for verb in verbs_in(tree):
        assert isinstance(verb.func, ast.Attribute)
        wanted = f"Effect.{VERBS[verb.func.attr].name}"
        if guard_of(verb, tree, parents) != wanted:
            found.append(f"line {verb.lineno}: {ast.unparse(verb)} is not under {wanted}")
    return found


@pytest.mark.parametrize("module", STORY, ids=lambda module: str(module.__name__))
def test_every_effect_is_under_its_lease(module: ModuleType) -> None:
    """No verb that others can see is called outside of `lease.effect(...)`, which has a failpoint on each side."""
    assert bare_verbs(inspect.getsource(module)) == []


def test_every_effect_is_somewhere() -> None:
    """Together the modules of the story do every kind of effect, so that the rule above is about all of them."""
    done = {
        verb.func.attr
        for module in STORY
        for verb in verbs_in(ast.parse(inspect.getsource(module)))
        if isinstance(verb.func, ast.Attribute)
    }
    assert done == set(VERBS)
    assert set(VERBS.values()) == set(Effect)


BAD = {
    "bare": "async def f(q, j, b):\n    await q.ack(j, 1)",
    "under another effect": "async def f(q, l):\n    async with l.effect(Effect.NACK):\n        await q.ack(1)",
    "after the effect": "async def f(q, l):\n    async with l.effect(Effect.ACK):\n        pass\n    await q.ack(1)",
    "in a function within": (
        "async def f(q, l):\n    async with l.effect(Effect.ACK):\n        async def g():\n            await q.ack(1)"
    ),
    "a lambda to nobody": "async def f(q):\n    await unknown(Effect.ACK, lambda: q.ack(1))",
    "a lambda called bare": (
        "async def f(q):\n    await g(Effect.ACK, lambda: q.ack(1))\n"
        "async def g(effect, call, l):\n    async with l.effect(effect):\n        await call()\n    await call()"
    ),
}


@pytest.mark.parametrize("source", BAD.values(), ids=BAD.keys())
def test_the_rule_finds_bare_effects(source: str) -> None:
    """The static rule sees each way in which an effect could slip out."""
    assert len(bare_verbs(source)) == 1


class Trace:
    """What a running worker did, in order: failpoints by name, effects by their verb."""

    def __init__(self, world: World) -> None:
        self.events: list[tuple[str, Any]] = []
        failpoints.install(lambda point: self.events.append((point, None)))
        for owner, verbs in (
            (world.storage, ("put_artifact", "put_mark", "put_failure")),
            (world.receiver, ("send",)),
            (world.link, ("ack", "nack", "reject")),
        ):
            for verb in verbs:
                self._watch(owner, verb)

    def _watch(self, owner: Any, verb: str) -> None:
        inner = getattr(owner, verb)

        async def watched(*args: Any, **kwargs: Any) -> Any:
            self.events.append((verb, args))
            return await inner(*args, **kwargs)

        setattr(owner, verb, watched)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@virtual
async def test_a_failpoint_stands_between_every_two_effects() -> None:
    """One job at a time: a plain one, a refused one, one given back, and one whose store fails once."""
    world = World(window=1)
    trace = Trace(world)
    world.engine.trouble("doubtful", OutputEmpty(), OutputEmpty())
    async with world.running():
        for job, fields in (("plain", {}), ("doubtful", {}), ("refused", {"params": {"steps": 10_000}})):
            await world.submit(job, **fields)
            await world.ended(job)
        world.storage.down = UploadFailed("503")
        await world.submit("waits")
        await world.until(lambda: trace.names.count("put_artifact") >= 3)
        world.storage.down = None
        await world.ended("waits")
    assert set(trace.names) == {*VERBS, *POINTS}
    for (name, _), (after, _) in pairwise(trace.events):
        assert not (name in VERBS and after in VERBS), f"{name} and {after} have no failpoint between them"
    for place, name in enumerate(trace.names):
        if name in VERBS:
            assert trace.names[place - 1] == f"before_{VERBS[name]}"


def test_an_unhooked_failpoint_does_nothing() -> None:
    """Without a hook nothing is called; with one, every name; and the hook can be taken away again."""
    seen: list[str] = []
    failpoints.reached("received")
    failpoints.install(seen.append)
    for point in POINTS:
        failpoints.reached(point)
    failpoints.install(None)
    failpoints.reached("received")
    assert seen == list(POINTS)
    assert len(set(POINTS)) == len(POINTS) == 4 + 2 * len(Effect)
