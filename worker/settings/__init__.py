"""The worker's settings, read once from the environment.

`from_environment` for the process, `load_settings` for any mapping. Loaded on first use, since a probe must
import almost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.settings.groups import Settings as Settings
    from worker.settings.source import from_environment as from_environment
    from worker.settings.source import load_settings as load_settings

_HOMES = {"Settings": "groups", "from_environment": "source", "load_settings": "source"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
