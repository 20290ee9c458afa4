"""Placeholders in JSON documents."""

from __future__ import annotations

from typing import Any

import pytest

from worker.workflows.placeholders import MISSING, filled, line_of, placeholders


def test_a_text_that_is_a_placeholder_becomes_the_value() -> None:
    """Of whatever type, wherever it stands; anything else stays what it is."""
    document = {"a": "{{n}}", "b": [{"c": "{{ list }}"}, 1, None, True], "d": "{{nothing}}"}
    assert filled(document, {"n": 3, "list": [{"x": 1.5}], "nothing": None}) == {
        "a": 3,
        "b": [{"c": [{"x": 1.5}]}, 1, None, True],
        "d": None,
    }


@pytest.mark.parametrize(
    ("value", "text"), [("calm", "calm"), (3, "3"), (0.5, "0.5"), (True, "true"), (None, ""), (["a", 1], '["a",1]')]
)
def test_within_a_text_the_value_is_written_out(value: Any, text: str) -> None:
    """As people would write it: texts bare, null as nothing, the rest as JSON."""
    assert filled("a {{mood|x}} day, <lora:{{mood}}:1>", {"mood": value}) == f"a {text} day, <lora:{text}:1>"


def test_a_value_is_never_looked_at_again() -> None:
    """A caller's text may hold what looks like a placeholder, or like a reference of a regular expression."""
    assert filled("{{a}} and {{b}}", {"a": "{{b}}", "b": r"\1 \g<0>"}) == r"{{b}} and \1 \g<0>"
    assert filled("{{a}}", {"a": "{{b}}"}) == "{{b}}"


def test_what_is_no_placeholder_stays() -> None:
    """Braces of prompts, names that are none."""
    for text in ("{a|b}", "{{a b}}", "{{1}}", "{{}}", "{{a", "{{a-b}}", "{ {a}}"):
        assert list(placeholders(text)) == []
        assert filled(text, {}) == text


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("{{n}}", MISSING),
        ("{{n|20}}", 20),
        ("{{ n | 0.5 }}", 0.5),
        ("{{n|null}}", None),
        ("{{n|a, b}}", "a, b"),
        ("{{n|}}", ""),
        ('{{n|"20"}}', "20"),
        ("{{n|NaN}}", "NaN"),
        ('{{n|{"a":[1]}}}', '{"a":[1]'),
    ],
)
def test_a_default_is_json_or_a_text(text: str, default: Any) -> None:
    """It ends with the first two braces, so that it can be no object."""
    (found,) = placeholders({"x": [text]})
    assert (found.name, found.path, found.default) == ("n", ("x", 0), default)


def test_a_placeholder_in_a_key_is_a_mistake() -> None:
    """Nothing is replaced there, and nobody shall believe so."""
    with pytest.raises(ValueError, match=r"\{\{name\}\} stands in a key"):
        list(placeholders({"a": {"x {{name}}": 1}}))


def test_the_line_of_a_placeholder() -> None:
    """The first one of the name counts."""
    text = '{\n  "a": "{{b}}",\n  "c": "{{ a|1 }} {{a}}"\n}'
    assert (line_of("a", text), line_of("b", text), line_of("c", text)) == (3, 2, None)
