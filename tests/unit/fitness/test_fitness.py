"""The node's verdict, before its server starts and after its warm-up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.virtual import elapse, virtual
from tests.unit.fitness.checks import Scripted
from worker.engines.base import Expectation, Output, RawImage, Work
from worker.errors import ConfigError, UploadFailed
from worker.fitness.fitness import AGAIN_S, Fitness, WarmStep
from worker.fitness.verdict import PAUSES_S, Reading
from worker.node import NodeUnfit
from worker.result import EngineResult
from worker.status import Phase, Status
from worker.tasks import cancel_all, gather_bare


def fitness(*checks: Scripted, step: float | None = None, never: bool = False, status: Status | None = None) -> Fitness:
    return Fitness(checks, WarmStep(step), status or Status(), never=never)


class Steps:
    """What was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def start(self) -> None:
        self.done.append("start")

    async def provision(self) -> None:
        self.done.append("provision")


class Canary:
    """Runs of the warm-up job, each of so many seconds; the last for ever."""

    def __init__(self, node: Fitness, *seconds: float, steps: int | None = 4, images: int = 1) -> None:
        self._node = node
        self._seconds = seconds
        self._work = Work({}, "txt2img", Expectation(images, 16, 16, (1,) * images), steps=steps)
        self._images = (RawImage(b""),) * images
        self.runs = 0

    async def __call__(self) -> None:
        seconds = self._seconds[min(self.runs, len(self._seconds) - 1)]
        self.runs += 1
        self._node.saw(self._work, Output(self._images, EngineResult(name="fake"), load_s=60, generate_s=seconds))


@virtual
async def test_without_a_demand_nothing_is_judged() -> None:
    """The disk is told, and no phase is left for it."""
    status, steps = Status(), Steps()
    node = fitness(Scripted("disk", None, 5e9), status=status)
    await node.before_start(steps.start)
    assert node.described()["verdict"] == "not_asked"
    assert node.described()["figures"]["disk"]["measured"] == 5e9
    assert status.reasons == ("starting",)
    assert steps.done == ["start"]


@virtual
async def test_a_fit_node_goes_on_with_its_figures_told() -> None:
    """In the status and, one event each, in the log."""
    node = fitness(Scripted("vram", 20e9, 24e9), Scripted("upload", 1e6, 3e6))
    assert node.described()["verdict"] == "measuring"
    with capture_logs() as logs:
        await node.before_start(Steps().start)
    assert node.described()["verdict"] == "fit"
    assert node.described()["reason"] is None
    assert {name: one["fit"] for name, one in node.described()["figures"].items()} == {"vram": True, "upload": True}
    measured = [line for line in logs if line["event"] == "fitness_measured"]
    assert [(line["check"], line["measured"]) for line in measured] == [("vram", 24e9), ("upload", 3e6)]


@virtual
async def test_an_unfit_node_is_given_up_with_the_figure_as_the_reason() -> None:
    """After repeated tries; neither the server starts nor is a model fetched, and nothing more is measured."""
    upload, steps = Scripted("upload", 1e6, 2e5), Steps()
    node = fitness(Scripted("download", 10e6, 2e6), upload)
    waiting = asyncio.create_task(node.passed(steps.provision))
    with (
        capture_logs() as logs,
        pytest.raises(NodeUnfit, match=r"^unfit: download 2 MB/s, 10 MB/s wanted, the best of 3"),
    ):
        await node.before_start(steps.start)
    assert steps.done == []
    assert upload.measured == 0
    assert node.described()["verdict"] == "unfit"
    assert "10 MB/s wanted" in node.described()["reason"]
    [line] = [line for line in logs if line["event"] == "node_unfit"]
    assert line["download"]["measured"] == 2e6
    await cancel_all({waiting})


@virtual
async def test_nothing_is_fetched_while_the_lines_are_measured() -> None:
    """The models of the start would take the bandwidth that is to be found."""
    node, steps = fitness(Scripted("download", 10e6, 2e6, 20e6)), Steps()
    await gather_bare([node.passed(steps.provision), node.before_start(steps.start)], name="both")
    assert sorted(steps.done) == ["provision", "start"]
    assert asyncio.get_running_loop().time() == PAUSES_S[0]


