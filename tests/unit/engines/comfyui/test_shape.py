"""Mistakes of a graph that are found before the server is asked, all of a kind at once."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import CLASSIC, SERVER, classic, fields_of, refused, with_nodes, worked
from worker.engines.comfyui.shape import close, cycle


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        ({"nodes": [], "links": [], "version": 0.4}, r"editor's own format.*Export \(API\)"),
        ({"prompt": dict(CLASSIC)}, "under 'prompt'"),
        ({"prompt": {"nodes": []}, "client_id": "x"}, "under 'prompt'"),
        ({"output": dict(CLASSIC), "workflow": {"nodes": []}}, "under 'output'"),
        ({}, "has no nodes"),
    ],
)
def test_other_forms_of_a_workflow_are_told_apart(workflow: dict[str, Any], said: str) -> None:
    """The message says what to send instead."""
    assert re.search(said, refused(workflow))


def test_a_node_may_be_called_prompt() -> None:
    """Ids are any text."""
    graph = {"prompt": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}}
    graph["nodes"] = {"class_type": "PreviewImage", "inputs": {"images": ["prompt", 0]}}
    assert worked(graph).request == graph


def test_what_is_no_node_is_named() -> None:
    """All of them at once, by their fields."""
    graph: dict[str, Any] = {
        "1": 5,
        "2": {"inputs": {}},
        "3": {"class_type": "KSampler"},
        "4": {"class_type": 4, "inputs": []},
    }
    assert fields_of(lambda: worked(graph)) == [
        "workflow.1",
        "workflow.2.class_type",
        "workflow.3.inputs",
        "workflow.4.class_type",
        "workflow.4.inputs",
    ]


def test_unknown_classes_are_all_named() -> None:
    """Also of nodes that would not run, since the server refuses the whole graph for them."""
    graph = with_nodes(_20=("NoSuch", {}), _21=("Missing", {}))
    graph["21"]["_meta"] = {"title": "My node"}
    assert fields_of(lambda: worked(graph)) == ["workflow.20.class_type", "workflow.21.class_type"]
    assert 'node 21 (Missing "My node")' in refused(graph)


def test_very_many_mistakes_are_cut_short() -> None:
    """A result document must not be megabytes long."""
    graph = {str(i): {"class_type": "NoSuch", "inputs": {}} for i in range(500)}
    found = fields_of(lambda: worked(graph))
    assert len(found) == 21
    assert "480 mistakes more" in refused(graph)


def test_an_output_node_is_needed() -> None:
    """The server says so too, but only then."""
    graph = classic()
    del graph["9"]
    assert "no output node" in refused(graph)


def test_links_into_the_void_are_named() -> None:
    """The server says '42' and no more. Those of nodes that do not run are left alone, as it does."""
    graph = with_nodes(classic(_3_model=["42", 0], _8_vae=["43", 2]), _20=("VAEDecode", {"samples": ["44", 0]}))
    assert fields_of(lambda: worked(graph)) == ["workflow.3.inputs.model", "workflow.8.inputs.vae"]
    assert "'42'" in refused(graph)


def test_links_by_number_are_explained() -> None:
    """Ids are texts in the graph, so the server would find no such node."""
    assert 'by a string: ["4", 0]' in refused(classic(_3_model=[4, 0]))
    assert fields_of(lambda: worked(classic(_3_model=[4, 0]))) == ["workflow.3.inputs.model"]


def test_a_circle_is_found_and_shown() -> None:
    """The server's message for one is empty."""
    graph = with_nodes(
        classic(_3_latent_image=["20", 0]),
        _20=("RepeatLatentBatch", {"samples": ["21", 0], "amount": 1}),
        _21=("RepeatLatentBatch", {"samples": ["3", 0], "amount": 1}),
    )
    assert "in a circle: 3 -> 20 -> 21 -> 3" in refused(graph)
    alone = with_nodes(_20=("RepeatLatentBatch", {"samples": ["20", 0], "amount": 1}))
    assert worked(alone).request["20"]["inputs"]["samples"] == ["20", 0]


def test_a_diamond_and_a_long_chain_are_no_circle() -> None:
    """Depth is not bounded by recursion, nor is the time by the number of ways."""
    graph: dict[str, Any] = {"0": {"inputs": {}}}
    for i in range(1, 5000):
        graph[str(i)] = {"inputs": {"a": [str(i - 1), 0], "b": [str(i - 1), 0]}}
    assert cycle(graph, graph) == ()
    graph["0"] = {"inputs": {"a": ["4999", 0]}}
    assert len(cycle(graph, graph)) == 5000


def test_missing_inputs_are_named_with_their_node() -> None:
    """Those of the server's dynamic kinds come under other names; a node that does not run needs none."""
    graph = with_nodes(classic(_3_cfg=..., _8_vae=...), _20=("KSampler", {}))
    assert fields_of(lambda: worked(graph)) == ["workflow.3.inputs.cfg", "workflow.8.inputs.vae"]
    assert 'node 3 (KSampler "The sampler") needs it' in refused(graph)
    dynamic = with_nodes(_20=("Dynamic", {"image": ["8", 0]}), _21=("PreviewImage", {"images": ["20", 0]}))
    assert set(worked(dynamic).request) == set(dynamic)


def test_unknown_samplers_and_schedulers_are_named_with_what_is_close() -> None:
    """Other values are the server's to judge."""
    assert "unknown sampler 'eulr'; close: euler" in refused(classic(_3_sampler_name="eulr"))
    assert "unknown scheduler 'zzz'; there are: karras, normal" in refused(classic(_3_scheduler="zzz"))
    assert worked(classic(_3_sampler_name=5, _3_cfg=-5)).request["3"]["inputs"]["cfg"] == -5


def test_names_that_are_meant_most_likely() -> None:
    """None of an empty list; long lists are cut."""
    assert close("x", []) == ""
    assert close("zzz", [f"{i:02}" for i in range(20)]).endswith("11, ...")
    assert close("BASE", ["base.safetensors", "base"]).startswith("; close: base")
    assert SERVER.samplers
