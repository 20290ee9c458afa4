"""No platform in particular: a machine that knows nothing of the worker."""

from __future__ import annotations

from worker.node import Identity


class PlainPlatform:
    """As `Platform`, where nobody can be asked for anything."""

    name = "plain"

    def identity(self, found: Identity) -> Identity:
        """As it was found."""
        return found

    async def identity_token(self) -> str | None:
        """None: nobody vouches for the node."""
        return None

    async def reallocate(self, reason: str) -> bool:
        """False: there is nobody to move it."""
        return False

    async def set_deletion_cost(self, cost: int) -> None:
        """Nobody chooses among instances."""

    async def aclose(self) -> None:
        """Nothing is open."""
