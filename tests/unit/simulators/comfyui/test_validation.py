"""What the simulated ComfyUI says to graphs that it does not take."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.comfy import Comfy, Graph, images_of, node, picture_graph, simulated, text_graph
from worker.simulators.comfyui import Knobs

TROUBLE = "500 Internal Server Error\n\nServer got itself in trouble"


def changed(graph: Graph, node_id: str, **inputs: Any) -> Graph:
    """The graph with other inputs at one node; None takes an input away."""
    graph = copy.deepcopy(graph)
    graph[node_id]["inputs"] |= inputs
    graph[node_id]["inputs"] = {k: v for k, v in graph[node_id]["inputs"].items() if v is not None}
    return graph


async def refused(c: Comfy, graph: Any, **more: Any) -> dict[str, Any]:
    """The body of a 400."""
    answer = await c.post("/prompt", {"prompt": graph, **more})
    assert answer.status_code == 400, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.parametrize("body", [{}, []])
async def test_a_body_without_a_prompt(body: Any) -> None:
    """`no_prompt` for an empty object and an empty list."""
    async with simulated() as c:
        answer = await c.post("/prompt", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "no_prompt")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("content", [b"", b"{", b'{"prompt": null}', b'{"prompt": "x"}', b'{"prompt": [1]}', b"3"])
async def test_bodies_that_the_server_stumbles_over(content: bytes) -> None:
    """A plain-text 500 and no word why; the queue is untouched."""
    async with simulated() as c:
        answer = await c.client.post("/prompt", content=content)
        depth = await c.get("/prompt")
    assert (answer.status_code, answer.text) == (500, TROUBLE)
    assert answer.headers["content-type"].startswith("text/plain")
    assert depth == {"exec_info": {"queue_remaining": 0}}


async def test_a_body_over_the_limit() -> None:
    """413 with both sizes in plain text."""
    async with simulated(Knobs(max_upload_size=1000)) as c:
        answer = await c.client.post("/prompt", content=b"x" * 2000)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "text/plain; charset=utf-8")
    assert answer.text == "Maximum request body size 1000 exceeded, actual body size 2000"


async def test_graphs_without_outputs() -> None:
    """An empty graph, and one in which nothing is saved."""
    async with simulated() as c:
        for graph in ({}, {"1": picture_graph()["1"]}):
            assert (await refused(c, graph))["error"]["type"] == "prompt_no_outputs"


async def test_nodes_without_a_class_and_of_unknown_classes() -> None:
    """`invalid_prompt` names the node in the details; an unknown class is named in the message."""
    ui_graph = {"nodes": {"a": 1}, "links": {}}
    unknown = {"1": {**node("NoSuchNode"), "_meta": {"title": "Mine"}}}
    async with simulated() as c:
        ui, odd = (await refused(c, ui_graph))["error"], (await refused(c, unknown))["error"]
        c.sim.knobs.missing_nodes.append("EmptyImage")
        missing = (await refused(c, picture_graph()))["error"]
    assert (ui["type"], ui["details"]) == ("invalid_prompt", "Node ID '#nodes'")
    assert odd["message"] == "Cannot execute because node NoSuchNode does not exist."
    assert "EmptyImage" in missing["message"]


async def test_unknown_classes_on_the_newest() -> None:
    """`missing_node_type` with the title of the node."""
    unknown = {"1": {**node("NoSuchNode"), "_meta": {"title": "Mine"}}}
    async with simulated(Knobs(version="newest")) as c:
        error = (await refused(c, unknown))["error"]
        bare = (await refused(c, {"1": {"inputs": {}}}))["error"]
    assert (error["type"], error["extra_info"]["node_title"]) == ("missing_node_type", "Mine")
    assert (bare["type"], bare["extra_info"]["class_type"]) == ("missing_node_type", None)


@pytest.mark.parametrize(
    ("inputs", "kind", "details"),
    [
        ({"seed": None}, "required_input_missing", "seed"),
        ({"seed": -1}, "value_smaller_than_min", "seed"),
        ({"steps": 10001}, "value_bigger_than_max", "steps"),
        ({"steps": "many"}, "invalid_input_type", "steps, many, invalid literal for int() with base 10: 'many'"),
        ({"scheduler": "nope"}, "value_not_in_list", "scheduler: 'nope' not in ['simple', 'sgm_uniform', 'karras', "),
        ({"sampler_name": "nope"}, "value_not_in_list", "sampler_name: 'nope' not in (list of length 42)"),
        ({"model": ["4"]}, "bad_linked_input", "model"),
        ({"model": ["5", 0]}, "return_type_mismatch", "model, received_type(LATENT) mismatch input_type(MODEL)"),
    ],
)
async def test_bad_inputs_are_named_at_their_node(inputs: dict[str, Any], kind: str, details: str) -> None:
    """The reason stands in node_errors; the error's own details are empty when the fault is upstream."""
    async with simulated() as c:
        body = await refused(c, changed(text_graph(), "3", **inputs))
    assert body["error"] == {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": "",
        "extra_info": {},
    }
    found = body["node_errors"]["3"]
    assert (found["class_type"], found["dependent_outputs"]) == ("KSampler", ["9"])
    assert found["errors"][0]["type"] == kind
    assert found["errors"][0]["details"].startswith(details)


