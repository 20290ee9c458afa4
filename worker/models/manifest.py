"""The list of models that a node begins with: the operator's own form, and comfyui-api's. No I/O.

Ours is a list, as JSON or YAML. An item is a URL (``https``, ``s3``, ``hf://``, ``civitai://``, an AIR name), or
``{kind, name, url, sha256, size, when}``. comfyui-api's is an object whose ``models`` hold ``before_start`` and
``after_start``, lists of ``{url, local_path}``; the packages and custom nodes that it may name besides are not
installed, and said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from string import hexdigits
from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from worker.errors import ConfigError, FieldError, Owner
from worker.job import Int, Name, Url, field_errors
from worker.models.base import Wanted
from worker.models.identity import name_of, reference_of
from worker.models.kinds import is_told_by_hub, kind_of_folder, kind_of_url

VARIABLE = "WORKER_MODELS_MANIFEST"
_SCHEMES = ("http://", "https://", "s3://")
_NOT_DONE = {
    "apt": "packages are not installed by the worker; put them into the image",
    "pip": "packages are not installed by the worker; put them into the image",
    "custom_nodes": "custom nodes are not installed by the worker; put them into the image",
}


class When(StrEnum):
    """When a model has to be there; what has to be there first is also fetched first."""

    BEFORE_ENGINE = "before_engine"
    BEFORE_READY = "before_ready"
    BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Item:
    """A model of the list. Its kind is empty where only Civitai can tell it."""

    wanted: Wanted
    when: When = When.BEFORE_ENGINE


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that a node begins with; ``notes`` name what was asked for besides and is not done."""

    items: tuple[Item, ...] = ()
    notes: tuple[FieldError, ...] = ()

    def of(self, when: When) -> tuple[Wanted, ...]:
        return tuple(item.wanted for item in self.items if item.when is when)


def parse(text: str, variable: str = VARIABLE) -> Manifest:
    """The manifest that a text holds, its mistakes and items named as parts of ``variable``.

    Raises `ConfigError` with every mistake, by index and field.
    """
    document = _document(text, variable)
    if isinstance(document, list):
        return joined((_ours(document, variable),))
    if isinstance(document, dict):
        return joined((_comfyui(document, variable),))
    raise ConfigError((FieldError(variable, "must be a list of models, or comfyui-api's manifest"),))


def joined(manifests: tuple[Manifest, ...]) -> Manifest:
    """All of them as one, each model once and as early as anybody wants it.

    Raises `ConfigError` when one place is claimed by two different models.
    """
    items: dict[tuple[object, ...], Item] = {}
    for item in (item for manifest in manifests for item in manifest.items):
        first = items.setdefault(_sameness(item.wanted), item)
        if list(When).index(item.when) < list(When).index(first.when):
            items[_sameness(item.wanted)] = Item(first.wanted, item.when)
    if mistakes := tuple(_clashes(tuple(items.values()))):
        raise ConfigError(mistakes)
    return Manifest(tuple(items.values()), tuple(note for manifest in manifests for note in manifest.notes))


def _sameness(wanted: Wanted) -> tuple[object, ...]:
    return (*wanted.place, wanted.url, wanted.sha256, wanted.size)


def _clashes(items: tuple[Item, ...]) -> Iterator[FieldError]:
    taken: dict[tuple[str, str], Wanted] = {}
    for wanted in (item.wanted for item in items if item.wanted.kind and item.wanted.name):
        first = taken.setdefault(wanted.place, wanted)
        if first is not wanted:
            yield FieldError(wanted.field, f"is another model under the name of {first.field}; give one a name")


