"""What every HTTP client of the worker may rely on."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from tests.support.serving import Service, serving
from tests.support.waiting import wait_until
from worker import __version__
from worker.api.app import View, create_app
from worker.live import Hop, Live
from worker.metrics import Metrics
from worker.node import Identity, Report
from worker.settings.http import HttpSettings
from worker.status import Phase, Status
from worker.web.server import _bound
from worker.wire import DiskReport, HeldModel, Rates

KEY = "schlüssel-7"
PROBES = ("/startup", "/live", "/ready", "/health")
GUARDED = ("/v1/status", "/metrics", "/openapi.json", "/docs")


REPORT = Report(
    models=(HeldModel(kind="lora", name="ink.safetensors", size=7, tier="vram"),),
    disk=DiskReport(used=1, cap=9, free=8),
    rates=Rates(load=8.5),
    vram_gb=24.0,
    stats={"done": 1},
)


@pytest.fixture
def view() -> View:
    identity = Identity("node-1", "machine-1", __version__, "RTX 4090", "i1")
    return View(
        Status(),
        Live(),
        Metrics(),
        identity,
        engine=lambda: {"name": "sdnext", "reach": "engine_ready"},
        extras=lambda: {"queue": {"kind": "sqlite"}},
        report=lambda: REPORT,
    )


@pytest.fixture
async def service(view: View) -> AsyncIterator[Service]:
    async with serving(create_app(view, HttpSettings())) as found:
        yield found


@pytest.fixture
async def locked(view: View) -> AsyncIterator[Service]:
    async with serving(create_app(view, HttpSettings(api_key=SecretStr(KEY)))) as found:
        yield found


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as found:
        yield found


def become_ready(status: Status) -> None:
    for phase in (Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP, Phase.READY):
        status.move(phase, "engine_port_closed")


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
@pytest.mark.parametrize("path", PROBES)
async def test_probes_answer_on_both_families(
    service: Service, client: httpx.AsyncClient, host: str, path: str
) -> None:
    """Platforms probe over IPv6 or over IPv4: both are answered, before anything is ready."""
    response = await client.get(service.url(path, host=host))
    assert response.status_code == (200 if path == "/live" else 503)
    assert response.json() == {"status": "starting", "reasons": [] if path == "/live" else ["starting"]}
    assert response.headers["cache-control"] == "no-store"


async def answers(service: Service, client: httpx.AsyncClient) -> dict[str, tuple[int, list[str]]]:
    found = [await client.get(service.url(path)) for path in PROBES]
    return {path: (r.status_code, r.json()["reasons"]) for path, r in zip(PROBES, found, strict=True)}


async def test_probes_tell_what_holds_the_worker_back(service: Service, client: httpx.AsyncClient, view: View) -> None:
    """The reason of the present wait is in `/startup` and `/ready`; once ready, startup stays so."""
    view.status.move(Phase.WAITING_FOR_ENGINE, "engine_model_not_loaded")
    waiting = (503, ["engine_model_not_loaded"])
    assert await answers(service, client) == {
        "/startup": waiting,
        "/live": (200, []),
        "/ready": waiting,
        "/health": waiting,
    }
    view.status.move(Phase.WARMING_UP)
    view.status.move(Phase.READY)
    assert await answers(service, client) == dict.fromkeys(PROBES, (200, []))
    view.status.move(Phase.PAUSED, "upload_failed")
    view.status.stuck("intake")
    assert await answers(service, client) == {
        "/startup": (200, []),
        "/live": (503, ["intake"]),
        "/ready": (503, ["upload_failed"]),
        "/health": (200, []),
    }


async def test_probes_need_no_thread(service: Service, client: httpx.AsyncClient) -> None:
    """With every thread of the process blocked by work, probes, status and metrics answer all the same."""
    release, blocked = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        blocked.release()
        release.wait()

    busy = [asyncio.create_task(asyncio.to_thread(work), name=f"work-{i}") for i in range(64)]
    try:
        await wait_until(lambda: blocked.acquire(blocking=False))
        for path in (*PROBES, "/v1/status", "/metrics"):
            assert (await client.get(service.url(path))).status_code in (200, 503)
        assert not any(task.done() for task in busy)
    finally:
        release.set()
        await asyncio.gather(*busy)


async def test_status_shows_everything(service: Service, client: httpx.AsyncClient, view: View) -> None:
    """Phase, node as reported, engine, each job with its hop and progress, pauses, counters, what the worker adds."""
    become_ready(view.status)
    view.metrics.paused("upload_failed", True)
    view.metrics.settled("succeeded", None)
    with view.live.holding("delivery-1") as job:
        job.enter(Hop.GENERATE)
        job.report(0.25, 3.0)
        found = (await client.get(service.url("/v1/status"))).json()
    [shown] = found.pop("jobs")
    assert found.pop("counters")["jobs_settled"] == 1
    assert found.pop("recent") == []
    assert found.pop("outcomes") == {"succeeded": {"": 1}}
    assert found == {
        "phase": "ready",
        "reasons": ["engine_port_closed"],
        "started": True,
        "live": True,
        "ready": True,
        "node": {
            "id": "node-1",
            "machine": "machine-1",
            "version": __version__,
            "gpu": "RTX 4090",
            "instance": "i1",
            "vram_gb": 24.0,
            "rates": {"load": 8.5},
            "disk": {"used": 1, "cap": 9, "free": 8},
            "stats": {"done": 1},
            "models": [{"kind": "lora", "name": "ink.safetensors", "sha256": None, "size": 7, "tier": "vram"}],
        },
        "engine": {"name": "sdnext", "reach": "engine_ready"},
        "pauses": ["upload_failed"],
        "queue": {"kind": "sqlite"},
    }
    assert 0 <= shown.pop("hop_s") <= shown.pop("held_s")
    assert (shown.pop("preview"), shown.pop("spans")) == (False, [])
    assert shown == {"id": "delivery-1", "hop": "generate", "parked": False, "progress": 0.25, "eta_s": 3.0}


async def test_metrics_are_of_prometheus(service: Service, client: httpx.AsyncClient, view: View) -> None:
    """The text is read by Prometheus's own parser, under its media type."""
    view.metrics.hop("generate", 2)
    response = await client.get(service.url("/metrics"))
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert {"sd_worker_hop_seconds", "sd_worker_bugs", "process_resident_memory_bytes"} <= names


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"x-api-key": KEY},
        {"authorization": basic(KEY)},
        {"authorization": "Bearer wrong", "x-api-key": KEY},
    ],
)
async def test_the_key_opens(locked: Service, client: httpx.AsyncClient, path: str, headers: dict[str, str]) -> None:
    """Each of the three ways of giving the key works, whatever else is given."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert (await client.get(locked.url(path), headers=raw)).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Digest {KEY}"},
        {"authorization": "Bearer"},
        {"authorization": "Basic %%%"},
        {"authorization": basic("")},
        {"authorization": basic("wrong")},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": KEY + "0"},
        {"x-api-key": ""},
    ],
)
async def test_without_the_key_nothing_opens(
    locked: Service, client: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    """401 as a problem, with the challenge that makes a browser ask."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    response = await client.get(locked.url(path), headers=raw)
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith("B")
    assert response.json()["code"] == "unauthorized"
    assert KEY not in response.text


