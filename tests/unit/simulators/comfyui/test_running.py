"""What is heard and found while prompts run, wait, are interrupted and end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.support.comfy import (
    frame_parts,
    images_of,
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


async def test_what_the_cache_compares() -> None:
    """Inputs that no class knows count as well, however deep."""
    graphs = [picture_graph() for _ in range(3)]
    for graph, last in zip(graphs, (1, 1, 2), strict=True):
        graph["1"]["inputs"]["note"] = {"a": [1, {"b": [last, None]}]}
    async with simulated() as c:
        for graph in graphs:
            await c.run(graph)
    assert [run.executed for run in c.sim.stats.runs] == [["1", "9"], [], ["1", "9"]]


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
        await wait_until(lambda: not c.sim.machine.queue.flagged)
        await c.run(text_graph())
    assert (answer.status_code, answer.content) == (200, b"")
    assert len(c.sim.stats.loads) == 2
    assert len(c.sim.stats.frees) == 2
