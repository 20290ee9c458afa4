"""What callers in ComfyUI's own language are told: when nodes began, and what their files were to be called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.made import still
from worker.engines.comfyui.events import Track
from worker.engines.comfyui.inventory import Inventory, inventory
from worker.engines.comfyui.native import prefixes_of, stats_of
from worker.engines.comfyui.outputs import Item, Made

BEGAN, ENDED = ["execution_start", {"timestamp": 5000}], ["execution_success", {"timestamp": 5900}]


def known() -> Inventory:
    prefix = {"required": {"filename_prefix": ["STRING", {"default": "video/ComfyUI"}]}}
    return inventory({"SaveVideo": {"input": prefix, "output_node": True}}, {}, {})


def tracked(*messages: tuple[str, dict[str, Any], float]) -> Track:
    track = Track("p")
    for kind, data, now in messages:
        track.hear(json.dumps({"type": kind, "data": {"prompt_id": "p", **data}}), now)
    return track


def test_nodes_begin_on_the_servers_clock() -> None:
    """The history tells of the whole, and the socket of each node, by the time that passed since the start."""
    track = tracked(
        ("execution_start", {"timestamp": 5000}, 70.0),
        ("executing", {"node": "3"}, 70.25),
        ("executing", {"node": "8"}, 70.5),
        ("executing", {"node": "3"}, 70.75),
        ("executing", {"node": None}, 70.9),
    )
    assert stats_of(track, [BEGAN, ["execution_cached", {"nodes": []}], ENDED]) == {
        "start": 5000,
        "end": 5900,
        "nodes": {"3": 5250, "8": 5500},
    }


@pytest.mark.parametrize("messages", [None, [], "none", [["execution_start", {}], "x", ["y"]]])
def test_a_history_that_tells_no_times_leaves_the_sockets(messages: Any) -> None:
    track = tracked(("execution_start", {"timestamp": 5000}, 70.0), ("executing", {"node": "3"}, 70.1))
    assert stats_of(track, messages) == {"start": 5000, "end": 5000, "nodes": {"3": 5100}}


def test_a_deaf_socket_leaves_nodes_out() -> None:
    """One that missed the start cannot tell when nodes began; with nothing heard nothing is told."""
    late = tracked(("executing", {"node": "3"}, 70.1))
    assert stats_of(late, [BEGAN, ENDED]) == {"start": 5000, "end": 5900, "nodes": {}}
    assert stats_of(tracked(), None) == {}


def test_each_thing_is_called_as_its_node_says() -> None:
    """Pictures first, as they are handed over; a node's own default counts, and folders do not."""
    graph = {
        "1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "deep/%date%/cat"}},
        "2": {"class_type": "SaveVideo", "inputs": {}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["9", 0]}},
    }
    parts = [
        (Made("2", Item("clip.mp4")), b"video"),
        (Made("1", Item("a.png")), still("PNG")),
        (Made("3", Item("b.png")), still("PNG")),
        (Made("4:1", text="a caption"), b"a caption"),
    ]
    assert prefixes_of(parts, graph, known()) == ("cat", "ComfyUI", "ComfyUI", "ComfyUI")
