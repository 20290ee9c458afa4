"""What the demo does to its fleet, and when it gives up; nodes and dispatcher are stand-ins here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from demo.plan import Plan, Wanted, jobs_of
from demo.run import Fleet, GoneWrong, Losses
from tests.support.virtual import virtual


@dataclass
class OneNode:
    name: str
    log: list[str] = field(default_factory=list)
    alive: bool = True
    ended: bool = False
    loads: int = 1
    generations: int = 0
    code: int = 0

    def freeze(self) -> None:
        self.log.append("frozen")

    def thaw(self) -> None:
        self.log.append("thawed")

    async def kill(self) -> None:
        self.log.append("killed")
        self.alive = False

    async def drained(self) -> int:
        return self.code


@dataclass
class Scene:
    """Jobs in the hands of nodes, by name, as the dispatcher tells it: each answer in turn, the last for ever."""

    plan: Plan
    answers: list[dict[str, set[str]]]
    over: int
    nodes: list[OneNode] = field(default_factory=lambda: [OneNode("node-1"), OneNode("node-2")])
    told: list[str] = field(default_factory=list)
    submitted: list[str] = field(default_factory=list)
    ended: bool = False
    finish: Callable[[Scene], bool] = lambda scene: len(scene.answers) == 1

    async def leased(self) -> dict[str, set[str]]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.finish(self):
            self.over = self.plan.jobs
        return answer

    async def submit(self, jobs: list[Wanted]) -> None:
        self.submitted += [job.id for job in jobs]

    async def state(self, job_id: str) -> None:
        """Unknown."""

    def done(self, count: int, doing: str) -> None:
        self.told.append(f"{count} {doing}")

    def tell(self, line: str) -> None:
        self.told.append(line)

    def fleet(self) -> Fleet:
        scene = self

        class Witness:
            @property
            def ended(self) -> int:
                return scene.over

        parts = cast("Any", self)
        return Fleet(self.plan, jobs_of(self.plan), parts, cast("Any", Witness()), parts, parts.nodes, parts)


def plan(kills: int = 0, freezes: int = 0) -> Plan:
    return Plan("run", workers=2, jobs=10, kills=kills, freezes=freezes)


@virtual
async def test_a_frozen_worker_goes_on_when_its_leases_are_over() -> None:
    """Not before none of the jobs that it held is still its own; new ones of others do not matter."""
    mine: dict[str, set[str]] = {"node-1": {"a", "b"}}
    scene = Scene(plan(freezes=1), [mine, mine, mine, {"node-1": {"b"}}, {"node-2": {"a"}}, {}], over=4)
    fleet = scene.fleet()
    await fleet.work()
    assert scene.nodes[0].log == ["frozen", "thawed"]
    assert (fleet.losses.frozen, fleet.losses.killed) == (["node-1"], {})
    assert "node-1 was frozen; it held 2 jobs" in scene.told
    assert scene.submitted == [job.id for job in fleet.jobs]
    assert fleet.took_s > 0


@virtual
async def test_a_worker_is_killed_at_work() -> None:
    """One that had just given its last job away is left alone, and another is taken."""
    looks: list[dict[str, set[str]]] = [{"node-1": {"a"}}, {}, {"node-2": {"b"}}, {"node-2": {"b"}}, {}]
    scene = Scene(plan(kills=1), looks, over=4)
    fleet = scene.fleet()
    await fleet.work()
    assert [node.log for node in scene.nodes] == [["frozen", "thawed"], ["frozen", "killed"]]
    assert list(fleet.losses.killed) == ["node-2"]
    assert fleet.losses.held == {"node-2": 1}
    assert await fleet.states() == dict.fromkeys([job.id for job in fleet.jobs])


def the_dispatcher_ends(scene: Scene) -> None:
    scene.ended = True


def a_worker_ends(scene: Scene) -> None:
    scene.nodes[1].ended = True


@virtual
async def test_the_demo_gives_up() -> None:
    """When a process ends that nobody killed, when time is up, and when nobody is left to be disturbed."""
    said = []
    for spoil in (the_dispatcher_ends, a_worker_ends, lambda scene: None):
        scene = Scene(plan(), [{}], over=4, finish=lambda scene: False)
        spoil(scene)
        with pytest.raises(GoneWrong) as gone:
            await scene.fleet().work()
        said.append(str(gone.value))
    assert said[:2] == ["the dispatcher ended by itself", "node-2 ended by itself"]
    assert said[2].startswith("4 of 10 jobs were over after")
    with pytest.raises(GoneWrong, match="ask for more jobs"):
        await Scene(plan(kills=1), [{}], over=10).fleet().work()


async def test_workers_that_do_not_end_well_are_named() -> None:
    """Those that were killed are not asked."""
    scene = Scene(plan(), [{}], over=10)
    scene.nodes[0].code = 75
    assert await scene.fleet().stop() == ["node-1 ended with 75"]
    scene.nodes[0].alive = False
    assert await scene.fleet().stop() == []
    assert scene.fleet().losses == Losses()
