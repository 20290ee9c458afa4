"""What is heard and found while prompts run, wait, are interrupted and end."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.support.comfy import (
    OTHER,
    Comfy,
    frame_parts,
    images_of,
    last_message,
    node,
    picture_graph,
    simulated,
    text_graph,
)
from tests.support.waiting import wait_until
from worker.simulators.comfyui import Knobs


def slow() -> Knobs:
    """Steps slow enough to be watched."""
    return Knobs(step_seconds=0.005)


async def test_the_order_of_messages() -> None:
    """Status twice, start, cached, the nodes, success before the history is written, status, executing null."""
    async with simulated() as c, c.socket() as ear:
        prompt_id = await c.submit(picture_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        entry = (await c.get(f"/history/{prompt_id}"))[prompt_id]
    assert ear.types() == [
        *("status", "status", "status", "execution_start", "execution_cached"),
        *("progress_state", "executing", "progress_state"),
        *("progress_state", "executing", "executed", "progress_state"),
        *("execution_success", "status", "executing"),
    ]
    assert ear.of("executed")[0]["output"] == entry["outputs"]["9"]
    assert [s["status"]["exec_info"]["queue_remaining"] for s in ear.of("status")] == [0, 1, 1, 0]
    assert ear.of("status")[0]["sid"] == ear.client_id
    assert [name for name, _ in entry["status"]["messages"]] == [
        "execution_start",
        "execution_cached",
        "execution_success",
    ]
    assert entry["prompt"][3] == {"client_id": ear.client_id}
    assert entry["meta"]["9"] == {"node_id": "9", "display_node": "9", "parent_node": None, "real_node_id": "9"}


async def test_success_is_told_before_the_history_is_written() -> None:
    """The history is still empty then, and complete when `executing` says null."""
    async with simulated(Knobs(history_seconds=0.05)) as c, c.socket() as ear:
        prompt_id = await c.submit(picture_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.of("execution_success"))
        early = await c.get(f"/history/{prompt_id}")
        await ear.over(prompt_id)
        late = await c.get(f"/history/{prompt_id}")
    assert early == {}
    assert list(late) == [prompt_id]


async def test_progress_of_a_sampler() -> None:
    """One progress and one progress_state a step, the latter with every node touched so far."""
    async with simulated() as c, c.socket() as ear:
        prompt_id = await c.submit(text_graph(steps=4), client_id=ear.client_id)
        await ear.over(prompt_id)
    assert ear.of("progress") == [{"value": n, "max": 4, "prompt_id": prompt_id, "node": "3"} for n in range(1, 5)]
    last = ear.of("progress_state")[-1]["nodes"]
    assert {n["state"] for n in last.values()} == {"finished"}
    assert set(last) == set(text_graph())
    assert last["3"]["max"] == 4


async def test_messages_go_to_their_client_alone() -> None:
    """Others hear of the queue only."""
    async with simulated() as c, c.socket() as mine, c.socket() as other:
        prompt_id = await c.submit(text_graph(), client_id=mine.client_id)
        await mine.over(prompt_id)
        await wait_until(lambda: len(other.of("status")) == 4)
    assert set(other.types()) == {"status"}


async def test_a_prompt_of_nobody() -> None:
    """Without a client id everybody gets its progress, and nobody its other messages; the history is complete."""
    async with simulated() as c, c.socket() as ear:
        entry = await c.run(text_graph())
        await wait_until(lambda: len(ear.of("status")) == 4)
    assert set(ear.types()) == {"status", "progress", "progress_state"}
    assert entry["prompt"][3] == {}
    assert len(entry["status"]["messages"]) == 3


async def test_joining_late() -> None:
    """The owner of a running prompt hears which node runs, without the prompt's id, and nothing that it missed."""
    async with simulated(slow()) as c:
        prompt_id = await c.submit(text_graph(steps=1000), client_id="me")
        await c.sampling()
        async with c.socket("me") as ear:
            await wait_until(lambda: len(ear.messages) > 3)
            await c.post("/interrupt")
            await ear.over(prompt_id)
    assert ear.types()[:2] == ["status", "executing"]
    assert ear.messages[1]["data"] == {"node": "3"}
    assert "execution_start" not in ear.types()


async def test_two_sockets_of_one_client_id() -> None:
    """The newer gets everything; when the older closes, the newer stays open and deaf."""
    async with simulated() as c, c.socket("me") as old, c.socket("me") as new:
        await c.run(picture_graph(1))
        await wait_until(lambda: len(new.of("status")) == 4)
        assert len(old.of("status")) == 1
        await old.connection.close()
        await wait_until(lambda: c.sim.stats.sockets == 1)
        heard = len(new.messages)
        await c.run(picture_graph(2), client_id="me")
        await new.connection.ping()
        assert len(new.messages) == heard
        assert new.closed is None


async def test_a_socket_without_a_client_id() -> None:
    """The server makes one up."""
    async with simulated() as c, c.socket("") as ear:
        sid = ear.of("status")[0]["sid"]
        prompt_id = await c.submit(picture_graph(), client_id=sid)
        await ear.over(prompt_id)
    assert len(sid) == 32


