"""Seeds that a graph leaves open, drawn from the job, so that a second run asks for the same picture. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.comfyui.graph import replaced
from worker.engines.comfyui.inventory import Input, Inventory

HIGHEST = 2**53 - 1
"""Drawn seeds stay where every reader of JSON keeps them exactly; the server itself takes 64 bits."""


def drawn(graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str], seed: int) -> dict[str, Any]:
    """The graph with a number for every seed that is -1, null or absent: each node's its own, always the same.

    The server draws none: it refuses -1.
    """
    copy = replaced(graph, lambda node_id, name, value: value)
    for node_id in running:
        inputs = copy[node_id]["inputs"]
        for declared in inventory.nodes[copy[node_id]["class_type"]].inputs.values():
            if declared.seed and _is_open(inputs.get(declared.name)):
                inputs[declared.name] = draw(seed, node_id, declared)
    return copy


def draw(seed: int, node_id: str, declared: Input) -> int:
    """One seed, within what the input takes."""
    low = max(0, int(declared.low or 0))
    high = HIGHEST if declared.high is None else min(HIGHEST, int(declared.high))
    digest = hashlib.sha256(f"{seed}/{node_id}/{declared.name}".encode("utf-8", "surrogatepass")).digest()
    return low + int.from_bytes(digest[:8]) % max(1, high - low + 1)


def _is_open(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and value == -1)
