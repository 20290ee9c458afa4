"""The process that the image server runs in: our child, or one that something else started."""

from __future__ import annotations

from collections.abc import Mapping

from worker.engines.base import Process
from worker.engines.child.child import Child
from worker.engines.child.container import container_memory
from worker.engines.child.foreign import Foreign
from worker.engines.child.init import Reaper, prepare_as_init
from worker.settings.groups import EngineSettings

__all__ = ["Child", "Foreign", "Reaper", "container_memory", "open_process", "prepare_as_init"]


def open_process(settings: EngineSettings, environment: Mapping[str, str]) -> Process:
    """The process of the configured server; nothing is started yet.

    ``environment`` is all that the server gets, but for a marker of ours and, with another user, what names that.
    """
    if not settings.command:
        return Foreign(settings.address)
    return Child(settings.command, environment, settings.addresses, user=settings.user)