@virtual
async def test_a_node_that_is_never_given_up_stays_and_is_measured_again() -> None:
    """Not ready, saying why; what was wrong may pass."""
    status, steps = Status(), Steps()
    node = fitness(Scripted("upload", 1e6, *[2e5] * 3, 2e6), never=True, status=status)
    start = asyncio.create_task(node.before_start(steps.start))
    await elapse(sum(PAUSES_S) + 1)
    assert status.phase is Phase.STARTING
    assert (status.reasons[0], "200 kB/s, 1 MB/s wanted" in status.reasons[1]) == ("node_unfit", True)
    assert node.described()["verdict"] == "unfit"
    assert steps.done == []
    await start
    assert asyncio.get_running_loop().time() == sum(PAUSES_S) + AGAIN_S
    assert (node.described()["verdict"], steps.done) == ("fit", ["start"])


@virtual
async def test_an_outage_is_said_to_be_one() -> None:
    """The phase's reason is the store's, and the verdict waits."""
    status = Status()
    node = fitness(Scripted("upload", 1e6, UploadFailed("refused"), 2e6), status=status)
    start = asyncio.create_task(node.before_start(Steps().start))
    await elapse(1)
    assert status.reasons == ("upload_failed", "upload cannot be measured: refused")
    assert node.described() == {"verdict": "waiting", "reason": None, "figures": {}}
    await start
    assert node.described()["verdict"] == "fit"


@virtual
async def test_a_drain_is_not_talked_over() -> None:
    """The phase of a worker that stops is its own."""
    status = Status()
    status.move(Phase.DRAINING, "draining")
    await fitness(Scripted("upload", 1e6, 2e6), status=status).before_start(Steps().start)
    assert (status.phase, status.reasons) == (Phase.DRAINING, ("draining",))


@virtual
async def test_the_cold_picture_says_nothing_of_the_pace() -> None:
    """The job is run once more, and that run's seconds count, without what loading took."""
    node = fitness(step=0.5)
    canary = Canary(node, 40.0, 1.2)
    await canary()
    await node.before_start(Steps().start)
    assert node.described()["verdict"] == "measuring"
    await node.after_warm_up(canary)
    assert canary.runs == 2
    assert node.described()["figures"]["step"]["measured"] == 0.3
    assert node.described()["verdict"] == "fit"


@virtual
async def test_a_batch_shares_its_seconds() -> None:
    """A step is that of one picture."""
    node = fitness(step=0.5)
    await node.after_warm_up(Canary(node, 3.2, images=4))
    assert node.described()["figures"]["step"]["measured"] == 0.2


@virtual
async def test_a_slow_gpu_gets_three_runs_and_is_given_up() -> None:
    node = fitness(step=0.5)
    canary = Canary(node, 12.0, 8.0, 10.0)
    with pytest.raises(NodeUnfit, match=r"step 2 s, 0\.5 s wanted, the best of 3 tries, 8 s for 4 steps"):
        await node.after_warm_up(canary)
    assert canary.runs == 3


@virtual
async def test_a_node_is_timed_once() -> None:
    """A later way through its start, after a crash, does not judge it again; nor is it timed where nobody asks."""
    node, idle = fitness(step=0.5), fitness()
    canary, other = Canary(node, 1.0), Canary(idle, 1.0)
    for _ in range(2):
        await node.after_warm_up(canary)
        await idle.after_warm_up(other)
    assert (canary.runs, other.runs) == (1, 0)


@virtual
@pytest.mark.parametrize("steps", [None, 0])
async def test_a_job_whose_steps_nobody_knows_is_the_operators_mistake(steps: int | None) -> None:
    """It is the warm-up job, or the demand, that has to change."""
    node = fitness(step=0.5)
    with pytest.raises(ConfigError, match="WORKER_FITNESS_STEP: cannot be measured"):
        await node.after_warm_up(Canary(node, 1.0, steps=steps))


@virtual
async def test_a_disk_that_cannot_be_told_is_told_so() -> None:
    described: dict[str, Any] = {}
    node = fitness(Scripted("disk", None, Reading(None, "cannot be told: gone")))
    await node.before_start(Steps().start)
    described = node.described()["figures"]["disk"]
    assert (described["measured"], described["detail"]) == (None, "cannot be told: gone")
