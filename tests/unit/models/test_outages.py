"""When a source of the operator's is left alone, for how long, and what ends it; in virtual time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.support.virtual import elapse, virtual
from worker.errors import AuthFailed, DownloadFailed
from worker.models.outages import Outages

AWAY = DownloadFailed("away")
DENIED = AuthFailed("denied")


async def paused_for(outages: Outages, source: str) -> float:
    """Seconds until the source may be tried again; it is tried then."""
    began = asyncio.get_running_loop().time()
    while True:
        try:
            outages.check(source)
        except (DownloadFailed, AuthFailed) as error:
            await elapse((error.retry_after or timedelta.max).total_seconds())
        else:
            return round(asyncio.get_running_loop().time() - began, 2)


@virtual
async def test_two_failures_in_a_row_pause() -> None:
    """One may happen; a success in between starts the count anew; another source is not touched."""
    outages = Outages()
    outages.failed("a", AWAY)
    outages.succeeded("a")
    outages.failed("a", AWAY)
    assert await paused_for(outages, "a") == 0
    outages.failed("a", AWAY)
    assert outages.paused == {"a": "download_failed"}
    outages.check("b")
    with pytest.raises(DownloadFailed, match="away"):
        outages.check("a")


@virtual
async def test_refused_credentials_pause_at_once() -> None:
    """Asking again does not mend them, and the error stays the operator's."""
    outages = Outages()
    outages.failed("a", DENIED)
    with pytest.raises(AuthFailed, match="denied"):
        outages.check("a")


@virtual
async def test_pauses_grow_and_end_with_a_success() -> None:
    """5 s at first, doubled up to 2 min; one success resumes and forgets."""
    outages = Outages()
    with capture_logs() as lines:
        outages.failed("a", AWAY)
        waits = []
        for _ in range(7):
            outages.failed("a", AWAY)
            waits.append(await paused_for(outages, "a"))
        assert waits == [5, 10, 20, 40, 80, 120, 120]
        outages.succeeded("a")
        assert outages.paused == {}
        outages.failed("a", AWAY)
        outages.check("a")
    assert [line["event"] for line in lines] == ["model_source_paused", "model_source_resumed"]


@virtual
async def test_only_one_tries_a_paused_source() -> None:
    """Whoever comes while that try is under way is told to wait."""
    outages = Outages()
    outages.failed("a", DENIED)
    assert await paused_for(outages, "a") == 5
    with pytest.raises(AuthFailed):
        outages.check("a")


@virtual
async def test_what_a_source_asks_for_is_granted() -> None:
    """A Retry-After that is longer than our pause."""
    outages = Outages()
    for _ in range(2):
        outages.failed("a", DownloadFailed("busy", retry_after=timedelta(seconds=33)))
    assert await paused_for(outages, "a") == 33
