"""JSON Schema 2020-12: is one itself in order, and what is wrong with an input by it. Messages repeat no value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pydantic_core

from worker.errors import FieldError
from worker.workflows.base import Unusable

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

_SHOWN_MOST = 200
_DEEPEST = 8
_EXAMPLES: Mapping[str, Any] = {"string": "a text", "boolean": True, "array": [], "object": {}, "null": None}

_SAID: Mapping[str, Callable[[Any], str]] = {
    "type": lambda value: f"must be of type {' or '.join(value) if isinstance(value, list) else value}",
    "enum": lambda value: f"must be one of {_shown(value)}",
    "const": lambda value: f"must be {_shown(value)}",
    "minimum": lambda value: f"must be at least {value}",
    "maximum": lambda value: f"must be at most {value}",
    "exclusiveMinimum": lambda value: f"must be more than {value}",
    "exclusiveMaximum": lambda value: f"must be less than {value}",
    "multipleOf": lambda value: f"must be a multiple of {value}",
    "minLength": lambda value: f"must have at least {value} characters",
    "maxLength": lambda value: f"must have at most {value} characters",
    "minItems": lambda value: f"must have at least {value} items",
    "maxItems": lambda value: f"must have at most {value} items",
    "pattern": lambda value: f"must match the pattern {_shown(value)}",
}


def validator_of(schema: Any) -> Validator:
    """What judges inputs. Raises `Unusable` for what is no schema of an object, or leans on something outside it."""
    import jsonschema
    import referencing

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        at = ".".join(map(str, error.absolute_path)) or "the schema"
        raise Unusable(f"no JSON Schema 2020-12: {at}: {error.message[:_SHOWN_MOST]}", schema=True) from None
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise Unusable('the schema must have "type": "object": an input is an object', schema=True)
    for reference in _references(schema):
        _resolved(schema, reference)
    return jsonschema.Draft202012Validator(schema, registry=referencing.Registry())


def mistakes(validator: Validator, given: Mapping[str, Any]) -> tuple[FieldError, ...]:
    """What is wrong with an input: dotted fields, each once."""
    found = [said for error in validator.iter_errors(given) for said in _told(error)]
    return tuple(dict.fromkeys(found))


def unfolded(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, also where it only refers to a part of its own, as that of a model which holds itself does."""
    if "$ref" not in schema:
        return schema
    return {"$defs": schema["$defs"], **_resolved(schema, schema["$ref"])}


def example_of(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """An input by the schema's own examples and defaults, else by the types of what is required; None where these
    do not tell one. It need not be one that is taken."""
    example = _object(schema, schema, 0)
    return example if isinstance(example, dict) else None


def _object(part: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Any:
    match part.get("examples"):
        case [dict() as first, *_]:
            return first
    required, found = part.get("required", ()), {}
    for name, inner in part.get("properties", {}).items():
        value = _value(inner, root, depth, required=name in required)
        if value is not None:
            found[name] = value
        elif name in required:
            return None
    return found


def _value(part: Any, root: Mapping[str, Any], depth: int, *, required: bool) -> Any:
    """None where nothing tells one, or it may be left out."""
    match part:
        case {"examples": [first, *_]} | {"default": first} | {"const": first} | {"enum": [first, *_]}:
            return first
        case {"$ref": str() as reference} if depth < _DEEPEST:
            return _value(_resolved(root, reference), root, depth + 1, required=required)
        case _ if not required or not isinstance(part, dict):
            return None
        case {"anyOf": [first, *_]} | {"oneOf": [first, *_]}:
            return _value(first, root, depth, required=True)
        case {"type": "integer" | "number"}:
            return part.get("minimum", 1)
        case {"type": "object", "properties": dict()} if depth < _DEEPEST:
            return _object(part, root, depth + 1)
        case {"type": str() as name}:
            return _EXAMPLES.get(name)
    return None


def _told(error: ValidationError) -> Iterator[FieldError]:
    field, keyword, value = ".".join(map(str, error.absolute_path)), str(error.validator), error.validator_value
    match keyword, error.instance:
        case "required", dict() as there if isinstance(value, list):
            for name in value:
                if name not in there:
                    yield FieldError(f"{field}.{name}".lstrip("."), "is required")
        case "additionalProperties", dict() as there if value is False:
            known = error.schema.get("properties", {}) if isinstance(error.schema, Mapping) else {}
            for name in there.keys() - known.keys():
                yield FieldError(f"{field}.{name}".lstrip("."), "unknown field")
        case _:
            said = _SAID[keyword](value) if keyword in _SAID else f"does not satisfy the schema's {keyword}"
            yield FieldError(field, said)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _resolved(schema: Any, reference: str) -> Any:
    """The part of the schema to which a JSON pointer leads. Raises `Unusable` for what is none, or leads nowhere."""
    if reference != "#" and not reference.startswith("#/"):
        raise Unusable(f"{reference[:_SHOWN_MOST]} leads out of the schema, or names an anchor", schema=True)
    part = schema
    for step in (one.replace("~1", "/").replace("~0", "~") for one in reference.split("/")[1:]):
        try:
            part = part[int(step)] if isinstance(part, list) else part[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise Unusable(f"{reference[:_SHOWN_MOST]} leads nowhere in the schema", schema=True) from None
    return part


def _shown(value: Any) -> str:
    text = pydantic_core.to_json(value).decode()
    return text if len(text) <= _SHOWN_MOST else f"{text[:_SHOWN_MOST]}..."
