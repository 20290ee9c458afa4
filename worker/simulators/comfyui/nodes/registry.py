"""All node classes that the simulated server knows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from worker.simulators.comfyui.nodes.composites import COMPOSITES
from worker.simulators.comfyui.nodes.latents import LATENTS
from worker.simulators.comfyui.nodes.loaders import LOADERS
from worker.simulators.comfyui.nodes.media import MEDIA
from worker.simulators.comfyui.nodes.sampling import SAMPLING
from worker.simulators.comfyui.nodes.spec import NodeSpec
from worker.simulators.comfyui.nodes.texts import TEXTS

NODES: dict[str, NodeSpec] = {spec.name: spec for spec in (*SAMPLING, *LOADERS, *TEXTS, *LATENTS, *MEDIA, *COMPOSITES)}


def known(missing: Collection[str], *, newest: bool = False) -> dict[str, NodeSpec]:
    """The classes of a server that lacks some.

    In the newest versions all classes but the oldest are declared by the newer schema, and the nodes that save
    pictures hand them on.
    """
    present = {name: spec for name, spec in NODES.items() if name not in missing}
    return {name: _renewed(spec) for name, spec in present.items()} if newest else present


def _renewed(spec: NodeSpec) -> NodeSpec:
    if spec.module.startswith("comfy_extras."):
        return replace(spec, modern=True)
    if spec.name in ("SaveImage", "PreviewImage"):
        return replace(spec, outputs=("IMAGE",), output_names=("images",))
    return spec
