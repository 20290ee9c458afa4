"""Models that compete for room, jobs that wait for them, and workers that end meanwhile: the whole worker at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.bench import ends, params
from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.receiver import Answer
from tests.support.stocked import BASE, SERVERS, Kind, Stocked, stocked
from tests.support.waiting import wait_until
from tests.support.weights import weights
from worker.models.disk import Disk
from worker.simulators import Knobs
from worker.supervisor import ExitCode

SIZE = 90_000
CAP = 240_000
"""For two files of that size with their headers."""

ENDS = (".safetensors", "-lora.safetensors")
HELD = Twist(cut=SIZE // 2, end="hold", whole=True)
"""Half of a file, and the rest when the test says so."""

Log = list[MutableMapping[str, Any]]


@pytest.fixture
async def host() -> AsyncIterator[ModelHost]:
    async with ModelHost() as host:
        host.otherwise = Answer(404)
        for name in "abcde":
            host.host(f"/{name}.safetensors", weights(name, SIZE))
            host.host(f"/{name}-lora.safetensors", weights(f"{name} lora", SIZE, "lora"))
        host.host("/big.safetensors", weights("big", CAP - 30_000))
        yield host


def job(node: Stocked, checkpoint: str, lora: str | None = None, **more: Any) -> dict[str, Any]:
    """A job with a model of the host, and with a LoRA."""
    models = [node.ref("checkpoint", f"{checkpoint}.safetensors", f"/{checkpoint}.safetensors")]
    loras = {"loras": [{"name": f"{lora}-lora"}]} if lora else {}
    if lora:
        models.append(node.ref("lora", f"{lora}-lora.safetensors", f"/{lora}-lora.safetensors"))
    return {"checkpoint": checkpoint, "models": models, "params": params(f"{checkpoint} {lora}", **loras, **more)}


def names(node: Stocked) -> set[str]:
    return {name.partition(".")[0] for name in (*node.stored(), *node.stored("lora"))}


def taken(node: Stocked) -> int:
    """Bytes of all model and partial files but the image's own."""
    total = 0
    for path in node.models.rglob("*"):
        if path.suffix in (".safetensors", ".part") and path.name != BASE:
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


async def waits(node: Stocked, job_id: str) -> bool:
    """Whether the job is held and waits for its models."""
    jobs = (await node.worker.status())["jobs"]
    return any(one["id"] == job_id and one["hop"] == "models" for one in jobs)


def told(log: Log, event: str) -> list[MutableMapping[str, Any]]:
    return [line for line in log if line["event"] == event]


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_least_recently_used_goes_and_what_is_loaded_is_unloaded_first(
    kind: Kind, host: ModelHost, tmp_path: Path
) -> None:
    """By use and not by age; the server's lists follow; what it holds goes only after it let go of it."""
    async with stocked(kind, tmp_path, host, WORKER_MODELS_MAX_SIZE=str(CAP)) as node:
        for number, name in enumerate("abac"):
            await node.made(f"{name}-{number}", **job(node, name))
            assert node.used["checkpoint"] == (name,)
        assert names(node) == {"a", "c"}
        gone = await node.worker.done("gone", checkpoint="b")
        assert (gone.status, ends(gone)) == ("dead", [("model_not_found", True)])
        with capture_logs() as log:
            await node.made("big", **job(node, "big"))
        assert (names(node), node.used["checkpoint"]) == ({"big"}, ("big",))
        events = [line["event"] for line in log if "checkpoint/c.safetensors" in str(line)]
        assert events.index("model_unload_asked") < events.index("model_evicted")
        assert node.path("checkpoint", BASE).exists()


async def test_recency_outlives_the_worker(host: ModelHost, tmp_path: Path) -> None:
    """What was used last in one life is not the first to go in the next."""
    async with stocked("sdnext", tmp_path, host, WORKER_MODELS_MAX_SIZE=str(CAP)) as node:
        for number, name in enumerate("cdc"):
            await node.made(f"{name}-{number}", **job(node, name))
    async with stocked("sdnext", tmp_path, host, WORKER_MODELS_MAX_SIZE=str(CAP)) as node:
        await node.made("e", **job(node, "e"))
        assert names(node) == {"c", "e"}


async def test_jobs_that_need_each_other_s_halves_all_end_well(host: ModelHost, tmp_path: Path) -> None:
    """Two models fit at a time, and each job needs two: none waits with half of another's set; the cap holds."""
    most = 0
    async with stocked("sdnext", tmp_path, host, WORKER_MODELS_MAX_SIZE=str(CAP)) as node:
        pairs = ("aa", "bb", "ab", "ba")
        for pair in pairs:
            await node.worker.submit(pair, **job(node, *pair))

        async def over() -> bool:
            nonlocal most
            most = max(most, taken(node))
            return all([(await node.worker.state(pair)).status in ("done", "dead") for pair in pairs])

        await wait_until(over, 30)
        assert [ends(await node.worker.state(pair)) for pair in pairs] == [[("succeeded", False)]] * len(pairs)
        assert SIZE < most <= CAP
        assert names(node) <= {"a", "b", "a-lora", "b-lora"}


async def test_a_model_at_work_is_waited_for(host: ModelHost, tmp_path: Path) -> None:
    """Who needs its room gets it when the generation is over, and not before."""
    knobs = Knobs(step_seconds=0.01)
    async with stocked("sdnext", tmp_path, host, knobs=knobs, WORKER_MODELS_MAX_SIZE=str(CAP)) as node:
        with capture_logs() as log:
            await node.worker.submit("long", **job(node, "a", steps=100))
            await wait_until(lambda: node.worker.sim.machine.state.sampling)
            await node.worker.submit("big", **job(node, "big"))
            await wait_until(lambda: told(log, "model_waits"))
            assert names(node) == {"a"}
            assert host.files["/big.safetensors"].sent < SIZE
            assert told(log, "model_unload_asked") == []
            assert node.worker.sim.machine.state.sampling
            for name in ("long", "big"):
                assert ends(await node.worker.ended(name)) == [("succeeded", False)]
        assert names(node) == {"big"}


