"""A job as a ComfyUI server will be asked: workflows checked and completed, portable parameters built. No I/O.

``Work.request`` is the graph in API format. An input image stands in it as ``input:`` and its field, until
`graph.filled` puts its file name there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.base import Expectation, InputRef, Work
from worker.engines.comfyui import graph as graphs
from worker.engines.comfyui import images, models, parts, seeds, shape
from worker.engines.comfyui.architecture import Contents
from worker.engines.comfyui.bounds import check_bounds, steps_of
from worker.engines.comfyui.build import build
from worker.engines.comfyui.embeddings import check_embeddings
from worker.engines.comfyui.ingredients import IMAGE, MASK
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.naming import find, folder_of
from worker.engines.comfyui.recipe import recipe
from worker.engines.given import decoded, is_url
from worker.errors import InvalidJob
from worker.job import Job, Limits, ModelRef, Params

ENDPOINT = "prompt"
_TEXTS = {
    "positive": "params.prompt",
    "negative": "params.negative_prompt",
    "refiner_positive": "params.prompt",
    "refiner_negative": "params.negative_prompt",
}
"""Where the texts of the nodes that `build` makes come from."""


def headers_wanted(job: Job, inventory: Inventory) -> tuple[tuple[str, str], ...]:
    """The (folder, name) of the model files whose header `translate` must know; none for a workflow.

    Raises as `translate` does.
    """
    return parts.headers(job, inventory) if job.params is not None else ()


def translate(job: Job, inventory: Inventory, contents: Mapping[str, Contents], limits: Limits) -> Work:
    """The work that a job asks for. ``contents`` of the files that `headers_wanted` named, by `parts.key`.

    Raises `InvalidJob` naming the field, and `ModelNotFound` for a model that the server does not list, which may
    be cured by having it look again; `EngineFault` for a model that this node cannot read.
    """
    if job.workflow is not None:
        return _graph(job, job.workflow, inventory, limits)
    if job.params is not None:
        return _portable(job, job.params, inventory, contents, limits)
    raise InvalidJob(
        "ComfyUI takes params, or a graph in API format as workflow",
        field="request" if job.request is not None else "template",
    )


def _graph(job: Job, document: Mapping[str, Any], inventory: Inventory, limits: Limits) -> Work:
    """A workflow: what only the server can judge is left to it."""
    graph = shape.graph_of(document)
    shape.check_classes(graph, inventory)
    running = graphs.reached(graph, inventory)
    shape.check_links(graph, inventory, running)
    graph, inputs = images.taken(graph, inventory, running)
    graph, refs, checkpoint = models.settled(graph, job, inventory, running)
    graph = seeds.drawn(graph, inventory, running, job.seed)
    shape.check_inputs(graph, inventory, running)
    check_embeddings(graph, inventory, running)
    check_bounds(graph, inventory, running, limits)
    used = frozenset(graphs.seeds(graph, inventory).values())
    return Work(
        request=graph,
        endpoint=ENDPOINT,
        expect=Expectation(None, None, None, tuple(used) if len(used) == 1 else (), checkpoint),
        models=refs,
        inputs=inputs,
        steps=steps_of(graph, running),
    )


def _portable(job: Job, params: Params, inventory: Inventory, contents: Mapping[str, Contents], limits: Limits) -> Work:
    """Portable parameters. All images of a batch come of one seed."""
    made = recipe(job, inventory, contents)
    if made.width is not None and made.height is not None:
        limits.check_size(made.width, made.height, field="params.width")
    limits.check_steps(made.sampling.steps, field="params.steps")
    limits.check_images(made.batch_size, field="params.batch_size")
    graph = build(made)
    check_embeddings(graph, inventory, graph, _TEXTS)
    inputs = tuple(_input(field, value) for field, value in ((IMAGE, params.image), (MASK, params.mask)) if value)
    return Work(
        request=graph,
        endpoint=ENDPOINT,
        expect=Expectation(
            count=made.batch_size,
            width=made.width,
            height=made.height,
            seeds=(made.sampling.seed,) * made.batch_size,
            checkpoint=made.main,
        ),
        models=_with_used(job, inventory, made.models),
        inputs=inputs,
        steps=made.sampling.steps,
        warnings=made.warnings,
    )


def _input(field: str, value: str) -> InputRef:
    """An image by URL, or as base64 that can be read. Raises `InvalidJob`."""
    if not is_url(value):
        decoded(value, field=field)
    return InputRef(field, value)


def _with_used(job: Job, inventory: Inventory, used: tuple[ModelRef, ...]) -> tuple[ModelRef, ...]:
    """What the job lists, and what only its parameters name."""
    known = {
        (folder, (find(inventory.folders[folder], ref.name, field="models") or ref.name).replace("\\", "/"))
        for ref in job.models
        if (folder := folder_of(ref.kind)) in inventory.folders
    }
    return job.models + tuple(ref for ref in used if (folder_of(ref.kind), ref.name) not in known)
