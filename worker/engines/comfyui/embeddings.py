"""Embeddings that a prompt names. The server logs a warning for one that it lacks and paints without it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from worker.engines.comfyui.graph import field_of, literals
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.naming import stem
from worker.errors import ModelNotFound

_NAMED = re.compile(r"(?:^|[\s(])embedding:([\w./~-]+)(?=[\s,:)]|$)")
_SHOWN = 5
_NO_FIELDS: Mapping[str, str] = MappingProxyType({})


def check_embeddings(
    graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str], fields: Mapping[str, str] = _NO_FIELDS
) -> None:
    """Each ``embedding:name`` in the text of a node that encodes text must be a file, its extension left out or not.

    Raises `ModelNotFound` naming all that the server does not list, by the ``fields`` of the job that the nodes'
    texts come from, else by their place in the graph. Names that it may read otherwise than we do, with brackets
    within, are left alone.
    """
    files = inventory.folders.get("embeddings")
    if files is None:
        return
    known = {form for name in files for form in (name.replace("\\", "/"), stem(name.replace("\\", "/")))}
    lacking = []
    for node_id, name, value in literals({i: graph[i] for i in running}):
        if isinstance(value, str) and "embedding:" in value and encodes(graph, inventory, node_id):
            field = fields.get(node_id) or field_of(node_id, name)
            lacking += [f"{field}: no embedding {n[:100]!r}" for n in named(value) if n not in known]
    if lacking:
        raise ModelNotFound("; ".join(dict.fromkeys(lacking[:_SHOWN])))


def named(text: str) -> tuple[str, ...]:
    """The embeddings that a prompt names, each once, in its order."""
    return tuple(dict.fromkeys(found.rstrip(".") for found in _NAMED.findall(text)))


def encodes(graph: Mapping[str, Any], inventory: Inventory, node_id: str) -> bool:
    """Whether a node turns text into conditions, so that its texts are prompts."""
    kind = inventory.nodes[graph[node_id]["class_type"]]
    return any(declared.kind == "CLIP" for declared in kind.inputs.values())
