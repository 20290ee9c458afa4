"""One mapping of variables becomes a tree of groups: read, judged, and every mistake kept.

Each mistake names its variable and never repeats a value. Empty counts as unset. A secret ``X`` may be read from the
file that ``X_FILE`` names. What Kubernetes adds for services that happen to be called ``worker-...`` is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from worker.errors import FieldError
from worker.job import field_errors
from worker.settings.address import is_service_link
from worker.settings.groups import Variable, variables_of

Tree = dict[str, dict[str, Any]]
S = TypeVar("S", bound=BaseSettings)

_NEAR = 2
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_[0-9]+_[A-Z]+(_[A-Z]+)?$")


@dataclass(frozen=True, slots=True)
class Dialect:
    """Which variables are ours: a prefix, and some ``others``."""

    prefix: str
    others: frozenset[str] = frozenset()


def validated(settings_cls: type[S], tree: Tree) -> tuple[S, tuple[FieldError, ...]]:
    """The tree as settings, its wrong values left at their defaults, and what is wrong with them."""
    try:
        return settings_cls.model_validate(tree), ()
    except ValidationError as error:
        names = {(v.group, v.field): v.name for v in variables_of(settings_cls)}
        found = []
        for mistake in field_errors(error):
            group, field, *_ = mistake.field.split(".")
            tree[group].pop(field, None)
            found.append(FieldError(names[group, field], mistake.message.replace("Input should be", "must be")))
        return settings_cls.model_validate(tree), tuple(found)


class EnvironmentSource(PydanticBaseSettingsSource):
    """Reads the tree of groups from one mapping, and keeps what it cannot place there.

    Of the mapping only names count that begin with the dialect's prefix, and its ``others``. pydantic-settings' own
    nesting raises at the first mistake, and cannot have ``WORKER_ENGINE`` beside ``WORKER_ENGINE_URL``.
    """

    def __init__(self, settings_cls: type[BaseSettings], environ: Mapping[str, str], dialect: Dialect) -> None:
        super().__init__(settings_cls)
        self._dialect = dialect
        self._variables = variables_of(settings_cls)
        self._environ = {
            name: value
            for name, value in environ.items()
            if (name.startswith(dialect.prefix) or name in dialect.others)
            and value.strip()
            and not _is_foreign(name, value)
        }
        self.mistakes: list[FieldError] = []
        self.unknown: list[str] = []

    def __call__(self) -> dict[str, Any]:
        tree: dict[str, dict[str, Any]] = {}
        for variable in self._variables:
            value, _, _ = self.get_field_value(variable.info, variable.name)
            if value is not None:
                tree.setdefault(variable.group, {})[variable.field] = value
        self._judge_the_rest()
        return tree

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variable = next(v for v in self._variables if v.name == field_name)
        value = self._environ.get(variable.name)
        if variable.secret:
            value = self._from_file(variable) if f"{variable.name}_FILE" in self._environ else value
        elif value is not None:
            value = value.strip()
        return value, field_name, False

    def _from_file(self, variable: Variable) -> str | None:
        name = f"{variable.name}_FILE"
        if variable.name in self._environ:
            self.mistakes.append(FieldError(name, f"is set beside {variable.name}; one of them must go"))
            return None
        try:
            value = Path(self._environ[name].strip()).read_text("utf-8").rstrip("\r\n")
        except OSError as error:
            self.mistakes.append(FieldError(name, f"names a file that cannot be read ({error.strerror})"))
            return None
        except UnicodeDecodeError:
            self.mistakes.append(FieldError(name, "names a file that is no UTF-8 text"))
            return None
        if not value.strip():
            self.mistakes.append(FieldError(name, "names an empty file"))
            return None
        return value

    def _judge_the_rest(self) -> None:
        known = set(names_of(self._variables))
        for name in sorted(set(self._environ) - known):
            if near := nearest(name, known):
                self.mistakes.append(FieldError(name, f"is unknown; {near} may be meant"))
            else:
                self.unknown.append(name)


def names_of(variables: Iterable[Variable]) -> Iterator[str]:
    """Every name that is read for them, the ``_FILE`` twins of secrets included."""
    for variable in variables:
        yield variable.name
        if variable.secret:
            yield f"{variable.name}_FILE"


def nearest(name: str, known: set[str]) -> str | None:
    """The known name within two edits, the closest first, or None."""
    edits, best = min((_edits(name, other), other) for other in known)
    return best if edits <= _NEAR else None


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def _is_foreign(name: str, value: str) -> bool:
    return bool(_SERVICE_LINK.search(name)) or is_service_link(name, value)
