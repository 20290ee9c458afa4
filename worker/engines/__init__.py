"""The image servers: one driver a family, opened by its settings."""

from __future__ import annotations

from typing import assert_never

from worker.engines.base import Engine, NoLog, ServerLog
from worker.job import Limits
from worker.settings.groups import EngineKind, EngineSettings


def open_engine(settings: EngineSettings, limits: Limits, log: ServerLog | None = None) -> Engine:
    """The driver of the configured server; nothing is sent before its first `look`, and close it with ``aclose``.

    ``auto`` finds out by then what answers. That a configured kind is not what answers is told by `prepare`.
    ``log`` is what the server prints, where that can be read.
    """
    return _open(settings.kind, settings, limits, log or NoLog())


def _open(kind: EngineKind, settings: EngineSettings, limits: Limits, log: ServerLog) -> Engine:
    match kind:
        case "auto":
            from worker.engines.auto import AutoEngine

            return AutoEngine(settings, lambda kind, found: _open(kind, found, limits, log))
        case "a1111" | "sdnext":
            from worker.engines.sdapi.engine import SdapiEngine

            return SdapiEngine(settings, limits)
        case "comfyui":
            from worker.engines.comfyui.engine import ComfyEngine

            return ComfyEngine(settings, limits)
        case "fooocus":
            from worker.engines.fooocus.engine import FooocusEngine

            return FooocusEngine(settings, limits, log)
        case _:
            assert_never(kind)
