"""Which live tests a run is about: those of the family of the server that ``LIVE_ENGINE_URL`` names."""

from __future__ import annotations

import asyncio
import os

import pytest
from pydantic import SecretStr

from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.job import Limits
from worker.settings.groups import EngineSettings

START_S = 900.0
_OTHERS = ("comfyui", "fooocus")
"""Servers that are no family of several."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of other families out; what is asked about a server that starts is asked until it answers."""
    live = [item for item in items if item.get_closest_marker("live") is not None]
    if not live or "LIVE_ENGINE_URL" not in os.environ:
        return
    family = asyncio.run(_family())
    others = [item for item in live if getattr(item.module, "FAMILY", None) != family]  # type: ignore[attr-defined]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def settings_of_the_server() -> EngineSettings:
    """Where the server is, and its credentials, by the environment of the run."""
    password = os.environ.get("LIVE_ENGINE_PASSWORD")
    return EngineSettings(
        url=os.environ["LIVE_ENGINE_URL"],
        username=os.environ.get("LIVE_ENGINE_USERNAME"),
        password=SecretStr(password) if password else None,
    )


async def _family() -> str:
    engine = open_engine(settings_of_the_server(), Limits())

    async def found() -> bool:
        await engine.look()
        return engine.name != "auto"

    try:
        await wait_until(found, START_S)
        return engine.name if engine.name in _OTHERS else "sdapi"
    finally:
        await engine.aclose()
