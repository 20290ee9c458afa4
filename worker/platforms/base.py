"""The seam: what the worker asks of the platform that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from worker.node import Identity


class Platform(Protocol):
    """Where the node runs. Nothing here raises for a platform that is slow, refuses or is absent: it is logged."""

    name: str

    def identity(self, found: Identity) -> Identity:
        """The node's identity as the platform has it, over what was found out without it."""
        ...

    def labels(self) -> Mapping[str, str]:
        """What belongs on each line of the log beside the identity."""
        ...

    def described(self) -> dict[str, Any]:
        """The platform for `/v1/status`; its name as ``name``, and no secret."""
        ...

    async def identity_token(self, refused: str | None = None) -> str | None:
        """Proof of who this node is, good for some minutes more; None where there is none, or none to be had now.

        ``refused`` is one that somebody did not take: another one is asked for, and given where there is one.
        """
        ...

    async def reallocate(self, reason: str) -> bool:
        """Ask for this container to be moved to another machine, for a reason in words; whether that was taken."""
        ...

    async def set_deletion_cost(self, cost: int) -> bool:
        """Tell what would be lost if this instance were chosen when the group shrinks: 0 (nothing) to 100000.

        Whether that was taken; True where nobody chooses.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections; a deletion cost that was told is taken back where that takes no time."""
        ...