async def test_a_missing_checkpoint_is_shown_with_what_there_is() -> None:
    """Choices and the received value; over twenty choices are not listed."""
    async with simulated(checkpoints=["a.safetensors"]) as c:
        short = (await refused(c, text_graph(checkpoint="nope.safetensors")))["node_errors"]["4"]["errors"][0]
        for n in range(20):
            c.sim.folders.add("checkpoints", f"m{n}.safetensors")
        long = (await refused(c, text_graph(checkpoint="nope.safetensors")))["node_errors"]["4"]["errors"][0]
    assert short["details"] == "ckpt_name: 'nope.safetensors' not in ['a.safetensors']"
    assert short["extra_info"]["received_value"] == "nope.safetensors"
    assert short["extra_info"]["input_config"][0] == ["a.safetensors"]
    assert (long["details"].split(" not in ")[1], long["extra_info"]["input_config"]) == ("(list of length 21)", None)


@pytest.mark.parametrize("link", [["42", 0], ["5", 7]])
async def test_links_to_nowhere(link: list[Any]) -> None:
    """An exception during validation, with the missing key as its details."""
    async with simulated() as c:
        upstream = (await refused(c, changed(text_graph(), "8", samples=link)))["node_errors"]
        output = (await refused(c, changed(picture_graph(), "9", images=link)))["node_errors"]
    assert upstream["8"]["errors"][0]["type"] == "exception_during_inner_validation"
    assert output["9"]["errors"][0]["type"] == "exception_during_validation"


async def test_a_cycle() -> None:
    """400 with no word why from 0.3.64; the newest names the nodes."""
    graph = {
        "1": node("ImageToMask", image=["2", 0], channel="red"),
        "2": node("ImageScale", image=["2", 0], upscale_method="area", width=8, height=8, crop="disabled"),
        "9": node("SaveImage", images=["2", 0], filename_prefix="x"),
    }
    async with simulated() as c:
        old = await refused(c, graph)
        c.sim.knobs.version = "newest"
        new = await refused(c, graph)
    assert (old["error"]["details"], old["node_errors"]) == ("", {})
    assert new["node_errors"]["2"]["errors"][0]["type"] == "dependency_cycle"


