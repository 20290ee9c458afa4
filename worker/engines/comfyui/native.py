"""What callers who speak ComfyUI's own language are told beside what was made. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.comfyui.events import Track
from worker.engines.comfyui.graph import cleaned
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.outputs import Made, kind_of, named

DEFAULT = "ComfyUI"
"""What files are called whose node says nothing."""


def stats_of(track: Track, messages: Any) -> dict[str, Any]:
    """``start``, ``end`` and the start of each node that ran, in milliseconds of the server's clock.

    The history tells when it began and ended, the socket alone when a node did: one that broke leaves nodes out.
    """
    listed = messages if isinstance(messages, list) else []
    times = [t for told in listed if (t := _time(told)) is not None]
    began = times[0] if times else None if track.began_s is None else round(track.began_s * 1000)
    if began is None:
        return {}
    heard = track.began_at
    nodes = track.nodes.items() if heard is not None else ()
    return {
        "start": began,
        "end": max(times, default=began),
        "nodes": {node: began + round((at - (heard or at)) * 1000) for node, at in nodes},
    }


def prefixes_of(parts: Sequence[tuple[Made, bytes]], graph: Mapping[str, Any], inventory: Inventory) -> tuple[str, ...]:
    """What the author of the graph wanted each thing to be called, in the order in which `sorted_out` gives them."""
    images = [made for made, data in parts if _is_image(made, data)]
    files = [made for made, data in parts if not _is_image(made, data)]
    return tuple(_prefix(made.node, graph, inventory) for made in (*images, *files))


def _is_image(made: Made, data: bytes) -> bool:
    return made.text is None and kind_of(data, named(made)) == "image"


def _prefix(node_id: str, graph: Mapping[str, Any], inventory: Inventory) -> str:
    node = graph.get(node_id) or {}
    given = node.get("inputs", {}).get("filename_prefix")
    declared = inventory.input(node.get("class_type"), "filename_prefix")
    name = given if isinstance(given, str) else declared.default if declared is not None else None
    return cleaned(name) if isinstance(name, str) else DEFAULT


def _time(message: Any) -> int | None:
    """When a message of the history was sent, in milliseconds."""
    data = message[1] if isinstance(message, list) and len(message) == 2 else None
    told = data.get("timestamp") if isinstance(data, Mapping) else None
    return round(told) if isinstance(told, int | float) else None
