"""All node classes that the simulated server knows."""

from __future__ import annotations

from collections.abc import Collection

from worker.simulators.comfyui.nodes.latents import LATENTS
from worker.simulators.comfyui.nodes.loaders import LOADERS
from worker.simulators.comfyui.nodes.media import MEDIA
from worker.simulators.comfyui.nodes.sampling import SAMPLING
from worker.simulators.comfyui.nodes.spec import NodeSpec
from worker.simulators.comfyui.nodes.texts import TEXTS

NODES: dict[str, NodeSpec] = {spec.name: spec for spec in (*SAMPLING, *LOADERS, *TEXTS, *LATENTS, *MEDIA)}


def known(missing: Collection[str]) -> dict[str, NodeSpec]:
    """The classes of a server that lacks some."""
    return {name: spec for name, spec in NODES.items() if name not in missing}
