"""What a refusal of the server, or the end of a job without a picture, means. No I/O.

The API hides why a job failed: a cancelled one, one that ran out of memory and one with a typo in its size all end
as ERROR without a result (0.5 ends a cancelled one as SUCCESS with too few pictures). What happened stands in the
server's log alone: "Process error:", "Worker error:" (0.4), "Finish task with error:" (0.5), with or without a
traceback, and "User stopped". Where that log cannot be read nothing is known, and the canary has to tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from worker.engines.answer import Answer, cause, parsed
from worker.errors import AuthFailed, EngineCrashed, GenerationRejected, OutputEmpty, WorkerError

MESSAGE_MAX = 500
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"(?:Process error|Worker error|Finish task with error|Import default pipeline error): ?(.*)")
_STOPPED = re.compile(r"User stopped")
_DIED = re.compile(r"Exception in thread .*task_schedule_loop")
_REFUSED = re.compile(
    r"cannot identify image file|UnidentifiedImageError|Incorrect padding|binascii\.Error|invalid literal for int|"
    r"not enough values to unpack|image file is truncated",
    re.IGNORECASE,
)
_LAST = 60
"""Lines that are looked at when no line names the error itself."""


def plain(lines: Sequence[str]) -> tuple[str, ...]:
    """The lines without the colours that the server's logger puts into them."""
    return tuple(_COLOUR.sub("", line) for line in lines)


def checked(answer: Answer, lines: Sequence[str] = ()) -> Answer:
    """The answer itself, or the error that it stands for; ``lines`` are what the log says since the request."""
    if answer.ok:
        return answer
    text = _said(parsed(answer.body))
    said = f"the server answered {answer.status}" + (f": {text[:MESSAGE_MAX]}" if text else "")
    if answer.status in (401, 403):
        raise AuthFailed(said)
    if answer.status in (404, 502, 503, 504):
        raise EngineCrashed(said)
    if answer.status < 500:
        raise GenerationRejected(said)
    raise _told(said, plain(lines))


def _said(document: object) -> str:
    """``detail`` as text; of pydantic's mistakes the places and messages, without the values, which hold prompts."""
    detail = document.get("detail") if isinstance(document, dict) else None
    if isinstance(detail, str):
        return detail
    mistakes = []
    for item in detail if isinstance(detail, list) else ():
        if isinstance(item, dict):
            place = item.get("loc")
            where = ".".join(str(p)[:100] for p in place if p != "body") if isinstance(place, list) else ""
            mistakes.append(f"{where}: {str(item.get('msg', ''))[:200]}")
    return "; ".join(mistakes)


def failed(lines: Sequence[str]) -> WorkerError:
    """Why a job ended without its pictures, as far as the log since its submission tells."""
    shown = plain(lines)
    if not shown:
        return OutputEmpty("the job failed; the API does not tell why, and the server's log cannot be read")
    told = next((m[1].strip() for line in reversed(shown) if (m := _ERROR.search(line))), None)
    if told is None and was_stopped(shown):
        return OutputEmpty("the job was stopped by somebody else")
    return _told(f"the job failed: {told}" if told else "the job failed, and the server's log does not tell why", shown)


def _told(said: str, lines: Sequence[str]) -> WorkerError:
    said = said[:MESSAGE_MAX]
    known = cause(said)
    if known is None:
        known = next((found for line in reversed(lines[-_LAST:]) if (found := cause(line)) is not None), None)
    if known is not None:
        return known(said)
    return GenerationRejected(said) if _REFUSED.search("\n".join((said, *lines[-_LAST:]))) else OutputEmpty(said)


def tells(lines: Sequence[str]) -> bool:
    """Whether the log has come to the line that says how a job ended."""
    return any(_ERROR.search(line) or _STOPPED.search(line) for line in plain(lines))


def was_stopped(lines: Sequence[str]) -> bool:
    """Whether a job was stopped, by whomever."""
    return any(_STOPPED.search(line) for line in plain(lines))


def has_died(lines: Sequence[str]) -> bool:
    """Whether the one thread that generates is gone: Python prints that, and the API goes on answering."""
    return any(_DIED.search(line) for line in plain(lines))
