"""Request bodies checked as FastAPI does it, with pydantic 2's error bodies or pydantic 1's."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model
from pydantic_core import from_json
from starlette.requests import Request

from worker.simulators.dialects import DIALECTS, Dialect
from worker.simulators.errors import OtherAnswer
from worker.simulators.fields import request_fields

_V1_ERRORS = {
    "int": ("value is not a valid integer", "type_error.integer"),
    "float": ("value is not a valid float", "type_error.float"),
    "bool": ("value could not be parsed to a boolean", "type_error.bool"),
    "string": ("str type expected", "type_error.str"),
    "list": ("value is not a valid list", "type_error.list"),
    "dict": ("value is not a valid dict", "type_error.dict"),
}


def _whole(value: Any) -> Any:
    """Pydantic 1 cuts the fraction off where an integer is wanted."""
    return int(value) if isinstance(value, float) else value


_TYPES_V2: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "strs": list[str],
    "list": list[Any],
    "dict": dict[str, Any],
    "int_or_str": int | str,
    "any": Any,
}
_TYPES_V1 = _TYPES_V2 | {"int": Annotated[int, BeforeValidator(_whole)]}


@cache
def request_model(name: str, *, image: bool) -> type[BaseModel]:
    """The request of a dialect; unknown fields are dropped without a word."""
    dialect = DIALECTS[name]
    types = _TYPES_V1 if dialect.pydantic == 1 else _TYPES_V2
    fields: dict[str, Any] = {}
    for field, (kind, default) in request_fields(dialect, image=image).items():
        plain = types[kind.removesuffix("!")]
        fields[field] = (plain if kind.endswith("!") else plain | None, default)
    title = "StableDiffusionProcessingImg2Img" if image else "StableDiffusionProcessingTxt2Img"
    config = ConfigDict(extra="ignore", coerce_numbers_to_str=dialect.pydantic == 1, protected_namespaces=())
    return create_model(title, __config__=config, **fields)


def checked(dialect: Dialect, document: Any, *, image: bool) -> dict[str, Any]:
    """The request with all defaults filled in. Raises `OtherAnswer` 422."""
    if not isinstance(document, dict):
        raise _refused(dialect, [_not_an_object(dialect, document)])
    try:
        return request_model(dialect.name, image=image).model_validate(document).model_dump()
    except ValidationError as error:
        raise _refused(dialect, [_problem(dialect, dict(e)) for e in error.errors()]) from error


async def json_body(request: Request, dialect: Dialect) -> Any:
    """The body as JSON, or as a string when it is not declared as JSON. Raises `OtherAnswer` 422."""
    raw = await request.body()
    if not raw:
        problem: dict[str, Any] = {"loc": ["body"], "msg": "field required", "type": "value_error.missing"}
        if dialect.pydantic == 2:
            problem = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
        raise _refused(dialect, [problem])
    declared = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if not declared.endswith("json"):
        return raw.decode("utf-8", "replace")
    try:
        return from_json(raw)
    except ValueError:
        return _slowly(raw, dialect)


def _slowly(raw: bytes, dialect: Dialect) -> Any:
    """Python's own parser takes what the fast one refuses, or words the error as the servers do."""
    try:
        return json.loads(raw)
    except UnicodeDecodeError as error:
        raise OtherAnswer(400, {"detail": "There was an error parsing the body"}) from error
    except json.JSONDecodeError as error:
        if dialect.pydantic == 1:
            context = {"msg": error.msg, "doc": error.doc, "pos": error.pos, "lineno": error.lineno}
            problem = {"loc": ["body", error.pos], "msg": str(error), "type": "value_error.jsondecode"}
            raise _refused(dialect, [problem | {"ctx": context | {"colno": error.colno}}]) from error
        wrong: dict[str, Any] = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error"}
        raise _refused(dialect, [wrong | {"input": {}, "ctx": {"error": error.msg}}]) from error


def _refused(dialect: Dialect, problems: list[dict[str, Any]]) -> OtherAnswer:
    if dialect.errors == "forge":
        problems = [p | {"url": f"https://errors.pydantic.dev/2.8/v/{p['type']}"} for p in problems]
    return OtherAnswer(422, {"detail": problems})


def _not_an_object(dialect: Dialect, document: Any) -> dict[str, Any]:
    if dialect.pydantic == 1:
        return {"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"}
    message = "Input should be a valid dictionary or object to extract fields from"
    return {"type": "model_attributes_type", "loc": ["body"], "msg": message, "input": document}


def _problem(dialect: Dialect, error: dict[str, Any]) -> dict[str, Any]:
    where = ["body", *error["loc"]]
    if dialect.pydantic == 2:
        return {"type": error["type"], "loc": where, "msg": error["msg"], "input": error["input"]}
    if error["input"] is None:
        message, kind = "none is not an allowed value", "type_error.none.not_allowed"
    else:
        message, kind = _V1_ERRORS[error["type"].partition("_")[0]]
    return {"loc": where, "msg": message, "type": kind}
