"""Logs: one event a line, named by a constant in snake_case, with fields; secrets, pictures and prompts never.

`setup` once at the start; `get` for a logger, `bind_job` for the time of one job. Lines of the standard
library's loggers (uvicorn, httpx, botocore) come out of the same renderer from warning up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast
from urllib.parse import quote

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from worker.clock import SystemClock, isoformat

if TYPE_CHECKING:
    from pydantic import SecretStr

LINE_MAX = 10_000
"""Characters that a line has at most."""

HIDDEN = "***"
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{201,}={0,2}|(?:[A-Za-z0-9+/]{60,}(?:\\n|\s)+){3,}[A-Za-z0-9+/]*={0,2}")
_JWT = re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*", re.ASCII)
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]*://)([^\s/?#\"'<>]*@)?([^\s?#\"'<>]*)(\?[^\s#\"'<>]*)?(#[^\s\"'<>]*)?", re.IGNORECASE
)
_PROMPTS = ("prompt", "negative_prompt")
_SHORT_SECRET = 4
_DEEPEST = 8
_CUT_TO = 400

_identity: dict[str, str] = {}
_secrets: set[str] = set()
_secrets_pattern: re.Pattern[str] | None = None
_handler: logging.Handler | None = None


def setup(level: str = "info", fmt: Literal["auto", "json", "console"] = "auto", stream: TextIO | None = None) -> None:
    """Have every log line of the process written to ``stream`` (stdout). May be called again.

    ``auto`` is ``json`` when the stream is no terminal. Standard-library loggers are heard from warning up,
    whatever the level.
    """
    global _handler
    stream = stream or sys.stdout
    sink = _Sink(stream)
    least = logging.getLevelNamesMapping()[level.upper()]
    console = fmt == "console" or (fmt == "auto" and stream.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            level_styles=None,
            exception_formatter=structlog.dev.plain_traceback,
        )
        if console
        else _json_line
    )
    finish: list[Processor] = [_hide, _bounded, *([_for_console] if console else []), renderer]
    structlog.configure(
        processors=[*_shared(), *finish],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", sink)),
        cache_logger_on_first_use=False,
    )
    foreign = logging.StreamHandler(sink)
    foreign.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_named, *_shared()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
    root.addHandler(foreign)
    root.setLevel(max(least, logging.WARNING))
    _handler = foreign
    logging.captureWarnings(True)


def get(name: str | None = None) -> FilteringBoundLogger:
    """A logger; cheap, and it may be made before `setup`. ``name`` becomes the field ``module``."""
    initial = {} if name is None else {"module": name}
    return cast("FilteringBoundLogger", structlog.get_logger(**initial))


def identify(*, worker: str, machine: str, **more: str) -> None:
    """Put who we are on every line of the process, those of other threads included."""
    _identity.update(worker=worker, machine=machine, **more)


def bind_job(job_id: str, **ids: Any) -> AbstractContextManager[None]:
    """Put the job's id, and more where given, on each line of this task and of the tasks and threads it starts."""
    return structlog.contextvars.bound_contextvars(job=job_id, **ids)


def hide(secrets: Iterable[SecretStr | str]) -> None:
    """Never print these values, as they are or quoted for a URL; nor any part of a list of ``whsec_`` secrets."""
    global _secrets_pattern
    for secret in secrets:
        value = secret if isinstance(secret, str) else secret.get_secret_value()
        signing = [part for part in value.split() if part.startswith("whsec_")]
        _secrets.update({value, value.strip(), quote(value, safe=""), *signing})
        _secrets.update(part.removeprefix("whsec_") for part in signing)
    _secrets.discard("")
    longest_first = sorted(_secrets, key=len, reverse=True)
    parts = (re.escape(s) if len(s) >= _SHORT_SECRET else rf"(?<!\w){re.escape(s)}(?!\w)" for s in longest_first)
    _secrets_pattern = re.compile("|".join(parts)) if longest_first else None


def redact(text: str) -> str:
    """The text without registered secrets, JWTs, long base64, and the user, query and fragment of any URL."""
    if _secrets_pattern is not None:
        text = _secrets_pattern.sub(HIDDEN, text)
    text = _JWT.sub(HIDDEN, text)
    text = _URL.sub(_plain_url, text)
    return _BASE64.sub(lambda match: f"<base64, {len(match[0])} characters>", text)


def _plain_url(match: re.Match[str]) -> str:
    scheme, user, rest, query, fragment = match.groups()
    return (
        f"{scheme}{HIDDEN + '@' if user else ''}{rest}{'?' + HIDDEN if query else ''}{'#' + HIDDEN if fragment else ''}"
    )


class _Sink:
    """A stream whose reader may go away: a log that cannot be written must not end a job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _shared() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp,
        structlog.processors.format_exc_info,
    ]


def _stamp(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    severity = fields.pop("level", "info").upper()
    first = {"timestamp": isoformat(SystemClock().now()), "severity": severity, "event": fields.pop("event", "")}
    return {**first, **_identity, **fields}


def _named(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    record: logging.LogRecord = fields["_record"]
    fields["module"] = record.name
    fields["message"] = fields.pop("event")
    fields["event"] = "library_logged"
    return fields


def _hide(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    prompts = fields.get("severity") == "DEBUG"
    return {key: _hidden(value, prompts, 0) for key, value in fields.items() if prompts or key not in _PROMPTS}


def _hidden(value: Any, prompts: bool, depth: int) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {
            redact(str(k)): _hidden(v, prompts, depth + 1) for k, v in value.items() if prompts or k not in _PROMPTS
        }
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        return [_hidden(item, prompts, depth + 1) for item in value]
    return redact(str(value)).encode("utf-8", "backslashreplace").decode()


def _bounded(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut the longest values, out of their middle, until the line is short enough."""
    sizes = {key: len(_dumps({key: value})) for key, value in fields.items()}
    excess = sum(sizes.values()) - LINE_MAX
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if excess <= 0:
            break
        value = fields[key] if isinstance(fields[key], str) else _dumps(fields[key])
        fields[key] = _cut(value, sizes[key] - excess)
        excess -= sizes[key] - len(_dumps({key: fields[key]}))
    if excess > 0:
        kept = ("timestamp", "severity", "event", *_identity, "job")
        return {**{key: fields[key] for key in kept if key in fields}, "cut": True}
    return fields


def _cut(text: str, size: int) -> str:
    """The beginning and, longer, the end of a text: that of a traceback says what happened."""
    density = max(1.0, len(_dumps(text)) / max(1, len(text)))
    keep = int(max(_CUT_TO, size - 100) / density)
    if len(text) <= keep:
        return text
    return f"{text[: keep // 4]} ...{len(text) - keep} characters... {text[-(keep - keep // 4) :]}"


def _json_line(_: Any, __: str, fields: MutableMapping[str, Any]) -> str:
    return _dumps(fields)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _for_console(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    fields["level"] = fields.pop("severity").lower()
    return fields
