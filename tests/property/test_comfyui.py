"""Whatever a job or a ComfyUI server says: an answer, or an error of ours, and no argument changed."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.engines import job_of
from tests.unit.engines.comfyui.graphs import CLASSIC, OBJECT_INFO, SERVER
from worker.engines.answer import Answer
from worker.engines.base import Work
from worker.engines.comfyui import graph as graphs
from worker.engines.comfyui.bounds import in_order
from worker.engines.comfyui.failure import MESSAGE_MAX, ended, failed, refused
from worker.engines.comfyui.inventory import Inventory, inventory
from worker.engines.comfyui.shape import cycle
from worker.engines.comfyui.translate import translate
from worker.errors import WorkerError
from worker.job import Job, Limits

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Graphs take long to draw on a busy machine, which is no flaw of theirs."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
IDS = ("1", "2", "3", "4", "4:2", "")
links = st.tuples(st.sampled_from(IDS), st.integers(0, 2)).map(list)
words = st.sampled_from(
    [
        "base.safetensors",
        "twin.safetensors",
        "there.png",
        "../x.png",
        "http://host/x.png",
        "https://host/detail.safetensors",
        "https://[",
        "data:image/png;base64,AAAA",
        "input:workflow.1.inputs.image",
        "embedding:bad embedding:nope",
        "sub\\x%date%",
    ]
)
values = links | words | st.integers(-2, 2**65) | json_values
NAMES = sorted({name for info in OBJECT_INFO.values() for name in info["input"]["required"]})
inputs = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), values, max_size=6)


def _complete(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The node with something at every input that its class asks for."""
    asked = OBJECT_INFO[kind]["input"]["required"]
    return {"class_type": kind, "inputs": {**dict.fromkeys(asked, 1), **given}}


nodes = st.builds(_complete, st.sampled_from(sorted(OBJECT_INFO)), inputs)
whole_graphs = st.dictionaries(st.sampled_from(IDS), nodes, min_size=1, max_size=5)
broken_nodes = nodes | json_values | st.fixed_dictionaries({"class_type": st.text(max_size=5), "inputs": inputs})
any_graphs = st.dictionaries(st.sampled_from(IDS) | st.sampled_from(["nodes", "prompt"]), broken_nodes, max_size=5)
models = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["lora", "checkpoint", "gligen", "llm_models"]),
            "name": st.just("detail.safetensors"),
        },
        optional={"url": st.just("https://host/detail.safetensors")},
    ),
    max_size=2,
)


def outcome(job: Job) -> Work | WorkerError:
    try:
        return translate(job, SERVER, {}, Limits())
    except WorkerError as error:
        return error


@patient
@given(any_graphs | whole_graphs, st.none() | st.sampled_from(["base", "other", "nope"]), models)
@example(dict(CLASSIC), None, [])
@example(dict(CLASSIC), "base", [])
def test_a_workflow_becomes_work_or_an_error_of_ours(graph: Any, checkpoint: str | None, listed: Any) -> None:
    """Work is complete: every seed a number, every slot an input; and the same job gives the same work."""
    job = job_of({"workflow": graph, "checkpoint": checkpoint, "models": listed})
    before = copy.deepcopy(graph)
    first, second = outcome(job), outcome(job)
    if isinstance(first, WorkerError):
        assert first.fault == "job"
        assert len(first.message) < 100_000
        assert str(first) == str(second)
    else:
        assert first == second
        assert set(first.request) == set(graph)
        assert sorted(graphs.slots(first.request)) == sorted(ref.field for ref in first.inputs)
        assert all(seed >= 0 for seed in first.expect.seeds)
    assert graph == before


@patient
@given(whole_graphs, st.text(max_size=30))
def test_rewriting_leaves_its_argument_and_the_links_alone(graph: dict[str, Any], text: str) -> None:
    """Each node keeps its id and what feeds it, but for the names of files."""
    before = copy.deepcopy(graph)
    for done in (
        graphs.prefixed(graph, SERVER, "p"),
        graphs.cheapened(graph, SERVER, "preview"),
        graphs.freshened(graph, SERVER, text),
        graphs.filled(graph, dict.fromkeys(graphs.slots(graph), "x.png")),
    ):
        assert graph == before
        assert list(done) == list(graph)
        for node_id, node in done.items():
            fed = {k: v for k, v in graph[node_id]["inputs"].items() if graphs.is_link(v) and k != "filename_prefix"}
            kept = (
                fed if node["class_type"] == graph[node_id]["class_type"] else {k: fed[k] for k in fed if k == "images"}
            )
            assert kept.items() <= {k: v for k, v in node["inputs"].items() if graphs.is_link(v)}.items()


