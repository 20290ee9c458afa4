"""The dispatcher's endpoints as nodes and users meet them, over a real database on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.dispatching import Talk, a_job, dispatching


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path) as talk:
        yield talk


async def test_a_job_travels_from_its_user_to_a_node_and_back(talk: Talk) -> None:
    """Submitted, given under a lease, ended by its holder, and read with its result."""
    answer = await talk.submit(a_job("j1"))
    assert (answer.status_code, answer.json()) == (201, {"id": "j1", "created": True})
    given = (await talk.ask(loaded=("dreamshaper_8.safetensors",)))["generation"]
    assert given["id"] == "j1"
    assert given["checkpoint"] == "dreamshaper_8.safetensors"
    assert (given["deliveries"], given["max_attempts"], given["lease"]) == (1, 3, 120)
    assert (await talk.job("j1"))["status"] == "leased"
    assert (await talk.end(given)).status_code == 204
    ended = await talk.job("j1")
    assert (ended["status"], ended["result"]["status"]) == ("done", "succeeded")
