"""How pictures leave the server, and the graph as it is sent. No I/O."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.engines.comfyui.events import Plan
from worker.engines.comfyui.graph import (
    Graph,
    cheapened,
    filled,
    freshened,
    marked,
    prefixed,
    reached,
    resampled,
    samplers,
)
from worker.engines.comfyui.inventory import Inventory, NodeClass

Way = Literal["files", "preview", "websocket"]


def way_of(wanted: Literal["auto", "files", "preview", "websocket"], shared: Container[str]) -> Way:
    """How pictures leave the server. ``shared`` are the folders in which we can remove files.

    ``auto``: as previews, which take half the compression of saved files, and come with the same metadata, for
    hardly another size; the socket is no faster and brings none. As files only where those alone could be removed
    again: what stays of previews goes at the server's next start, what stays of files never.
    """
    if wanted == "auto":
        return "files" if "output" in shared and "temp" not in shared else "preview"
    return wanted


@dataclass(frozen=True, slots=True)
class Prompt:
    """A graph ready to be sent. ``own`` are the nodes whose previews are results; ``outputs`` those that end it."""

    graph: Mapping[str, Any]
    plan: Plan
    own: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


def prompt(
    graph: Graph,
    inventory: Inventory,
    names: Mapping[str, str],
    *,
    prefix: str,
    way: Way,
    fresh: bool,
    steps: int | None,
    anew: bool = False,
) -> Prompt:
    """The graph with its input images, its own file names and its way out; nothing it makes comes from a cache.

    ``names`` are the input images by field. ``prefix`` is new at each submit. ``fresh``: all its nodes run;
    ``anew``: at least its samplers do.
    """
    whole = filled(graph, names)
    cheap = cheapened(whole, inventory, way) if way != "files" else whole
    changed = frozenset(i for i in whole if cheap[i]["class_type"] != whole[i]["class_type"])
    ready = unkept(prefixed(cheap, inventory, prefix), inventory, prefix)
    if fresh:
        ready = freshened(ready, inventory, prefix)
    elif anew:
        ready = resampled(ready, inventory, prefix)
    senders = frozenset(i for i, node in ready.items() if node["class_type"] == "SaveImageWebsocket")
    running = reached(ready, inventory)
    plan = Plan(
        samplers=samplers(ready, inventory, running),
        loaders=frozenset(i for i in running if _reads_models(ready[i]["class_type"], inventory)),
        senders=senders,
        steps=steps,
    )
    ends = frozenset(i for i in running if inventory.nodes[ready[i]["class_type"]].output_node)
    return Prompt(ready, plan, changed - senders, ends)


def unkept(graph: Graph, inventory: Inventory, nonce: str) -> dict[str, Any]:
    """The graph whose output nodes without a file name of ours run again.

    Else the server would tell of the files that they made for an earlier prompt, and which may be gone, or that
    another node of the same inputs made. An input that a class does not declare is part of the cache's key and given
    to nobody.
    """
    ready = dict(graph)
    for node_id, node in graph.items():
        kind = inventory.nodes.get(node["class_type"])
        if kind is not None and kind.output_node and not _takes_prefix(kind):
            ready |= marked({node_id: node}, inventory, [node_id], f"{nonce}/{node_id}")
    return ready


def _takes_prefix(kind: NodeClass) -> bool:
    return "filename_prefix" in kind.inputs


def _reads_models(class_type: str, inventory: Inventory) -> bool:
    kind = inventory.nodes.get(class_type)
    return kind is not None and any(i.folder is not None for i in kind.inputs.values())


def shows(graph: Any, name: str) -> bool:
    """Whether a graph that ran names this model file."""
    if not isinstance(graph, Mapping):
        return False
    inputs = (node.get("inputs") for node in graph.values() if isinstance(node, Mapping))
    return any(name in i.values() for i in inputs if isinstance(i, Mapping))
