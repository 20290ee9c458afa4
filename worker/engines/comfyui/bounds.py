"""What a single job may ask for, where it stands in a graph as a number. No I/O.

What is computed while the graph runs cannot be bounded here; the job's timeout bounds that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.comfyui.graph import field_of, is_link, parents
from worker.engines.comfyui.inventory import Inventory, NodeClass
from worker.job import Limits

_SIZED = frozenset({"LATENT", "IMAGE"})


def check_bounds(graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str], limits: Limits) -> None:
    """Sizes, steps and batches of the nodes that run. Raises `InvalidJob` naming the input.

    Only nodes that give latents or images have a size of their own: the same names at a text encoder are hints.
    Batches multiply along the links; what several output nodes take is added, the same once.
    """
    nodes = tuple(running)
    for node_id in nodes:
        inputs = graph[node_id]["inputs"]
        width, height, steps = (_whole(inputs.get(name)) for name in ("width", "height", "steps"))
        if width and height and _SIZED.intersection(inventory.nodes[graph[node_id]["class_type"]].outputs):
            limits.check_size(width, height, field=field_of(node_id, "width"))
        if steps:
            limits.check_steps(steps, field=field_of(node_id, "steps"))
    _check_images(graph, inventory, nodes, limits)


def steps_of(graph: Mapping[str, Any], running: Iterable[str]) -> int | None:
    """The steps of the run, where all nodes that have any agree on them."""
    found = {steps for i in running if (steps := _whole(graph[i]["inputs"].get("steps"))) is not None}
    return found.pop() if len(found) == 1 else None


def _check_images(graph: Mapping[str, Any], inventory: Inventory, nodes: tuple[str, ...], limits: Limits) -> None:
    batches: dict[str, int] = {}
    for node_id in in_order(graph, nodes):
        name = _multiplier(inventory.nodes[graph[node_id]["class_type"]])
        times = _whole(graph[node_id]["inputs"].get(name)) or 1
        batches[node_id] = times * max((batches[p] for p in parents(graph, node_id)), default=1)
        if times > 1:
            limits.check_images(batches[node_id], field=field_of(node_id, name))
    limits.check_images(sum(batches[source[0]] for source in _saved(graph, inventory, nodes)), field="workflow")


def _multiplier(kind: NodeClass) -> str:
    """The input by which a class multiplies the images; empty for none. Rebatching only deals them out anew."""
    if not _SIZED.intersection(kind.outputs) or kind.name.startswith("Rebatch"):
        return ""
    return "amount" if kind.name.startswith("Repeat") else "batch_size"


def _saved(graph: Mapping[str, Any], inventory: Inventory, nodes: tuple[str, ...]) -> set[tuple[str, float]]:
    """The images that output nodes take, as node and slot."""
    found = set()
    for node_id in nodes:
        kind = inventory.nodes[graph[node_id]["class_type"]]
        for name, value in graph[node_id]["inputs"].items():
            declared = kind.inputs.get(name)
            if kind.output_node and is_link(value) and declared is not None and declared.kind == "IMAGE":
                found.add((value[0], value[1]))
    return found


def in_order(graph: Mapping[str, Any], nodes: Iterable[str]) -> list[str]:
    """The nodes, each after those that feed it; the links must not run in a circle."""
    done: dict[str, None] = {}
    todo = [(node_id, False) for node_id in nodes]
    while todo:
        node_id, entered = todo.pop()
        if entered:
            done[node_id] = None
        elif node_id not in done:
            todo.append((node_id, True))
            todo.extend((p, False) for p in parents(graph, node_id))
    return list(done)


def _whole(value: Any) -> int | None:
    """A positive number, whole as the server makes it; None for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e18:
        return None
    return int(value)
