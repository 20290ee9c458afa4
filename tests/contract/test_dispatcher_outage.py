"""While the database does not answer: what the dispatcher says, and that it goes on afterwards."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dispatcher.documents import stored_orders
from dispatcher.metrics import BUGS
from dispatcher.store.base import StoreUnavailable
from dispatcher.upkeep import STALE_ORDER, Pace
from dispatcher.words import Need, NodeOrders
from tests.support.dispatching import AS_NODE, MODEL, SPACE, Talk, a_job, a_node, dispatching
from tests.support.waiting import wait_until
from worker.clock import isoformat
from worker.errors import QueueUnavailable

STILL = Pace(
    backlog=3600, settled=3600, tick=3600, sweep=3600, save=3600, nodes=3600, expire=3600, catalogue=3600, coverage=3600
)
"""Nothing goes on by itself."""


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path) as talk:
        yield talk


async def unavailable(*_: Any, **__: Any) -> Any:
    raise StoreUnavailable("gone")


async def test_an_outage_is_told_and_passes(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 to ask again, not ready for these reasons; when the database is back everything goes on."""
    with monkeypatch.context() as cut:
        for verb in ("submit", "backlog", "sweep", "letters", "nodes"):
            cut.setattr(talk.view.store, verb, unavailable)
        await wait_until(lambda: "sweep" in talk.view.upkeep.health.failing)
        answer = await talk.client.post("/jobs", json=a_job("j1"))
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert answer.headers["retry-after"] == "1"
        ready = await talk.client.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["database_unavailable"])
        assert (await talk.client.get("/live")).status_code == 200
    assert (await talk.given())["id"] == "j1"
    await wait_until(lambda: not talk.view.upkeep.health.failing)
    assert (await talk.client.get("/ready")).status_code == 200


async def test_what_nodes_said_is_kept_until_it_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed saving is made up for by the next."""
    async with dispatching(tmp_path, pace=STILL) as talk:
        await talk.ask(loaded=(MODEL,))
        with monkeypatch.context() as cut:
            cut.setattr(talk.view.store, "save_nodes", unavailable)
            with pytest.raises(StoreUnavailable):
                await talk.view.upkeep.save_nodes()
        assert await talk.view.store.nodes() == []
        await talk.view.upkeep.save_nodes()
        (row,) = await talk.view.store.nodes()
        assert (row.id, json.loads(row.report)["models"][0]["name"]) == ("n1", MODEL)


async def test_an_order_that_nobody_carries_out_is_taken_back(tmp_path: Path) -> None:
    """After half an hour the node can get another."""
    async with dispatching(tmp_path, pace=STILL) as talk:
        await talk.ask(free=SPACE)
        orders = NodeOrders((Need("checkpoint/x", "checkpoint", "x.safetensors", 5, "https://cdn.example/x"),))
        at = talk.view.clock.now() - STALE_ORDER - timedelta(seconds=1)
        talk.view.fleet.order("n1", orders, {**stored_orders(orders), "at": isoformat(at)})
        assert talk.view.fleet["n1"].due == orders
        assert await talk.view.upkeep.cover() == {"n1": NodeOrders()}
        assert talk.view.fleet["n1"].due == NodeOrders()


async def test_only_one_process_plans(tmp_path: Path) -> None:
    """The one that has the role; another plans nothing while it has."""
    async with dispatching(tmp_path, pace=STILL) as one:
        url = one.view.settings.serve.database_url.get_secret_value()
        entry = {"kind": "checkpoint", "name": MODEL, "url": "https://cdn.example/d8", "size": 10**9}
        await one.client.put("/models", json=[entry])
        async with dispatching(url, pace=STILL) as two:
            for talk in (one, two):
                await talk.ask(free=SPACE)
                await talk.submit(*(a_job(f"{talk.port}-{i}") for i in range(3)))
            planned = [await one.view.upkeep.cover(), await two.view.upkeep.cover()]
        assert [set(orders) for orders in planned] == [{"n1"}, set()]


async def test_a_bug_is_a_problem_and_counted(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours that no endpoint knows is 500, without a word of what it was."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise QueueUnavailable("a secret")

    monkeypatch.setattr(talk.view.store, "job", broken)
    answer = await talk.client.get("/jobs/j1")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert talk.view.metrics.value(BUGS) == 1
    monkeypatch.undo()
    assert (await talk.node("/availability", a_node())).status_code == 200


@pytest.mark.parametrize("error", [QueueUnavailable("a secret"), ZeroDivisionError("a secret")])
async def test_a_bug_on_a_nodes_way(talk: Talk, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Requests that skip FastAPI's routing are answered as all others are, where they fail, too."""

    async def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(talk.view.store, "end", broken)
    await talk.submit(a_job("j1"))
    given = await talk.given()
    answer = await talk.end(given)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert talk.view.metrics.value(BUGS) == 1
    monkeypatch.undo()
    assert (await talk.end(given)).status_code == 204


async def test_the_short_way_is_for_what_is_posted(talk: Talk) -> None:
    """Another method, or a path beside the nodes', is answered by the application."""
    answers = [
        await talk.client.get("/availability", headers=AS_NODE),
        await talk.client.post("/availability/", headers=AS_NODE),
        await talk.client.post("/jobs/j1/results", headers=AS_NODE),
    ]
    assert [answer.status_code for answer in answers] == [405, 307, 404]
