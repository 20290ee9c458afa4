"""What callers in comfyui-api's language are told: bodies, file names, times, and errors in its words."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import pybase64
import pydantic_core
from fastapi.responses import JSONResponse, Response

from worker.api.comfyui.request import Wishes
from worker.made import Made
from worker.result import Result
from worker.storage.base import Artifact, Storable
from worker.tasks import aside
from worker.web.problems import MEDIA_TYPE

_PIECE = 65_536
_PREFIX = "ComfyUI"
_WHERE = re.compile(
    r"((?:prompt|input)(?:\.[^\s:;]+)?|(?:s3|http_upload|convert_output|webhook|webhook_v2|url)(?:\.[a-z0-9_]+)*): "
)
_OURS = (
    (re.compile(r"\bworkflow\b(?=[.:])"), "prompt"),
    (re.compile(r"\btemplate\.input\b(?=[.:])"), "input"),
    (re.compile(r"\boutput\.(format|quality|lossless|encoder)\b"), r"convert_output.\1"),
)
"""Our names of fields, and what they are called here."""


def filenames(request: Wishes, made: Made) -> tuple[str, ...]:
    """``<id>_<prefix>_<number>_.<ext>`` of each artifact, numbered from 1 for each prefix as ComfyUI does."""
    prefixes: Sequence[str] = made.output.native.get("prefixes", ())
    counted: Counter[str] = Counter()
    names = []
    for place, artifact in enumerate(made.artifacts):
        prefix = prefixes[place] if place < len(prefixes) else _PREFIX
        counted[prefix] += 1
        names.append(f"{request.id}_{prefix}_{counted[prefix]:05}_.{_extension(request, artifact)}")
    return tuple(names)


def _extension(request: Wishes, artifact: Storable[Any]) -> str:
    """A converted picture has the extension by which its format was asked for."""
    converted = request.convert_output is not None and isinstance(artifact, Artifact)
    return request.convert_output.format if converted and request.convert_output is not None else artifact.extension


def stats(result: Result, native: Mapping[str, Any]) -> dict[str, Any]:
    """Times in milliseconds; ``comfy_execution`` in both forms that comfyui-api knows, of code and documentation."""
    told = native.get("stats") or {}
    start, end = told.get("start", 0), told.get("end", 0)
    total = {"start": start, "end": end, "duration": end - start}
    nodes = {node: {"start": at} for node, at in told.get("nodes", {}).items()}
    times = result.timings
    queued, models, images, upload = (_ms(t) for t in (times.queued, times.models, times.images, times.upload))
    whole = queued + _ms(times.total)
    return {
        "comfy_execution": {**total, "total": total, "nodes": nodes},
        "preprocess_time": models,
        "comfy_round_trip_time": max(0, whole - models - images - upload),
        "postprocess_time": images,
        "upload_time": upload,
        "total_time": whole,
    }


def _ms(seconds: float | None) -> int:
    return round((seconds or 0.0) * 1000)


async def outputs(request: Wishes, result: Result, made: Made) -> dict[str, Any]:
    """``images`` (URLs, or base64 where nothing was uploaded), ``filenames``, ``stats``, and ``warnings`` if any."""
    urls = [one.url or "" for one in result.outputs]
    images = await base64s(made) if request.upload is None else urls
    warnings = [*result.warnings, *request.ignored]
    return {
        "images": images,
        "filenames": list(filenames(request, made)),
        "stats": stats(result, made.output.native),
        **({"warnings": warnings} if warnings else {}),
    }


async def base64s(made: Made) -> list[bytes]:
    """What was made, one after the other in a thread."""
    return await asyncio.to_thread(lambda: [pybase64.b64encode(one.data) for one in made.artifacts])


async def body(content: Mapping[str, Any], size: int) -> bytes:
    """As JSON, in which bytes are texts of plain ASCII; a large one is written beside the event loop."""
    return await aside(size, lambda: b"".join(_pieces(content)))


def _pieces(node: Any) -> Iterator[bytes]:
    """The JSON of a document. Texts that hold images are written a part at a time, or as they are: the whole of one
    would keep every other thread of the process waiting."""
    if isinstance(node, bytes):
        yield from (b'"', node, b'"')
    elif isinstance(node, str) and len(node) > _PIECE:
        yield b'"'
        yield from (pydantic_core.to_json(node[at : at + _PIECE])[1:-1] for at in range(0, len(node), _PIECE))
        yield b'"'
    elif isinstance(node, Mapping):
        for number, (key, value) in enumerate(node.items()):
            yield b"%b%b:" % (b"," if number else b"{", pydantic_core.to_json(str(key)))
            yield from _pieces(value)
        yield b"}" if node else b"{}"
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield b"," if number else b"["
            yield from _pieces(value)
        yield b"]" if node else b"[]"
    else:
        yield pydantic_core.to_json(node)


async def answered(content: Mapping[str, Any], *, status: int = 200, size: int = 0) -> Response:
    return Response(await body(content, size), status, media_type="application/json")


def renamed(text: str) -> str:
    """A message with the fields as the caller knows them."""
    for ours, theirs in _OURS:
        text = ours.sub(theirs, text)
    return text


def location(message: str, otherwise: str = "prompt") -> str:
    """The field that a message names first."""
    found = _WHERE.match(message)
    return found[1] if found else otherwise


def in_their_words(problem: JSONResponse, status: int | None = None, *, at: str = "prompt") -> JSONResponse:
    """The same problem, with comfyui-api's ``error`` and ``location`` beside our own members.

    ``at`` is where it is where it does not say so itself.
    """
    told = pydantic_core.from_json(bytes(problem.body))
    detail = renamed(told["detail"])
    errors = [{**one, "field": renamed(f"{one['field']}:")[:-1]} for one in told.get("errors", ())]
    where = errors[0]["field"] if errors and errors[0]["field"] else location(detail, at)
    if "result" in told:
        told["result"]["error"]["message"] = renamed(told["result"]["error"]["message"])
    status = status or problem.status_code
    title = HTTPStatus(status).phrase
    ours = {**told, "title": title, "status": status, "detail": detail, "errors": errors}
    kept = {name: value for name, value in problem.headers.items() if name == "retry-after"}
    return JSONResponse({**ours, "error": detail, "location": where}, status, kept, media_type=MEDIA_TYPE)
