"""Where a job for ComfyUI names model files, and which files those are now. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.comfyui import graph as graphs
from worker.engines.comfyui import shape
from worker.engines.comfyui.embeddings import encodes, named
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.models import MAIN, folder_in, kind_of, main_loaders, undecided, with_checkpoint
from worker.engines.comfyui.naming import find
from worker.errors import InvalidJob
from worker.job import Job, Params
from worker.mentions import Gathering, Mention, Place, place_of, stem_of


def mentions(job: Job, inventory: Inventory) -> tuple[Mention, ...]:
    """Every place of the job's document that names a model file.

    Of a graph these are the inputs of nodes that run whose choices are the files of a folder, by what the server
    says of them. Raises `InvalidJob`, also for a graph that cannot run.
    """
    gathering = Gathering(job, lambda kind, name, field: known(inventory, (kind,), name, field=field))
    for i, ref in enumerate(job.models):
        folder = folder_in(inventory, ref.kind, field=f"models.{i}.kind")
        gathering.add(kind_of(folder), ref.name, ("models", i, "name"))
    if job.workflow is not None:
        _graph(job, job.workflow, gathering, inventory)
    elif job.params is not None:
        _checkpoint(job, gathering, inventory, MAIN)
        _portable(job.params, gathering, inventory)
    else:
        raise InvalidJob(
            "ComfyUI takes params, or a graph in API format as workflow",
            field="request" if job.request is not None else "template",
        )
    return tuple(gathering.found)


def known(inventory: Inventory, kinds: Iterable[str], name: str, *, field: str) -> Place | None:
    """The file that the server finds under a name in the first folder of these kinds that has one."""
    for kind in kinds:
        folder = folder_in(inventory, kind, field=field)
        found = find(inventory.folders[folder], name, field=field)
        if found is not None:
            return Place(kind_of(folder), found.replace("\\", "/"))
    return None


def _checkpoint(job: Job, gathering: Gathering, inventory: Inventory, folders: Iterable[str]) -> None:
    """The job's checkpoint, which may be a diffusion model alone: where it is there, else where the job lists it."""
    kinds = [kind_of(f) for f in folders if f in inventory.folders]
    if job.checkpoint is None or not kinds:
        return
    stem = stem_of(job.checkpoint.rpartition("/")[2])
    place = known(inventory, kinds, job.checkpoint, field="checkpoint")
    listed = (ref.kind for ref in job.models if ref.kind in kinds and stem_of(ref.name.rpartition("/")[2]) == stem)
    kind = place.kind if place is not None else next(listed, kinds[0])
    gathering.add(kind, job.checkpoint, ("checkpoint",))


def _portable(params: Params, gathering: Gathering, inventory: Inventory) -> None:
    for name in ("prompt", "negative_prompt"):
        _embeddings(getattr(params, name), ("params", name), gathering, inventory)
    for i, lora in enumerate(params.loras):
        gathering.add("lora", lora.name, ("params", "loras", i, "name"))
    gathering.add("vae", params.vae, ("params", "vae"))
    if params.refiner is not None:
        gathering.add("refiner", params.refiner.checkpoint, ("params", "refiner", "checkpoint"))


def _embeddings(text: str, path: tuple[str | int, ...], gathering: Gathering, inventory: Inventory) -> None:
    """Those that are there, by the path that the server takes them by, or that the job lists."""
    files = [stem_of(name.replace("\\", "/")) for name in inventory.folders.get("embeddings", ())]
    files += [stem_of(r.name) for r in gathering.job.models if place_of(r.kind, "").kind == "embedding"]
    for name in named(text):
        if stem_of(name) in files:
            gathering.add("embedding", name, path, tag=True)


def _graph(job: Job, document: Mapping[str, Any], gathering: Gathering, inventory: Inventory) -> None:
    graph = shape.graph_of(document)
    shape.check_classes(graph, inventory)
    running = graphs.reached(graph, inventory)
    shape.check_links(graph, inventory, running)
    with_checkpoint(graph, job, inventory, running)
    for node_id, name, value in graphs.literals({i: graph[i] for i in running}):
        declared = inventory.input(graph[node_id]["class_type"], name)
        if declared is None or not isinstance(value, str):
            continue
        path = ("workflow", node_id, "inputs", name)
        if declared.folder is None:
            undecided(declared, value, field=graphs.field_of(node_id, name))
            if encodes(graph, inventory, node_id):
                _embeddings(value, path, gathering, inventory)
            continue
        if value not in declared.options or value in inventory.folders.get(declared.folder, ()):
            gathering.add(kind_of(declared.folder), value, path)
    _checkpoint(job, gathering, inventory, [str(i.folder) for _, i in main_loaders(graph, inventory, running)])
