"""Settings as people read them: the README's table, and what is in effect. No secret is in either."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from worker.log import HIDDEN, redact
from worker.settings.checks import parse_command, parse_words
from worker.settings.groups import Settings, Variable, variables, variables_of
from worker.settings.units import duration_text, parse_size, size_text

BEGIN = "<!-- settings:begin -->"
END = "<!-- settings:end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One setting in effect; ``changed`` when it is not the default."""

    variable: str
    value: str
    changed: bool


def effective(settings: Settings) -> Iterator[Row]:
    """Every setting as its variable would be written, secrets masked."""
    defaults = Settings()
    for variable in variables():
        value = variable.of(settings)
        yield Row(variable.name, value_text(variable, value), value != variable.of(defaults))


def markdown_table(tree: type[BaseSettings] = Settings) -> str:
    """The table of all variables of a tree of groups, generated from these."""
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    group = ""
    for variable in variables_of(tree):
        if variable.group != group:
            group = variable.group
            lines.append(f"| **{tree.model_fields[group].title}** | | |")
        lines.append(f"| `{variable.name}` | {_default(variable)} | {_meaning(variable)} |")
    return "\n".join(lines)


def inserted(page: str, tree: type[BaseSettings] = Settings) -> str:
    """The page with the current table between its markers; `ValueError` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{markdown_table(tree)}\n{END}{after}"


def value_text(variable: Variable, value: Any) -> str:
    """The value as its variable would be written, without what is secret in it."""
    match value:
        case None:
            return ""
        case SecretStr():
            return HIDDEN
        case bool():
            return str(value).lower()
        case timedelta():
            return duration_text(value)
        case tuple():
            return _words_text(variable, value)
        case int() if any(getattr(m, "func", None) is parse_size for m in variable.info.metadata):
            return size_text(value)
        case _:
            return redact(str(value))


def _words_text(variable: Variable, words: tuple[Any, ...]) -> str:
    """As the variable's own parser takes them apart again."""
    parsers = {getattr(m, "func", None) for m in variable.info.metadata}
    if parse_command in parsers:
        return redact(shlex.join(map(str, words)))
    return redact((" " if parse_words in parsers else ",").join(map(str, words)))


def _default(variable: Variable) -> str:
    extra = variable.info.json_schema_extra
    shown = extra.get("shown") if isinstance(extra, dict) else None
    if isinstance(shown, str) and " " in shown:
        return shown
    text = shown if isinstance(shown, str) else value_text(variable, variable.info.default)
    return f"`{text}`" if text else ""


def _meaning(variable: Variable) -> str:
    meaning = variable.info.description or ""
    choices = [choice for choice in get_args(variable.info.annotation) if isinstance(choice, str)]
    if not all(f"`{choice}`" in meaning for choice in choices):
        meaning = f"{', '.join(f'`{choice}`' for choice in choices)}; {meaning}"
    if variable.secret:
        meaning += f"; or from the file `{variable.name}_FILE`"
    return meaning.replace("|", "\\|")
