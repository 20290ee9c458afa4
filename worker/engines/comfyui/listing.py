"""An inventory whose model files have changed since it was made. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from worker.engines.comfyui.inventory import Input, Inventory, NodeClass


def relisted(known: Inventory, folders: Mapping[str, tuple[str, ...]]) -> Inventory:
    """The inventory with the files that are there now; classes and the folder of each input stay as they were.

    A file that is gone is no longer among the choices of an input either, where it would pass for a word of the
    node's own.
    """
    gone = {folder: frozenset(files) - frozenset(folders.get(folder, ())) for folder, files in known.folders.items()}
    gone = {folder: files for folder, files in gone.items() if files}
    nodes = {name: _without(node, gone) for name, node in known.nodes.items()} if gone else dict(known.nodes)
    return replace(known, nodes=MappingProxyType(nodes), folders=MappingProxyType(dict(folders)))


def _without(node: NodeClass, gone: Mapping[str, frozenset[str]]) -> NodeClass:
    changed = {name: _pruned(i, gone[i.folder]) for name, i in node.inputs.items() if i.folder and i.folder in gone}
    return replace(node, inputs={**node.inputs, **changed}) if changed else node


def _pruned(declared: Input, gone: frozenset[str]) -> Input:
    return replace(declared, options=tuple(o for o in declared.options if o not in gone))
