"""What every HTTP client of `/v1/models` may rely on."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.support.cache import KB, FakeHub, FakeServer, FakeTally, Kept, content, kept, sha256, wanted
from tests.support.model_host import ModelHost
from tests.support.serving import serving
from tests.support.waiting import wait_until
from worker.api.app import View, create_app
from worker.api.fetches import Fetches
from worker.api.models import Shown
from worker.clock import CorrectedClock, SystemClock
from worker.errors import (
    DiskFull,
    DownloadFailed,
    Draining,
    ModelCorrupt,
    ModelNotFound,
    ModelTooLarge,
    Owner,
    WorkerError,
)
from worker.live import Live
from worker.mentions import Place
from worker.metrics import MODELS_DOWNLOADED_BYTES, MODELS_HITS, MODELS_MISSES, Metrics, Observed
from worker.models.base import Wanted
from worker.models.none import NoCache
from worker.models.open import open_cache
from worker.node import Identity
from worker.settings import load_settings
from worker.settings.http import HttpSettings
from worker.status import Status
from worker.urls import Guard

KEY = "schlüssel-7"
PATH = "/v1/models"
HOLD = "https://models.example/"
SHORT, LONG = timedelta(0), timedelta(seconds=30)


class Client:
    """Asks with the key."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(trust_env=False, timeout=30, base_url=url)
        self._key = [(b"x-api-key", KEY.encode())]

    async def ask(self, method: str, path: str = PATH, **more: Any) -> httpx.Response:
        return await self._client.request(method, path, headers=self._key, **more)

    async def order(self, **fields: Any) -> httpx.Response:
        return await self.ask("POST", json={"kind": "lora", **fields})

    async def seen(self) -> dict[str, Any]:
        found = await self.ask("GET")
        assert found.status_code == 200
        body: dict[str, Any] = found.json()
        return body

    async def aclose(self) -> None:
        await self._client.aclose()


@asynccontextmanager
async def asking(models: Any, *, grace: timedelta = LONG, key: bool = True) -> AsyncIterator[Client]:
    """A client of a worker that has these models."""
    fetches = Fetches(models, grace)
    metrics = models.tally if isinstance(models, Counted) else Metrics()
    view = View(Status(), Live(), metrics, Identity("n", "m", "1"), models=Shown(models, fetches))
    settings = HttpSettings(api_key=SecretStr(KEY) if key else None)
    async with serving(create_app(view, settings)) as service:
        client = Client(service.url())
        try:
            yield client
        finally:
            await client.aclose()
            await fetches.aclose()


class Counted(NoCache):
    """No cache, with metrics of a cache."""

    def __init__(self) -> None:
        self.tally = Metrics(Observed(models_bytes=lambda: 7, models_cap_bytes=lambda: 70))


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[Kept]:
    async with kept(tmp_path / "models") as found:
        yield found


@pytest.fixture
async def client(shelf: Kept) -> AsyncIterator[Client]:
    async with asking(shelf.cache) as found:
        yield found


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", PATH, 200), ("POST", PATH, 422), ("DELETE", f"{PATH}/lora/a", 404)]
)
async def test_models_are_for_who_has_the_key(method: str, path: str, status: int) -> None:
    """401 without it; where none is set, whoever may have jobs done may have models fetched."""
    async with asking(NoCache()) as client:
        client._key = []
        assert (await client.ask(method, path)).status_code == 401
    async with asking(NoCache(), key=False) as client:
        assert (await client.ask(method, path)).status_code == status


