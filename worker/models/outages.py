"""Sources of the operator's that fail: each is left alone by itself for a while, and tried again. No I/O."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from worker.errors import AuthFailed, DependencyFailed, DownloadFailed

log = structlog.get_logger(__name__)

FIRST = timedelta(seconds=5)
MOST = timedelta(minutes=2)
IN_A_ROW = 2
_EARLY_S = 0.001
_MOST_KNOWN = 1000


@dataclass(slots=True)
class _Trouble:
    """Failures in a row; ``until`` is the loop time at which a paused source may be tried again."""

    failures: int = 0
    pauses: int = 0
    until: float = 0.0
    error: DependencyFailed | None = None


class Outages:
    """Counts failures in a row by source.

    Two pause it, one for refused credentials; a pause takes 5 s, doubles up to 2 min while tries fail, and one success
    ends it. What a source asks for (``Retry-After``) is granted.
    """

    def __init__(self) -> None:
        self._trouble: dict[str, _Trouble] = {}

    @property
    def paused(self) -> dict[str, str]:
        """The sources that are paused, by the code of their error."""
        return {name: one.error.code for name, one in self._trouble.items() if one.error and one.pauses}

    def check(self, source: str) -> None:
        """Raise what the source failed with while it is paused; afterwards let one through that tries it."""
        one = self._trouble.get(source)
        if one is None or one.error is None or not one.pauses:
            return
        now = asyncio.get_running_loop().time()
        left = one.until - now
        if left > _EARLY_S:
            kind = AuthFailed if isinstance(one.error, AuthFailed) else DownloadFailed
            raise kind(one.error.message, owner=one.error.owner, retry_after=timedelta(seconds=left))
        one.until = now + _pause(one.pauses).total_seconds()

    def failed(self, source: str, error: DependencyFailed) -> None:
        one = self._trouble.setdefault(source, _Trouble())
        if len(self._trouble) > _MOST_KNOWN:
            del self._trouble[next(iter(self._trouble))]
        one.failures += 1
        one.error = error
        if not isinstance(error, AuthFailed) and one.failures < IN_A_ROW:
            return
        pause = max(_pause(one.pauses), error.retry_after or FIRST)
        if not one.pauses:
            log.error("model_source_paused", source=source, code=error.code, error=error.message)
        one.pauses += 1
        one.until = asyncio.get_running_loop().time() + pause.total_seconds()

    def succeeded(self, source: str) -> None:
        one = self._trouble.pop(source, None)
        if one is not None and one.pauses:
            log.info("model_source_resumed", source=source)


def _pause(before: int) -> timedelta:
    """How long the next one is after so many pauses."""
    return min(FIRST * (1 << min(before, 16)), MOST)
