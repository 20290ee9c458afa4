"""Every fault does what its name says, so often and for such prompts as it was armed for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.comfy import frame_parts, images_of, last_message, node, picture_graph, simulated, text_graph
from tests.support.waiting import wait_until
from worker.simulators.comfyui import Knobs

CUT = (httpx.NetworkError, httpx.RemoteProtocolError)


async def test_out_of_memory() -> None:
    """Torch's class and ComfyUI's tip in the last message; the next prompt is fine."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("oom")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        entry, heard = await c.entry(prompt_id), ear.types()
        sound = await c.run(text_graph())
    kind, data = last_message(entry)
    assert (kind, data["exception_type"], data["node_type"]) == (
        "execution_error",
        "torch.OutOfMemoryError",
        "KSampler",
    )
    assert data["exception_message"].startswith("CUDA out of memory")
    assert "TIPS:" in data["exception_message"]
    assert data["current_inputs"]["seed"] == [1]
    assert set(data["current_outputs"]) == set(text_graph())
    assert (entry["status"]["status_str"], entry["outputs"]) == ("error", {})
    assert heard[-3:] == ["execution_error", "status", "executing"]
    assert ear.of("execution_error")[0] == data
    assert sound["status"]["completed"]


async def test_too_large_a_batch_is_out_of_memory() -> None:
    """Without any fault, by the knob of the graphics memory."""
    async with simulated(Knobs(memory_pixels=64 * 64 * 2)) as c:
        large = await c.run(text_graph(batch=3))
        small = await c.run(text_graph(batch=2))
    assert last_message(large)[1]["exception_type"] == "torch.OutOfMemoryError"
    assert len(images_of(small)) == 2


async def test_a_cuda_fault_poisons_the_process() -> None:
    """Every later prompt that samples fails until a restart."""
    async with simulated() as c:
        c.sim.knobs.arm("cuda")
        failures = [last_message(await c.run(text_graph(seed=n)))[1]["exception_message"] for n in (1, 2)]
        plain = await c.run(picture_graph())
        c.sim.restart()
        await wait_until(lambda: c.sim.stats.starts == 2 and c.sim.listening)
        after = await c.run(text_graph())
    assert all(f.startswith("CUDA error: an illegal memory access") for f in failures)
    assert plain["status"]["completed"]
    assert after["status"]["completed"]


async def test_any_exception_at_any_node() -> None:
    """By class or by id; outputs made before stay in the entry."""
    graph = text_graph() | {"8b": node("PreviewImage", images=["8", 0])}
    async with simulated() as c:
        c.sim.knobs.arm("exception", error="ValueError", text="no good", node="SaveImage")
        first = last_message(await c.run(graph))[1]
        c.sim.knobs.arm("exception", node="6")
        second = last_message(await c.run(text_graph("other")))[1]
        c.sim.knobs.arm("exception")
        third = last_message(await c.run(picture_graph()))[1]
    assert (first["node_id"], first["exception_type"], first["exception_message"]) == ("9", "ValueError", "no good\n")
    assert (second["node_id"], second["exception_type"]) == ("6", "RuntimeError")
    assert third["node_id"] == "1"


async def test_times_and_prompts_of_faults() -> None:
    """A fault strikes graphs that have its words, as often as it says; disarming takes it back."""
    async with simulated() as c:
        c.sim.knobs.arm("exception", times=None, prompt="dog")
        ends = [(await c.run(text_graph(p)))["status"]["completed"] for p in ("a cat", "a dog", "two dogs")]
        c.sim.knobs.disarm("exception")
        last = (await c.run(text_graph("a dog")))["status"]["completed"]
    assert (ends, last) == ([True, False, False], True)


@pytest.mark.parametrize("kind", ["black", "flat"])
async def test_pictures_of_one_colour(kind: Any) -> None:
    """A valid file in which all pixels are the same."""
    async with simulated() as c:
        c.sim.knobs.arm(kind)
        colours = (await c.picture(text_graph())).getcolors(10)
    assert colours is not None
    assert len(colours) == 1


async def test_pictures_of_the_wrong_size() -> None:
    """Half of what was asked for."""
    async with simulated() as c:
        c.sim.knobs.arm("wrong_size")
        picture = await c.picture(text_graph())
    assert picture.size == (32, 32)


async def test_truncated_files() -> None:
    """The file ends in the middle."""
    async with simulated() as c:
        c.sim.knobs.arm("truncated_image")
        item = images_of(await c.run(text_graph()))[0]
        with (
            Image.open(c.sim.base_dir / "output" / item["filename"]) as image,
            pytest.raises(OSError, match="truncated"),
        ):
            image.load()


async def test_missing_files() -> None:
    """The history names a file that is not there."""
    async with simulated() as c:
        c.sim.knobs.arm("missing_file")
        entry = await c.run(text_graph())
        answer = await c.client.get("/view", params=images_of(entry)[0])
    assert entry["status"]["completed"]
    assert answer.status_code == 404


async def test_lost_history() -> None:
    """All messages come, the entry never does."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("lost_history")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        await c.run(picture_graph())
        entry = await c.get(f"/history/{prompt_id}")
    assert "execution_success" in ear.types()
    assert entry == {}


async def test_late_history() -> None:
    """The entry comes after the last message."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("late_history", seconds=0.1)
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        early = await c.get(f"/history/{prompt_id}")
        entry = await c.entry(prompt_id)
    assert early == {}
    assert entry["status"]["completed"]


