"""Rewriting graphs: each gives a new one, and the picture stays the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import CLASSIC, SERVER, classic, node, server, with_nodes
from worker.engines.comfyui import graph as graphs
from worker.errors import InternalError

SLOT = "input:workflow.10.inputs.image"


def test_what_runs_is_what_feeds_an_output() -> None:
    """The server neither checks nor runs anything else."""
    graph = with_nodes(
        _20=("VAELoader", {"vae_name": "none.pt"}), _21=("CLIPTextEncode", {"text": "", "clip": ["4", 1]})
    )
    assert graphs.reached(graph, SERVER) == tuple(CLASSIC)
    assert graphs.reached({"1": {"class_type": "Unknown", "inputs": {}}}, SERVER) == ()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (["4", 0], True),
        (["4", 1.0], True),
        (["4"], False),
        (["4", 0, 0], False),
        ([4, 0], False),
        (["4", "0"], False),
        (["4", True], False),
        ("4", False),
        (None, False),
    ],
)
def test_links_are_what_the_server_takes_for_one(value: Any, told: bool) -> None:
    """A node's id as text and a slot."""
    assert graphs.is_link(value) is told


def test_seeds_are_read_where_they_take_part() -> None:
    """Numbers only; a seed that comes over a link stands at its source, if that is one."""
    graph = with_nodes(
        _20=("KSampler", {"seed": 5}), _21=("PrimitiveInt", {"value": 3}), _3=("KSampler", {"seed": ["21", 0]})
    )
    assert graphs.seeds(CLASSIC, SERVER) == {"3.seed": 7}
    assert graphs.seeds({**graph, "9": CLASSIC["9"]}, SERVER) == {}
    assert graphs.seeds(classic(_3_seed="7"), SERVER) == {}


def test_images_are_put_in_their_slots_only() -> None:
    """A prompt that reads like a slot stays a prompt."""
    graph = with_nodes(_10=("LoadImage", {"image": SLOT}), _6=("CLIPTextEncode", {"text": SLOT, "clip": ["4", 1]}))
    assert graphs.slots(graph) == ("workflow.10.inputs.image",)
    done = graphs.filled(graph, {"workflow.10.inputs.image": "job/a.png"})
    assert done["10"]["inputs"]["image"] == "job/a.png"
    assert done["6"]["inputs"]["text"] == SLOT
    assert graphs.slots(done) == ()


def test_slots_of_portable_images_are_filled_wherever_they_stand() -> None:
    """They are named after the parameter, not after the node."""
    graph = {"image": {"class_type": "LoadImage", "inputs": {"image": "input:params.image"}}}
    assert graphs.filled(graph, {"params.image": "x.png"})["image"]["inputs"] == {"image": "x.png"}


def test_a_missing_image_is_our_own_mistake() -> None:
    """The server would say that a file is not there."""
    with pytest.raises(InternalError, match=r"workflow\.10\.inputs\.image"):
        graphs.filled({"10": {"class_type": "LoadImage", "inputs": {"image": SLOT}}}, {})


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("mine", "mine"),
        ("sub/dir/mine", "mine"),
        ("..\\..\\mine", "mine"),
        ("../..", "image"),
        ("/", "image"),
        ("%date:yyyy%_%width%x", "x"),
        ("100%", "100"),
        ("a cat: 1", "a_cat_1"),
        ("höhe", "h_he"),
        ("x" * 300, "x" * 80),
        (["8", 0], "image"),
        (None, "image"),
    ],
)
def test_every_file_lies_below_the_prefix(own: Any, name: str) -> None:
    """Nothing leaves the folder, no token is left for the server to fill in, and what fed the name is cut off."""
    done = graphs.prefixed(classic(_9_filename_prefix=own), SERVER, "sd/k")
    assert done["9"]["inputs"]["filename_prefix"] == f"sd/k/9-{name}"


