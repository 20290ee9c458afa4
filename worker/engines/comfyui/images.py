"""Images given by URL or base64 in a graph: taken out of it at admission, put back as file names later. No I/O.

Which inputs take an image follows from what the server says of them, not from the names of nodes.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.base import InputRef
from worker.engines.comfyui.graph import SLOT, field_of, replaced
from worker.engines.comfyui.inventory import Inventory
from worker.engines.given import is_url
from worker.errors import InvalidJob

_DATA = re.compile(r"data:[^,]{0,255};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,31}:", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]*={0,2}\s*")
_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_NAME_MAX = 255
_PATH_MAX = 1024
_PROBED = 4096


def taken(
    graph: Mapping[str, Any], inventory: Inventory, running: Iterable[str]
) -> tuple[dict[str, Any], tuple[InputRef, ...]]:
    """The graph with a slot for each image that it brings along, and those images as they were given.

    Names of files in the server's input folder stay: it checks that they are there. Raises `InvalidJob` for what is
    neither, for a name that leads out of that folder, and for videos and sounds by URL, which are not fetched yet.
    """
    nodes = frozenset(running)
    refs: list[InputRef] = []

    def take(node_id: str, name: str, value: Any) -> Any:
        declared = inventory.input(graph[node_id]["class_type"], name)
        if node_id not in nodes or declared is None or declared.upload is None or not isinstance(value, str):
            return value
        field = field_of(node_id, name)
        if not brings_data(value, field=field):
            return value
        if declared.upload not in ("image", "mask"):
            raise InvalidJob(
                f"a {declared.upload} cannot be given by URL or base64 yet, only images can; "
                "name a file in the server's input folder",
                field=field,
            )
        refs.append(InputRef(field, value))
        return SLOT + field

    return replaced(graph, take), tuple(refs)


def brings_data(value: str, *, field: str) -> bool:
    """Whether a value is a file's contents or where to fetch them; False for the name of a file on the server.

    Base64 has no dots, file names nearly always do. Raises `InvalidJob` for what can be neither.
    """
    if is_url(value) or _DATA.match(value) or _starts_an_image(value):
        return True
    if not value or value.isspace():
        raise InvalidJob("is empty", field=field)
    if len(value) > _NAME_MAX and _BASE64.fullmatch(value[:_PROBED]):
        return True
    plain = len(value) <= _PATH_MAX and "\0" not in value and "\n" not in value
    if not plain or _SCHEME.match(value):
        raise InvalidJob("is neither an http or https URL, nor base64, nor the name of a file", field=field)
    parts = re.split(r"[/\\]", re.sub(r"\s\[\w+\]$", "", value))
    if parts[0] == "" or ".." in parts:
        raise InvalidJob("leads out of the server's input folder", field=field)
    return False


def _starts_an_image(value: str) -> bool:
    head = value[:64].strip()[:24]
    if len(head) < 24 or not _BASE64.fullmatch(value[:_NAME_MAX]):
        return False
    try:
        start = binascii.a2b_base64("".join(head.split())[:16])
    except binascii.Error:
        return False
    return start.startswith(_MAGIC)
