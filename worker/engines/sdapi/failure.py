"""What an answer other than 2xx means. No I/O.

==================  ==================================================================================
the server says     we raise
==================  ==================================================================================
401, 403            `AuthFailed`
404 "Not Found"     `EngineCrashed`: its routes are not there yet, or no more
429                 `EngineFault`: SD.Next counts after the work and throws the picture away
other 4xx           `GenerationRejected`
502, 503, 504       `EngineCrashed`
5xx, out of memory  `EngineOutOfMemory`
5xx, CUDA and kin   `GpuFault`: only a new process recovers
5xx, bad request    `GenerationRejected`: an unknown option, an image that is none, a missing refiner
any other 5xx       `OutputEmpty`: no image came; a fresh load and the canary tell whose fault that is
==================  ==================================================================================

``NansException`` is among the last. Automatic1111 answers it where SD.Next gives a black picture, and as with
`OutputFlat` the model may be broken or the job; but there is no picture that could go out with a warning.
A model that cannot be read, or of which the server has none, is there too: the file may be bad on this node alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from worker.engines.answer import Answer, cause, parsed
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    EngineFault,
    GenerationRejected,
    OutputEmpty,
    WorkerError,
)

MESSAGE_MAX = 500
_REFUSED = re.compile(
    r"Invalid encoded image|Invalid image (?:format|url)|Could not find checkpoint|not allowed|"
    r"Init image not found|Sampler not found|Script .* not found|Always on script not found",
    re.IGNORECASE,
)
_ALWAYS = frozenset({"KeyError", "ValidationError", "ResponseValidationError"})
"""What comes again however often it is tried: an option or a field that there is not, an answer it cannot put."""


def error_text(body: bytes) -> str:
    """What the server says went wrong: ``detail`` (a text or a list), then ``errors``, ``message``, ``error``.

    For messages alone: at most `MESSAGE_MAX` characters.
    """
    return _said(parsed(body), body)[:MESSAGE_MAX]


def _said(document: Any, body: bytes) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document, dict):
        return body[:MESSAGE_MAX].decode("utf-8", "replace").strip()
    for key in ("detail", "errors", "message", "error"):
        value = document.get(key)
        text = _validation(value) if isinstance(value, list) else value
        if isinstance(text, str) and text.strip():
            kind = document.get("error")
            told = isinstance(kind, str) and key in ("errors", "message") and kind != "HTTPException"
            return f"{kind}: {text}" if told else text
    return ""


def _validation(items: list[Any]) -> str:
    """FastAPI's mistakes as ``field: message``; the values, which hold prompts, are left out."""
    mistakes = []
    for item in items:
        if isinstance(item, dict):
            loc = item.get("loc")
            parts = [str(p) for p in loc if _short(p) and p != "body"] if isinstance(loc, list) else []
            told = item.get("msg")
            mistakes.append(f"{'.'.join(parts)}: {told if isinstance(told, str) else ''}".strip(": "))
    return "; ".join(mistakes)


def _short(part: Any) -> bool:
    return isinstance(part, str) or (type(part) is int and abs(part) < 2**31)


def checked(answer: Answer) -> Answer:
    """The answer itself, or the error that it stands for."""
    if not answer.ok:
        raise failure(answer.status, answer.headers, answer.body)
    return answer


def failure(status: int, headers: Mapping[str, str], body: bytes) -> WorkerError:
    """The error that an answer other than 2xx stands for."""
    document = parsed(body)
    text = _said(document, body)
    said = f"the server answered {status}: {text[:MESSAGE_MAX]}" if text else f"the server answered {status}"
    if status in (401, 403):
        return AuthFailed(said)
    if status == 429:
        return EngineFault(said, retry_after=_seconds(headers))
    if status == 404 and text == "Not Found":
        return EngineCrashed(f"{said} (the routes are missing: it is starting, or without its API)")
    if 400 <= status < 500:
        return GenerationRejected(said)
    return _broken(status, document, text, said)


def _broken(status: int, document: Any, text: str, said: str) -> WorkerError:
    kind = document.get("error") if isinstance(document, dict) else None
    everything = f"{kind} {text}"
    if (known := cause(everything)) is not None:
        return known(said)
    if (isinstance(kind, str) and kind in _ALWAYS) or _REFUSED.search(text):
        return GenerationRejected(said)
    if status in (502, 503, 504):
        return EngineCrashed(said)
    return OutputEmpty(said)


def _seconds(headers: Mapping[str, str]) -> timedelta | None:
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    return timedelta(seconds=min(int(value), 86_400)) if value.isascii() and value.isdecimal() else None
