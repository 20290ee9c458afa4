"""The platform's identity tokens: JWTs that say which node asks, signed with keys that the platform publishes.

SaladCloud's metadata service hands them out (ES256, good for 5 minutes); ``aud`` is the organization's id, ``sub`` the
machine's, ``salad_workload_id`` the container group's. There are two pairs of keys at a time, renewed every two weeks.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import jwt
import pydantic_core
import structlog

from dispatcher.auth import Forbidden, KeysUnavailable, Unauthorized
from worker import http
from worker.clock import Clock

log = structlog.get_logger()

SALAD_KEYS = "https://matrix-rest-api.salad.com/.well-known/workload-jwks.json"
ALGORITHMS = ("ES256", "RS256")
KEYS_MOST = 1_000_000
KEYS_TIMEOUT = timedelta(seconds=5)
KEYS_GOOD_FOR = timedelta(hours=6)
KEYS_AGAIN = timedelta(seconds=30)
"""An unknown key id has the keys fetched anew, but not more often than this: anybody can invent one."""

LEEWAY_S = 30.0
REMEMBERED = 10_000


class IdentityTokens:
    """Checks tokens of one organization's nodes in some container groups.

    A token that was good is not checked again until it ends. Keys that are known outlive an outage of the platform.
    """

    def __init__(self, organization: str, groups: Collection[str], clock: Clock, *, keys: str = SALAD_KEYS) -> None:
        self._organization = organization
        self._groups = frozenset(groups)
        self._clock = clock
        self._url = keys
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._fetching = asyncio.Lock()
        self._good: OrderedDict[str, tuple[str, float]] = OrderedDict()

    async def subject(self, token: str) -> str:
        """Whose token it is. Raises `Unauthorized`, `Forbidden` or `KeysUnavailable`."""
        now = self._clock.now().timestamp()
        subject, ends = self._good.get(token, ("", 0.0))
        if ends > now:
            return subject
        with _refusing():
            key = await self._key(str(jwt.get_unverified_header(token).get("kid", "")))
            claims = jwt.decode(token, key, algorithms=ALGORITHMS, options=_OPTIONS)
        subject, ends = self._checked(claims, now)
        self._good[token] = (subject, ends)
        while len(self._good) > REMEMBERED:
            self._good.popitem(last=False)
        return subject

    def _checked(self, claims: Mapping[str, Any], now: float) -> tuple[str, float]:
        """The subject of claims whose signature is right, and until when they are good (seconds since 1970)."""
        ends, begins = claims.get("exp"), claims.get("nbf", 0)
        if not isinstance(ends, int | float) or not isinstance(begins, int | float):
            raise Unauthorized("the identity token does not say when it ends")
        if not begins - LEEWAY_S <= now < ends + LEEWAY_S:
            raise Unauthorized("the identity token is not good at this time")
        audience = claims.get("aud")
        if self._organization not in (audience if isinstance(audience, list) else [audience]):
            raise Forbidden("the identity token is of another organization")
        if claims.get("salad_workload_id") not in self._groups:
            raise Forbidden("the node's container group is not listed in DISPATCHER_SALAD_CONTAINER_GROUP_IDS")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise Unauthorized("the identity token names no node")
        return subject, float(ends)

    async def _key(self, key_id: str) -> jwt.PyJWK:
        async with self._fetching:
            now = asyncio.get_running_loop().time()
            fresh = self._fetched is not None and now < self._fetched + KEYS_GOOD_FOR.total_seconds()
            tried = self._tried is not None and now < self._tried + KEYS_AGAIN.total_seconds()
            if not tried and not (fresh and key_id in self._keys):
                self._tried = now
                await self._refreshed(now)
        if key_id in self._keys:
            return self._keys[key_id]
        if self._fetched is None:
            raise KeysUnavailable(retry_after=KEYS_AGAIN)
        raise Unauthorized("the identity token is signed with an unknown key")

    async def _refreshed(self, now: float) -> None:
        """Fetch the keys; where that fails those that are known stay."""
        try:
            async with (
                asyncio.timeout(KEYS_TIMEOUT.total_seconds()),
                http.client(timeout=KEYS_TIMEOUT, loopback=http.is_loopback(self._url)) as client,
            ):
                with http.translating(KeysUnavailable, url=self._url):
                    async with client.stream("GET", self._url) as answer:
                        answer.raise_for_status()
                        body = await http.read(answer, limit=KEYS_MOST, too_large=KeysUnavailable)
            self._keys = keys_of(body)
            self._fetched = now
        except (KeysUnavailable, TimeoutError) as error:
            log.warning("identity_keys_unavailable", reason=str(error) or "no answer in time")


_OPTIONS: Any = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
}


def keys_of(body: bytes) -> dict[str, jwt.PyJWK]:
    """The usable keys of a JWKS document by their id. Raises `KeysUnavailable` for what is none."""
    try:
        document = pydantic_core.from_json(body)
        listed = document["keys"]
        found = [key for key in listed if isinstance(key, dict) and isinstance(key.get("kid"), str)]
    except (ValueError, TypeError, KeyError):
        raise KeysUnavailable("the platform's keys are no JWKS document") from None
    keys = {}
    for one in found:
        try:
            keys[one["kid"]] = jwt.PyJWK.from_dict(one)
        except jwt.PyJWTError:
            log.info("identity_key_unusable", key=one["kid"])
    return keys


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except jwt.PyJWTError as error:
        raise Unauthorized(f"the identity token is not good: {error}") from None