async def test_odd_words_from_a_client() -> None:
    """They are ignored, and feature flags count only as the first of them."""
    async with simulated() as c, c.socket() as ear:
        for text in ("no json", "[1]", '{"type": "hello"}', '{"type": "feature_flags", "data": {}}'):
            await ear.connection.send(text)
        await ear.connection.send(b"bytes")
        prompt_id = await c.submit(picture_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
    assert "feature_flags" not in ear.types()


async def test_no_other_path_speaks_websocket() -> None:
    """The handshake is refused."""
    async with simulated() as c:
        with pytest.raises(Exception, match="HTTP 403"):
            await connect(c.sim.url.replace("http", "ws", 1) + "/other", proxy=None)


async def test_previews() -> None:
    """JPEG frames of the old kind after each progress when they are turned on."""
    async with simulated(Knobs(preview_method="auto")) as c, c.socket() as ear:
        prompt_id = await c.submit(text_graph(steps=2), client_id=ear.client_id)
        await ear.over(prompt_id)
    assert [frame_parts(f)[:2] for f in ear.frames] == [(1, 1), (1, 1)]
    assert frame_parts(ear.frames[0])[2].startswith(b"\xff\xd8")


async def test_previews_with_metadata() -> None:
    """A client that asks for them gets frames that say which node and prompt they belong to, and no others."""
    async with simulated(Knobs(preview_method="auto")) as c, c.socket(flags=True) as ear:
        prompt_id = await c.submit(text_graph(steps=1), client_id=ear.client_id)
        await ear.over(prompt_id)
    event, length, rest = frame_parts(ear.frames[0])
    described = json.loads(rest[:length])
    assert (event, len(ear.frames)) == (4, 1)
    assert (described["node_id"], described["prompt_id"]) == ("3", prompt_id)
    assert described["image_type"] == "image/jpeg"
    assert rest[length:].startswith(b"\xff\xd8")
    assert ear.of("feature_flags")[0]["supports_preview_metadata"] is True


async def test_save_image_websocket() -> None:
    """PNG frames of type 1 and format 2, no outputs in the history, and never cached."""
    graph = picture_graph(batch=2)
    graph["9"] = node("SaveImageWebsocket", images=["1", 0])
    async with simulated() as c, c.socket() as ear:
        for times in (1, 2):
            prompt_id = await c.submit(graph, client_id=ear.client_id)
            await ear.over(prompt_id)
            assert [frame_parts(f)[:2] for f in ear.frames] == [(1, 2)] * 2 * times
        entry = await c.entry(prompt_id)
    assert entry["outputs"] == {}
    assert entry["status"]["status_str"] == "success"
    assert ear.of("executed") == []
    assert ear.of("execution_cached")[1]["nodes"] == ["1"]


async def test_identical_prompts_are_served_from_the_cache() -> None:
    """All nodes cached, `executed` with the old name, nothing written, whatever the nodes are called."""
    renamed = {f"x{k}": v for k, v in text_graph().items()}
    for n in renamed.values():
        n["inputs"] = {k: [f"x{v[0]}", v[1]] if isinstance(v, list) else v for k, v in n["inputs"].items()}
    async with simulated() as c, c.socket() as ear:
        first = await c.run(text_graph())
        again = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(again)
        entry = await c.entry(again)
        other = await c.run(renamed)
        written = c.sim.files("output")
    assert sorted(ear.of("execution_cached")[0]["nodes"]) == sorted(text_graph())
    assert [m["node"] for m in ear.of("executing")] == [None]
    assert entry["outputs"] == first["outputs"]
    assert images_of(other) == images_of(first)
    assert written == ["ComfyUI_00001_.png"]
    assert (c.sim.stats.cached, c.sim.stats.executed) == (2, 1)


async def test_another_prefix_runs_the_save_node_alone() -> None:
    """Sampling stays cached, the file is new."""
    async with simulated() as c:
        await c.run(text_graph(prefix="a"))
        entry = await c.run(text_graph(prefix="b"))
        runs = c.sim.stats.runs
    assert runs[1].executed == ["9"]
    assert images_of(entry)[0]["filename"] == "b_00001_.png"
    assert len(c.sim.stats.samplings) == 1


@pytest.mark.parametrize(("cache", "loads"), [("classic", 2), ("lru", 1), ("none", 3)])
async def test_cache_modes(cache: Any, loads: int) -> None:
    """One other prompt empties the classic cache, lru keeps, none keeps nothing."""
    async with simulated(Knobs(cache=cache)) as c:
        await c.run(text_graph())
        await c.run(text_graph(seed=2))
        await c.run(picture_graph())
        await c.run(text_graph(seed=3))
    assert len(c.sim.stats.loads) == loads


async def test_free_empties_the_cache() -> None:
    """`free_memory` only; the next run writes a new file and reads the model again."""
    async with simulated() as c:
        await c.run(text_graph())
        assert (await c.post("/free", {"unload_models": True})).status_code == 200
        await c.run(text_graph())
        assert len(c.sim.stats.loads) == 1
        answer = await c.post("/free", {"unload_models": True, "free_memory": True})
        await wait_until(lambda: not c.sim.machine.queue._flags)
        await c.run(text_graph())
    assert (answer.status_code, answer.content) == (200, b"")
    assert len(c.sim.stats.loads) == 2
    assert len(c.sim.stats.frees) == 2


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
    async with simulated(slow()) as c:
        await c.submit(text_graph(steps=1000))
        await c.sampling()
        ids = [
            await c.submit(picture_graph(n), **more) for n, more in enumerate(({}, {"front": True}, {"number": -50}))
        ]
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
