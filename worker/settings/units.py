"""Values as people write them: ``90s``, ``10m``; ``50GB`` (10^9), ``50GiB`` (2^30); ``5/10m``; URLs.

Messages of mistakes never repeat the value, which may hold a password.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator

_MILLISECONDS = {"": 1000, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)?", re.IGNORECASE)
_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{i}b": (1024 if i else 1000) ** power for power, prefix in enumerate("kmgt", 1) for i in ("", "i")
}
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*([kmgt]?i?b)?", re.IGNORECASE)
_RATE = re.compile(r"([0-9]{1,6})\s*/\s*(\S.*)")
_LONGEST = timedelta(days=3650)
_LARGEST = 2**63 - 1


def parse_duration(value: Any) -> Any:
    """A `timedelta` of a text; anything else is passed on to pydantic."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("is no duration; write 90s, 10m, 3h or seconds")
    milliseconds = Decimal(match[1]) * _MILLISECONDS[(match[2] or "").lower()]
    if milliseconds > _LONGEST / timedelta(milliseconds=1):
        raise ValueError("is longer than ten years")
    return timedelta(milliseconds=float(milliseconds))


def parse_size(value: Any) -> Any:
    """Bytes of a text; anything else is passed on to pydantic."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or (match[2] or "").lower() not in _BYTES:
        raise ValueError("is no size; write 50GB, 50GiB or bytes")
    size = int(Decimal(match[1]) * _BYTES[(match[2] or "").lower()])
    if size > _LARGEST:
        raise ValueError("is more than any disk holds")
    return size


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a time, written ``5/10m``."""

    count: int
    per: timedelta

    def __str__(self) -> str:
        return f"{self.count}/{duration_text(self.per)}"


def parse_rate(value: Any) -> Any:
    """A `Rate` of a text such as ``5/10m``; anything else is passed on to pydantic."""
    if not isinstance(value, str):
        return value
    match = _RATE.fullmatch(value.strip())
    if match is None:
        raise ValueError("is no rate; write 5/10m for five in ten minutes")
    rate = Rate(int(match[1]), parse_duration(match[2]))
    if rate.count < 1 or rate.per <= timedelta(0):
        raise ValueError("needs a count of at least 1 and a time longer than 0")
    return rate


def duration_text(value: timedelta) -> str:
    """The shortest text that `parse_duration` reads as this value, to the millisecond."""
    milliseconds = round(value / timedelta(milliseconds=1))
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


def size_text(value: int) -> str:
    """The shortest text that `parse_size` reads as this value."""
    for unit, size in sorted(_BYTES.items(), key=lambda item: -item[1]):
        if unit not in ("", "b") and value and value % size == 0:
            return f"{value // size}{unit[0].upper()}{unit[1:].replace('b', 'B')}"
    return str(value)


def check_url(value: str, schemes: tuple[str, ...] = ("http", "https")) -> str:
    """The value itself when it is an absolute URL of one of the schemes that names a host."""
    if any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError("must not hold blanks or control characters")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no URL: its host or port is wrong") from None
    if parts.scheme not in schemes or not host:
        raise ValueError(f"is no URL; write {schemes[-1]}://host/path")
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
RatePer = Annotated[Rate, BeforeValidator(parse_rate)]
WebUrl = Annotated[str, AfterValidator(check_url)]
