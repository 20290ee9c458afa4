"""JSON schemas of documents as OpenAPI shows them: whole, since a request body has no place of its own for parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.job import Job

_REF = "#/$defs/"


def job_schema() -> dict[str, Any]:
    """The job document over HTTP: its id may be left out, and a webhook may be its URL alone."""
    whole: dict[str, Any] = _extensible(inlined(Job.model_json_schema()))
    del whole["properties"]["sha256"]
    whole["required"] = [name for name in whole.get("required", ()) if name != "id"]
    if not whole["required"]:
        del whole["required"]
    webhook = whole["properties"]["webhook"]
    webhook["anyOf"] = [{"type": "string", "format": "uri"}, *webhook["anyOf"]]
    whole["properties"]["timeout"]["anyOf"].insert(0, {"type": "number", "exclusiveMinimum": 0, "title": "Seconds"})
    whole["description"] = "Exactly one of `params`, `request`, `workflow` and `template` says what to make."
    return whole


def inlined(schema: Any, parts: Mapping[str, Any] | None = None) -> Any:
    """The schema with every reference to one of its parts, which are its own ``$defs``, replaced by it."""
    if isinstance(schema, list):
        return [inlined(one, parts) for one in schema]
    if not isinstance(schema, dict):
        return schema
    parts = schema.get("$defs", {}) if parts is None else parts
    if "$ref" in schema:
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        return inlined({**parts[schema["$ref"].removeprefix(_REF)], **rest}, parts)
    return {name: inlined(value, parts) for name, value in schema.items() if name not in ("$defs", "discriminator")}


def _extensible(schema: Any) -> Any:
    """The schema with ``x-`` fields allowed where no other unknown ones are."""
    if isinstance(schema, list):
        return [_extensible(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: _extensible(value) for name, value in schema.items()}
    if whole.get("additionalProperties") is False:
        whole["patternProperties"] = {"^x-": {}}
    return whole
