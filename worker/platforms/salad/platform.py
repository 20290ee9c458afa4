"""A node of SaladCloud, as its variables and its instance metadata service have it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import structlog

from worker import __version__
from worker.log import redact
from worker.node import Identity
from worker.platforms.salad.metadata import Metadata, MetadataFailed
from worker.platforms.salad.token import IdentityToken
from worker.retry import Policy
from worker.settings.node import SaladSettings

log = structlog.get_logger()

TOKEN, DELETION_COST, REALLOCATE = "/v1/token", "/v1/deletion-cost", "/v1/reallocate"
REASON_MOST = 1000
TOKEN_TRIES, TOKEN_BUDGET = Policy(attempts=3, first=timedelta(milliseconds=150)), timedelta(seconds=5)
MOVE_TRIES, MOVE_BUDGET = Policy(attempts=8, most=timedelta(seconds=5)), timedelta(seconds=30)
PARTING_S = 1.0
_JWT = re.compile(r"[\w.~+/=-]{1,8000}", re.ASCII)


class SaladPlatform:
    """As `Platform`. ``node_id`` is the name that the operator gave the node, if any."""

    name = "salad"

    def __init__(self, settings: SaladSettings, metadata: Metadata, *, node_id: str | None = None) -> None:
        self._settings = settings
        self._metadata = metadata
        self._node_id = node_id
        self._token = IdentityToken(self._fetched)
        self._cost: int | None = None
        self._reason: str | None = None

    def identity(self, found: Identity) -> Identity:
        """The machine is the token's subject, by which a dispatcher knows the node: its name, unless it has one."""
        told = self._settings
        machine = told.machine_id or found.machine
        return replace(
            found,
            id=self._node_id or told.machine_id or found.id,
            machine=machine,
            instance=told.instance_id or found.instance,
        )

    def labels(self) -> Mapping[str, str]:
        """The container group."""
        group = self._settings.container_group_id
        return {} if group is None else {"container_group": group}

    def described(self) -> dict[str, Any]:
        """What the variables say, whether the service answered when last asked, and what it was told last."""
        return {
            "name": self.name,
            **{name: told for name, told in self._settings.model_dump().items() if not name.endswith("_uri")},
            "metadata_answers": self._metadata.answered,
            "deletion_cost": self._cost,
            "reallocation": self._reason,
        }

    async def identity_token(self, refused: str | None = None) -> str | None:
        """As `Platform.identity_token`: an ES256 JWT."""
        return await self._token.get(refused)

    async def reallocate(self, reason: str) -> bool:
        """As `Platform.reallocate`; the instance ends within seconds, and its machine is avoided for two days."""
        self._reason = reason_of(reason)
        log.error("reallocation_asked", reason=self._reason)
        document = {"reason": self._reason}
        try:
            await self._metadata.ask("POST", REALLOCATE, document, tries=MOVE_TRIES, budget=MOVE_BUDGET, urgent=True)
        except MetadataFailed as error:
            log.error("reallocation_not_taken", error=error.message)
            return False
        return True

    async def set_deletion_cost(self, cost: int) -> bool:
        """As `Platform.set_deletion_cost`."""
        self._cost = cost
        try:
            await self._metadata.ask("PUT", DELETION_COST, {"deletion_cost": self._cost})
        except MetadataFailed:
            return False
        return True

    async def aclose(self) -> None:
        """As `Platform.aclose`."""
        try:
            async with asyncio.timeout(PARTING_S):
                if self._cost:
                    await self.set_deletion_cost(0)
        except TimeoutError:
            log.warning("deletion_cost_left", deletion_cost=self._cost)
        await self._metadata.aclose()

    async def _fetched(self) -> str | None:
        try:
            answer = await self._metadata.ask("GET", TOKEN, tries=TOKEN_TRIES, budget=TOKEN_BUDGET)
        except MetadataFailed:
            return None
        token = answer.get("jwt") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not _JWT.fullmatch(token):
            log.error("identity_token_malformed")
            return None
        return token


def reason_of(reason: str) -> str:
    """The reason as the platform takes it: 1 to 1000 characters, without secrets."""
    return f"sd-worker {__version__}: {redact(' '.join(reason.split()))}"[:REASON_MOST]
