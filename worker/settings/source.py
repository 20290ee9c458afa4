"""The environment becomes settings: one source, one error that holds every mistake."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.errors import ConfigError, FieldError
from worker.settings import inherited, rules
from worker.settings.environment import Dialect, EnvironmentSource, names_of, validated
from worker.settings.groups import Settings, variables
from worker.settings.platform import SALAD_VARIABLES, is_salad, with_defaults

PREFIX = "WORKER_"
LOCALE, COERCED = "LC_CTYPE", ("C.UTF-8", "C.utf8", "UTF-8")
SECRET_PREFIXES = ("AWS_",)
SECRETS = frozenset({"HF_TOKEN", "HF_TOKEN_FILE", "CIVITAI_TOKEN", "CIVITAI_TOKEN_FILE"})
"""Known to every tool of the field by these names, so that they have no prefix."""

WORKER = Dialect(PREFIX, SECRETS | set(SALAD_VARIABLES))


@dataclass(frozen=True, slots=True)
class Reading:
    """What variables come to: the settings, in which every wrong one has its default, and the mistakes.

    ``salad``: they mean SaladCloud, however wrong the rest of them may be.
    """

    settings: Settings
    mistakes: tuple[FieldError, ...]
    salad: bool

    def whole(self) -> Settings:
        """The settings, where nothing is wrong with them; else `ConfigError` with every mistake."""
        if self.mistakes:
            raise ConfigError(self.mistakes)
        return self.settings


def from_environment() -> Settings:
    """The settings of this process; `ConfigError` with every mistake at once."""
    return read_environment().whole()


def read_environment(*, elsewhere: bool = False) -> Reading:
    """What the environment of this process comes to. Nothing else reads it. ``elsewhere``: as `reading_of`."""
    return reading_of(os.environ, elsewhere=elsewhere)


def environment() -> dict[str, str]:
    """The variables of this process as they are, for who hands them on to other machines."""
    return dict(os.environ)


def surroundings(keep: Collection[str] = ()) -> dict[str, str]:
    """The environment of this process without any variable of ours but those of ``keep``: what a child may inherit."""
    environ = without_coerced(os.environ, _first_environment())
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX) or name in keep}


def without_coerced(environ: Mapping[str, str], first: bytes) -> dict[str, str]:
    """Less the locale that Python gives itself, and would hand on, where it is started with none (PEP 538).

    ``first`` is the environment that the process was started with, as the kernel keeps it.
    """
    given = {line.partition(b"=")[0] for line in first.split(b"\0")}
    own = environ.get(LOCALE) in COERCED and bool(first) and LOCALE.encode() not in given
    return {name: value for name, value in environ.items() if not (own and name == LOCALE)}


def _first_environment() -> bytes:
    try:
        return Path("/proc/self/environ").read_bytes()
    except OSError:
        return b""


def server_environment(keep: Collection[str] = ()) -> dict[str, str]:
    """What the image server's process gets: nothing of ours, and no secret, but what the operator names in ``keep``.

    Python's output is unbuffered, or a crash would take the last of what it printed with it.
    """
    return {"PYTHONUNBUFFERED": "1"} | {
        name: value
        for name, value in surroundings(keep).items()
        if name in keep or not (name in SECRETS | inherited.SECRETS or name.startswith(SECRET_PREFIXES))
    }


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that these variables describe; `ConfigError` with every mistake at once."""
    return reading_of(environ).whole()


def reading_of(environ: Mapping[str, str], *, elsewhere: bool = False) -> Reading:
    """What these variables come to, every mistake included.

    ``elsewhere``: they are not a node's, but of who only asks something of a queue.
    """
    salad, environ = is_salad(environ), with_defaults(environ)
    source, others = EnvironmentSource(Settings, environ, WORKER), inherited.inherited(environ)
    tree = source()
    places = {variable.name: variable for variable in variables()}
    for twin, value in inherited.defaults(others).items():
        tree.setdefault(places[twin].group, {}).setdefault(places[twin].field, value)
    settings, found = validated(Settings, tree)
    settings = settings.model_copy(update={"inherited": others})
    unknown = tuple(FieldError(name, "is unknown and has no effect") for name in source.unknown)
    mistakes = [*source.mistakes, *found, *inherited.mistakes(others), *(unknown if settings.node.strict else ())]
    mistakes += rules.mistakes(settings, {mistake.field for mistake in mistakes}, elsewhere=elsewhere)
    if mistakes:
        names = inherited.written(others)
        told = tuple(FieldError(names.get(one.field, one.field), one.message) for one in mistakes)
        return Reading(_without(settings, (one.field for one in mistakes)), told, salad)
    return Reading(settings.model_copy(update={"warnings": (*unknown, *rules.hints(settings))}), (), salad)


def _without(settings: Settings, names: Iterable[str]) -> Settings:
    """The settings with the defaults of these variables."""
    wrong = set(names)
    for variable in variables():
        if variable.name in wrong:
            group = getattr(settings, variable.group)
            default = type(group).model_fields[variable.field].get_default(call_default_factory=True)
            settings = settings.model_copy(update={variable.group: group.model_copy(update={variable.field: default})})
    return settings


def known_names() -> Iterator[str]:
    """Every variable that this version reads, the ``_FILE`` twins of secrets included."""
    return names_of(variables())
