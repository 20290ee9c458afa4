"""The API key opens everything but the probes, and no answer, webhook or log line ever holds a secret."""

from __future__ import annotations

import hmac
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.contract.test_hostile import JOBS, KEY, Stand, standing
from tests.support.bench import SECRET, params, running_worker
from tests.support.logs import restored_log
from tests.support.network import Network
from tests.support.receiver import Answer, ScriptedServer
from tests.support.waiting import wait_until
from worker import app as composition
from worker import log
from worker.api import auth
from worker.api.app import create_app

PROBES = {"/startup", "/live", "/ready", "/health"}
CANARY = "canary77e1d0"
"""Part of every secret that a caller has."""


class Apps(list[FastAPI]):
    """The applications that workers in this process serve."""

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        def made(*given: Any) -> FastAPI:
            self.append(create_app(*given))
            return self[-1]

        patch.setattr(composition, "create_app", made)

    def requests(self) -> Iterator[tuple[str, str]]:
        """A method and a path for each route."""
        (served,) = self
        for route in routes_of(served.routes):
            for method in route.methods or ():
                yield method, re.sub(r"\{[^}]+\}", "x", route.path)


def routes_of(routes: Iterable[Any]) -> Iterator[APIRoute]:
    """Those of the routers within, too; any other kind of route could have no key asked for."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            assert route.include_context.prefix == ""
            yield from routes_of(route.original_router.routes)


WAYS: dict[str, Callable[[str], dict[str, str]]] = {
    "nothing": lambda key: {},
    "bearer": lambda key: {"authorization": f"Bearer {key}"},
    "header": lambda key: {"x-api-key": key},
    "basic": lambda key: {"authorization": httpx.BasicAuth("me", key)._auth_header},
}


async def test_no_route_but_the_probes_opens_without_the_key(tmp_path: Path) -> None:
    """Whatever route there is, for whatever server; and what is sent there is not even read."""
    apps = Apps()
    variables: Any = {"WORKER_QUEUE": "none", "WORKER_API_KEY": KEY, "WORKER_WARMUP": "none"}
    async with running_worker(tmp_path, changed=apps.patch, **variables) as worker:
        requests = sorted(apps.requests())
        paths = {path for _, path in requests}
        assert {"/v1/jobs", "/v1/models", "/sdapi/v1/txt2img", "/metrics", "/docs", "/openapi.json", "/"} <= paths
        for method, path in requests:
            for way, headers in WAYS.items():
                answer = await worker.client.request(method, path, headers=headers(KEY[:-1]), content=b"{")
                if path in PROBES:
                    assert answer.status_code == 200, path
                    continue
                assert answer.status_code == 401, (method, path, way)
                assert answer.headers["content-type"] == "application/problem+json"
                assert KEY not in answer.text
                assert KEY[:-1] not in answer.text
        assert worker.sim.stats.generations == []


async def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whichever way a guess comes, what is compared is as long as any other, to its end."""
    compared: list[tuple[int, int]] = []

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(auth, "compare_digest", noted)
    async with standing(tmp_path) as stand:
        stand.worker.client.headers.pop("x-api-key")
        compared.clear()
        for way in ("bearer", "header", "basic"):
            for guess in ("x", KEY[:-1], KEY + "0" * 99):
                assert (await stand.ask("GET", "/v1/status", headers=WAYS[way](guess))).status_code == 401
            assert (await stand.ask("GET", "/v1/status", headers=WAYS[way](KEY))).status_code == 200
    assert compared == [(32, 32)] * 12


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * 50_000


async def test_bodies_of_no_declared_length_are_cut_off(tmp_path: Path) -> None:
    """Whatever takes a document says 413 as soon as it is too long, and nothing takes it for a bug."""
    apps = Apps()
    variables: Any = {"WORKER_QUEUE": "none", "WORKER_MAX_BODY": "100kB", "WORKER_WARMUP": "none"}
    async with running_worker(tmp_path, changed=apps.patch, **variables) as worker:
        answers = {
            path: (await worker.client.request(method, path, content=pieces(10))).status_code
            for method, path in sorted(apps.requests())
            if method in ("POST", "PUT", "PATCH") and path not in PROBES
        }
        assert {path: answers[path] for path in ("/v1/jobs", "/v1/models", "/sdapi/v1/txt2img")} == {
            "/v1/jobs": 413,
            "/v1/models": 413,
            "/sdapi/v1/txt2img": 413,
        }
        assert {path: status for path, status in answers.items() if status == 500} == {}
        assert (await worker.client.get("/v1/status")).json()["counters"]["bugs"] == 0


