"""Requests for work that the desk holds back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dispatcher.desk import Offer
from tests.support.dispatching import dispatching
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