async def test_the_models_of_a_job_come_at_the_same_time(host: ModelHost, tmp_path: Path) -> None:
    """While the server generates for another job, none waits for the one before it in the job."""
    files = [host.host(f"/a{end}", HostedFile(host.files[f"/a{end}"].body, twist=HELD)) for end in ENDS]
    knobs = Knobs(step_seconds=0.01)
    async with stocked("sdnext", tmp_path, host, knobs=knobs) as node:
        await node.worker.submit("long", params=params("long", steps=150))
        await wait_until(lambda: node.worker.sim.machine.state.sampling)
        await node.worker.submit("both", **job(node, "a", "a"))
        await wait_until(lambda: all(file.sent >= SIZE // 2 for file in files))
        assert node.worker.sim.machine.state.sampling
        for file in files:
            file.released.set()
        assert ends(await node.worker.ended("both")) == [("succeeded", False)]
        assert node.used == {"checkpoint": ("a",), "lora": ("a-lora",)}


async def test_two_jobs_share_a_transfer_and_a_third_overtakes_them(host: ModelHost, tmp_path: Path) -> None:
    """Its bytes come once; a job whose model is here is done meanwhile; cancelling one waiter leaves the other."""
    file = host.host("/a.safetensors", HostedFile(weights("a", SIZE), twist=HELD))
    more: dict[str, Any] = {"WORKER_QUEUE_VISIBILITY": "2s", "WORKER_WEBHOOK_EVENTS": "succeeded,failed,cancelled"}
    async with stocked("sdnext", tmp_path, host, **more) as node:
        await node.worker.submit("stays", **job(node, "a"))
        await wait_until(lambda: file.sent >= SIZE // 2)
        await node.worker.goes_on("waiting")
        await node.worker.submit("leaves", **job(node, "a"))
        await wait_until(lambda: waits(node, "leaves"))
        assert await node.worker.queue.cancel("leaves")
        await node.worker.ended("leaves")
        assert node.worker.told("leaves") == ["job.cancelled"]
        file.released.set()
        assert ends(await node.worker.ended("stays")) == [("succeeded", False)]
        assert file.sent == len(file.body)
        assert node.used["checkpoint"] == ("a",)


async def test_a_cancelled_job_s_transfer_makes_room_when_that_is_needed(host: ModelHost, tmp_path: Path) -> None:
    """What nobody waits for any more holds up nobody: it gives way, and what it brought is counted no longer."""
    file = host.host("/a.safetensors", HostedFile(weights("a", SIZE), twist=HELD))
    more: dict[str, Any] = {"WORKER_QUEUE_VISIBILITY": "2s", "WORKER_MODELS_MAX_SIZE": str(CAP)}
    async with stocked("sdnext", tmp_path, host, **more) as node:
        await node.worker.submit("leaves", **job(node, "a"))
        await wait_until(lambda: file.sent >= SIZE // 2)
        assert await node.worker.queue.cancel("leaves")
        await node.worker.ended("leaves")
        await node.made("big", **job(node, "big"))
        assert (names(node), node.partials()) == ({"big"}, [])


async def test_a_drain_waits_for_no_transfer_and_the_next_life_goes_on_with_it(host: ModelHost, tmp_path: Path) -> None:
    """The job goes back uncharged at once; what came is kept, and only the rest is asked for."""
    file = host.host("/a.safetensors", weights("a", SIZE))
    file.chosen = lambda _: Twist(cut=0, end="silence") if file.sent >= SIZE // 2 else None
    async with stocked("sdnext", tmp_path, host, WORKER_DRAIN_TIMEOUT="60s") as node:
        await node.worker.submit("job", **job(node, "a"))
        await wait_until(lambda: file.sent >= SIZE // 2)
        node.worker.supervisor.stop()
        async with asyncio.timeout(20):
            assert await asyncio.shield(node.worker.process) is ExitCode.CLEAN
        assert len(node.partials()) == 1
    asked = len(file.requests)
    file.chosen = lambda _: None
    async with stocked("sdnext", tmp_path, host) as node:
        state = await node.worker.ended("job")
        assert (state.status, [charged for _, charged in ends(state)]) == ("done", [False, False])
        assert names(node) == {"a"}
        assert node.partials() == []
    ranges = [one.headers.get("range", "bytes=0-") for one in file.requests[asked:]]
    assert ranges
    assert min(int(one.removeprefix("bytes=").split("-")[0]) for one in ranges) > 0, ranges


async def test_a_full_disk_pauses_the_worker_until_there_is_room(host: ModelHost, tmp_path: Path) -> None:
    """The job goes back uncharged, nothing is evicted in vain, and it is done when space returns."""
    free = [1 << 40]

    def scarce(patch: pytest.MonkeyPatch) -> None:
        defaults: Any = Disk.open.__func__.__kwdefaults__  # type: ignore[attr-defined]
        patch.setitem(defaults, "free", lambda _: free[0])

    async with stocked("sdnext", tmp_path, host, changed=scarce) as node:
        await node.made("a", **job(node, "a"))
        free[0] = 1000
        await node.worker.submit("b", **job(node, "big"))
        await node.worker.unready("disk_full")
        assert names(node) == {"a"}
        free[0] = 1 << 40
        state = await node.worker.ended("b")
        assert (state.status, set(ends(state)[:-1])) == ("done", {("disk_full", False)})
        await node.worker.goes_on("space")
