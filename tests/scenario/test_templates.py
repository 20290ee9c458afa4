"""Jobs that name a custom workflow: from their admission to their end, on a queue, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import FakeEngine
from tests.support.virtual import elapse, virtual
from tests.support.workflows import POSTER, forgotten, write
from tests.support.world import World
from worker.errors import ConfigError, Fault, InvalidJob
from worker.job import Limits, digest, document_of
from worker.warmup import canary_job, expanded
from worker.workflows import Defect, Described, WorkflowFailed, Workflows, load

LIMITS = Limits()


@dataclass
class Counting:
    """A workflow that remembers what it was asked for; ``document`` is what it makes, or raises."""

    document: dict[str, Any] | Exception = field(default_factory=lambda: {"params": {"prompt": "x"}})
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    described: Described = field(default_factory=lambda: Described("count", "", "", {"type": "object"}))

    def check(self, given: Mapping[str, Any]) -> None:
        if "n" not in given:
            raise InvalidJob("is required", field="n")

    def build(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self.check(given)
        self.asked.append(given)
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    def origin(self, field: str) -> str | None:
        return None


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten():
        yield


def template(name: str, **given: Any) -> dict[str, Any]:
    return {"params": None, "template": {"name": name, "input": given}}


@virtual
async def test_a_template_becomes_the_document_that_its_workflow_makes(tmp_path: Path) -> None:
    """The job keeps its id, its metadata, and the digest of what its owner wrote."""
    workflows = await load(write(tmp_path, {"posters/night.py": POSTER}))
    seen: list[Any] = []

    class Seeing(FakeEngine):
        async def admit(self, job: Any) -> Any:
            seen.append(job)
            return await super().admit(job)

    world = World(engine=Seeing(), workflows=workflows)
    document = template("posters/night", title="Night train", seed=7)
    async with world.running():
        await world.submit("j1", **document, metadata={"order": 5})
        await world.ended("j1")
    (result,) = world.storage.results().values()
    assert (await world.status_of("j1"), result.status, result.metadata) == ("done", "succeeded", {"order": 5})
    assert result.job_sha256 == digest({"id": "j1", **document, "metadata": {"order": 5}})
    (job,) = [job for job in seen if job.id == "j1"]
    assert (job.template, job.params.seed, job.params.height) == (None, 7, 96)
    assert job.params.prompt == 'a poster with the title "Night train", soft morning light'
    assert world.receiver.ids("succeeded") == ["j1"]


@virtual
async def test_a_standing_success_is_settled_without_building_again() -> None:
    """Whatever became of the workflow meanwhile: once a success stands, the job has succeeded for ever."""
    counting = Counting()
    world = World(workflows=Workflows([counting]))
    world.receiver.down_for_ever()
    async with world.running():
        await world.submit("j1", **template("count", n=1))
        while await world.ends("j1") != [("webhook_undelivered", False)]:
            await elapse(1)
        counting.document = RuntimeError("broken since")
        world.receiver.up_again()
        await world.ended("j1")
    assert (await world.status_of("j1"), len(counting.asked)) == ("done", 1)
    assert (world.receiver.ids("succeeded"), world.receiver.ids("failed")) == (["j1"], [])


@pytest.mark.parametrize(
    ("document", "code", "fault", "said"),
    [
        (template("nowhere"), "invalid_job", Fault.JOB, "template.name: no workflow of this name is here"),
        (template("count"), "invalid_job", Fault.JOB, "template.input.n: is required"),
        (template("broken"), "workflow_broken", Fault.OPERATOR, "broken.py:3 is broken"),
        (template("failing", n=1), "workflow_failed", Fault.OPERATOR, "the workflow failing failed: RuntimeError"),
        (template("odd", n=1), "workflow_failed", Fault.OPERATOR, "params: Input should be a valid dictionary"),
        (template("large", n=1), "invalid_job", Fault.JOB, "params.steps: 1000 is more than 150"),
    ],
)
def test_who_is_at_fault_is_told(document: dict[str, Any], code: str, fault: Fault, said: str) -> None:
    """At the first attempt, by webhook too: the same image makes the same of it at every try."""
    made: dict[str, Any] = {
        "failing": RuntimeError("boom"),
        "odd": {"params": 7},
        "large": {"params": {"prompt": "x", "steps": 1000}},
    }
    named = [Counting(what, described=Described(name, "", "", {})) for name, what in made.items()]
    broken = {"broken": Defect("broken.py", 3, "SyntaxError: no")}

    async def run() -> None:
        world = World(workflows=Workflows([Counting(), *named], broken=broken))
        async with world.running():
            await world.submit("j1", **document, metadata="mine")
            await world.ended("j1")
        state = await world.state("j1")
        assert (state.status, state.code) == ("dead", code)
        assert state.result is not None
        assert state.result.error is not None
        assert (state.result.error.code, state.result.error.fault) == (code, fault)
        assert said in state.result.error.message
        ((_, told),) = world.receiver.taken
        assert (told["type"], told["data"]["metadata"]) == ("job.failed", "mine")
        assert world.engine.generated == []

    virtual(run)()


@virtual
async def test_a_job_that_comes_too_late_builds_nothing() -> None:
    """What can be known without the operator's code is refused before it runs."""
    counting = Counting()
    world = World(workflows=Workflows([counting]))
    async with world.running():
        await world.submit("late", **template("count", n=1), deadline="2020-01-01T00:00:00Z")
        await world.ended("late")
    assert (await world.code("late"), counting.asked) == ("expired", [])


async def test_the_warm_up_may_be_a_template_or_a_bare_graph() -> None:
    """And what is wrong with it is a mistake of the configuration."""
    limits = LIMITS
    workflows = Workflows([Counting(), Counting(WorkflowFailed("no"), described=Described("bad", "", "", {}))])
    job = await expanded(canary_job(b'{"template": {"name": "count", "input": {"n": 1}}}', limits), workflows, limits)
    assert job.params is not None
    assert (job.id, job.params.prompt) == ("warm-up", "x")
    graph = canary_job(b'{"3": {"class_type": "KSampler", "inputs": {}}}', limits)
    assert graph.workflow == document_of(b'{"3": {"class_type": "KSampler", "inputs": {}}}', max_body=1000)
    wrong: list[tuple[bytes, str]] = [
        (b'{"template": {"name": "none"}}', "template.name"),
        (b'{"template": {"name": "bad", "input": {"n": 1}}}', "failed: no"),
    ]
    for body, said in wrong:
        with pytest.raises(ConfigError, match=f"WORKER_WARMUP: .*{said}"):
            await expanded(canary_job(body, limits), workflows, limits)
