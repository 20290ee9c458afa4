"""A sample of what `tests/chaos/test_outages.py` does: each queue once in each ordeal, at hops that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.outages import ONCE, ORDEALS, Brought
from tests.support.outposts import outpost
from tests.support.virtual import virtual
from worker.live import Hop

pytest_plugins = ("tests.support.hops_fixtures", "tests.support.redis_fixtures", "tests.support.sqs_fixtures")

SAMPLE = [
    ("sqlite", Hop.GENERATE, "lost"),
    ("sqlite", Hop.UPLOAD, "minutes"),
    ("availability", Hop.SETTLE, "lost"),
    ("availability", Hop.ADMIT, "minutes"),
    ("redis", Hop.UPLOAD, "lost"),
    ("redis", Hop.GENERATE, "minutes"),
    ("sqs", Hop.IMAGES, "lost"),
    ("sqs", Hop.RECEIVED, "moment"),
    ("salad", Hop.MODELS, "lost"),
    ("salad", Hop.WAITING, "moment"),
]


@pytest.mark.parametrize(("kind", "hop", "ordeal"), SAMPLE, ids=["-".join(cell) for cell in SAMPLE])
@virtual
async def test_each_queue_away(
    kind: str, hop: Hop, ordeal: str, journey: Brought, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One end, one success told, and nothing published, told or settled without a lease."""
    async with outpost(kind, tmp_path, request) as post:
        await ORDEALS[ordeal](post, hop, journey)


@pytest.mark.parametrize(("kind", "ordeal"), list(zip(("salad", "redis", "sqs", "sqlite"), ONCE, strict=True)))
@virtual
async def test_each_queue(kind: str, ordeal: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Away while idle, credentials refused, documents again and late, a clock that is an hour off."""
    async with outpost(kind, tmp_path, request) as post:
        await ONCE[ordeal](post)
