"""What Fooocus holds of model files, and what it falls back to. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.fooocus.inventory import Inventory
from worker.engines.fooocus.names import NONE
from worker.mentions import Place


def used(body: Mapping[str, Any]) -> frozenset[Place]:
    """The files of a request as it is sent."""
    names = [("checkpoint", body.get(key)) for key in ("base_model_name", "refiner_model_name")]
    loras = body.get("loras")
    names += [("lora", lora.get("model_name")) for lora in loras or () if isinstance(lora, Mapping)]
    return frozenset(
        Place(kind, name.replace("\\", "/")) for kind, name in names if isinstance(name, str) and name not in NONE
    )


def configured(inventory: Inventory) -> frozenset[Place]:
    """The listed files that the server takes for what a request leaves out, by its own description.

    It takes the default model for one that it does not find, and loads it when it starts.
    """
    fallback = {key: inventory.default(key) for key in ("base_model_name", "refiner_model_name", "loras")}
    return frozenset(p for p in used(fallback) if is_listed(inventory, p))


def is_listed(inventory: Inventory, place: Place) -> bool:
    """Whether the server has this very file."""
    files = inventory.models if place.kind == "checkpoint" else inventory.loras
    return place.name in (name.replace("\\", "/") for name in files)
