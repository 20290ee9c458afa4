"""Graphs in API format: node id -> ``{class_type, inputs, _meta?}``. No I/O; nothing changes its argument.

An input is a literal, or a link ``[node id, slot]`` to what another node gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from worker.engines.comfyui.inventory import Inventory
from worker.errors import InternalError

Graph = Mapping[str, Any]
Replace = Callable[[str, str, Any], Any]

SLOT = "input:"
NONCE = "sd_worker_nonce"
_LATENT = "latent_image"
_CHEAP = {"preview": "PreviewImage", "websocket": "SaveImageWebsocket"}
_TOKEN = re.compile(r"%[^%]*%|%")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_STEM = 80


def is_link(value: Any) -> bool:
    """Whether an input is fed by another node, as the server decides it."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int | float)
        and not isinstance(value[1], bool)
    )


def literals(graph: Graph) -> Iterator[tuple[str, str, Any]]:
    """Every input that is no link: node id, name, value."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if not is_link(value):
                yield node_id, name, value


def field_of(node_id: str, name: str) -> str:
    """Where an input of a workflow stands in the job document."""
    return f"workflow.{node_id}.inputs.{name}"


def title(graph: Any, node_id: str) -> str:
    """A node in words: its id, class and the title that its author gave it."""
    node = graph.get(node_id) if isinstance(graph, Mapping) else None
    node = node if isinstance(node, Mapping) else {}
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, Mapping) else None
    kind = node.get("class_type")
    words = [str(kind)[:100]] if isinstance(kind, str) else []
    if isinstance(given, str) and given and given != kind:
        words.append(f'"{given[:60]}"')
    return f"node {node_id[:40]}" + (f" ({' '.join(words)})" if words else "")


def reached(graph: Graph, inventory: Inventory) -> tuple[str, ...]:
    """The nodes that run, in the graph's order: the output nodes and all that feeds them."""
    todo = [i for i, node in graph.items() if (c := inventory.nodes.get(node["class_type"])) and c.output_node]
    seen = set(todo)
    while todo:
        for parent in parents(graph, todo.pop()):
            if parent not in seen and parent in graph:
                seen.add(parent)
                todo.append(parent)
    return tuple(i for i in graph if i in seen)


def parents(graph: Graph, node_id: str) -> list[str]:
    """The nodes that feed a node."""
    return [value[0] for value in graph[node_id]["inputs"].values() if is_link(value)]


def seeds(graph: Graph, inventory: Inventory) -> dict[str, int]:
    """``<node id>.<input>`` -> value of every seed that stands in the graph as a number and takes part in the run."""
    running = set(reached(graph, inventory))
    return {
        f"{node_id}.{name}": value
        for node_id, name, value in literals(graph)
        if node_id in running and _is_seed(graph, inventory, node_id, name) and type(value) is int
    }


def slots(graph: Graph) -> tuple[str, ...]:
    """The fields of the input images that have yet to be put into the graph."""
    return tuple(f for node_id, name, value in literals(graph) if (f := _slot(node_id, name, value)) is not None)


def filled(graph: Graph, names: Mapping[str, str]) -> dict[str, Any]:
    """The graph with each input image by its name in the server's input folder: ``names`` by `InputRef.field`.

    Raises `InternalError` for an image that nobody provided.
    """

    def put(node_id: str, name: str, value: Any) -> Any:
        field = _slot(node_id, name, value)
        if field is None:
            return value
        if field not in names:
            raise InternalError(f"the input {field} was not provided")
        return names[field]

    return replaced(graph, put)


def prefixed(graph: Graph, inventory: Inventory, prefix: str) -> dict[str, Any]:
    """The graph whose output nodes save below ``prefix``: each as ``<prefix>/<node id>-<its own name>``.

    So no two jobs share a file, nothing leaves the folder, and an identical graph is saved anew. What fed such a
    name is cut off; a name that was left to the node's default is set.
    """
    copy = replaced(graph, lambda node_id, name, value: value)
    for node_id, node in copy.items():
        kind = inventory.nodes.get(node["class_type"])
        declared = kind.inputs.get("filename_prefix") if kind is not None and kind.output_node else None
        if declared is not None and declared.kind == "STRING":
            own = node["inputs"].get("filename_prefix", declared.default)
            node["inputs"]["filename_prefix"] = f"{prefix}/{cleaned(node_id)}-{cleaned(own)}"
    return copy