@patient
@given(st.text() | json_values)
def test_a_cleaned_name_is_one_plain_part(name: Any) -> None:
    """Whatever it was, it cannot leave the folder and holds no token."""
    cleaned = graphs.cleaned(name)
    assert cleaned
    assert not set(cleaned) & set("/\\%:\0 ")
    assert cleaned.strip(".") == cleaned


@patient
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=4), max_size=6))
def test_a_circle_is_found_exactly_where_there_is_one(arrows: dict[str, list[str]]) -> None:
    """What it names is one; where it finds none the nodes can be put in order."""
    graph = {i: {"inputs": {str(n): [p, 0] for n, p in enumerate(fed) if p in arrows}} for i, fed in arrows.items()}
    found = cycle(graph, graph)
    if found:
        assert all(
            after in graphs.parents(graph, node) for node, after in zip(found, (*found[1:], found[0]), strict=True)
        )
        return
    place = {node_id: n for n, node_id in enumerate(in_order(graph, graph))}
    assert set(place) == set(graph)
    assert all(place[p] < place[node_id] for node_id in graph for p in graphs.parents(graph, node_id))


KEYS = ("error", "node_errors", "message", "details", "type", "errors", "class_type", "extra_info", "input_name", "3")
bodies = st.recursive(
    json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=15,
)


@patient
@given(
    st.sampled_from([200, 400, 401, 403, 404, 413, 418, 429, 500, 503]), bodies | st.binary(max_size=50), json_values
)
def test_every_answer_is_an_error_of_ours(status: int, body: Any, graph: Any) -> None:
    """A short one."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = refused(Answer(status, {}, raw), graph, SERVER)
    assert isinstance(error, WorkerError)
    assert len(error.message) <= MESSAGE_MAX


STATES = ("status", "status_str", "messages", "outputs", "prompt", "node_id", "exception_type", "exception_message")
events = st.tuples(
    st.sampled_from(["execution_start", "execution_success", "execution_error", "execution_interrupted"]) | json_values,
    st.dictionaries(st.sampled_from([*STATES, "current_inputs"]), json_values, max_size=5) | json_values,
).map(list)
statuses = st.fixed_dictionaries({}, optional={"status_str": json_values, "messages": st.lists(events | json_values)})
entries = st.fixed_dictionaries(
    {}, optional={"status": statuses | json_values, "outputs": json_values, "prompt": st.lists(json_values)}
)


@patient
@given(entries | json_values)
def test_every_entry_is_a_success_or_an_error_of_ours(entry: Any) -> None:
    """Also one that no server ever wrote; and so for what the socket says of an exception."""
    error = ended(entry)
    assert error is None or (isinstance(error, WorkerError) and len(error.message) <= MESSAGE_MAX)
    assert isinstance(failed(entry), WorkerError)


specs = st.dictionaries(
    st.text(max_size=5),
    json_values | st.tuples(st.lists(words) | st.sampled_from(["INT", "COMBO"]), json_values).map(list),
    max_size=3,
)
infos = st.dictionaries(
    st.sampled_from(["KSampler", "Odd"]),
    st.fixed_dictionaries({"input": st.dictionaries(st.sampled_from(["required", "optional"]), specs)}) | json_values,
)


@patient
@given(
    infos | json_values, st.dictionaries(st.sampled_from(["loras", "vae"]), st.lists(words) | json_values), json_values
)
def test_any_description_of_a_server_can_be_read(info: Any, folders: Any, stats: Any) -> None:
    """And what an input draws from is a folder that there is."""
    found = inventory(info, folders, stats)
    assert isinstance(found, Inventory)
    drawn = {i.folder for kind in found.nodes.values() for i in kind.inputs.values()} - {None}
    assert drawn <= set(found.folders)
