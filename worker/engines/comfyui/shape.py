"""Whether a document is a graph that this server can run: the mistakes that are certain before it is asked. No I/O.

The server names the first unknown class alone, tells of a cycle and of a link into the void with an empty message,
and runs what is left when one of several output nodes is wrong; here everything is named at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.comfyui.graph import field_of, is_link, literals, parents, title
from worker.engines.comfyui.inventory import Inventory
from worker.errors import FieldError, InvalidJob

HOW = (
    "in ComfyUI choose Workflow > Export (API), in older versions 'Save (API Format)' after enabling the dev mode "
    "options in the settings, and send that file's content"
)
_MOST = 20
_WRAPPERS = ("prompt", "output", "workflow")
_CHOICES = {"sampler_name": "sampler", "scheduler": "scheduler"}


def graph_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document itself where it is shaped as a graph in API format. Raises `InvalidJob`."""
    if isinstance(document.get("nodes"), list):
        raise InvalidJob(f"is in the editor's own format: {HOW}", field="workflow")
    for name in _WRAPPERS:
        inner = document.get(name)
        if isinstance(inner, Mapping) and "class_type" not in inner:
            raise InvalidJob(f"holds the graph under {name!r}: send that object itself as workflow", field="workflow")
    if not document:
        raise InvalidJob("has no nodes", field="workflow")
    refuse(mistake for node_id, node in document.items() for mistake in _node(node_id, node))
    return dict(document)


def check_classes(graph: Mapping[str, Any], inventory: Inventory) -> None:
    """Every node's class must be there, used or not, and one of them must put something out."""
    unknown = [node_id for node_id, node in graph.items() if node["class_type"] not in inventory.nodes]
    refuse(
        FieldError(f"workflow.{i}.class_type", f"the server has no such node class: {title(graph, i)}") for i in unknown
    )
    if not any(inventory.nodes[node["class_type"]].output_node for node in graph.values()):
        raise InvalidJob("has no output node, such as SaveImage: nothing would come of it", field="workflow")


def check_links(graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str]) -> None:
    """Every link must lead to a node, and none in a circle. Raises `InvalidJob`."""
    nodes = tuple(running)
    refuse(
        FieldError(field_of(node_id, name), f"links to node {value[0][:40]!r}, which is not in the graph")
        for node_id in nodes
        for name, value in graph[node_id]["inputs"].items()
        if is_link(value) and value[0] not in graph
    )
    refuse(
        FieldError(field_of(node_id, name), f'links name a node by a string: ["{value[0]}", {value[1]}]')
        for node_id in nodes
        for name, value in graph[node_id]["inputs"].items()
        if _is_numbered(graph, value) and inventory.input(graph[node_id]["class_type"], name) is not None
    )
    circle = cycle(graph, nodes)
    if circle:
        shown = " -> ".join(i[:40] for i in (*circle[:_MOST], circle[0]))
        raise InvalidJob(f"its links run in a circle: {shown}", field="workflow")


def check_inputs(graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str]) -> None:
    """Every required input must be given, and samplers and schedulers be known. Raises `InvalidJob`.

    Inputs of the server's dynamic kinds stand in the graph under other names and are left to it.
    """
    nodes = tuple(running)
    refuse(
        FieldError(field_of(node_id, declared.name), f"is missing: {title(graph, node_id)} needs it")
        for node_id in nodes
        for declared in inventory.nodes[graph[node_id]["class_type"]].inputs.values()
        if declared.required
        and not declared.kind.startswith("COMFY_")
        and declared.name not in graph[node_id]["inputs"]
    )
    refuse(
        mistake
        for node_id, name, value in literals({i: graph[i] for i in nodes})
        if (mistake := _choice(graph, inventory, node_id, name, value)) is not None
    )


def cycle(graph: Mapping[str, Any], nodes: Iterable[str]) -> tuple[str, ...]:
    """The nodes of one circle of links, each fed by the next; empty where there is none."""
    done: set[str] = set()
    for start in nodes:
        path: dict[str, None] = {}
        todo = [(start, False)]
        while todo:
            node_id, left = todo.pop()
            if left:
                path.pop(node_id)
                done.add(node_id)
            elif node_id in path:
                walked = tuple(path)
                return walked[walked.index(node_id) :]
            elif node_id not in done:
                path[node_id] = None
                todo.append((node_id, True))
                todo.extend((p, False) for p in parents(graph, node_id) if p in graph)
    return ()


def refuse(mistakes: Iterable[FieldError]) -> None:
    """Raise `InvalidJob` with the mistakes, if there are any; of very many only the first."""
    found = tuple(mistakes)
    if len(found) > _MOST:
        found = (*found[:_MOST], FieldError("workflow", f"and {len(found) - _MOST} mistakes more"))
    if found:
        raise InvalidJob(errors=found)


def close(name: str, known: Iterable[str]) -> str:
    """The names that are meant most likely, as the end of a message; else the first of those there are."""
    names = sorted(set(known))
    lowered = {n.lower(): n for n in reversed(names)}
    found = [lowered[c] for c in difflib.get_close_matches(name.lower()[:200], lowered, n=3, cutoff=0.5)]
    if found:
        return f"; close: {', '.join(found)}"
    return f"; there are: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else ""


def _node(node_id: str, node: Any) -> Iterable[FieldError]:
    where = f"workflow.{node_id[:100]}"
    if not isinstance(node, Mapping):
        yield FieldError(where, f"is no node; a graph in API format holds nothing but nodes by their id: {HOW}")
        return
    if not isinstance(node.get("class_type"), str):
        yield FieldError(f"{where}.class_type", "is missing: every node names its class")
    inputs = node.get("inputs")
    if not isinstance(inputs, Mapping):
        yield FieldError(f"{where}.inputs", "must be an object")


def _is_numbered(graph: Mapping[str, Any], value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and type(value[0]) is int and str(value[0]) in graph


def _choice(graph: Mapping[str, Any], inventory: Inventory, node_id: str, name: str, value: Any) -> FieldError | None:
    declared = inventory.input(graph[node_id]["class_type"], name)
    if name not in _CHOICES or declared is None or not declared.options or value in declared.options:
        return None
    if not isinstance(value, str):
        return None
    message = f"unknown {_CHOICES[name]} {value[:100]!r}{close(value, declared.options)}"
    return FieldError(field_of(node_id, name), message)