async def test_one_good_output_is_enough() -> None:
    """200 with node_errors; only the good output runs, and the history knows nothing of the other."""
    graph = picture_graph() | {
        "2": node("LoadImage", image="nope.png"),
        "8": node("SaveImage", images=["2", 0], filename_prefix="bad"),
    }
    async with simulated() as c:
        answer = await c.post("/prompt", {"prompt": graph})
        entry = await c.entry(answer.json()["prompt_id"])
    errors = answer.json()["node_errors"]
    assert answer.status_code == 200
    assert errors["2"]["errors"][0]["type"] == "custom_validation_failed"
    assert errors["2"]["errors"][0]["details"] == "image - Invalid image file: nope.png"
    assert errors["2"]["dependent_outputs"] == ["8"]
    assert (list(entry["outputs"]), entry["prompt"][4]) == (["9"], ["9"])
    assert entry["status"]["status_str"] == "success"


async def test_partial_execution_targets() -> None:
    """Only these outputs are looked at and run."""
    graph = picture_graph() | {"8": node("PreviewImage", images=["1", 0])}
    async with simulated() as c:
        entry = await c.run(graph, partial_execution_targets=["8"])
        nothing = await refused(c, graph, partial_execution_targets=["77"])
    assert list(entry["outputs"]) == ["8"]
    assert nothing["error"]["type"] == "prompt_no_outputs"


async def test_wrapped_and_converted_values() -> None:
    """`__value__` is unwrapped, and numbers that came as text are written into the graph as numbers."""
    async with simulated() as c:
        entry = await c.run(changed(picture_graph(), "1", width={"__value__": "32"}, height=16.0))
        picture = await c.view(images_of(entry)[0])
    assert picture.size == (32, 16)
    assert entry["prompt"][2]["1"]["inputs"]["width"] == 32


async def test_choices_of_the_newer_schema_are_not_checked_by_0_3_64() -> None:
    """A wrong upscaler passes the validation there, and fails when it is read; the newest refuses it."""
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("UpscaleModelLoader", model_name="nope.pth"),
        "3": node("ImageUpscaleWithModel", upscale_model=["2", 0], image=["1", 0]),
        "9": node("SaveImage", images=["3", 0], filename_prefix="x"),
    }
    async with simulated() as c:
        entry = await c.run(graph)
        c.sim.knobs.version = "newest"
        error = (await refused(c, graph))["node_errors"]["2"]["errors"][0]
    assert entry["status"]["messages"][-1][1]["exception_type"] == "FileNotFoundError"
    assert error["type"] == "value_not_in_list"


@pytest.mark.parametrize(
    ("given", "old", "new"),
    [
        ("any / thing", "any / thing", None),
        (7, "7", None),
        ("6FA459EA-EE8A-3CA4-894E-DB77E160355E", "6FA459EA-EE8A-3CA4-894E-DB77E160355E", None),
        ("6fa459ea-ee8a-3ca4-894e-db77e160355e",) * 3,
        (None, "None", "drawn"),
    ],
)
async def test_prompt_ids(given: Any, old: str, new: str | None) -> None:
    """0.3.64 takes anything as a string, null as "None"; the newest only canonical UUIDs, and draws one for null."""
    body = {"prompt": picture_graph(), "prompt_id": given}
    async with simulated() as c:
        first = await c.post("/prompt", body)
        c.sim.knobs.version = "newest"
        second = await c.post("/prompt", body)
    assert first.json()["prompt_id"] == old
    if new is None:
        assert (second.status_code, second.json()["error"]["type"]) == (400, "invalid_prompt_id")
    elif new == "drawn":
        assert len(second.json()["prompt_id"]) == 36
    else:
        assert second.json()["prompt_id"] == new


async def test_counters_of_submits() -> None:
    """Numbers count up, `front` negates, an explicit number is taken; refused ones use a number up too."""
    async with simulated() as c:
        numbers = []
        for more in ({}, {"front": True}, {"number": 7}, {}):
            answer = await c.post("/prompt", {"prompt": picture_graph(), **more})
            numbers.append(answer.json()["number"])
        await refused(c, {})
        answer = await c.post("/prompt", {"prompt": picture_graph()})
        stats = c.sim.stats
    assert numbers == [0, -1, 7, 2]
    assert answer.json()["number"] == 4
    assert (len(stats.prompts), stats.refused) == (5, 1)