def cleaned(name: Any) -> str:
    """The last part of a file name with neither ``%tokens%`` nor anything that a file system may take amiss."""
    last = re.split(r"[/\\]", _TOKEN.sub("", name))[-1] if isinstance(name, str) else ""
    return _UNSAFE.sub("_", last).strip("._-")[:_STEM] or "image"


def cheapened(graph: Graph, inventory: Inventory, how: Literal["preview", "websocket"]) -> dict[str, Any]:
    """The graph whose pictures the server compresses less, or does not write to disk at all.

    The graph as it is where the server has no such node: ``websocket`` is an example node that may be missing.
    """
    cheap = _CHEAP[how]
    copy = replaced(graph, lambda node_id, name, value: value)
    if cheap in inventory.nodes:
        for node in copy.values():
            if node["class_type"] == "SaveImage":
                node["class_type"] = cheap
                node["inputs"] = {k: v for k, v in node["inputs"].items() if k == "images"}
    return copy


def freshened(graph: Graph, inventory: Inventory, nonce: str) -> dict[str, Any]:
    """The graph whose nodes all run again, the loaders included, for the very same picture.

    The server keys its cache by every input that stands in the graph, also by those which a class does not
    declare and which are never given to it; what feeds a node counts too. So an unknown input at the nodes that
    nothing feeds makes all of them new. ``nonce`` must differ from those of earlier runs.
    """
    unfed = [i for i, node in graph.items() if not any(map(is_link, node["inputs"].values()))]
    return marked(graph, inventory, unfed, nonce)


def resampled(graph: Graph, inventory: Inventory, nonce: str) -> dict[str, Any]:
    """The graph whose samplers, and what comes after them, run again on the models as they are loaded.

    All its nodes where there is no sampler. ``nonce`` as for `freshened`.
    """
    sampling = samplers(graph, inventory, graph)
    return marked(graph, inventory, sampling, nonce) if sampling else freshened(graph, inventory, nonce)


def samplers(graph: Graph, inventory: Inventory, among: Iterable[str]) -> frozenset[str]:
    """The nodes that work on a latent image step by step."""
    return frozenset(i for i in among if inventory.input(graph[i]["class_type"], _LATENT) is not None)


def marked(graph: Graph, inventory: Inventory, nodes: Iterable[str], nonce: str) -> dict[str, Any]:
    """The graph with an input at these nodes that their classes do not declare: no results are kept for such."""
    copy = replaced(graph, lambda node_id, name, value: value)
    for node in (copy[i] for i in nodes):
        kind = inventory.nodes.get(node["class_type"])
        if kind is None or NONCE not in kind.inputs:
            node["inputs"][NONCE] = nonce
    return copy


def replaced(graph: Graph, replace: Replace) -> dict[str, Any]:
    """A copy of the graph in which each literal input went through ``replace(node id, name, value)``."""
    return {
        node_id: {
            **node,
            "inputs": {
                name: list(value) if is_link(value) else replace(node_id, name, value)
                for name, value in node["inputs"].items()
            },
        }
        for node_id, node in graph.items()
    }


def _is_seed(graph: Graph, inventory: Inventory, node_id: str, name: str) -> bool:
    declared = inventory.input(graph[node_id]["class_type"], name)
    return declared is not None and declared.seed


def _slot(node_id: str, name: str, value: Any) -> str | None:
    """The field whose image belongs here; a prompt that happens to read like a slot is none."""
    if not isinstance(value, str) or not value.startswith(SLOT):
        return None
    field = value.removeprefix(SLOT)
    here = field == field_of(node_id, name) or (field in ("params.image", "params.mask") and name == "image")
    return field if here else None
