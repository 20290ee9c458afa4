"""Requests for work that the desk holds back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dispatcher.desk import Offer
from tests.support.dispatching import MODEL, a_job, dispatching
from tests.support.waiting import wait_until


async def test_one_that_is_answered_is_not_served_again(tmp_path: Path) -> None:
    """Though whoever asked has taken no notice yet: serving it would change nothing, again and again, for ever."""
    async with dispatching(tmp_path) as talk:
        desk = talk.view.desk
        asking = asyncio.create_task(talk.ask(wait=30.0), name="test-ask")
        await wait_until(lambda: desk.polls)
        [held] = desk._held.values()
        held.again_at = 0.0
        assert desk._next() == [held]
        held.reply(Offer())
        assert desk._next() == []
        assert "generation" not in await asking


async def test_a_node_that_waits_is_not_taken_for_one_that_is_away(tmp_path: Path) -> None:
    """It is answered with nothing, to ask again, before the time is over after which a silent node is away."""
    async with dispatching(tmp_path, LEASE="2s", NODE_TIMEOUT="1s") as talk, asyncio.timeout(30):
        assert (await talk.ask(wait=60.0))["retry_after"] == 0


async def test_a_node_whose_jobs_wait_for_files_is_asked_again_soon(tmp_path: Path) -> None:
    """What has come meanwhile changes what it should get, and only its next request tells."""
    async with dispatching(tmp_path) as talk:
        given = await talk.given(disk=())
        running = [{"id": given["id"], "token": given["token"]}]
        await talk.submit(a_job("far", "far.safetensors"))
        far = (await talk.ask(loaded=(MODEL,), running=running))["generation"]
        running.append({"id": far["id"], "token": far["token"]})
        async with asyncio.timeout(30):
            assert "generation" not in await talk.ask(loaded=(MODEL,), running=running, wait=60.0)