def _document(text: str, variable: str) -> Any:
    """JSON, which YAML's own parser would read a hundred times slower, or YAML."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as error:
        as_json = str(error)
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", nor YAML: wrong in line {mark.line + 1}" if mark is not None else ", nor YAML"
        raise ConfigError((FieldError(variable, f"is not JSON ({as_json}){line}"),)) from None


def checked_url(url: str) -> str:
    """The URL itself where a model may be fetched from it. Raises `ValueError`, which does not repeat it."""
    if any(c.isspace() or not c.isprintable() for c in url):
        raise ValueError("must not hold blanks or control characters")
    if reference_of(url) is None and (not url.lower().startswith(_SCHEMES) or not url.partition("://")[2]):
        raise ValueError("must be an https, http, s3, hf or civitai URL, or an AIR name")
    return url


def _relative(name: str) -> str:
    if "\\" in name or not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("must be a relative name without empty, '.' or '..' parts")
    return name


def _sha256(digits: str) -> str:
    if len(digits) != 64 or not set(digits.lower()) <= set(hexdigits):
        raise ValueError("must be 64 hexadecimal digits")
    return digits.lower()


def _kind(folder: str) -> str:
    kind = kind_of_folder(folder)
    if kind is None:
        raise ValueError("must be a kind of model: checkpoint, lora, vae ..., or a folder's name in lower case")
    return kind


_Source = Annotated[Url, AfterValidator(checked_url)]
_Digest = Annotated[str, AfterValidator(_sha256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


M = TypeVar("M", bound=_Strict)


class _Entry(_Strict):
    """An item as it is written."""

    kind: Annotated[Name, AfterValidator(_kind)] | None = None
    name: Annotated[Name, AfterValidator(_relative)] | None = None
    url: _Source | None = None
    sha256: _Digest | None = None
    size: Int | None = Field(None, gt=0)
    when: When = When.BEFORE_ENGINE

    @model_validator(mode="after")
    def _can_be_found(self) -> _Entry:
        if self.url is None and self.name is None:
            raise ValueError("needs a url, or the name under which the operator's sources have it")
        if self.kind is None and self.url is None:
            raise ValueError("needs a kind beside its name: checkpoint, lora, vae ...")
        if self.kind is None and self.url is not None and not (kind_of_url(self.url) or is_told_by_hub(self.url)):
            raise ValueError("needs a kind: checkpoint, lora, vae ...; its URL does not tell")
        return self

    def item(self, field: str) -> Item:
        url = self.url
        kind = self.kind or (kind_of_url(url) if url else None) or ""
        name = self.name or (name_of(url) if url else "")
        return Item(Wanted(kind, name, url, self.sha256, self.size, Owner.OPERATOR, field), self.when)


class _Download(_Strict):
    """A model as comfyui-api's manifest has it."""

    url: _Source
    local_path: Annotated[str, StringConstraints(min_length=1, max_length=512)]

    @model_validator(mode="after")
    def _has_a_place(self) -> _Download:
        self.entry(When.BEFORE_ENGINE)
        return self

    def entry(self, when: When) -> _Entry:
        """Folder and name below the server's ``models``, wherever that lies here."""
        parts = self.local_path.replace("\\", "/").split("/")
        at = max((i for i, part in enumerate(parts) if part == "models" and len(parts) > i + 2), default=None)
        kind = kind_of_folder(parts[at + 1]) if at is not None else None
        if at is None or kind is None:
            raise ValueError(
                "local_path lies in no folder of a kind below models/; "
                f"write it into {VARIABLE} with a kind, and name that kind's folder in WORKER_MODELS_DIRS"
            )
        return _Entry(kind=kind, name=_relative("/".join(parts[at + 2 :])), url=self.url, when=when)


def _ours(document: list[Any], variable: str) -> Manifest:
    mistakes: list[FieldError] = []
    items = []
    for index, written in enumerate(document):
        field = f"{variable}[{index}]"
        fields = {"url": written} if isinstance(written, str) else written
        entry = _validated(_Entry, fields, field, mistakes)
        if entry is not None:
            items.append(entry.item(field))
    if mistakes:
        raise ConfigError(tuple(mistakes))
    return Manifest(tuple(items))


def _comfyui(document: Mapping[str, Any], variable: str) -> Manifest:
    known = ("models", *_NOT_DONE)
    mistakes = [FieldError(f"{variable}.{name}", "unknown field") for name in document if name not in known]
    notes = tuple(FieldError(f"{variable}.{part}", said) for part, said in _NOT_DONE.items() if document.get(part))
    items = tuple(_downloads(document.get("models"), f"{variable}.models", mistakes))
    if mistakes:
        raise ConfigError(tuple(mistakes))
    return Manifest(items, notes)


def _downloads(models: Any, field: str, mistakes: list[FieldError]) -> Iterator[Item]:
    lists = {"before_start": When.BEFORE_ENGINE, "after_start": When.BACKGROUND}
    if models is None:
        return
    if not isinstance(models, dict):
        mistakes.append(FieldError(field, "must be an object with before_start and after_start"))
        return
    mistakes += [FieldError(f"{field}.{name}", "unknown field") for name in models if name not in lists]
    for name, when in lists.items():
        downloads = models.get(name)
        if not isinstance(downloads, list | None):
            mistakes.append(FieldError(f"{field}.{name}", "must be a list"))
            continue
        for index, written in enumerate(downloads or ()):
            place = f"{field}.{name}[{index}]"
            download = _validated(_Download, written, place, mistakes)
            if download is not None:
                yield download.entry(when).item(place)


def _validated(model: type[M], written: Any, field: str, mistakes: list[FieldError]) -> M | None:
    if not isinstance(written, dict):
        mistakes.append(FieldError(field, f"must be an object with {', '.join(model.model_fields)}"))
        return None
    try:
        return model.model_validate(written)
    except ValidationError as error:
        for found in field_errors(error):
            message = found.message.replace("Input should be", "must be")
            mistakes.append(FieldError(f"{field}.{found.field}" if found.field else field, message))
    return None
