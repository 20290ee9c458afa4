"""JSON Schemas of inputs: which are taken, and what is said of an input by them."""

from __future__ import annotations

from typing import Any

import pytest

from worker.errors import FieldError
from worker.workflows.base import Unusable
from worker.workflows.schema import example_of, mistakes, validator_of


def said(part: dict[str, Any], value: Any) -> str:
    """What is said of one property's value."""
    validator = validator_of({"type": "object", "properties": {"x": part}})
    (mistake,) = mistakes(validator, {"x": value})
    assert mistake.field.startswith("x")
    return mistake.message


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ({"type": "integer"}, "secret", "must be of type integer"),
        ({"type": ["string", "null"]}, 1, "must be of type string or null"),
        ({"enum": ["a", 1]}, "secret", 'must be one of ["a",1]'),
        ({"const": 1}, "secret", "must be 1"),
        ({"minimum": 2}, 1, "must be at least 2"),
        ({"maximum": 2}, 3, "must be at most 2"),
        ({"exclusiveMinimum": 2}, 2, "must be more than 2"),
        ({"exclusiveMaximum": 2}, 2, "must be less than 2"),
        ({"multipleOf": 8}, 9, "must be a multiple of 8"),
        ({"minLength": 2}, "x", "must have at least 2 characters"),
        ({"maxLength": 2}, "secret", "must have at most 2 characters"),
        ({"minItems": 2}, [1], "must have at least 2 items"),
        ({"maxItems": 1}, [1, 2], "must have at most 1 items"),
        ({"pattern": "^a$"}, "secret", 'must match the pattern "^a$"'),
        ({"uniqueItems": True}, ["secret", "secret"], "does not satisfy the schema's uniqueItems"),
        ({"enum": ["a" * 300]}, "secret", f'must be one of ["{"a" * 198}...'),
        ({"properties": {"y": {}}, "additionalProperties": {"type": "string"}}, {"z": 1}, "must be of type string"),
    ],
)
def test_mistakes_are_told_in_words_without_the_value(part: dict[str, Any], value: Any, message: str) -> None:
    """Values hold prompts."""
    assert said(part, value) == message


def test_missing_and_unknown_fields_are_named() -> None:
    """Each by itself, also below others."""
    inner = {"type": "object", "properties": {"b": {}}, "required": ["b", "c"], "additionalProperties": False}
    schema = {"type": "object", "properties": {"a": inner}, "required": ["a", "z"], "additionalProperties": False}
    found = mistakes(validator_of(schema), {"a": {"d": 1}, "y": 2})
    assert set(found) == {
        FieldError("a.b", "is required"),
        FieldError("a.c", "is required"),
        FieldError("a.d", "unknown field"),
        FieldError("y", "unknown field"),
        FieldError("z", "is required"),
    }
    assert len(found) == 5


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "properties.a.type"),
        ([], "no JSON Schema"),
        (True, '"type": "object"'),
        ({"type": "array"}, '"type": "object"'),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}}, "#/\\$defs/b leads nowhere"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/s.json"}}}, "leads out of the schema"),
        ({"type": "object", "allOf": [{"$ref": "#anchor"}]}, "names an anchor"),
        ({"type": "object", "allOf": [{"$ref": "#/allOf/x"}]}, "leads nowhere"),
    ],
)
def test_what_is_no_schema_of_an_object_is_refused(schema: Any, message: str) -> None:
    """And nothing is ever fetched for one."""
    with pytest.raises(Unusable, match=message) as caught:
        validator_of(schema)
    assert caught.value.schema


def test_references_within_the_schema_are_followed() -> None:
    """By JSON pointer, escapes and places in lists included, and to the schema itself."""
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/x~1y"}, "b": {"$ref": "#/$defs/list/anyOf/0"}, "c": {"$ref": "#"}},
        "$defs": {"x/y": {"type": "integer"}, "list": {"anyOf": [{"type": "string"}]}},
    }
    found = mistakes(validator_of(schema), {"a": "x", "b": 1, "c": {"a": 1.5}})
    assert [mistake.field for mistake in found] == ["a", "b", "c.a"]


@pytest.mark.parametrize(
    ("schema", "example"),
    [
        ({"examples": [{"a": 1}, {"a": 2}], "properties": {"b": {"default": 1}}}, {"a": 1}),
        (
            {
                "properties": {
                    "a": {"examples": ["x", "y"]},
                    "b": {"default": 2},
                    "c": {"const": 3},
                    "d": {"enum": [4, 5]},
                    "e": {"type": "integer"},
                    "f": {"default": None},
                }
            },
            {"a": "x", "b": 2, "c": 3, "d": 4},
        ),
        ({"properties": {"a": {"type": "integer", "minimum": 64}}, "required": ["a"]}, {"a": 64}),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": "a text"}),
        ({"properties": {"a": {}}, "required": ["a"]}, None),
        ({"properties": {"a": True}, "required": ["a"]}, None),
        ({}, {}),
        (
            {
                "properties": {
                    "a": {"$ref": "#/$defs/size"},
                    "b": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                    "c": {"type": "object", "properties": {"d": {"const": 1}, "e": {"type": "array"}}},
                    "f": {"$ref": "#/$defs/mood"},
                },
                "required": ["a", "b", "c"],
                "$defs": {
                    "size": {
                        "type": "object",
                        "properties": {"w": {"type": "number"}, "h": {"$ref": "#/$defs/mood"}},
                        "required": ["w"],
                    },
                    "mood": {"enum": ["calm"]},
                },
            },
            {"a": {"w": 1, "h": "calm"}, "b": True, "c": {"d": 1}, "f": "calm"},
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"], "$defs": {"a": {"$ref": "#/$defs/a"}}},
            None,
        ),
        (
            {
                "properties": {"a": {"$ref": "#/$defs/a"}},
                "required": ["a"],
                "$defs": {
                    "a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]},
                },
            },
            None,
        ),
    ],
)
def test_examples_come_from_the_schema(schema: dict[str, Any], example: dict[str, Any] | None) -> None:
    """Its own first, then those of its fields; None where a required one tells nothing."""
    assert example_of(schema) == example
