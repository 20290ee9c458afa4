"""What a command line tells of the server that it starts, without starting it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

_SCRIPTS = frozenset({".py", ".sh"})
_PORT = "--port"


def script_of(command: Sequence[str]) -> str | None:
    """The script that is run: the first word after the program that is named like one, options and texts left out."""
    return next((word for word in command[1:] if _is_name(word) and PurePath(word).suffix in _SCRIPTS), None)


def interpreters_of(command: Sequence[str]) -> Iterator[str]:
    """The Pythons that the words after the program name: an entrypoint of the image may stand before them."""
    return (word for word in command[1:] if _is_name(word) and PurePath(word).name.startswith("python"))


def port_of(command: Sequence[str]) -> int | None:
    """The port that the server is told, None where it is told none."""
    words = iter(command[1:])
    for word in words:
        option, equals, value = word.partition("=")
        if option == _PORT:
            text = value if equals else next(words, "")
            return int(text) if text.isascii() and text.isdecimal() else None
    return None


def _is_name(word: str) -> bool:
    """Whether it may be that of a file: neither an option nor a text of several words."""
    return bool(word) and not word.startswith("-") and len(word.split()) == 1