async def test_what_is_loaded_on_disk_and_on_its_way_is_listed(shelf: Kept, client: Client) -> None:
    """With bytes of the whole and of each, the last used first; what failed is there until it is asked for again."""
    shelf.hub.has("a.safetensors", content("a", KB))
    shelf.hub.has("b.safetensors", content("b", 2 * KB))
    slow = shelf.hub.has("c.safetensors", content("c", 3 * KB), go=asyncio.Event())
    for name in ("a", "b"):
        assert (await client.order(url=f"{HOLD}{name}.safetensors", name=f"{name}.safetensors")).status_code == 200
    assert (await client.order(name="gone.safetensors")).status_code == 422
    shelf.server.held.add(Place("lora", "a.safetensors"))
    shelf.cache.hint(wanted("c.safetensors", at="c.safetensors"))
    await wait_until(lambda: [one.done for one in shelf.cache.transfers()] == [KB])
    seen = await client.seen()
    assert seen["folder"] == str(shelf.disk.folders.root)
    assert (seen["used"], seen["cap"], seen["free"]) == (6 * KB, 10 * KB, 4 * KB)
    assert seen["loaded"] == [{"kind": "lora", "name": "a.safetensors"}]
    assert [(one["name"], one["size"], one["baked"]) for one in seen["on_disk"]] == [
        ("b.safetensors", 2 * KB, False),
        ("a.safetensors", KB, False),
    ]
    assert seen["on_disk"][1]["sha256"] == sha256(content("a", KB))
    [coming] = seen["downloading"]
    assert (coming["name"], coming["priority"]) == ("c.safetensors", "background")
    assert (coming["done"], coming["size"]) == (KB, 3 * KB)
    assert [(one["name"], one["code"]) for one in seen["failed"]] == [("gone.safetensors", "model_not_found")]
    assert slow.go is not None
    slow.go.set()
    shelf.hub.has("https://operator.example/lora/gone.safetensors", content("d", KB))
    assert (await client.order(name="gone.safetensors")).status_code == 200
    assert (await client.seen())["failed"] == []


async def test_a_model_is_fetched_and_told_of_when_it_is_there(shelf: Kept, client: Client) -> None:
    """200 with its name, size and hash; asked for again it is there already and nothing is fetched."""
    shelf.hub.has("a.safetensors", content("a", KB))
    for _ in range(2):
        answer = await client.order(url=f"{HOLD}a.safetensors", name="x/a.safetensors", wait=True)
        assert answer.status_code == 200
        told = {"kind": "lora", "name": "x/a.safetensors", "state": "on_disk"}
        assert answer.json() == {**told, "size": KB, "sha256": sha256(content("a", KB))}
    assert shelf.hub.fetches.total() == 1


class Knowing(FakeHub):
    """A hub that knows the kind of everything."""

    async def typed(self, wanted: Wanted) -> Wanted:
        return wanted if wanted.kind else dataclasses.replace(wanted, kind="vae")


async def test_the_kind_may_be_left_to_who_knows_it(tmp_path: Path) -> None:
    """A folder of the URL's, or Civitai, which is asked."""
    async with kept(tmp_path / "models", hub=Knowing()) as shelf, asking(shelf.cache) as client:
        shelf.hub.has("loras/a.safetensors", content("a", KB))
        told = await client.order(kind=None, name="a.safetensors", url=f"{HOLD}loras/a.safetensors")
        shelf.hub.has("civitai://7", content("b", KB))
        asked = await client.order(kind=None, name="b.safetensors", url="civitai://7")
    assert [(one.json()["kind"], one.json()["name"]) for one in (told, asked)] == [
        ("lora", "a.safetensors"),
        ("vae", "b.safetensors"),
    ]


async def test_without_waiting_the_answer_says_that_it_is_coming(shelf: Kept) -> None:
    """202; who waits for the same model shares its one transfer."""
    source = shelf.hub.has("a.safetensors", content("a", KB), go=asyncio.Event())
    assert source.go is not None
    order = {"url": f"{HOLD}a.safetensors", "name": "a.safetensors", "size": KB}
    async with asking(shelf.cache, grace=SHORT) as client:
        first = await client.order(**order)
        assert (first.status_code, first.json()["state"], first.json()["size"]) == (202, "downloading", KB)
        waiting = asyncio.create_task(client.order(**order, wait=True), name="waiting")
        await wait_until(lambda: shelf.cache.transfers() and shelf.cache.transfers()[0].done)
        source.go.set()
        assert (await waiting).json()["state"] == "on_disk"
    assert shelf.hub.fetches.total() == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "name"),
        ({"kind": None, "name": "a.safetensors"}, "kind"),
        ({"kind": None, "url": "https://x.example/a.safetensors"}, "kind"),
        ({"name": "../a"}, "name"),
        ({"name": ".a"}, "name"),
        ({"kind": "Lora", "name": "a"}, "kind"),
        ({"kind": "custom_nodes", "name": "a.safetensors"}, "kind"),
        ({"url": "ftp://x/a"}, "url"),
        ({"url": "https://civitai.com/models/1"}, "url"),
        ({"name": "a", "sha256": "AB"}, "sha256"),
        ({"name": "a", "size": 0}, "size"),
        ({"name": "a", "size": "1"}, "size"),
        ({"name": "a", "when": "now"}, "when"),
    ],
)
async def test_bad_orders_name_the_field(client: Client, fields: dict[str, Any], field: str) -> None:
    """422 as a problem; nothing is fetched."""
    answer = await client.order(**fields)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [one["field"] for one in answer.json()["errors"]] == [field]
    assert answer.json()["code"] == "invalid_job"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
