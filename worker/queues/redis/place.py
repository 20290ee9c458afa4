"""Which server, stream and group."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from worker.errors import ConfigError, FieldError

VARIABLE = "WORKER_REDIS_URL"
_FORM = "redis://host:port/db, with user:password@ before the host, special characters in the password %-encoded"


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where the queue is. Raises `ConfigError` for a URL that is none, without repeating any of it."""

    url: str = field(repr=False)
    stream: str
    group: str

    def __post_init__(self) -> None:
        if not _is_usable(self.url):
            raise ConfigError((FieldError(VARIABLE, f"must look like {_FORM}; rediss:// for TLS"),))

    @property
    def shown(self) -> str:
        """As messages name it: no credentials, no options, and so not the secret that the whole URL is."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or 6379}{parts.path.rstrip('/')}"


def _is_usable(url: str) -> bool:
    """A password with a raw `/`, `#` or `?` would move into the host or the path, and from there into messages."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    is_served = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and port != 0
    return is_served and not parts.fragment and re.fullmatch(r"(/\d*)?", parts.path) is not None
