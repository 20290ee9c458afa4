"""The image servers: one driver a family, opened by its settings."""

from __future__ import annotations

from typing import assert_never

from worker.engines.base import Engine
from worker.job import Limits
from worker.settings.groups import EngineSettings


def open_engine(settings: EngineSettings, limits: Limits) -> Engine:
    """The driver of the configured server; nothing is sent before its first `look`, and close it with ``aclose``.

    ``auto`` finds out by then what answers. That a configured kind is not what answers is told by `prepare`.
    """
    match settings.kind:
        case "auto" | "a1111" | "sdnext":
            from worker.engines.sdapi.engine import SdapiEngine

            return SdapiEngine(settings, limits)
        case _:
            assert_never(settings.kind)
