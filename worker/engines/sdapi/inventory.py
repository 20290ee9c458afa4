"""What a server has, as far as it says so itself: one immutable snapshot that admission decides by. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.engines.sdapi import names
from worker.engines.sdapi.dialects import Dialect
from worker.engines.sdapi.names import ModelFile, texts
from worker.engines.sdapi.samplers import Samplers

ENDPOINTS = ("txt2img", "img2img", "extra-single-image")
LISTS = (
    "sd-models",
    "samplers",
    "schedulers",
    "loras",
    "upscalers",
    "latent-upscale-modes",
    "scripts",
    "embeddings",
    "prompt-styles",
)
"""What is read under ``/sdapi/v1`` beside options and VAEs, whose ways differ; a missing route is None."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """``fields`` by endpoint are the properties of the server's own schemas; without an entry they are unknown.

    ``loras`` to ``styles`` are None where the server has no such list. ``upscaler_files`` are the paths of those
    upscalers that are files.
    """

    dialect: Dialect
    checkpoints: tuple[ModelFile, ...] = ()
    samplers: Samplers = field(default_factory=Samplers)
    loras: tuple[ModelFile, ...] | None = None
    vaes: tuple[ModelFile, ...] | None = None
    upscalers: tuple[str, ...] | None = None
    upscaler_files: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, frozenset[str]] | None = None
    embeddings: frozenset[str] | None = None
    controlnets: frozenset[str] | None = None
    styles: frozenset[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def knows(self, endpoint: str, name: str) -> bool:
        """Whether the server's schema has the field, or cannot be read."""
        return endpoint not in self.fields or name in self.fields[endpoint]

    def has(self, endpoint: str, name: str) -> bool:
        """Whether the server's schema surely has the field."""
        return name in self.fields.get(endpoint, ())

    def has_script(self, endpoint: str, name: str) -> bool:
        """Whether the script is installed for that endpoint; names are compared in lower case."""
        return self.scripts is not None and name.lower() in self.scripts.get(endpoint, frozenset())


def inventory(
    dialect: Dialect, lists: Mapping[str, Any], *, vaes: Any, controlnets: Any, fields: Mapping[str, frozenset[str]]
) -> Inventory:
    """The snapshot from the bodies of `LISTS`, of the lists of VAEs and ControlNet models, and the schemas."""
    options = lists.get("options")
    return Inventory(
        dialect=dialect,
        checkpoints=names.checkpoints(lists.get("sd-models")),
        samplers=Samplers.listed(lists.get("samplers"), lists.get("schedulers")),
        loras=names.loras(lists["loras"]) if isinstance(lists.get("loras"), list) else None,
        vaes=names.modules(vaes) if isinstance(vaes, list) else None,
        upscalers=_upscalers(lists),
        upscaler_files=_upscaler_files(lists.get("upscalers")),
        scripts=_scripts(lists.get("scripts")),
        embeddings=_embeddings(lists.get("embeddings")),
        controlnets=_model_list(controlnets),
        styles=frozenset(texts(lists["prompt-styles"], "name"))
        if isinstance(lists.get("prompt-styles"), list)
        else None,
        options=options if isinstance(options, dict) else {},
        fields=fields,
    )


def _upscalers(lists: Mapping[str, Any]) -> tuple[str, ...] | None:
    if not isinstance(lists.get("upscalers"), list):
        return None
    return texts(lists["upscalers"], "name") + texts(lists.get("latent-upscale-modes"), "name")


def _upscaler_files(items: Any) -> dict[str, str]:
    """Paths by name. One that is yet to be downloaded by the server has a URL for a path."""
    found = {i.get("name"): i.get("model_path") for i in names.dicts(items)}
    return {
        name: path.replace("\\", "/")
        for name, path in found.items()
        if isinstance(name, str)
        and isinstance(path, str)
        and "://" not in path
        and names.without_extension(path) != path
    }


def _scripts(body: Any) -> dict[str, frozenset[str]] | None:
    if not isinstance(body, dict):
        return None
    return {
        kind: frozenset(n.lower() for n in body[kind] if isinstance(n, str))
        for kind in ("txt2img", "img2img")
        if isinstance(body.get(kind), list)
    }


def _model_list(body: Any) -> frozenset[str] | None:
    listed = body.get("model_list") if isinstance(body, dict) else None
    return frozenset(n for n in listed if isinstance(n, str)) if isinstance(listed, list) else None


def _embeddings(body: Any) -> frozenset[str] | None:
    """Objects by name on Automatic1111, lists on SD.Next, of names or of objects.

    Those that were ``skipped`` are there as well: they belong to another kind of model than the one loaded now.
    """
    if not isinstance(body, dict):
        return None
    told = [part for part in (body.get("loaded"), body.get("skipped")) if isinstance(part, (dict, list))]
    if not told:
        return None
    found = frozenset(name for part in told for name in part if isinstance(name, str))
    return found.union(*(texts(part, "name") for part in told))


def option_defaults(described: Any) -> dict[str, Any]:
    """Each option's default, from the body of SD.Next's ``/options-info``."""
    items = described.get("options") if isinstance(described, dict) else None
    if not isinstance(items, dict):
        return {}
    return {name: item["default"] for name, item in items.items() if isinstance(item, dict) and "default" in item}


def all_fields(openapi: Any) -> dict[str, frozenset[str]]:
    """By endpoint, the properties of the request's schema in ``/openapi.json``, where that tells."""
    return {endpoint: found for endpoint in ENDPOINTS if (found := _schema_fields(openapi, endpoint))}


def _schema_fields(openapi: Any, endpoint: str) -> frozenset[str]:
    try:
        route = openapi["paths"][f"/sdapi/v1/{endpoint}"]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return frozenset(schema["properties"])
    except (KeyError, TypeError, AttributeError):
        return frozenset()


def loaded_checkpoint(inventory: Inventory, current: Any, options: Any) -> ModelFile | None:
    """The model that the server holds, by the body of ``/checkpoint`` where there is one, else by its options."""
    if inventory.dialect.reports_status:
        body = current if isinstance(current, dict) else {}
        said = [body.get(key) for key in ("filename", "title", "name")] if body.get("class") else []
    else:
        said = [options.get("sd_model_checkpoint")] if isinstance(options, dict) else []
    for name in said:
        if isinstance(name, str) and name:
            found = next((c for c in inventory.checkpoints if c.called(name, 0) or c.called(name, 1)), None)
            return found or names.find(inventory.checkpoints, name, field="") or ModelFile(name, name)
    return None
