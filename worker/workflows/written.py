"""``NAME.json``: a ComfyUI graph, a native body or a job document, with ``{{placeholders}}`` and a schema beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pydantic_core

from worker.errors import InvalidJob
from worker.job import SOURCES, as_job
from worker.workflows.base import Described, Unusable
from worker.workflows.placeholders import MISSING, Placeholder, filled, line_of, placeholders
from worker.workflows.schema import example_of, mistakes, validator_of

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_LINE = re.compile(r" at line (\d+) column \d+$")


@dataclass(frozen=True, slots=True)
class WrittenWorkflow:
    """As `Workflow`. ``origins`` are the parts of the input by the places of the document where they stand."""

    described: Described
    document: dict[str, Any]
    defaults: Mapping[str, Any]
    origins: Mapping[str, str]
    validator: Validator = field(repr=False)

    def check(self, given: Mapping[str, Any]) -> None:
        found = mistakes(self.validator, given)
        if found:
            raise InvalidJob(errors=found)

    def build(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self.check(given)
        document: dict[str, Any] = filled(self.document, {**self.defaults, **given})
        return document

    def origin(self, field: str) -> str | None:
        above = [place for place in self.origins if f"{field}.".startswith(f"{place}.")]
        return self.origins[max(above, key=len)] if above else None


def load(name: str, text: bytes, schema_text: bytes | None) -> WrittenWorkflow:
    """Read the two files. Raises `Unusable`."""
    document = _shaped(_read(text))
    try:
        found = list(placeholders(document))
    except ValueError as error:
        raise Unusable(str(error)) from None
    line = partial(line_of, text=text.decode("utf-8-sig"))
    written = _defaults(found, line)
    names = tuple(dict.fromkeys(one.name for one in found))
    schema = _schema_of(names, written) if schema_text is None else _read(schema_text, schema=True)
    validator = validator_of(schema)
    defaults = _joined(names, written, schema, line)
    described = Described(
        name, schema.get("title") or name, schema.get("description") or "", schema, _example(validator, schema)
    )
    origins = {".".join(map(str, one.path)): one.name for one in reversed(found)}
    return WrittenWorkflow(described, document, defaults, origins, validator)


def _read(text: bytes, *, schema: bool = False) -> dict[str, Any]:
    try:
        document = pydantic_core.from_json(text.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        found = _LINE.search(str(error))
        message = f"not JSON: {_LINE.sub('', str(error))}"
        raise Unusable(message, line=int(found[1]) if found else None, schema=schema) from None
    if not isinstance(document, dict):
        raise Unusable("must hold a JSON object", schema=schema)
    return document


def _shaped(document: dict[str, Any]) -> dict[str, Any]:
    """The job document that a file stands for."""
    if isinstance(document.get("nodes"), list) and "links" in document:
        raise Unusable("was saved for ComfyUI's page; export it in API format")
    document = as_job(document)
    if any(name in document for name in SOURCES):
        return document
    endpoint = {"endpoint": "img2img"} if "init_images" in document else {}
    return {"request": document, **endpoint}


def _defaults(found: list[Placeholder], line: Any) -> dict[str, Any]:
    """What stands behind the ``|`` of each placeholder that has one."""
    defaults: dict[str, Any] = {}
    for one in found:
        if one.default is not MISSING and defaults.setdefault(one.name, one.default) != one.default:
            raise Unusable(f"{{{{{one.name}}}}} has two defaults", line=line(one.name))
    return defaults


def _schema_of(names: tuple[str, ...], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Any value for each placeholder; those without a default are required."""
    return {
        "type": "object",
        "properties": {name: {"default": defaults[name]} if name in defaults else {} for name in names},
        "required": [name for name in names if name not in defaults],
        "additionalProperties": False,
    }


def _joined(names: tuple[str, ...], written: Mapping[str, Any], schema: dict[str, Any], line: Any) -> dict[str, Any]:
    """The defaults of schema and document; every placeholder must be in the schema, and may not be left empty."""
    properties = schema.get("properties", {})
    told = {name: part["default"] for name, part in properties.items() if isinstance(part, dict) and "default" in part}
    defaults = {**written, **told}
    for name in names:
        shown = f"{{{{{name}}}}}"
        if name not in properties:
            raise Unusable(f"{shown} is not among the schema's properties", line=line(name))
        if name in told and name in written and told[name] != written[name]:
            raise Unusable(f"{shown} has another default in the schema", line=line(name))
        if name not in defaults and name not in schema.get("required", ()):
            raise Unusable(f"{shown} may be left out by the schema, and has no default", line=line(name))
    return {name: defaults[name] for name in names if name in defaults}


def _example(validator: Validator, schema: dict[str, Any]) -> dict[str, Any] | None:
    example = example_of(schema)
    return None if example is None or mistakes(validator, example) else example
