"""What a whole worker reports on each of the four servers, and what it is ordered to fetch and drop."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import params
from tests.support.engines import ALL, SECOND, bench, small
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer
from tests.support.stocked import BASE, SERVERS, Kind, Stocked, stocked
from tests.support.waiting import wait_until
from tests.support.weights import sha256_of, weights
from worker import simulators
from worker.clock import SystemClock
from worker.mentions import Place, stem_of
from worker.node import Orders, Report
from worker.queues.base import Delivery
from worker.queues.policy import Policy
from worker.queues.sqlite import SqliteQueue
from worker.wire import Download, Evict, HeldModel

LARGE = 2_000_000
KNOBS: dict[Kind, Any] = {
    "sdnext": simulators.Knobs(step_seconds=0.05),
    "a1111": simulators.Knobs(step_seconds=0.05),
    "comfyui": simulators.comfyui.Knobs(step_seconds=0.05),
    "fooocus": simulators.fooocus.Knobs(step_seconds=0.05),
}
"""Steps that last long enough to be seen: loading ends with the first."""


LONG = simulators.Knobs(step_seconds=0.2)
CLOSED: dict[str, Any] = {"WORKER_MODELS_HOSTS": "huggingface.co", "WORKER_URLS_ALLOW_PRIVATE": "true"}


async def report(node: Stocked) -> Report:
    return await node.worker.parts.node.report()


async def memory(node: Stocked) -> set[str]:
    """Stems of what is reported to be in the server's memory."""
    return {stem_of(one.name) for one in (await report(node)).models if one.tier == "vram"}


async def held(node: Stocked, name: str) -> HeldModel | None:
    return next((one for one in (await report(node)).models if one.name == name), None)


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_report_follows_what_the_server_did(kind: Kind, tmp_path: Path) -> None:
    """The image's own model from the warm-up on, then what each verified job used; with sizes, hashes and rates.

    A job whose model no source has leaves no trace, and people see the same on the status page.
    """
    async with ModelHost() as host:
        host.otherwise = Answer(404)
        async with stocked(kind, tmp_path, host, knobs=KNOBS[kind]) as node:
            assert await memory(node) == {"base"}
            file = node.offer("/cat.safetensors", "cat", size=LARGE)
            node.offer("/ink.safetensors", "ink", kind="lora")
            models = [
                node.ref("checkpoint", "cat.safetensors", "/cat.safetensors"),
                node.ref("lora", "ink.safetensors", "/ink.safetensors"),
            ]
            with_ink = params("a", loras=[{"name": "ink.safetensors"}])
            await node.made("a", checkpoint="cat", models=models, params=with_ink)
            assert await memory(node) == {"cat", "ink"}
            assert await held(node, "cat.safetensors") == HeldModel(
                kind="checkpoint", name="cat.safetensors", size=len(file.body), sha256=sha256_of(file.body), tier="vram"
            )
            base = await held(node, BASE)
            assert base is not None
            assert base.tier == "disk"
            missing = [{"kind": "checkpoint", "name": "dog.safetensors", "url": host.url("/dog.safetensors")}]
            state = await node.worker.done("b", checkpoint="dog", models=missing, params=params("b"))
            assert (state.status, state.code) == ("dead", "model_not_found")
            assert await memory(node) == {"cat", "ink"}
            assert await held(node, "dog.safetensors") is None
            await node.made("c", checkpoint="base")
            assert await memory(node) == {"base"}
            await seen_by_people(node)


async def seen_by_people(node: Stocked) -> None:
    found = await report(node)
    assert found.disk is not None
    assert found.disk.used >= LARGE
    rates = found.rates.model_dump(exclude_none=True)
    assert {"network", "load", "step"} <= rates.keys()
    assert all(value > 0 for value in rates.values())
    shown: dict[str, Any] = (await node.worker.status())["node"]
    assert [(one["kind"], one["name"], one["tier"]) for one in shown["models"]] == [
        (one.kind, one.name, one.tier) for one in found.models
    ]
    assert shown["rates"].keys() == rates.keys()
    assert shown["stats"]["done"] == found.stats["done"] == 2
    assert shown["instance"] == node.worker.parts.node.identity.instance != ""


@pytest.mark.parametrize("dialect", ALL)
async def test_only_the_current_sdnext_says_what_it_holds(dialect: str) -> None:
    """Its word is taken, that nothing is loaded included; what others are configured with is no such word."""
    tells = dialect == "sdnext"
    async with bench(dialect) as b:
        first = {Place("checkpoint", "dreamshaper_8.safetensors")} if tells else None
        assert (await b.engine.look()).holds == first
        await b.make(small(), checkpoint=SECOND)
        assert (await b.engine.look()).holds == ({Place("checkpoint", SECOND)} if tells else None)
        await b.engine.free(everything=True)
        assert (await b.engine.look()).holds == (frozenset() if tells else None)


class Ordering(SqliteQueue):
    """A queue that repeats the orders that a test leaves here with each renewal, as a server does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, SystemClock(), worker="w1", policy=Policy(visibility=timedelta(seconds=1)))
        self.orders: Orders | None = None

    async def extend(self, delivery: Delivery) -> Orders | None:
        await super().extend(delivery)
        return self.orders


async def test_orders_are_carried_out_while_a_job_runs(tmp_path: Path) -> None:
    """A busy node hears of them with the renewal of a lease: one model comes, another goes, the job goes on.

    The host is none that jobs may name: orders are the operator's.
    """
    queue = Ordering(tmp_path / "ordering.db")
    async with ModelHost() as host, stocked("sdnext", tmp_path, host, knobs=LONG, queue=queue, **CLOSED) as node:
        node.offer("/ink.safetensors", "ink", kind="lora")
        old = node.path("lora", "old.safetensors")
        old.parent.mkdir(exist_ok=True)
        old.write_bytes(weights("old", 4096, "lora"))
        await node.worker.submit("a", params=params("a", steps=100))
        await wait_until(lambda: node.pictures > 0)
        url = host.url("/ink.safetensors")
        queue.orders = Orders((Download(url=url, kind="lora"),), (Evict(kind="lora", name="none.safetensors"),))
        await wait_until(lambda: node.stored("lora").keys() >= {"ink.safetensors"})
        queue.orders = Orders((), (Evict(kind="loras", name="ink.safetensors"),))
        await wait_until(lambda: node.stored("lora").keys() == {"old.safetensors"})
        assert (await node.worker.state("a")).status == "leased"
        queue.orders = Orders(cancel=("a",))
        assert (await node.worker.ended("a")).code == "cancelled"