@pytest.mark.parametrize("kind", ["null_status", "stale_status_str", "success_without_outputs"])
async def test_entries_that_lie(kind: Any) -> None:
    """No status, a status against its messages, a success that shows nothing."""
    async with simulated() as c:
        c.sim.knobs.arm(kind)
        entry = await c.run(text_graph())
        files = c.sim.files("output")
    if kind == "null_status":
        assert entry["status"] is None
    elif kind == "stale_status_str":
        assert (entry["status"]["status_str"], last_message(entry)[0]) == ("error", "execution_success")
    else:
        assert (entry["outputs"], entry["status"]["completed"]) == ({}, True)
    assert files == ["ComfyUI_00001_.png"]


async def test_a_deaf_socket() -> None:
    """Open, and silent from the start of the prompt on."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("deaf_socket")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await c.entry(prompt_id)
        await ear.connection.ping()
        assert ear.closed is None
    assert set(ear.types()) == {"status"}


async def test_a_dropped_socket() -> None:
    """Cut without a closing frame while the prompt goes on."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("drop_socket")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        entry = await c.entry(prompt_id)
        await wait_until(lambda: ear.closed)
    assert ear.closed == 1006
    assert "execution_start" in ear.types()
    assert entry["status"]["completed"]


async def test_big_frames() -> None:
    """More than 4 MiB each, and readable all the same."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("big_frame")
        prompt_id = await c.submit(text_graph(steps=2), client_id=ear.client_id)
        await ear.over(prompt_id)
    assert [len(f) > 4 * 1024 * 1024 for f in ear.frames] == [True, True]
    assert frame_parts(ear.frames[0])[:2] == (1, 1)


async def test_a_worker_that_dies_at_work() -> None:
    """The prompt runs for ever after execution_start, others pile up, HTTP is fine."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("dead_worker")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.of("execution_start") and c.sim.machine.dead)
        await c.submit(picture_graph())
        await c.post("/interrupt")
        queue = await c.get("/queue")
        stats = await c.client.get("/system_stats")
        history = await c.get("/history")
    assert ear.types()[-1] in ("execution_start", "status")
    assert [item[1] for item in queue["queue_running"]] == [prompt_id]
    assert (len(queue["queue_pending"]), stats.status_code, history) == (1, 200, {})


async def test_a_worker_that_dies_idle() -> None:
    """Nothing runs and all wait."""
    async with simulated() as c:
        c.sim.knobs.arm("dead_worker_idle")
        for n in range(2):
            await c.submit(picture_graph(n))
        await wait_until(lambda: c.sim.machine.dead)
        queue = await c.get("/queue")
    assert (len(queue["queue_running"]), len(queue["queue_pending"])) == (0, 2)


async def test_hang() -> None:
    """No step and no interrupt until it is released; the interrupt acts then."""
    async with simulated() as c:
        c.sim.release()
        c.sim.knobs.arm("hang")
        prompt_id = await c.submit(text_graph(steps=4))
        await wait_until(lambda: c.sim.machine.hangs)
        await c.post("/interrupt")
        stuck = await c.get(f"/history/{prompt_id}")
        c.sim.release()
        entry = await c.entry(prompt_id)
    assert stuck == {}
    assert last_message(entry)[0] == "execution_interrupted"


async def test_slow() -> None:
    """Its seconds are added before the first step, and the picture is sound."""
    async with simulated() as c:
        c.sim.knobs.arm("slow", seconds=0.1)
        prompt_id = await c.submit(text_graph())
        await wait_until(lambda: c.sim.stats.samplings)
        assert c.sim.stats.runs[0].steps == 0
        entry = await c.entry(prompt_id)
    assert entry["status"]["completed"]
    run = c.sim.stats.runs[0]
    assert run.finished is not None
    assert run.finished - run.started >= 0.09


async def test_somebody_else_interrupts() -> None:
    """The prompt ends as interrupted though nobody here asked for it."""
    async with simulated() as c:
        c.sim.knobs.arm("interrupted_by_other")
        entry = await c.run(text_graph())
    assert last_message(entry)[0] == "execution_interrupted"
    assert c.sim.stats.interrupts == 0


async def test_duplicate_events() -> None:
    """Every message about the prompt comes twice but the history is as always."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("duplicate_events")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.of("executing")[-2:] == [{"node": None, "prompt_id": prompt_id}] * 2)
        entry = await c.entry(prompt_id)
    assert len(ear.of("execution_success")) == 2
    assert len(entry["status"]["messages"]) == 3


async def test_a_lost_answer() -> None:
    """The connection closes, and the prompt runs all the same."""
    async with simulated() as c:
        c.sim.knobs.arm("lost_answer")
        with pytest.raises(CUT):
            await c.submit(picture_graph(), prompt_id="mine")
        entry = await c.entry("mine")
    assert entry["status"]["completed"]


async def test_node_errors_on_200() -> None:
    """The answer names errors that the run knows nothing of."""
    async with simulated() as c:
        c.sim.knobs.arm("node_errors_on_200")
        answer = await c.post("/prompt", {"prompt": picture_graph()})
        entry = await c.entry(answer.json()["prompt_id"])
    assert answer.status_code == 200
    assert answer.json()["node_errors"]["999"]["errors"]
    assert entry["status"]["completed"]


async def test_a_prompt_that_somebody_deletes() -> None:
    """It is taken, and leaves no trace but a changed queue."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("delete_pending")
        prompt_id = await c.submit(picture_graph(), client_id=ear.client_id)
        await c.run(picture_graph(2))
        history = await c.get(f"/history/{prompt_id}")
    assert history == {}
    assert "execution_start" not in ear.types()
    assert len(c.sim.stats.runs) == 1
