"""The identity token: renewed before it runs out, asked for by one at a time, and anew when it is refused."""

from __future__ import annotations

import asyncio

from tests.support.virtual import elapse, takes, virtual
from worker.platforms.salad.token import KEPT_S, RENEWED_S, IdentityToken


class Source:
    """Gives ``t1``, ``t2``, ... after a second each; the same one while ``cached``, none while ``away``."""

    def __init__(self) -> None:
        self.fetched = 0
        self.given = 0
        self.away = self.cached = False

    async def __call__(self) -> str | None:
        self.fetched += 1
        await takes(1)
        if self.away:
            return None
        self.given += not (self.cached and self.given)
        return f"t{self.given}"


@virtual
async def test_a_token_is_used_for_two_minutes() -> None:
    """Of five that it lives three may be left when it is handed out."""
    source = Source()
    token = IdentityToken(source)
    assert [await token.get(), await token.get()] == ["t1", "t1"]
    await elapse(RENEWED_S - 2)
    assert await token.get() == "t1"
    await elapse(2)
    assert await token.get() == "t2"
    assert source.fetched == 2


@virtual
async def test_whoever_wants_one_at_the_same_time_waits_for_the_same_request() -> None:
    """At the start, and after a refusal that all of them heard."""
    source = Source()
    token = IdentityToken(source)
    assert await asyncio.gather(*(token.get() for _ in range(10))) == ["t1"] * 10
    assert await asyncio.gather(*(token.get("t1") for _ in range(10))) == ["t2"] * 10
    assert await token.get("t1") == "t2"
    assert source.fetched == 2


@virtual
async def test_a_refused_token_comes_back_where_no_other_is_to_be_had() -> None:
    """Who was refused sees that it is the same; the service is asked once for all who were."""
    source = Source()
    source.cached = True
    token = IdentityToken(source)
    await token.get()
    assert await asyncio.gather(*(token.get("t1") for _ in range(10))) == ["t1"] * 10
    assert source.fetched == 2


@virtual
async def test_the_old_token_serves_while_the_service_is_away() -> None:
    """For as long as one may live; then there is none."""
    source = Source()
    token = IdentityToken(source)
    await token.get()
    source.away = True
    await elapse(RENEWED_S)
    assert await token.get() == "t1"
    await elapse(KEPT_S - RENEWED_S)
    assert await token.get() is None
    source.away = False
    assert await token.get() == "t2"


@virtual
async def test_no_token_at_all_is_none() -> None:
    source = Source()
    source.away = True
    assert await IdentityToken(source).get() is None


@virtual
async def test_who_is_cancelled_leaves_the_asking_to_the_next() -> None:
    """A receive that ends early takes nobody's token with it."""
    source = Source()
    token = IdentityToken(source)
    first = asyncio.create_task(token.get(), name="first")
    second = asyncio.create_task(token.get(), name="second")
    await elapse(0.5)
    first.cancel()
    assert await second == "t1"
    await asyncio.wait({first})
    assert first.cancelled()
    assert source.fetched == 2
