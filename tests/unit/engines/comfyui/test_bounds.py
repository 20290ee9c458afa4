"""Limits and seeds of graphs: what stands there as a number is bounded, what is left open is drawn."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import job_of
from tests.unit.engines.comfyui.graphs import SERVER, classic, fields_of, node, refused, server, with_nodes, worked
from worker.engines.comfyui.seeds import HIGHEST, draw
from worker.job import Limits

LIMITS = Limits(max_pixels=1_000_000, max_steps=30, max_images=8)


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({"_5_width": 2000, "_5_height": 501}, "workflow.5.inputs.width"),
        ({"_5_width": "2000", "_5_height": 501.0}, "workflow.5.inputs.width"),
        ({"_3_steps": 31}, "workflow.3.inputs.steps"),
        ({"_5_batch_size": 9}, "workflow.5.inputs.batch_size"),
    ],
)
def test_numbers_above_the_limits_are_refused(inputs: dict[str, Any], field: str) -> None:
    """By the input where they stand; the server makes numbers of texts."""
    assert fields_of(lambda: worked(classic(**inputs), limits=LIMITS)) == [field]


@pytest.mark.parametrize(
    "inputs",
    [
        {"_5_width": 2000, "_5_height": 500},
        {"_5_width": ["20", 0], "_5_height": 5000},
        {"_5_width": -2000, "_5_height": -5000},
        {"_5_width": True, "_3_steps": 30},
        {"_5_width": "wide", "_3_steps": 1e30},
        {"_5_batch_size": 8},
    ],
)
def test_what_is_within_or_no_number_passes(inputs: dict[str, Any]) -> None:
    """What is computed while it runs cannot be bounded here; what is no number is the server's to refuse."""
    graph = with_nodes(classic(**inputs), _20=("PrimitiveInt", {"value": 9999}))
    assert set(worked(graph, limits=LIMITS).request) == set(graph)


def test_sizes_are_those_of_pictures_only() -> None:
    """The text encoder of SDXL is told sizes as hints."""
    hint = {"width": 8192, "height": 8192, "clip": ["4", 1]}
    assert worked(with_nodes(_6=("CLIPTextEncodeSDXL", hint)), limits=LIMITS).request["6"]["inputs"]["width"] == 8192


def test_batches_multiply_along_the_links() -> None:
    """The node that goes too far is named; dealing out anew multiplies nothing."""
    repeat = ("RepeatLatentBatch", {"samples": ["5", 0], "amount": 3})
    graph = with_nodes(classic(_5_batch_size=3, _3_latent_image=["20", 0]), _20=repeat)
    assert fields_of(lambda: worked(graph, limits=LIMITS)) == ["workflow.20.inputs.amount"]
    dealt = ("RebatchLatents", {"latents": ["5", 0], "batch_size": 64})
    graph = with_nodes(classic(_5_batch_size=3, _3_latent_image=["20", 0]), _20=dealt)
    assert worked(graph, limits=LIMITS).expect.count is None


def test_the_images_of_several_outputs_are_added_once_each() -> None:
    """The same picture saved and shown is one."""
    graph = with_nodes(classic(_5_batch_size=5), _20=("PreviewImage", {"images": ["8", 0]}))
    assert worked(graph, limits=LIMITS).steps == 2
    second = {"width": 64, "height": 64, "batch_size": 4}
    graph = with_nodes(graph, _21=("EmptyImage", second), _22=("PreviewImage", {"images": ["21", 0]}))
    assert fields_of(lambda: worked(graph, limits=LIMITS)) == ["workflow"]
    assert "9 images" in refused(graph, limits=LIMITS)


def test_steps_are_known_where_all_agree() -> None:
    """They pace the watchdog."""
    assert worked(classic(_3_steps=12)).steps == 12
    second = {**classic()["3"]["inputs"], "steps": 5, "latent_image": ["3", 0]}
    assert worked(with_nodes(classic(_8_samples=["20", 0]), _20=("KSampler", second))).steps is None
    assert worked(classic(_3_steps=["5", 0])).steps is None


@pytest.mark.parametrize("left_open", [-1, -1.0, None, ...])
def test_open_seeds_are_drawn_from_the_job(left_open: Any) -> None:
    """The same at every run of the job, another for another job; reported where it is the only one."""
    work = worked(classic(_3_seed=left_open))
    seed = work.request["3"]["inputs"]["seed"]
    assert type(seed) is int
    assert 0 <= seed <= HIGHEST
    assert work.expect.seeds == (seed,)
    assert worked(classic(_3_seed=left_open)).request == work.request
    assert worked(classic(_3_seed=left_open), id="job-2").expect.seeds != (seed,)


def test_given_seeds_are_kept() -> None:
    """Also 0 and those of 64 bits; a linked one is drawn where it comes from, if at all."""
    for seed in (0, 7, 2**64 - 1):
        assert worked(classic(_3_seed=seed)).expect.seeds == (seed,)
    linked = with_nodes(classic(_3_seed=["20", 0]), _20=("PrimitiveInt", {"value": -1}))
    work = worked(linked)
    assert work.request["20"]["inputs"]["value"] == -1
    assert work.expect.seeds == ()


def test_each_node_has_a_seed_of_its_own() -> None:
    """Two of them are not reported as one. A node that does not run needs none."""
    second = {**classic()["3"]["inputs"], "seed": -1, "latent_image": ["3", 0]}
    graph = with_nodes(
        classic(_8_samples=["20", 0], _3_seed=-1), _20=("KSampler", second), _21=("KSampler", {"seed": -1})
    )
    work = worked(graph)
    assert work.request["3"]["inputs"]["seed"] != work.request["20"]["inputs"]["seed"]
    assert work.request["21"]["inputs"]["seed"] == -1
    assert work.expect.seeds == ()


def test_drawn_seeds_fit_the_input() -> None:
    """Some nodes take 32 bits only."""
    on = server(also={"Small": node({"seed": ["INT", {"min": 5, "max": 6}]}, "IMAGE")})
    declared = on.nodes["Small"].inputs["seed"]
    drawn = {draw(job_of({"params": {"prompt": "x"}}, id=f"j{i}").seed, "1", declared) for i in range(40)}
    assert drawn == {5, 6}
    assert SERVER.nodes["KSampler"].inputs["seed"].seed
