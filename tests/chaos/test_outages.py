"""Every queue away, and every lease lost, at every hop of a job: in virtual time, before the real drivers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hops import at_every_hop
from tests.support.outages import ONCE, ORDEALS, Brought
from tests.support.outposts import KINDS, outpost
from tests.support.virtual import virtual
from worker.live import Hop

pytest_plugins = ("tests.support.hops_fixtures", "tests.support.redis_fixtures", "tests.support.sqs_fixtures")
pytestmark = pytest.mark.chaos

WITHOUT = {("sqlite", "refused")}
"""A file asks for no credentials."""


@pytest.mark.parametrize("ordeal", ORDEALS)
@at_every_hop
@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_each_queue_at_each_hop(
    kind: str, hop: Hop, ordeal: str, journey: Brought, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Cut off while another does the job, for minutes, for a moment: one end, one success told, no stray effect."""
    async with outpost(kind, tmp_path, request) as post:
        await ORDEALS[ordeal](post, hop, journey)


@pytest.mark.parametrize("ordeal", ONCE)
@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_each_queue(kind: str, ordeal: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Away while idle, credentials refused, documents again and late, a clock that is an hour off."""
    async with outpost(kind, tmp_path, request) as post:
        if (kind, ordeal) in WITHOUT:
            assert post.refuse is None
        else:
            await ONCE[ordeal](post)
