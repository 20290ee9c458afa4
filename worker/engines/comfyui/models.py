"""The model files of a graph: found among what the server lists, by name or by URL. No I/O.

Which inputs name a model file follows from what the server says of them (`Input.folder`), not from names of nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from worker.engines.comfyui.graph import field_of, replaced, title
from worker.engines.comfyui.inventory import Input, Inventory
from worker.engines.comfyui.naming import FOLDERS, find, folder_of
from worker.engines.comfyui.shape import close
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job, ModelRef
from worker.mentions import file_of, is_source

_KINDS = {folder: kind for kind, folder in FOLDERS.items() if kind != "refiner"}
_NO_CACHE = "nothing is downloaded, since there is no models folder of the worker (WORKER_MODELS_DIR)"
_SHOWN = 10
MAIN = ("checkpoints", "diffusion_models")
"""Where the models are that make the picture, in the order in which a graph is known by them."""


@dataclass
class _Found:
    """What a graph needs: ``refs`` by folder and name, ``lacking`` in words, ``mains`` by folder."""

    job: Job
    inventory: Inventory
    refs: dict[tuple[str, str], ModelRef] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    mains: dict[str, list[str]] = field(default_factory=lambda: {folder: [] for folder in MAIN})


def settled(
    graph: Mapping[str, Any], job: Job, inventory: Inventory, running: Iterable[str]
) -> tuple[dict[str, Any], tuple[ModelRef, ...], str | None]:
    """The graph with every model by the server's own name, the models that it and the job name, and the checkpoint.

    ``job.checkpoint`` names what the graph loads: it is put in where the one loader names nothing, and must agree
    otherwise. The checkpoint comes back as None where the graph loads several. Raises `InvalidJob`, and
    `ModelNotFound` naming every file that the server does not list.
    """
    nodes = tuple(running)
    found = _Found(job, inventory)
    graph = with_checkpoint(graph, job, inventory, nodes)
    within = frozenset(nodes)

    def resolve(node_id: str, name: str, value: Any) -> Any:
        declared = inventory.input(graph[node_id]["class_type"], name)
        if node_id not in within or declared is None or not isinstance(value, str):
            return value
        where = field_of(node_id, name)
        if declared.folder is None:
            undecided(declared, value, field=where)
            return value
        return _resolved(found, value, declared, declared.folder, where, title(graph, node_id))

    graph = replaced(graph, resolve)
    models = _merged(found)
    if found.lacking:
        more = f"; and {len(found.lacking) - _SHOWN} more" if len(found.lacking) > _SHOWN else ""
        raise ModelNotFound("; ".join(found.lacking[:_SHOWN]) + more)
    _check_agrees(found)
    return graph, models, next((names[0] for names in found.mains.values() if names and len(set(names)) == 1), None)


def undecided(declared: Input, value: str, *, field: str) -> None:
    """Raises `InvalidJob` for a URL at an input of choices which seem to be no folder's files."""
    if declared.kind == "COMBO" and is_source(value) and value not in declared.options and not declared.upload:
        raise InvalidJob("it cannot be told which folder of models this draws from; name a file", field=field)


def main_loaders(graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str]) -> list[tuple[str, Input]]:
    """The inputs that take a model that makes the picture, given or not, with their nodes."""
    return [
        (node_id, declared)
        for node_id in running
        for declared in inventory.nodes[graph[node_id]["class_type"]].inputs.values()
        if declared.folder in MAIN
    ]


def with_checkpoint(
    graph: Mapping[str, Any], job: Job, inventory: Inventory, running: Iterable[str]
) -> Mapping[str, Any]:
    """The graph with the job's checkpoint in its one loader, where that names none itself."""
    loaders = main_loaders(graph, inventory, running)
    if job.checkpoint is None:
        return graph
    if not loaders:
        raise InvalidJob("the workflow loads no checkpoint that this could be", field="checkpoint")
    (node_id, declared) = loaders[0]
    if len(loaders) > 1 or graph[node_id]["inputs"].get(declared.name) not in (None, ""):
        return graph
    node = graph[node_id]
    return {**graph, node_id: {**node, "inputs": {**node["inputs"], declared.name: job.checkpoint}}}


def kind_of(folder: str) -> str:
    """The kind of a folder's files in job documents; custom folders may have capitals and dashes, kinds may not."""
    plain = re.sub(r"[^a-z0-9_]", "_", folder.lower())
    return _KINDS.get(folder, plain if plain[:1].isalpha() else f"x{plain}")[:64]


def _resolved(found: _Found, value: str, declared: Input, folder: str, where: str, node: str) -> str:
    """One model input as the server must be told; what is missing is noted."""
    files = found.inventory.folders.get(folder, ())
    if value in declared.options and value not in files:
        return value
    url = value if is_source(value) else None
    wanted = value if url is None else _named(found.job, url, folder) or file_of(url)
    listed = find(files, wanted, field=where) if wanted else None
    if wanted:
        _note(found, folder, listed or wanted, url, where)
    if listed is None:
        hint = f": {_NO_CACHE}" if url is not None else close(wanted, files)
        shown = repr(wanted[:200]) if wanted else "file of this URL"
        found.lacking.append(f"{where}: no {shown} in the folder {folder} of the server, for {node}{hint}")
    return listed or wanted


def _named(job: Job, url: str, folder: str) -> str | None:
    """The name that the job's own list gives to a URL."""
    return next((ref.name for ref in job.models if ref.url == url and folder_of(ref.kind) == folder), None)


def _note(found: _Found, folder: str, name: str, url: str | None, where: str) -> None:
    try:
        ref = ModelRef(kind=kind_of(folder), name=name.replace("\\", "/"), url=url)
    except ValidationError:
        raise InvalidJob(f"cannot be the name of a model file: {name[:200]!r}", field=where) from None
    if folder in found.mains:
        found.mains[folder].append(name)
    found.refs.setdefault((folder, ref.name), ref)


def _merged(found: _Found) -> tuple[ModelRef, ...]:
    """What the job lists, each of which must be there too, and what only its graph names."""
    known = set()
    for i, ref in enumerate(found.job.models):
        folder = folder_in(found.inventory, ref.kind, field=f"models.{i}.kind")
        listed = find(found.inventory.folders[folder], ref.name, field=f"models.{i}.name")
        if listed is None:
            hint = f": {_NO_CACHE}" if ref.url else close(ref.name, found.inventory.folders[folder])
            found.lacking.append(f"models.{i}: no {ref.name[:200]!r} in the folder {folder} of the server{hint}")
        known.add((folder, (listed or ref.name).replace("\\", "/")))
    return found.job.models + tuple(ref for key, ref in found.refs.items() if key not in known)


def folder_in(inventory: Inventory, kind: str, *, field: str) -> str:
    """The server's folder for a kind of the job document. Raises `InvalidJob` where it has none."""
    plain = folder_of(kind)
    folder = plain if plain in inventory.folders else next((f for f in inventory.folders if kind_of(f) == kind), None)
    if folder is None:
        raise InvalidJob("the server has no folder for models of this kind", field=field)
    return folder


def _check_agrees(found: _Found) -> None:
    """The job's checkpoint must be one of those that the graph loads, which must stand in it as names."""
    wanted = found.job.checkpoint
    if wanted is None:
        return
    names = [name for loaded in found.mains.values() for name in loaded]
    if not names:
        raise InvalidJob("the workflow computes which model it loads, so this cannot be honoured", field="checkpoint")
    if find(names, wanted, field="checkpoint") is None:
        raise InvalidJob(f"the workflow loads another: {', '.join(n[:100] for n in names[:3])}", field="checkpoint")