SIGNED = f"X-Amz-Signature={CANARY}&token={CANARY}#{CANARY}"
LEAKY = (
    f"https://user{CANARY}:{CANARY}@good.example/x.safetensors?{SIGNED}",
    f"http://private.example/x.safetensors?{SIGNED}",
    f"http://nowhere.example/x.safetensors?{SIGNED}",
    f"ftp://{CANARY}@good.example/x.safetensors?{SIGNED}",
    f"http://store.example:STORE/gone/x.safetensors?{SIGNED}",
)
"""URLs with secrets in them, each refused or failing for another reason."""


async def made_to_fail(stand: Stand, store: int) -> list[httpx.Response]:
    """Every place that takes a URL, given one with secrets in it."""
    answers = [
        await stand.ask("GET", "/v1/status", headers={name: f"{value}{CANARY}"})
        for name, value in (("x-api-key", ""), ("authorization", "Bearer "), ("authorization", f"Basic {CANARY}"))
    ]
    for number, url in enumerate(LEAKY):
        where = url.replace("STORE", str(store))
        for field, job in list(JOBS.items())[number % 2 :: 2]:
            if "nowhere" in url and field not in ("webhook", "webhook.url"):
                continue
            headers = {"idempotency-key": f"{CANARY}{field}{number}", "prefer": "respond-async"}
            answers.append(await stand.ask("POST", "/v1/jobs", json=job(where), headers=headers))
        order = {"kind": "lora", "url": where, "wait": "nowhere" not in url}
        answers.append(await stand.ask("POST", "/v1/models", json=order))
    return answers


async def made_to_succeed(stand: Stand, server: ScriptedServer) -> list[httpx.Response]:
    """A job whose every place is signed, from its taking to its webhook."""
    base = f"http://store.example:{server.port}"
    server.routes["/result"] = Answer(404)
    output = {
        "upload_urls": [f"{base}/image.png?{SIGNED}"],
        "result_urls": {"put": f"{base}/put?{SIGNED}", "get": f"{base}/result?{SIGNED}"},
    }
    document = {"params": params(), "output": output, "webhook": f"{base}/services/{CANARY}?{SIGNED}"}
    taken = await stand.ask("POST", "/v1/jobs", json=document)
    assert taken.status_code in (200, 202), taken.text
    await wait_until(lambda: any(CANARY in request.path for request in server.requests))
    return [taken, await stand.ask("GET", f"/v1/jobs/{taken.json()['id']}")]


async def test_secrets_stay_where_they_were_told(tmp_path: Path) -> None:
    """User names, passwords, signatures and tokens in URLs, keys, right and wrong: no answer repeats them, no line of
    the log at its most talkative, no webhook and no stored result."""
    network = Network(
        {"good.example": [["93.184.215.14"]], "private.example": [["10.0.0.1"]], "store.example": [["::1"]]}
    )
    lines = io.StringIO()
    with restored_log():
        log.setup("debug", "json", lines)
        log.hide([KEY, SECRET])
        async with (
            ScriptedServer() as server,
            standing(tmp_path, network, WORKER_URLS_ALLOW_PRIVATE="store.example") as stand,
        ):
            network.usual.add(server.port)
            server.routes["/gone/x.safetensors"] = Answer(404)
            answers = [*await made_to_fail(stand, server.port), *await made_to_succeed(stand, server)]
            pages = ("/", "/v1/status", "/metrics", "/openapi.json", "/v1/models")
            answers += [await stand.ask("GET", path) for path in pages]
        sent = [request.body.decode("utf-8", "replace") for request in server.requests if request.method != "GET"]
        told = [json.dumps(document) for document in stand.worker.receiver.documents]
    assert {answer.status_code for answer in answers} >= {200, 401, 422}
    assert any('"succeeded"' in body for body in sent)
    texts = {
        "answers": "".join(f"{answer.text}{dict(answer.headers)}" for answer in answers),
        "stored and told": "".join([*sent, *told]),
        "log": lines.getvalue(),
    }
    assert "job_settled" in texts["log"]
    found = {
        (where, text[max(0, at.start() - 200) : at.end() + 20])
        for where, text in texts.items()
        for at in re.finditer(f"{CANARY}|{KEY}|{SECRET}", text)
    }
    assert found == set()