def test_a_prefix_left_to_the_node_is_set_too() -> None:
    """Else two jobs would share a name. Previews have none, and a loader's is none of ours."""
    on = server(also={"Odd": node({"filename_prefix": ["STRING", {}]}, "IMAGE")})
    graph = with_nodes(_20=("PreviewImage", {}), _21=("Odd", {"filename_prefix": "kept"}))
    graph["1:2"] = {"class_type": "SaveVideo", "inputs": {}}
    done = graphs.prefixed(graph, on, "sd/k")
    assert done["1:2"]["inputs"] == {"filename_prefix": "sd/k/1_2-x"}
    assert done["20"]["inputs"] == {}
    assert done["21"]["inputs"] == {"filename_prefix": "kept"}


def test_saving_is_made_cheap_where_the_server_can() -> None:
    """Only the plain save node is replaced, and what it alone takes is left out."""
    preview = graphs.cheapened(CLASSIC, SERVER, "preview")
    assert preview["9"] == {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    assert graphs.cheapened(CLASSIC, SERVER, "websocket")["9"]["class_type"] == "SaveImageWebsocket"
    bare = server(without=("SaveImageWebsocket",))
    assert graphs.cheapened(CLASSIC, bare, "websocket") == CLASSIC


def test_a_fresh_graph_differs_where_nothing_feeds_it() -> None:
    """The server's cache goes by every input that stands there, and by all that feeds a node."""
    done = graphs.freshened(CLASSIC, SERVER, "n1")
    changed = {i for i in CLASSIC if done[i] != CLASSIC[i]}
    assert changed == {"4", "5"}
    assert done["4"]["inputs"] == {"ckpt_name": "base.safetensors", graphs.NONCE: "n1"}
    assert graphs.freshened(CLASSIC, SERVER, "n2") != done


def test_a_resampled_graph_keeps_what_feeds_its_sampler() -> None:
    """Models and texts stay as the server has them; the sampler and what comes of it are new."""
    done = graphs.resampled(CLASSIC, SERVER, "n1")
    assert {i for i in CLASSIC if done[i] != CLASSIC[i]} == {"3"}
    assert done["3"]["inputs"] == {**CLASSIC["3"]["inputs"], graphs.NONCE: "n1"}


def test_a_graph_without_a_sampler_is_made_anew_altogether() -> None:
    """There is nothing in it of which it could be told that it makes the picture."""
    graph = {i: CLASSIC[i] for i in ("4", "6")}
    assert graphs.resampled(graph, SERVER, "n") == graphs.freshened(graph, SERVER, "n")


def test_a_class_that_really_has_such_an_input_is_left_alone() -> None:
    """It would be given the nonce."""
    on = server(also={"Odd": node({graphs.NONCE: ["STRING", {}]}, "IMAGE")})
    graph = {"1": {"class_type": "Odd", "inputs": {}}}
    assert graphs.freshened(graph, on, "n") == graph


def test_nothing_changes_its_argument() -> None:
    """Not even lists and objects within the inputs."""
    graph = with_nodes(_10=("LoadImage", {"image": SLOT}), _11=("Chooser", {"style": {"__value__": ["dark"]}}))
    before = copy.deepcopy(graph)
    for done in (
        graphs.filled(graph, {"workflow.10.inputs.image": "a.png"}),
        graphs.prefixed(graph, SERVER, "p"),
        graphs.cheapened(graph, SERVER, "preview"),
        graphs.freshened(graph, SERVER, "n"),
        graphs.resampled(graph, SERVER, "n"),
    ):
        done["3"]["inputs"]["model"][0] = "changed"
        done["9"]["inputs"]["images"] = None
    assert graph == before


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (CLASSIC, 'node 3 (KSampler "The sampler")'),
        ({"3": {"class_type": "KSampler", "_meta": {"title": "KSampler"}}}, "node 3 (KSampler)"),
        ({"3": {"class_type": 5, "_meta": {"title": 5}}}, "node 3"),
        ({"3": None}, "node 3"),
        (None, "node 3"),
        ({}, "node 3"),
    ],
)
def test_a_node_in_words(graph: Any, said: str) -> None:
    """Its id, its class, and its title where that says more."""
    assert graphs.title(graph, "3") == said
