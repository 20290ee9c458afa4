"""What of this environment a container group of SaladCloud is given: settings as they are, secrets as placeholders.

The platform takes values of 1 to 1000 characters on one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from worker.errors import ConfigError, FieldError
from worker.log import redact
from worker.settings import inherited
from worker.settings.address import is_service_link
from worker.settings.groups import Settings, Variable, variables
from worker.settings.platform import SALAD_VARIABLES

LONGEST = 1000
"""Characters of one value."""

EACH_NODES_OWN = frozenset({"WORKER_NODE_ID", "WORKER_PLATFORM", *SALAD_VARIABLES})
"""What must differ from node to node, and what the platform tells its nodes itself."""

_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_AWS_PLAIN = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
_AWS_SESSION = "AWS_SESSION_TOKEN"
_PATH_OR_URL = "put it into a file of the image or behind a URL, and set the variable to its path or URL"
_ADVICE: Mapping[str, str] = {
    "WORKER_WARMUP": _PATH_OR_URL,
    "WORKER_MODELS_MANIFEST": _PATH_OR_URL,
    "WORKER_WEBHOOK_SECRET": "use WORKER_WEBHOOK_SECRET_FILE, or WORKER_WEBHOOK_SECRETS_FILE for secrets with names",
    "WORKER_ENGINE_COMMAND": "put it into a script of the image, or into the image's CMD",
    "WORKER_MODELS_DIRS": "set it in the image",
    "MANIFEST_JSON": "put it into a file of the image, and name that in MANIFEST",
    **dict.fromkeys(
        inherited.LISTS, "list the models in a document, and name its path or URL in WORKER_MODELS_MANIFEST"
    ),
}


@dataclass(frozen=True, slots=True)
class Deployed:
    """``variables`` of the group; ``to_fill_in`` are the names of those that are placeholders, ``notes`` tell why
    something is another than it is here."""

    variables: Mapping[str, str]
    to_fill_in: tuple[str, ...] = ()
    notes: tuple[FieldError, ...] = ()


def placeholder(name: str) -> str:
    return f"<{name}>"


def deployed(settings: Settings, environ: Mapping[str, str]) -> Deployed:
    """What ``environ``, which came to these settings, is on the nodes. Raises `ConfigError` for what cannot go there.

    Nothing secret is in it: a value that would be printed without a part of it is a placeholder as a whole.
    """
    found = dict(_plain(settings, environ))
    secrets = dict(_secrets(settings, environ))
    mistakes = [mistake for name, value in {**found, **secrets}.items() for mistake in _unfit(name, value)]
    if mistakes:
        raise ConfigError(tuple(mistakes))
    hidden = {name for name, value in found.items() if redact(value) != value}
    blanks = {name: placeholder(name) for name in (*secrets, *_aws_keys(settings, environ), *hidden)}
    return Deployed({**found, **blanks}, tuple(blanks), tuple(_notes(settings, environ, hidden)))


def _plain(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    names = [one.name for one in variables() if not one.secret and one.name not in EACH_NODES_OWN]
    names += [one.variable for one in settings.inherited if one.honoured and one.variable not in inherited.SECRETS]
    for name in (*names, *_AWS_PLAIN):
        value = environ.get(name, "").strip()
        if value and not is_service_link(name, value):
            yield name, value


def _secrets(settings: Settings, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those that are set, with their values, whichever way they came."""
    for variable in variables():
        value = variable.of(settings)
        given = variable.name in environ or _file(variable) in environ
        if isinstance(value, SecretStr) and given:
            yield variable.name, value.get_secret_value().strip()
    for one in settings.inherited:
        if one.honoured and one.variable in inherited.SECRETS:
            yield one.variable, one.value


def _aws_keys(settings: Settings, environ: Mapping[str, str]) -> tuple[str, ...]:
    """A node has no profile and no role: what reaches a bucket needs a key pair."""
    needed = settings.store.chosen == "s3" or any(name in environ for name in _AWS_KEYS)
    return _AWS_KEYS if needed else ()


def _unfit(name: str, value: str) -> Iterator[FieldError]:
    advice = _ADVICE.get(name, "set it in the image")
    if len(value) > LONGEST:
        yield FieldError(name, f"has {len(value)} characters, and SaladCloud takes {LONGEST}: {advice}")
    elif len(value.splitlines()) > 1:
        yield FieldError(name, f"has a line break, which SaladCloud does not take: {advice}")


def _notes(settings: Settings, environ: Mapping[str, str], hidden: set[str]) -> Iterator[FieldError]:
    for variable in variables():
        if variable.secret and _file(variable) in environ:
            yield FieldError(_file(variable), f"is not on the nodes: give {variable.name} its value")
    for name in sorted(hidden):
        yield FieldError(name, "holds credentials: give it its value")
    for name in sorted(EACH_NODES_OWN & environ.keys()):
        if name not in SALAD_VARIABLES:
            yield FieldError(name, "is left out: each node has its own")
    if environ.get(_AWS_SESSION, "").strip():
        yield FieldError(_AWS_SESSION, "is left out: it ends within hours, and nodes need a key pair that lasts")


def _file(variable: Variable) -> str:
    return f"{variable.name}_FILE"
