"""Prompts that wait, are interrupted, deleted and remembered."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from tests.support.comfy import (
    OTHER,
    Comfy,
    images_of,
    last_message,
    picture_graph,
    simulated,
    text_graph,
)
from tests.support.waiting import wait_until
from worker.simulators.comfyui import Knobs


def slow() -> Knobs:
    """Steps slow enough to be watched."""
    return Knobs(step_seconds=0.005)


@pytest.mark.parametrize("body", [None, {}, "id"])
async def test_interrupt(body: Any) -> None:
    """It acts at the next step; the entry looks like an error but for the last message, and is told to the owner."""
    async with simulated(slow()) as c, c.socket() as ear:
        prompt_id = await c.submit(text_graph(steps=1000), client_id=ear.client_id)
        await c.sampling()
        content = b"" if body is None else json.dumps({"prompt_id": prompt_id} if body == "id" else {}).encode()
        answer = await c.client.post("/interrupt", content=content)
        await ear.over(prompt_id)
        entry = await c.entry(prompt_id)
    assert (answer.status_code, answer.content) == (200, b"")
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    kind, data = last_message(entry)
    assert kind == "execution_interrupted"
    assert (data["node_id"], data["node_type"]) == ("3", "KSampler")
    assert ear.types()[-3:] == ["execution_interrupted", "status", "executing"]
    assert c.sim.stats.runs[0].ended == "interrupted"


async def test_interrupts_that_are_lost() -> None:
    """By another id, while nothing runs, and by the id of one that waits: 200 and no effect."""
    async with simulated(slow()) as c:
        await c.post("/interrupt")
        running = await c.submit(text_graph(steps=30))
        await c.sampling()
        waiting = await c.submit(picture_graph())
        for target in (str(uuid.uuid4()), waiting):
            assert (await c.post("/interrupt", {"prompt_id": target})).status_code == 200
        entries = [await c.entry(p) for p in (running, waiting)]
    assert [e["status"]["status_str"] for e in entries] == ["success", "success"]
    assert c.sim.stats.interrupts == 3


async def test_an_interrupt_during_a_load_acts_at_the_next_node() -> None:
    """The load is finished first."""
    async with simulated(Knobs(load_seconds=0.05)) as c:
        prompt_id = await c.submit(text_graph())
        await wait_until(lambda: c.sim.stats.runs)
        await c.post("/interrupt")
        entry = await c.entry(prompt_id)
    kind, data = last_message(entry)
    assert kind == "execution_interrupted"
    assert data["node_id"] != "4"
    assert c.sim.stats.loads == ["checkpoints/dreamshaper_8.safetensors"]


async def test_an_interrupt_without_an_owner_is_told_to_all() -> None:
    """`execution_interrupted` of a prompt of nobody."""
    async with simulated(slow()) as c, c.socket() as ear:
        await c.submit(text_graph(steps=1000))
        await c.sampling()
        await c.post("/interrupt")
        await wait_until(lambda: ear.of("execution_interrupted"))


async def test_the_queue_and_its_deletes() -> None:
    """Pending prompts vanish without a trace; running and unknown ids are not touched."""
    async with simulated(slow()) as c, c.socket() as ear:
        running = await c.submit(text_graph(steps=1000))
        await c.sampling()
        ids = [await c.submit(picture_graph(n), client_id=ear.client_id) for n in range(3)]
        listed = await c.get("/queue")
        answer = await c.post("/queue", {"delete": [ids[0], running, "unknown"]})
        left = [item[1] for item in (await c.get("/api/queue"))["queue_pending"]]
        await c.post("/queue", {"clear": True})
        empty = (await c.get("/queue"))["queue_pending"]
        history = await c.get(f"/history/{ids[0]}")
        await c.post("/interrupt")
    assert [item[1] for item in listed["queue_running"]] == [running]
    assert listed["queue_pending"][0][:2] == [1, ids[0]]
    assert (answer.status_code, answer.content) == (200, b"")
    assert left == ids[1:]
    assert (empty, history) == ([], {})
    assert {t for t in ear.types() if t not in ("progress", "progress_state")} <= {"status", "execution_interrupted"}
    assert c.sim.stats.queue_deletes == [ids[0], running, "unknown"]


async def test_deleting_the_last_that_waits_is_told_twice() -> None:
    """The queue is emptied, and then told to have changed."""
    async with simulated(slow()) as c:
        await c.submit(text_graph(steps=1000))
        await c.sampling()
        waiting = await c.submit(picture_graph())
        async with c.socket() as ear:
            await c.post("/queue", {"delete": [waiting]})
            await wait_until(lambda: len(ear.of("status")) == 3)
    assert [s["status"]["exec_info"]["queue_remaining"] for s in ear.of("status")] == [2, 1, 1]


async def test_front_and_number_decide_the_order() -> None:
    """Smaller numbers run first."""
    places: list[dict[str, Any]] = [{}, {"front": True}, {"number": -50}]
    async with simulated(slow()) as c:
        await c.submit(text_graph(steps=1000))
        await c.sampling()
        ids = [await c.submit(picture_graph(n), **more) for n, more in enumerate(places)]
        await c.post("/interrupt")
        await wait_until(lambda: len(c.sim.machine.queue.history) == 4)
    assert [run.prompt_id for run in c.sim.stats.runs[1:]] == [ids[2], ids[1], ids[0]]


async def test_the_same_number_and_id_kills_the_worker() -> None:
    """A second, other graph is a 500 and queued even so; later HTTP is fine and nothing ever runs."""
    twin = {"prompt_id": "twin", "number": 5}
    async with simulated(slow()) as c:
        running = await c.submit(text_graph(steps=1000))
        await c.sampling()
        codes = [(await c.post("/prompt", twin | {"prompt": picture_graph(n)})).status_code for n in (1, 1, 2)]
        await c.submit(picture_graph(3))
        await c.post("/interrupt", {"prompt_id": running})
        await wait_until(lambda: c.sim.machine.dead)
        late = await c.post("/prompt", {"prompt": picture_graph()})
        depth = (await c.get("/prompt"))["exec_info"]["queue_remaining"]
    assert codes == [200, 200, 500]
    assert late.status_code == 200
    assert depth >= 3


async def test_history_listings_and_deletion() -> None:
    """Oldest first; max_items takes the newest, offset counts from the oldest; clear empties."""
    async with simulated() as c:
        ids = [await c.submit(picture_graph(n)) for n in range(4)]
        await c.entry(ids[-1])
        everything = list(await c.get("/history"))
        newest = list(await c.get("/history?max_items=2"))
        middle = list(await c.get("/api/history?max_items=2&offset=1"))
        await c.post("/history", {"delete": [ids[0], "unknown"]})
        gone = await c.get(f"/history/{ids[0]}")
        await c.post("/history", {"clear": True})
        empty = await c.get("/history")
        unknown = await c.client.get("/history/unknown")
    assert (everything, newest, middle) == (ids, ids[2:], ids[1:3])
    assert (gone, empty) == ({}, {})
    assert (unknown.status_code, unknown.json()) == (200, {})
    assert c.sim.stats.history_deletes == [ids[0], "unknown"]


async def test_the_history_is_bounded_and_keeps_no_secrets() -> None:
    """The oldest entry makes room; keys of the API nodes are cut out."""
    async with simulated(Knobs(history_limit=2)) as c:
        for n in range(5):
            entry = await c.run(picture_graph(n), extra_data={"api_key_comfy_org": "secret", "tag": n})
        left = await c.get("/history")
    assert len(left) == 3
    assert entry["prompt"][3] == {"tag": 4}


async def test_the_same_id_twice_runs_twice() -> None:
    """The history keeps the later one."""
    async with simulated() as c:
        await c.run(picture_graph(1), prompt_id="same")
        await c.submit(picture_graph(2, prefix="later"), prompt_id="same")
        await wait_until(lambda: len(c.sim.stats.runs) == 2 and c.sim.stats.runs[1].ended)

        async def later() -> bool:
            return bool(images_of((await c.get("/history/same"))["same"])[0]["filename"] == "later_00001_.png")

        await wait_until(later)


async def test_the_jobs_routes_of_the_newest() -> None:
    """One record over queue and history, 404 for unknown ids, and a cancel for running and pending ones."""
    async with simulated(Knobs(version="newest", step_seconds=0.005)) as c:
        done = await c.submit(picture_graph())
        await c.entry(done)
        running = await c.submit(text_graph(steps=1000))
        await c.sampling()
        pending = await c.submit(picture_graph(2))
        listed = await c.get("/api/jobs")
        only = await c.get("/api/jobs?status=pending,in_progress&limit=1")
        one = await c.get(f"/api/jobs/{done}")
        unknown = await c.client.get(f"/api/jobs/{uuid.uuid4()}")
        cancelled = [(await c.post(f"/api/jobs/{j}/cancel")).json() for j in (pending, running, done)]
        entry = await c.entry(running)
        many = await c.post("/api/jobs/cancel", {"job_ids": [done]})
        bad = [(await c.client.post("/api/jobs/cancel", content=b)).status_code for b in (b"{", b"{}")]
    assert {j["id"]: j["status"] for j in listed["jobs"]} == {
        pending: "pending",
        running: "in_progress",
        done: "completed",
    }
    assert (len(only["jobs"]), only["pagination"]["has_more"]) == (1, True)
    assert one["outputs"]["9"]["images"]
    assert unknown.status_code == 404
    assert cancelled == [{"cancelled": True}, {"cancelled": True}, {"cancelled": False}]
    assert last_message(entry)[0] == "execution_interrupted"
    assert (many.json(), bad) == ({"cancelled": False}, [400, 400])


async def test_no_jobs_routes_on_0_3_64() -> None:
    """404 for GET; a POST is not allowed."""
    async with simulated() as c:
        answers = [
            await c.client.get("/api/jobs"),
            await c.client.get("/api/jobs/x"),
            await c.post("/api/jobs/x/cancel"),
            await c.post("/api/jobs/cancel", {"job_ids": []}),
        ]
    assert [a.status_code for a in answers] == [404, 404, 405, 405]


async def test_twenty_at_once() -> None:
    """They run one after the other, in order, and each has its own picture."""
    async with simulated() as c:
        ids = [await c.submit(text_graph(seed=n, checkpoint=OTHER)) for n in range(20)]
        entries = await asyncio.gather(*(c.entry(p) for p in ids))
        pictures = [(await c.view(images_of(e)[0])).tobytes() for e in entries]
    assert [r.prompt_id for r in c.sim.stats.runs] == ids
    assert len(set(pictures)) == 20


async def pixels(c: Comfy, **more: Any) -> bytes:
    """The picture of a text graph."""
    return (await c.picture(text_graph(prefix=uuid.uuid4().hex, **more))).tobytes()


async def test_pictures_tell_what_made_them() -> None:
    """The same for the same seed, prompt, model and steps; another for any other."""
    async with simulated() as c:
        first = await pixels(c)
        again = await pixels(c)
        others = {
            await pixels(c, seed=2),
            await pixels(c, prompt="a dog"),
            await pixels(c, checkpoint=OTHER),
            await pixels(c, steps=4),
        }
    assert again == first
    assert len(others | {first}) == 5