async def test_what_is_no_order_is_refused(client: Client, body: bytes) -> None:
    """422, whatever it is instead."""
    assert (await client.ask("POST", content=body)).status_code == 422


async def test_a_large_body_is_not_read(client: Client) -> None:
    """413: no order is that long."""
    answer = await client.ask("POST", content=b" " * 100_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


class Failing(NoCache):
    """Fetching and removing fail as told."""

    def __init__(self, error: WorkerError) -> None:
        self.error = error

    async def fetch(self, *_: Any, **__: Any) -> Any:
        raise self.error

    async def remove(self, place: Place) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (ModelNotFound("no"), 422, None),
        (ModelTooLarge("no"), 422, None),
        (DownloadFailed("away"), 503, "30"),
        (DownloadFailed("away", retry_after=timedelta(seconds=7)), 503, "7"),
        (ModelCorrupt("bytes"), 503, "30"),
        (DiskFull("full"), 503, "30"),
        (Draining(), 503, "30"),
    ],
)
async def test_errors_say_whether_to_ask_again(error: WorkerError, status: int, retry: str | None) -> None:
    """What can never be is 422, what may be later 503 with `Retry-After`."""
    async with asking(Failing(error)) as client:
        answer = await client.order(name="a.safetensors")
    assert (answer.status_code, answer.json()["code"]) == (status, error.code)
    assert answer.headers.get("retry-after") == retry


async def test_a_bug_is_an_answer_too() -> None:
    """500 without its insides, whoever fetches or removes."""
    async with asking(Failing(WorkerError("secret"))) as client:
        fetched = await client.order(name="a.safetensors")
        removed = await client.ask("DELETE", f"{PATH}/lora/a")
    assert [(one.status_code, "secret" in one.text) for one in (fetched, removed)] == [(500, False)] * 2


async def test_a_model_is_removed(shelf: Kept, client: Client) -> None:
    """204, whatever its folder is called; 404 once it is gone, 409 while a job or the server uses it."""
    shelf.hub.has("a.safetensors", content("a", KB))
    assert (await client.order(url=f"{HOLD}a.safetensors", name="x/a.safetensors")).status_code == 200
    place = Place("lora", "x/a.safetensors")
    async with shelf.cache.provided([wanted("x/a.safetensors")]):
        pinned = await client.ask("DELETE", f"{PATH}/lora/x/a.safetensors")
    shelf.server.held.add(place)
    loaded = await client.ask("DELETE", f"{PATH}/loras/x%2Fa.safetensors")
    assert [(one.status_code, one.json()["code"]) for one in (pinned, loaded)] == [(409, "model_in_use")] * 2
    shelf.server.held.clear()
    assert (await client.ask("DELETE", f"{PATH}/loras/x/a.safetensors")).status_code == 204
    assert not shelf.path("x/a.safetensors").exists()
    gone = await client.ask("DELETE", f"{PATH}/lora/x/a.safetensors")
    assert (gone.status_code, gone.json()["code"]) == (404, "model_not_found")
    assert (await client.ask("DELETE", f"{PATH}/custom_nodes/a")).status_code == 422


async def test_a_server_that_does_not_tell_stops_nobody(tmp_path: Path) -> None:
    """`loaded` is null then; nothing else is missing."""

    class Mute(NoCache):
        async def loaded(self) -> frozenset[Place]:
            raise DownloadFailed("no answer")

        @property
        def free(self) -> int:  # type: ignore[override]
            raise DownloadFailed("nobody can tell")

    async with asking(Mute()) as client:
        seen = await client.seen()
    assert (seen["loaded"], seen["free"], seen["folder"], seen["on_disk"]) == (None, None, None, [])


