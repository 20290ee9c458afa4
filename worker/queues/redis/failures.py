"""The errors of redis-py and of the server as ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from worker.errors import AuthFailed, ConfigError, FieldError, InternalError, QueueUnavailable
from worker.queues.redis.place import VARIABLE, RedisPlace


class RedisRefused(AuthFailed, QueueUnavailable):
    """The server refuses our credentials, or they do not allow what a worker does."""

    code = AuthFailed.code


class RedisMisused(ConfigError, QueueUnavailable):
    """The server can never do what is asked of it as it is configured here."""

    code = ConfigError.code

    def __init__(self, variable: str, message: str) -> None:
        super().__init__((FieldError(variable, message),))


class GroupMissing(QueueUnavailable):
    """The stream or its groups are gone, as after a server lost its data."""

    code = QueueUnavailable.code


_MISUSED = (
    (r"^WRONGTYPE", "WORKER_REDIS_STREAM", "names a key, or the beginning of keys, in which something else stands"),
    (r"DB index is out of range|invalid DB index", VARIABLE, "names a database that the server does not have"),
    (r"SELECT is not allowed in cluster mode", VARIABLE, "names a database; a cluster has only the first"),
    (r"unknown (sub)?command|unsupported command", VARIABLE, "is of a server that lacks commands of Redis 6.2"),
)
_REFUSED = r"^(NOPERM|NOAUTH|WRONGPASS)\b|ACL failure in script|[Tt]he user executing the script can't|invalid password"
_BUG = r"^(SCRIPT|CROSSSLOT)\b|Error (running|compiling) script"


@contextmanager
def translating(place: RedisPlace) -> Iterator[None]:
    """redis-py's errors as `RedisRefused`, `RedisMisused`, `InternalError` or, mostly, `QueueUnavailable`.

    To be entered only once redis-py is there. No message holds what the URL holds beside host, port and database.
    """
    from redis import exceptions

    try:
        yield
    except exceptions.NoScriptError:
        raise
    except (
        exceptions.AuthenticationError,
        exceptions.AuthenticationWrongNumberOfArgsError,
        exceptions.AuthorizationError,
        exceptions.NoPermissionError,
    ) as error:
        raise RedisRefused(f"{place.shown}: {error}") from None
    except exceptions.ResponseError as error:
        raise _of_answer(place, _said(error)) from None
    except (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError) as error:
        raise QueueUnavailable(f"{place.shown}: {error or type(error).__name__}") from None


def _said(error: Exception) -> str:
    """The server's own words, with the code that redis-py may have cut off."""
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)


def _of_answer(place: RedisPlace, said: str) -> Exception:
    for pattern, variable, message in _MISUSED:
        if re.search(pattern, said):
            return RedisMisused(variable, message)
    if re.search(_REFUSED, said):
        return RedisRefused(f"{place.shown}: {said}")
    if re.search(r"^(NOGROUP|UNBLOCKED)\b", said):
        return GroupMissing(f"{place.shown}: {said}")
    if re.search(_BUG, said):
        return InternalError(f"{place.shown}: {said}")
    return QueueUnavailable(f"{place.shown}: {said}")
