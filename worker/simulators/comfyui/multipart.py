"""`multipart/form-data`, as small as the uploads need it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARAMETER = re.compile(r';\s*(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Field:
    """One field; ``filename`` is None for plain values."""

    filename: str | None
    data: bytes


def fields(content_type: str, body: bytes) -> dict[str, Field]:
    """The fields by name. Raises `ValueError` for anything else."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    if boundary is None:
        raise ValueError("not multipart/form-data")
    found = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode())[1:]:
        if part.startswith(b"--"):
            break
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        parameters = dict(_PARAMETER.findall(head.decode()))
        found[parameters["name"]] = Field(parameters.get("filename"), data)
    return found
