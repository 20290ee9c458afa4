"""Where the node runs: the one place that knows which class a name stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.platforms.plain import PlainPlatform

if TYPE_CHECKING:
    from worker.platforms.base import Platform
    from worker.settings import Settings


def open_platform(settings: Settings) -> Platform:
    """The platform of these settings; it does no I/O before it is asked."""
    return PlainPlatform()
