"""Input images as a job gives them, by URL or as base64, and their bytes once they were provided. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pybase64

from worker.engines.base import InputRef
from worker.errors import InternalError, InvalidJob

_DATA = re.compile(r"data:[^,]{0,255};base64,", re.IGNORECASE)


def is_url(value: Any) -> bool:
    return isinstance(value, str) and value[:8].lower().startswith(("http://", "https://"))


def decoded(value: str, *, field: str) -> bytes:
    """The bytes of base64 with or without a data URI before it. Raises `InvalidJob`."""
    text = value
    if value[:5].lower() == "data:":
        head = _DATA.match(value)
        if head is None:
            raise InvalidJob("is a data-URI without base64", field=field)
        text = value[head.end() :]
    try:
        data = pybase64.b64decode("".join(text.split()) if "\n" in text else text, validate=True)
    except ValueError:
        raise InvalidJob("is neither base64 nor an http(s) URL", field=field) from None
    if not data:
        raise InvalidJob("is empty", field=field)
    return data


def looked(value: Any) -> bytes | None:
    """A picture that a server puts into a document as base64; None where it is none."""
    try:
        return decoded(value, field="") if isinstance(value, str) and value else None
    except InvalidJob:
        return None


def provided(refs: Sequence[InputRef], images: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every image by its field: as it was provided, else from the job itself where it stands there as base64.

    Raises `InvalidJob` for what is no base64, `InternalError` for a URL that nobody fetched.
    """
    found = {}
    for ref in refs:
        data = images.get(ref.field)
        if data is None and is_url(ref.value):
            raise InternalError(f"the input {ref.field} was not provided")
        found[ref.field] = decoded(ref.value, field=ref.field) if data is None else data
    return found
