"""No platform in particular: a machine that knows nothing of the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.node import Identity


class PlainPlatform:
    """As `Platform`, where nobody can be asked for anything."""

    name = "plain"

    def identity(self, found: Identity) -> Identity:
        """As it was found."""
        return found

    def labels(self) -> Mapping[str, str]:
        """None."""
        return {}

    def described(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}

    async def identity_token(self, refused: str | None = None) -> str | None:
        """None: nobody vouches for the node."""
        return None

    async def reallocate(self, reason: str) -> bool:
        """False: there is nobody to move it."""
        return False

    async def set_deletion_cost(self, cost: int) -> bool:
        """True: nobody chooses among instances."""
        return True

    async def aclose(self) -> None:
        """Nothing is open."""
