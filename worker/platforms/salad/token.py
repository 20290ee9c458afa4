"""The node's identity token, asked for when it is wanted and kept while it is surely good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

RENEWED_S = 120.0
"""A token lives for five minutes, of which one that is handed out has at least three left."""

KEPT_S = 300.0
"""Where no newer one is to be had."""


class IdentityToken:
    """``fetch`` gives a token, None when there is none to be had; it is asked by one at a time."""

    def __init__(self, fetch: Callable[[], Awaitable[str | None]]) -> None:
        self._fetch = fetch
        self._turn = asyncio.Lock()
        self._rounds = 0
        self._token: str | None = None
        self._since = 0.0

    async def get(self, refused: str | None = None) -> str | None:
        """As `Platform.identity_token`; the refused one itself where no other is to be had."""
        round_ = self._rounds
        if self._is_good(refused):
            return self._token
        async with self._turn:
            if self._rounds == round_ and not self._is_good(refused):
                await self._renew()
        return self._token if self._age() < KEPT_S else None

    def _is_good(self, refused: str | None) -> bool:
        return self._token is not None and self._token != refused and self._age() < RENEWED_S

    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._since

    async def _renew(self) -> None:
        """A fetch that is cancelled counts for nothing: whoever waits for it fetches."""
        asked = asyncio.get_running_loop().time()
        fetched = await self._fetch()
        self._rounds += 1
        if fetched is not None:
            self._token, self._since = fetched, asked
