"""Dispatchers that are killed, cut off from their database, or wrong about the time; `make test-chaos` has more."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import httpx

from tests.support.databases import emptied_postgres, new_database
from tests.support.dispatching import a_job, a_node, a_result, dispatching
from tests.support.felling import Plan, felled
from tests.support.outage import way_to
from tests.support.waiting import wait_until
from worker.clock import SystemClock

DEEDS = {"work": 75, "keep": 5, "release": 5, "drain": 5, "vanish": 5, "freeze": 5}
LOADED = ("dreamshaper_8.safetensors",)


async def test_the_ledger_balances_though_a_dispatcher_is_killed(tmp_path: Path) -> None:
    """Of two dispatchers on one database one is killed at work: every job ends once, by whoever holds it."""
    url = await asyncio.to_thread(new_database, "felled")
    plan = Plan(
        names=("a", "b"),
        jobs=100,
        kinds={"bad": 4, "late": 3, "gone": 8},
        nodes=8,
        lease_s=1.0,
        seed=5,
        kills=1,
        again=False,
        pause_s=(0.3, 0.5),
        deeds=DEEDS,
    )
    run = await felled(url, tmp_path, plan)
    assert run.balance.breaches == [], "; ".join(run.balance.breaches)
    ends = run.balance.ends()
    assert (run.kills, ends["dead job_timeout"], ends["dead expired"]) == (1, 4, 3)


class Wrong:
    """The clock of a machine that is wrong about the time."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return SystemClock().now() + self._by


async def test_leases_are_by_the_clock_of_the_database() -> None:
    """Two dispatchers whose clocks are two hours apart neither take a lease back early nor let it last longer."""
    url, hour = await asyncio.to_thread(emptied_postgres), timedelta(hours=1)
    async with dispatching(url, clock=Wrong(-hour)) as slow, dispatching(url, clock=Wrong(hour)) as fast:
        for one, other in ((slow, fast), (fast, slow)):
            await one.submit(a_job(f"job-{one.port}"))
            given = (await one.ask(loaded=LOADED, wait=5.0))["generation"]
            assert (await other.view.upkeep.sweep()).vanished == 0
            assert (await other.beat(given))["lost"] == []
            until = datetime.fromisoformat((await other.job(given["id"]))["lease_until"])
            assert abs(until - SystemClock().now()) < hour / 2
            assert (await other.end(given)).status_code == 204


async def test_an_outage_of_the_database_loses_nothing() -> None:
    """Meanwhile everybody is told when to come again; then nodes keep what they held, and end it."""
    async with way_to(await asyncio.to_thread(emptied_postgres)) as way, dispatching(way.url) as talk:
        await talk.submit(a_job("kept"), a_job("ended"))
        held = [(await talk.ask(id=node, loaded=LOADED, wait=5.0))["generation"] for node in ("n1", "n2")]
        await talk.submit(a_job("waits"))
        await way.cut()
        running = {"node": {"id": "n1"}, "running": [{"id": held[0]["id"], "token": held[0]["token"]}]}
        for path, body in (
            ("/availability", a_node("n3", loaded=LOADED)),
            ("/heartbeat", running),
            ("/jobs/ended/result", {"token": held[1]["token"], "result": a_result("ended")}),
            ("/jobs/kept/release", {"token": held[0]["token"], "reason": "disk_full"}),
        ):
            expect_later(await talk.node(path, body), path)
        for path in ("/jobs/kept", "/jobs"):
            expect_later(await talk.client.get(path), path)
        expect_later(await talk.client.post("/jobs", json=a_job("new")), "submission")
        await wait_until(lambda: talk.view.upkeep.health.failing)
        assert (await talk.client.get("/ready")).status_code == 503
        assert (await talk.client.get("/live")).status_code == 200
        await way.open()

        async def is_back() -> bool:
            return (await talk.client.get("/ready")).status_code == 200

        await wait_until(is_back, timeout=30)
        assert (await talk.beat(held[0]))["lost"] == []
        for given in held:
            assert (await talk.end(given)).status_code == 204
        waiting = (await talk.ask(id="n3", loaded=LOADED, wait=5.0))["generation"]
        assert (waiting["id"], (await talk.job("kept"))["deliveries"]) == ("waits", 1)
        assert (await talk.client.get("/jobs/new")).status_code == 404


def expect_later(answer: httpx.Response, what: str) -> None:
    found = (answer.status_code, answer.json().get("code"), answer.headers.get("retry-after"))
    assert found == (503, "database_unavailable", "1"), what
