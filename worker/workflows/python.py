"""``NAME.py``: a pydantic model ``Input``, and ``build``, which makes a job document of one."""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_core
from pydantic import BaseModel, RootModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from worker.errors import InvalidJob
from worker.job import as_job, field_errors
from worker.workflows.base import Described, Unusable, WorkflowFailed
from worker.workflows.schema import example_of, unfolded


@dataclass(frozen=True, slots=True)
class PythonWorkflow:
    """As `Workflow`. Inputs are judged as JSON, so that strict models take what JSON can say."""

    described: Described
    model: type[BaseModel]
    function: Callable[[Any], Any]

    def check(self, given: Mapping[str, Any]) -> None:
        _validated(self.model, given)

    def build(self, given: Mapping[str, Any]) -> dict[str, Any]:
        built = self.function(_validated(self.model, given))
        if not isinstance(built, Mapping):
            raise WorkflowFailed(f"build returned {type(built).__name__}, not a job document")
        try:
            document: dict[str, Any] = pydantic_core.from_json(pydantic_core.to_json(built), allow_inf_nan=False)
        except ValueError as error:
            raise WorkflowFailed(f"build returned what JSON cannot say: {error}") from None
        return as_job(document)

    def origin(self, field: str) -> str | None:
        return None


def load(name: str, root: Path) -> PythonWorkflow:
    """Run the file below ``root`` as a module of its own. Raises `Unusable`, and whatever the file itself raises.

    ``sys.path`` stays as it is; a file may import others of the folder relatively (``from ._sizes import SIZES``).
    """
    module = _module(name, root)
    model, function = getattr(module, "Input", None), getattr(module, "build", None)
    if not (inspect.isclass(model) and issubclass(model, BaseModel)) or issubclass(model, RootModel):
        raise Unusable("defines no class Input(pydantic.BaseModel)")
    if not inspect.isfunction(function):
        raise Unusable("defines no function build(input)")
    _check_signature(function)
    try:
        schema = unfolded(model.model_json_schema())
    except PydanticInvalidForJsonSchema as error:
        raise Unusable(f"Input cannot be described by a JSON Schema: {error.message}") from None
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return PythonWorkflow(
        Described(name, first or name, rest.strip(), schema, _example(model, schema)), model, function
    )


def _validated(model: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    try:
        return model.model_validate_json(pydantic_core.to_json(given))
    except ValidationError as error:
        raise InvalidJob(errors=field_errors(error)) from None


def _example(model: type[BaseModel], schema: Mapping[str, Any]) -> dict[str, Any] | None:
    example = example_of(schema)
    try:
        model.model_validate_json(pydantic_core.to_json(example))
    except ValidationError:
        return None
    return example


def _check_signature(function: types.FunctionType) -> None:
    line = function.__code__.co_firstlineno
    if inspect.iscoroutinefunction(function):
        raise Unusable("build must be a plain function, not a coroutine", line=line)
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        raise Unusable("build must take the input, and nothing else that has no default", line=line) from None


class _Source(importlib.abc.SourceLoader):
    """Reads the file itself, and leaves no compiled one beside it."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return Path(self._path).read_bytes()


def _module(name: str, root: Path) -> types.ModuleType:
    path = root / f"{name}.py"
    full = f"{_package(path.parent, root)}.{_identifier(path.stem)}"
    loader = _Source(path)
    spec = importlib.util.spec_from_file_location(full, path, loader=loader)
    if spec is None:
        raise Unusable("cannot be loaded as Python")
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[full]
        raise
    return module


def _package(folder: Path, root: Path) -> str:
    """The package whose modules are a folder's files; those of two roots have nothing in common."""
    if folder == root:
        name = f"workflows_{hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:12]}"
    else:
        name = f"{_package(folder.parent, root)}.{_identifier(folder.name)}"
    if name not in sys.modules:
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(folder)]
    return name


def _identifier(text: str) -> str:
    """A module's name for a file's: the same where it can be, else one that no other file has."""
    plain = re.sub(r"\W", "_", text)
    return plain if plain == text else f"{plain}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
