"""``{{name}}`` and ``{{name|default}}`` in a JSON document: where they stand, and the document with values in them.

A text that is one placeholder and nothing else becomes the value itself, of whatever JSON type; within a longer text
the value is written out: texts as they are, null as nothing, anything else as JSON. A default is read as JSON, and as
a text where it is none. What a value brings along is never looked at again. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pydantic_core

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:\|((?:(?!\}\}).)*))?\}\}", re.DOTALL)

Path = tuple[str | int, ...]


class Missing:
    """No default; unlike null, which is one."""


MISSING: Final = Missing()


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One place; ``path`` leads to the text in which it stands."""

    name: str
    path: Path
    default: Any = MISSING


def placeholders(document: Any, path: Path = ()) -> Iterator[Placeholder]:
    """All of a document, in its order. Raises `ValueError` for one in a key, where nothing is replaced."""
    match document:
        case str():
            for found in _PLACEHOLDER.finditer(document):
                yield Placeholder(found[1], path, MISSING if found[2] is None else _read(found[2]))
        case Mapping():
            for key, value in document.items():
                if (in_key := _PLACEHOLDER.search(key)) is not None:
                    raise ValueError(f"{in_key[0]} stands in a key, where nothing is replaced")
                yield from placeholders(value, (*path, key))
        case list():
            for index, value in enumerate(document):
                yield from placeholders(value, (*path, index))


def filled(document: Any, values: Mapping[str, Any]) -> Any:
    """The document with a value in each place."""
    match document:
        case str():
            whole = _PLACEHOLDER.fullmatch(document)
            return values[whole[1]] if whole else _PLACEHOLDER.sub(lambda found: _text(values[found[1]]), document)
        case Mapping():
            return {key: filled(value, values) for key, value in document.items()}
        case list():
            return [filled(value, values) for value in document]
    return document


def line_of(name: str, text: str) -> int | None:
    """The line in which a placeholder of this name stands first."""
    found = next((found for found in _PLACEHOLDER.finditer(text) if found[1] == name), None)
    return None if found is None else text.count("\n", 0, found.start()) + 1


def _read(default: str) -> Any:
    try:
        return pydantic_core.from_json(default, allow_inf_nan=False)
    except ValueError:
        return default.strip()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else pydantic_core.to_json(value).decode()