@pytest.mark.parametrize("path", PROBES)
async def test_probes_need_no_key(locked: Service, client: httpx.AsyncClient, path: str) -> None:
    """A platform's probe has no secrets."""
    assert (await client.get(locked.url(path))).status_code in (200, 503)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("POST", "/ready", 405, "method_not_allowed")],
)
async def test_errors_are_problems(
    service: Service, client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    """Whatever goes wrong is told in one form."""
    response = await client.request(method, service.url(path))
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert (found["type"], found["status"], found["code"], found["errors"]) == ("about:blank", status, code, [])
    assert found["title"]
    assert found["detail"]


async def test_a_bug_is_an_answer_and_a_count(client: httpx.AsyncClient, view: View) -> None:
    """What nobody foresaw is answered as a problem without its insides, and counted."""

    def broken_engine() -> dict[str, Any]:
        raise KeyError("secret")

    broken = View(view.status, view.live, view.metrics, view.identity, engine=broken_engine)
    async with serving(create_app(broken, HttpSettings())) as service:
        response = await client.get(service.url("/v1/status"))
        assert (await client.get(service.url("/live"))).status_code == 200
    assert response.status_code == 500
    assert response.json()["code"] == "internal"
    assert "secret" not in response.text
    assert view.metrics.counters()["bugs"] == 1


async def test_bodies_over_the_limit_are_refused_unread(client: httpx.AsyncClient, view: View) -> None:
    """A declared length over `WORKER_MAX_BODY` is answered with 413 while no byte of the body was sent."""
    async with serving(create_app(view, HttpSettings(max_body=1000))) as service:
        reader, writer = await asyncio.open_connection("::1", service.port)
        writer.write(b"POST /v1/status HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        rest = await reader.read()
        writer.close()
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in head
    assert b'"code":"body_too_large"' in rest


async def test_openapi_describes_what_there_is(service: Service, client: httpx.AsyncClient) -> None:
    """OpenAPI 3.1: each endpoint with its answers, the three ways of giving the key, every reference resolvable."""
    document: dict[str, Any] = (await client.get(service.url("/openapi.json"))).json()
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == __version__
    assert set(document["paths"]) == {*PROBES, "/v1/status", "/metrics", "/v1/jobs/{job_id}/preview"}
    schemes = document["components"]["securitySchemes"].values()
    assert {(s["type"], s.get("scheme", s.get("name"))) for s in schemes} == {
        ("http", "bearer"),
        ("apiKey", "X-API-Key"),
        ("http", "basic"),
    }
    for path, item in document["paths"].items():
        operation = item["get"]
        guarded = {"200", "401", "404", "422"} if path.endswith("/preview") else {"200", "401"}
        assert set(operation["responses"]) == ({"200", "503"} if path in PROBES else guarded)
        assert bool(operation.get("security")) is (path not in PROBES)
    refusal = document["paths"]["/v1/status"]["get"]["responses"]["401"]["content"]
    assert list(refusal) == ["application/problem+json"]
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [found for item in node for found in references(item)]
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [found for item in node.values() for found in references(item)]
    return []


async def test_status_fits_its_schema(service: Service, client: httpx.AsyncClient, view: View) -> None:
    """What `/v1/status` sends is what its schema promises."""
    document = (await client.get(service.url("/openapi.json"))).json()
    schema = document["components"]["schemas"]["StatusAnswer"]
    found = (await client.get(service.url("/v1/status"))).json()
    assert set(schema["required"]) <= set(found)


async def test_docs_are_served_by_us(service: Service, client: httpx.AsyncClient) -> None:
    """The page that shows the API loads nothing from anywhere else."""
    response = await client.get(service.url("/docs"))
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "openapi.json" in response.text
    assert [word for word in ("http://", "https://", "src=", "//cdn") if word in response.text] == []


async def test_requests_at_once(service: Service, client: httpx.AsyncClient) -> None:
    """Many clients are answered side by side."""
    found = await asyncio.gather(*[client.get(service.url("/live")) for _ in range(50)])
    assert {response.status_code for response in found} == {200}


def test_this_machine_has_both_families() -> None:
    """The tests here prove something only where the kernel has IPv6."""
    assert socket.has_dualstack_ipv6()


def test_answers_are_not_held_back_by_the_kernel() -> None:
    """asyncio turns Nagle's algorithm off only on sockets that name their protocol."""
    with _bound(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP
