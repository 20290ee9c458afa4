"""The API key: `Authorization: Bearer`, `X-API-Key`, or the password of HTTP Basic."""

from __future__ import annotations

import base64
import binascii
import hashlib
from hmac import compare_digest
from typing import Annotated

from fastapi import HTTPException, Security
from fastapi.openapi.models import HTTPBase
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from worker.web.turns import LIGHT


class _BasicPassword(SecurityBase):
    """The password of HTTP Basic, as the bytes that were sent, read as Latin-1 like any header; None without one."""

    def __init__(self) -> None:
        self.model = HTTPBase(scheme="basic", description="the API key as password, any user name")
        self.scheme_name = "HTTPBasic"

    async def __call__(self, request: HTTPConnection) -> str | None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            return base64.b64decode(value, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return None


_bearer = HTTPBearer(auto_error=False, description="the API key as a bearer token")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="the API key in a header of its own")
_basic = _BasicPassword()

CHALLENGE = 'Basic realm="sd-worker", charset="UTF-8"'
"""The one challenge that makes a browser ask; Chromium asks nothing when another stands on the same line."""


async def not_from_another_site(request: HTTPConnection) -> None:
    """A dependency of routes: another site's page in somebody's browser is answered with 403 where it asks for more
    than a look, since the browser sends the key along that our own page was given."""
    foreign = request.headers.get("sec-fetch-site", "").lower() == "cross-site"
    if foreign and request.scope["method"] not in LIGHT:
        raise HTTPException(403, "a page of another site may not ask for this")


class KeyCheck:
    """A dependency of routes: a request without the key is answered with 401. Without a key all may pass.

    Keys are compared by their digests, in a time that tells neither how much of a guess is right nor how long the key
    is.
    """

    def __init__(self, key: SecretStr | None) -> None:
        self._digest = _digest(key.get_secret_value().encode()) if key else None

    async def __call__(
        self,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        header: Annotated[str | None, Security(_header)],
        basic: Annotated[str | None, Security(_basic)],
    ) -> None:
        if self._digest is None:
            return
        given = (bearer and bearer.credentials, header, basic)
        fits = [compare_digest(_digest(guess.encode("latin-1")), self._digest) for guess in given if guess]
        if not any(fits):
            raise HTTPException(401, "the API key is missing or wrong", headers={"www-authenticate": CHALLENGE})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
