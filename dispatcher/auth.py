"""Who asks: a user or a node, told apart by what they present. Tokens are compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dispatcher.settings import AccessSettings
from worker.errors import WorkerError

CHALLENGE = 'Basic realm="sd-dispatcher", charset="UTF-8"'
"""The one challenge that makes a browser ask; Chromium asks nothing when another stands on the same line."""
ANYBODY = ""


class Unauthorized(WorkerError):
    """The token is missing or wrong."""


class Forbidden(WorkerError):
    """This token is good for something else."""


class KeysUnavailable(WorkerError):
    """The platform's keys cannot be fetched, so no identity token can be checked now."""


@dataclass(frozen=True, slots=True)
class User:
    """Who submits jobs; ``name`` is the same for the same token, and tells nothing of it."""

    name: str


@dataclass(frozen=True, slots=True)
class Node:
    """Who does jobs. ``subject``: the platform's word for which node it is; None where a shared token was presented."""

    subject: str | None = None


class Identities(Protocol):
    """Checks the platform's identity tokens."""

    async def subject(self, token: str) -> str:
        """Whose token it is. Raises `Unauthorized`, `Forbidden` or `KeysUnavailable`."""
        ...


class Access:
    """Who may do what. Where no token is configured everybody may do everything: such a service listens on loopback."""

    def __init__(self, settings: AccessSettings, identities: Identities | None = None) -> None:
        self._open = settings.open
        self._users = _encoded(settings.users)
        self._nodes = _encoded(settings.nodes)
        self._identities = identities

    def user(self, headers: Mapping[str, str]) -> User:
        """Raises `Unauthorized`, or `Forbidden` for a node's token."""
        if self._open:
            return User(ANYBODY)
        given = presented(headers)
        if token := _found(given, self._users):
            return User(hashlib.sha256(token).hexdigest()[:12])
        if _found(given, self._nodes):
            raise Forbidden("a node's token is good for the jobs that are leased to it, and nothing else")
        raise Unauthorized

    async def node(self, headers: Mapping[str, str]) -> Node:
        """Raises `Unauthorized`, `Forbidden` for a user's token or another group's node, `KeysUnavailable`."""
        if self._open:
            return Node()
        given = presented(headers)
        if _found(given, self._nodes):
            return Node()
        if _found(given, self._users):
            raise Forbidden("a user's token is not good for doing jobs")
        for token in given:
            if self._identities is not None and token.count(b".") == 2:
                return Node(await self._identities.subject(token.decode("latin-1")))
        raise Unauthorized


def presented(headers: Mapping[str, str]) -> tuple[bytes, ...]:
    """Tokens of a request: `Authorization: Bearer`, `X-API-Key`, or the password of HTTP Basic."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    found = []
    if scheme.lower() == "bearer":
        found.append(value.strip())
    elif scheme.lower() == "basic":
        found.append(_password(value))
    found.append(headers.get("x-api-key", ""))
    return tuple(token.encode("latin-1") for token in found if token)


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _encoded(tokens: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(token.encode() for token in tokens)


def _found(given: Iterable[bytes], known: Iterable[bytes]) -> bytes:
    """The known token that was presented, else nothing; takes as long whichever it is."""
    found = b""
    for token in known:
        for guess in given:
            if hmac.compare_digest(guess, token):
                found = token
    return found
