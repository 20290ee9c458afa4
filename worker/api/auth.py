"""The API key: `Authorization: Bearer`, `X-API-Key`, or the password of HTTP Basic."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import HTTPException, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer
from pydantic import SecretStr

_bearer = HTTPBearer(auto_error=False, description="the API key as a bearer token")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="the API key in a header of its own")
_basic = HTTPBasic(auto_error=False, realm="sd-worker", description="the API key as password, any user name")

CHALLENGE = 'Bearer, Basic realm="sd-worker"'


class KeyCheck:
    """A dependency of routes: a request without the key is answered with 401. Without a key all may pass.

    Keys are compared in a time that does not tell how much of a guess is right.
    """

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key.get_secret_value().encode() if key else b""

    async def __call__(
        self,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        header: Annotated[str | None, Security(_header)],
        basic: Annotated[HTTPBasicCredentials | None, Security(_basic)],
    ) -> None:
        if not self._key:
            return
        given = (bearer and bearer.credentials, header, basic and basic.password)
        fits = [hmac.compare_digest(guess.encode(), self._key) for guess in given if guess]
        if not any(fits):
            raise HTTPException(401, "the API key is missing or wrong", headers={"www-authenticate": CHALLENGE})
