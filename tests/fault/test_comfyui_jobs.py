"""What people send to ComfyUI, through the whole worker: all kinds of outputs and inputs, and nothing left behind."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fault.test_bad_input import PLACE, Place
from tests.support import comfy_engine
from tests.support.bench import RunningWorker, ends, params, running_worker
from tests.support.pictures import encoded, opened, picture
from tests.support.queues import taken
from tests.support.receiver import Answer
from tests.support.waiting import wait_until
from worker.clock import SystemClock
from worker.queues.base import JobState
from worker.queues.sqlite import SqliteQueue
from worker.result import Result
from worker.simulators.comfyui import ComfyUI, Knobs
from worker.supervisor import ExitCode

pytestmark = pytest.mark.asyncio(loop_scope="module")

Worker = RunningWorker[ComfyUI]
CHECKPOINT = "dreamshaper_8.safetensors"
PICTURE = picture(64, 64)
FILE = encoded(PICTURE)
SLOW: dict[str, Any] = {"params": params(steps=150), "checkpoint": "dreamshaper_8"}
RED, GREEN, BLUE = 0xFF0000, 0x00FF00, 0x0000FF


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    async with Place() as place:
        place.routes["/picture"] = Answer(body=FILE)
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["0.3.64", "newest"])
async def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    knobs = Knobs(version=request.param)
    variables: dict[str, Any] = {"WORKER_URLS_ALLOW_PRIVATE": f"{PLACE}/32", "WORKER_OUTPUT_FLAT": "off"}
    root: Path = tmp_path_factory.mktemp("comfyui-jobs")
    async with running_worker(root, "comfyui", knobs, **variables) as worker:
        yield worker
        assert left_behind(worker.sim) == []


def left_behind(sim: ComfyUI) -> list[str]:
    """What the server still has of the jobs that have ended: files and entries of its history."""
    files = [f"{kind}/{name}" for kind in ("input", "output", "temp") for name in sim.files(kind)]
    return files + list(sim.machine.queue.history)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def colour(value: int, *, batch: int = 1) -> dict[str, Any]:
    return node("EmptyImage", width=64, height=64, batch_size=batch, color=value)


def saved(source: str, prefix: str = "x") -> dict[str, Any]:
    return node("SaveImage", images=[source, 0], filename_prefix=prefix)


def result_of(state: JobState) -> Result:
    """The result of a job that went well at its first attempt."""
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert state.result is not None
    return state.result


def corners(worker: Worker, result: Result) -> list[Any]:
    """The first pixel of each picture that was stored, by index."""
    files = worker.files()
    return [opened(files[image.key or ""]).getpixel((0, 0)) for image in result.images]


async def test_several_outputs_batches_and_subfolders(worker: Worker) -> None:
    """All pictures of all output nodes, in the order of the nodes and within their batches."""
    graph = {
        "1": colour(RED, batch=2),
        "2": colour(GREEN),
        "3": colour(BLUE),
        "10": saved("2", "deep/er/%date:yyyy%/green"),
        "9": saved("1", "red"),
        "30": saved("3"),
    }
    result = result_of(await worker.done("several", workflow=graph))
    assert corners(worker, result) == [(255, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [image.index for image in result.images] == [0, 1, 2, 3]
    assert worker.told("several") == ["job.succeeded"]
    await worker.goes_on("several")


async def test_a_graph_that_only_previews(worker: Worker) -> None:
    """Temporary files are the result where there is nothing else; twice, though the server keeps results of nodes."""
    graph = {"1": colour(RED), "9": node("PreviewImage", images=["1", 0])}
    for name in ("preview", "preview-again"):
        assert corners(worker, result_of(await worker.done(name, workflow=graph))) == [(255, 0, 0)]
    await worker.goes_on("preview")


async def test_videos_texts_and_pictures_together(worker: Worker) -> None:
    """Pictures come first; what is none is stored, named and told with its own kind, by the node that made it."""
    video = {"frame_rate": 8, "loop_count": 0, "format": "video/h264-mp4", "pingpong": False, "save_output": True}
    graph = {
        "1": colour(RED, batch=3),
        "2": colour(GREEN),
        "7": node("PreviewAny", source="a red cat"),
        "8": node("VHS_VideoCombine", images=["1", 0], filename_prefix="clip", **video),
        "9": saved("2"),
    }
    result = result_of(await worker.done("mixed", workflow=graph))
    assert corners(worker, result) == [(0, 255, 0)]
    kinds = {(file.node, file.format, file.media_type.partition(";")[0], file.index) for file in result.files}
    assert kinds == {("7", "text", "text/plain", 1), ("8", "mp4", "video/mp4", 2)}
    stored = worker.files()
    contents = {file.node: stored[file.key or ""] for file in result.files}
    assert contents["7"] == b"a red cat"
    assert contents["8"][4:8] == b"ftyp"
    (told,) = [one["data"] for one in worker.receiver.documents if one["data"]["id"] == "mixed"]
    assert [file["format"] for file in told["files"]] == ["text", "mp4"]
    await worker.goes_on("mixed")


async def test_a_graph_that_makes_no_picture(worker: Worker) -> None:
    """A text alone is a result."""
    result = result_of(await worker.done("words", workflow={"1": node("PreviewAny", source="only words")}))
    assert (result.images, len(result.files)) == ((), 1)
    await worker.goes_on("words")


@pytest.mark.parametrize("seed", [-1, None])
async def test_a_seed_that_is_left_open_is_drawn_and_told(worker: Worker, seed: int | None) -> None:
    """The server draws none. What it was given is in the result, and the same job gets the same one again."""
    graph = comfy_engine.graph(checkpoint=CHECKPOINT)
    graph["3"]["inputs"]["seed"] = seed
    name = f"open-seed-{seed}"
    result = result_of(await worker.done(name, workflow=graph))
    drawn = worker.sim.stats.samplings[-1].seed
    assert drawn >= 0
    assert result.engine is not None
    assert result.engine.info["seeds"] == [drawn]
    assert [image.seed for image in result.images] == [drawn]
    await worker.goes_on(name)


@pytest.mark.parametrize("how", ["base64", "data", "url"])
async def test_an_input_image_is_really_used(worker: Worker, place: Place, how: str) -> None:
    """What comes out is what was sent in; the file that the server needed for it is gone."""
    text = base64.b64encode(FILE).decode()
    given = {"base64": text, "data": f"data:image/png;base64,{text}", "url": place.at("/picture")}[how]
    uploads = len(worker.sim.stats.uploads)
    graph = {"1": node("LoadImage", image=given), "9": saved("1")}
    result = result_of(await worker.done(f"input-{how}", workflow=graph))
    (image,) = result.images
    assert opened(worker.files()[image.key or ""]).convert("RGB").tobytes() == PICTURE.tobytes()
    assert len(worker.sim.stats.uploads) - uploads == 1
    assert worker.sim.files("input") == []
    await worker.goes_on(f"input-{how}")


async def test_a_portable_input_image_is_used_too(worker: Worker) -> None:
    """Image to image by `params`: the picture depends on what was sent."""
    fields: dict[str, Any] = {"image": base64.b64encode(FILE).decode(), "denoise": 0.5}
    result_of(await worker.done("portable-input", params=params(**fields), checkpoint="dreamshaper_8"))
    assert worker.sim.stats.samplings[-1].inputs != ""
    assert worker.sim.stats.samplings[-1].denoise == 0.5
    assert worker.sim.files("input") == []
    await worker.goes_on("portable-input")


MIXED: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"workflow": comfy_engine.graph(checkpoint=CHECKPOINT, batch=4)}, "succeeded"),
    "portable": ({"params": params("mixed"), "checkpoint": "sd_xl_base_1.0"}, "succeeded"),
    "preview": ({"workflow": {"1": colour(RED), "9": node("PreviewImage", images=["1", 0])}}, "succeeded"),
    "input": (
        {"workflow": {"1": node("LoadImage", image=base64.b64encode(FILE).decode()), "9": saved("1")}},
        "succeeded",
    ),
    "text": ({"workflow": {"1": node("PreviewAny", source="words")}}, "succeeded"),
    "no-input": ({"workflow": {"1": node("LoadImage", image="absent.png"), "9": saved("1")}}, "failed"),
    "half-wrong": (
        {"workflow": {"1": colour(RED), "8": saved("1"), "2": node("LoadImage", image="no.png"), "9": saved("2")}},
        "failed",
    ),
    "wrong-exception": ({"params": params("raises")}, "failed"),
    "wrong-once": ({"params": params("missing")}, "succeeded"),
    "unwanted": ({"params": params("tarries", steps=150)}, "cancelled"),
}


async def test_nothing_is_left_on_the_server(tmp_path: Path) -> None:
    """After twenty jobs of all kinds, failed and cancelled ones among them, its folders and history are empty."""
    hurried: dict[str, Any] = {"WORKER_QUEUE_VISIBILITY": "2s", "WORKER_OUTPUT_FLAT": "off"}
    async with running_worker(tmp_path, "comfyui", Knobs(step_seconds=0.02), **hurried) as worker:
        worker.sim.knobs.arm("exception", times=None, prompt="raises", error="ValueError")
        worker.sim.knobs.arm("missing_file", times=2, prompt="missing")
        jobs = {f"{name}-{n}": case for n in range(2) for name, case in MIXED.items()}
        for job_id, (fields, _) in jobs.items():
            await worker.submit(job_id, **fields)
        for n in range(2):
            await wait_until(lambda n=n: _tarrying(worker) > n, 20)  # type: ignore[misc]
            assert await worker.queue.cancel(f"unwanted-{n}")
        for job_id, (_, status) in jobs.items():
            state = await worker.ended(job_id)
            assert state.result is not None
            assert (job_id, state.result.status) == (job_id, status)
        assert left_behind(worker.sim) == []
        assert worker.sim.machine.queue.remaining == 0
        await worker.goes_on("mixed")


def _tarrying(worker: Worker) -> int:
    """How many of the slow prompts have begun to sample."""
    return sum(run.steps > 10 for run in worker.sim.stats.runs)


@pytest.mark.parametrize("version", ["0.3.64", "newest"])
async def test_a_cancelled_job_leaves_the_server_idle(tmp_path: Path, version: str) -> None:
    """Interrupted in the middle of its steps: cancelled, told so to who asked to hear it, and nothing runs on."""
    hurried: dict[str, Any] = {"WORKER_QUEUE_VISIBILITY": "2s", "WORKER_WEBHOOK_EVENTS": "succeeded,cancelled"}
    async with running_worker(tmp_path, "comfyui", Knobs(version=version, step_seconds=0.05), **hurried) as worker:
        await worker.submit("unwanted", **SLOW)
        await wait_until(lambda: sum(run.steps for run in worker.sim.stats.runs[1:]) > 1)
        assert await worker.queue.cancel("unwanted")
        state = await worker.ended("unwanted")
        assert state.result is not None
        assert (state.status, state.result.status, worker.told("unwanted")) == ("done", "cancelled", ["job.cancelled"])
        assert worker.sim.stats.runs[-1].ended == "interrupted"
        assert worker.sim.machine.queue.remaining == 0
        await worker.goes_on("unwanted")
        assert left_behind(worker.sim) == []


@pytest.mark.parametrize("version", ["0.3.64", "newest"])
async def test_a_drain_interrupts_the_server_and_gives_the_job_back(tmp_path: Path, version: str) -> None:
    """A clean exit: nothing runs on, nothing is left on the server, and the job waits uncharged for another node."""
    async with running_worker(tmp_path, "comfyui", Knobs(version=version, step_seconds=0.02)) as worker:
        await worker.submit("handed-back", **SLOW)
        await wait_until(lambda: sum(run.steps for run in worker.sim.stats.runs[1:]) > 1)
        worker.supervisor.stop()
        assert await worker.process is ExitCode.CLEAN
        assert worker.sim.stats.runs[-1].ended == "interrupted"
        assert worker.sim.machine.queue.remaining == 0
        assert left_behind(worker.sim) == []
        assert worker.told("handed-back") == []
        other = SqliteQueue(worker.settings.queue.sqlite_path, SystemClock(), worker="w2")
        delivery = await taken(other)
        assert (delivery.id, [a.charged for a in delivery.attempts]) == ("handed-back", [False])
        await other.aclose()