async def test_the_status_page_tells_of_the_cache(shelf: Kept, client: Client) -> None:
    """Bytes, files and transfers; `/metrics` has the same bytes."""
    shelf.hub.has("a.safetensors", content("a", KB))
    await client.order(url=f"{HOLD}a.safetensors", name="a.safetensors")
    cache = (await client.ask("GET", "/v1/status")).json()["cache"]
    assert cache == {"used": KB, "cap": 10 * KB, "free": 9 * KB, "entries": 1, "transfers": []}


async def test_metrics_show_the_cache() -> None:
    """Hits, misses, evictions, bytes and waits are scraped under names of their own."""
    counted = Counted()
    counted.tally.models_used(2, 1)
    counted.tally.model_evicted()
    counted.tally.model_downloaded(5)
    counted.tally.models_waited(1.5)
    async with asking(counted) as client:
        lines = (await client.ask("GET", "/metrics")).text.splitlines()
    series = dict(line.rsplit(" ", 1) for line in lines if line.startswith("sd_worker_models_"))
    assert {name: float(value) for name, value in series.items()} == {
        MODELS_HITS: 2,
        MODELS_MISSES: 1,
        "sd_worker_models_evictions_total": 1,
        MODELS_DOWNLOADED_BYTES: 5,
        "sd_worker_models_wait_seconds_total": 1.5,
        "sd_worker_models_cache_bytes": 7,
        "sd_worker_models_cache_cap_bytes": 70,
    }


async def test_every_endpoint_is_described() -> None:
    """With the order's fields and each answer that there can be."""
    async with asking(NoCache()) as client:
        paths = (await client.ask("GET", "/openapi.json")).json()["paths"]
    post, delete = paths[PATH]["post"], paths[f"{PATH}/{{kind}}/{{name}}"]["delete"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(schema["properties"]) == {"kind", "name", "url", "sha256", "size", "wait"}
    assert set(post["responses"]) == {"200", "202", "401", "413", "422", "429", "503"}
    assert {"204", "404", "409", "422"} <= set(delete["responses"])


@pytest.mark.parametrize(
    ("hosts", "said"), [("huggingface.co", "none of the hosts that a job may name"), ("*", "not public")]
)
async def test_an_address_inside_is_not_visited(tmp_path: Path, hosts: str, said: str) -> None:
    """Hosts that the operator did not allow, and private addresses even where all hosts are."""
    (tmp_path / "checkpoints").mkdir()
    environ = {"WORKER_MODELS_DIR": str(tmp_path), "WORKER_ENGINE": "comfyui", "WORKER_MODELS_HOSTS": hosts}
    clock = CorrectedClock(SystemClock())
    async with ModelHost() as host:
        cache = await open_cache(
            load_settings(environ), FakeServer(), FakeTally(), guard=Guard(), clock=clock, rng=random.Random(1)
        )
        try:
            async with asking(cache) as client:
                answer = await client.order(url=host.url("/a.safetensors"))
        finally:
            await cache.aclose()
        assert host.requests == []
    assert (answer.status_code, answer.json()["code"]) == (422, "url_forbidden")
    assert said in answer.json()["detail"]
    assert [one["field"] for one in answer.json()["errors"]] == ["url"]


class NotingHub(FakeHub):
    """Notes who wants something, and where that stands."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: list[tuple[Owner, str]] = []

    async def completed(self, wanted: Wanted) -> Wanted:
        self.owners.append((wanted.owner, wanted.field))
        return await super().completed(wanted)


async def test_orders_share_the_rules_of_jobs(tmp_path: Path) -> None:
    """The caller's URL is wanted as a job's is, never as the operator's own."""
    hub = NotingHub()
    async with kept(tmp_path / "models", hub=hub) as shelf, asking(shelf.cache) as client:
        await client.order(url=f"{HOLD}a.safetensors", name="a.safetensors")
        await client.order(name="a.safetensors")
    assert hub.owners == [(Owner.JOB, "url"), (Owner.JOB, "name")]
