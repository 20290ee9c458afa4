"""Nodes that the platform vouches for, when what they say of a job comes late, twice, or to another process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.test_dispatcher_access import GROUP, ORGANIZATION, Platform
from tests.support.databases import emptied_file
from tests.support.dispatching import MODEL, Talk, a_job, a_node, a_result, dispatching
from tests.support.waiting import wait_until

LATER = timedelta(seconds=121)


class Two:
    """Two processes of a service that knows its nodes by the platform's word alone."""

    def __init__(self, platform: Platform, here: Talk, there: Talk) -> None:
        self.platform, self.here, self.there = platform, here, there

    async def given(self, talk: Talk, node: str) -> dict[str, Any]:
        asked = a_node(loaded=(MODEL,), wait=5.0)
        answer = await talk.node("/availability", asked, headers=self.platform.token(sub=node))
        found: dict[str, Any] = answer.json()["generation"]
        return found

    async def said(self, talk: Talk, node: str, verb: str, job: dict[str, Any]) -> httpx.Response:
        body = {"token": job["token"], "result": a_result(job["id"]), "reason": "disk_full"}
        return await talk.node(f"/jobs/{job['id']}/{verb}", body, headers=self.platform.token(sub=node))

    async def lost(self, talk: Talk, node: str, job: dict[str, Any]) -> list[str]:
        beat = {"node": {"id": node}, "running": [{"id": job["id"], "token": job["token"]}]}
        answer = await talk.node("/heartbeat", beat, headers=self.platform.token(sub=node))
        found: list[str] = answer.json()["lost"]
        return found

    async def taken_back(self, job_id: str) -> None:
        """Let its lease run out."""
        self.platform.clock.advance(LATER)

        async def waits() -> bool:
            return str((await self.here.job(job_id))["status"]) == "waiting"

        await wait_until(waits)


@pytest.fixture(name="two")
async def open_two(tmp_path: Path) -> AsyncIterator[Two]:
    url = await asyncio.to_thread(emptied_file, tmp_path)
    salad = {"SALAD_ORGANIZATION_ID": ORGANIZATION, "SALAD_CONTAINER_GROUP_IDS": GROUP}
    async with Platform() as platform:
        known: dict[str, Any] = {"clock": platform.clock, "keys": platform.url("/jwks.json"), **salad}
        async with dispatching(url, **known) as here, dispatching(url, **known) as there:
            await here.submit(a_job("j1"))
            yield Two(platform, here, there)


@pytest.mark.parametrize("verb", ["result", "release"])
async def test_a_node_that_comes_too_late_is_told_so(two: Two, verb: str) -> None:
    """409, as for any stale token: its own token is good, and 403 would have it pause for its operator."""
    late = await two.given(two.here, "machine-1")
    await two.taken_back("j1")
    answer = await two.said(two.here, "machine-1", verb, late)
    assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
    held = await two.given(two.here, "machine-2")
    for token in (late["token"], held["token"]):
        answer = await two.said(two.here, "machine-1", verb, {"id": "j1", "token": token})
        assert (answer.status_code, answer.json()["code"]) == (409, "lease_lost")
    assert await two.lost(two.here, "machine-1", held) == ["j1"]
    assert await two.lost(two.here, "machine-2", held) == []


async def test_an_end_that_is_told_twice_is_one(two: Two) -> None:
    """Also to another process, and under the platform's word: the first answer may have been lost."""
    held = await two.given(two.here, "machine-1")
    for talk in (two.here, two.here, two.there):
        assert (await two.said(talk, "machine-1", "result", held)).status_code == 204
    assert (await two.said(two.there, "machine-2", "result", held)).status_code == 403


async def test_whose_a_job_was_is_no_hindrance(two: Two) -> None:
    """A process that gave the job to another node long ago believes the database about who holds it now."""
    late = await two.given(two.here, "machine-1")
    await two.taken_back("j1")
    held = await two.given(two.there, "machine-2")
    assert await two.lost(two.here, "machine-1", {**late, "token": held["token"]}) == ["j1"]
    assert (await two.said(two.here, "machine-1", "result", held)).status_code == 409
    assert await two.lost(two.here, "machine-2", held) == []
    assert (await two.said(two.here, "machine-2", "result", held)).status_code == 204


async def test_a_stale_token_is_lost_beside_the_holders(tmp_path: Path) -> None:
    """Both are renewed in one batch: each hears of its own token, not of the job."""
    async with dispatching(tmp_path) as talk:
        await talk.submit(a_job("j1"))
        stale = (await talk.ask(id="n1", loaded=(MODEL,), wait=5.0))["generation"]
        assert (await talk.release(stale)).status_code == 204
        held = (await talk.ask(id="n2", loaded=(MODEL,), wait=5.0))["generation"]
        pairs = [[("j1", one["token"], None, None)] for one in (stale, held)]
        for order in (pairs, pairs[::-1]):
            told = await asyncio.gather(*(talk.view.heartbeats.renew(list(one)) for one in order))
            lost = [sorted(one.lost) for one in told]
            assert lost == ([["j1"], []] if order is pairs else [[], ["j1"]])
