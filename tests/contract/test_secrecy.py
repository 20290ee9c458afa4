"""The API key opens everything but the probes, and no answer, webhook or log line ever holds a secret."""

from __future__ import annotations

import dataclasses
import hmac
import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from tests.contract.test_hostile import COMFYUI, FOOOCUS, JOBS, KEY, SDNEXT, Stand, drawn, prompt, standing
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


async def test_another_sites_page_does_nothing_with_the_key(tmp_path: Path) -> None:
    """A browser that was given the key sends it along wherever a page tells it to; our own page and programs are none
    of those, and to be looked at from there is no harm."""
    async with standing(tmp_path) as stand:
        foreign = {"sec-fetch-site": "cross-site", "content-type": "text/plain"}
        for path in ("/v1/jobs", "/v1/models", "/sdapi/v1/txt2img", "/sdapi/v1/refresh-loras"):
            answer = await stand.ask("POST", path, json=drawn(), headers=foreign)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), path
        assert stand.worker.sim.stats.generations == []
        assert (await stand.ask("GET", "/", headers=foreign)).status_code == 200
        for site in ("same-origin", "none"):
            answer = await stand.ask("POST", "/sdapi/v1/txt2img", json=drawn(), headers={"sec-fetch-site": site})
            assert answer.status_code == 200


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


@dataclass
class Watch:
    """A worker whose every word is noted; ``answers`` are what callers were told."""

    stand: Stand
    server: ScriptedServer
    lines: io.StringIO
    answers: list[httpx.Response] = dataclasses.field(default_factory=list)

    @property
    def sent(self) -> list[str]:
        """The bodies that reached the scripted server."""
        return [request.body.decode("utf-8", "replace") for request in self.server.requests if request.method != "GET"]

    async def ask(self, path: str, document: Any, **headers: str) -> httpx.Response:
        self.answers.append(await self.stand.ask("POST", path, json=document, headers=headers))
        return self.answers[-1]

    def leaked(self) -> set[tuple[str, str]]:
        """Where a secret stands, and what around it."""
        told = [json.dumps(document) for document in self.stand.worker.receiver.documents]
        texts = {
            "answers": "".join(f"{answer.text}{dict(answer.headers)}" for answer in self.answers),
            "stored and told": "".join([*self.sent, *told]),
            "log": self.lines.getvalue(),
        }
        return {
            (where, text[max(0, at.start() - 200) : at.end() + 20])
            for where, text in texts.items()
            for at in re.finditer(f"{CANARY}|{KEY}|{SECRET}", text)
        }


@asynccontextmanager
async def watching(root: Path, kind: str = "sdnext") -> AsyncIterator[Watch]:
    """With the log at its most talkative, and the hosts that `LEAKY` names."""
    network = Network(
        {"good.example": [["93.184.215.14"]], "private.example": [["10.0.0.1"]], "store.example": [["::1"]]}
    )
    lines = io.StringIO()
    with restored_log():
        log.setup("debug", "json", lines)
        log.hide([KEY, SECRET])
        async with (
            ScriptedServer() as server,
            standing(root, network, kind, WORKER_URLS_ALLOW_PRIVATE="store.example") as stand,
        ):
            network.usual.add(server.port)
            server.routes["/gone/x.safetensors"] = Answer(404)
            watch = Watch(stand, server, lines)
            yield watch
    assert "job_settled" in lines.getvalue()
    assert watch.leaked() == set()


async def test_secrets_stay_where_they_were_told(tmp_path: Path) -> None:
    """User names, passwords, signatures and tokens in URLs, keys, right and wrong: no answer repeats them, no line of
    the log at its most talkative, no webhook and no stored result."""
    async with watching(tmp_path) as watch:
        stand, server = watch.stand, watch.server
        watch.answers += [*await made_to_fail(stand, server.port), *await made_to_succeed(stand, server)]
        pages = ("/", "/v1/status", "/metrics", "/openapi.json", "/v1/models")
        watch.answers += [await stand.ask("GET", path) for path in pages]
        assert any('"succeeded"' in body for body in watch.sent)
    assert {answer.status_code for answer in watch.answers} >= {200, 401, 422}


def leaky(server: ScriptedServer) -> list[str]:
    return [url.replace("STORE", str(server.port)) for url in LEAKY]


async def made_everywhere(watch: Watch, places: Mapping[str, tuple[str, Callable[[str], Any]]]) -> None:
    """Every place that takes a URL, given one with secrets in it, in its turn."""
    for number, (path, make) in enumerate(places.values()):
        for url in leaky(watch.server)[number % 2 :: 2]:
            if "nowhere" not in url:
                await watch.ask(path, make(url))


async def test_secrets_of_callers_of_automatic1111_stay_where_they_were_told(tmp_path: Path) -> None:
    """Though what is made is uploaded and told by URLs that open much."""
    async with watching(tmp_path) as watch:
        place = f"http://store.example:{watch.server.port}"
        own = {path: make for path, make in SDNEXT.items() if make[0].startswith("/sdapi")}
        await made_everywhere(watch, own)
        uploaded = drawn(output={"upload_urls": [f"{place}/0.png?{SIGNED}"]})
        assert (await watch.ask("/sdapi/v1/txt2img", uploaded)).status_code == 200
        assert (await watch.ask("/sdapi/v1/txt2img", drawn(webhook=f"{place}/hook?{SIGNED}"))).status_code == 202
        await wait_until(lambda: any("job.succeeded" in body for body in watch.sent))


async def test_secrets_of_callers_of_fooocus_stay_where_they_were_told(tmp_path: Path) -> None:
    """Its webhook is told of the end, and repeats nothing."""
    async with watching(tmp_path, "fooocus") as watch:
        place = f"http://store.example:{watch.server.port}"
        await made_everywhere(watch, {name: one for name, one in FOOOCUS.items() if one[0] != "/v1/jobs"})
        path, make = FOOOCUS["webhook"]
        document = {**make(f"{place}/hook?{SIGNED}"), "async_process": True}
        taken = await watch.ask(path, document)
        assert taken.status_code == 200, taken.text
        await wait_until(lambda: any("job.succeeded" in body for body in watch.sent))
        query = {"job_id": taken.json()["job_id"]}
        watch.answers.append(await watch.stand.ask("GET", "/v1/generation/query-job", params=query))


AUTHS: tuple[dict[str, Any], ...] = (
    {"type": "bearer", "token": CANARY},
    {"type": "basic", "username": CANARY, "password": CANARY},
    {"type": "header", "header_name": "X-Token", "header_value": CANARY},
    {"type": "query", "query_param": "token", "query_value": CANARY},
    {"type": "s3", "access_key_id": CANARY, "secret_access_key": CANARY, "session_token": CANARY},
    {"type": "bearer", "tokens": CANARY},
    {"type": CANARY},
)
"""Every kind of credentials that a prompt may bring, and some that are none."""


def elsewhere(place: str) -> dict[str, dict[str, Any]]:
    """Where a prompt may have its files put, by the status of the answer."""
    return {
        "200": {"http_upload": {"url_prefix": f"{place}/put?{SIGNED}", "async": False}},
        "202": {"http_upload": {"url_prefix": f"{place}/put?{SIGNED}"}, "webhook_v2": f"{place}/hook?{SIGNED}"},
        "422 refused": {"http_upload": {"url_prefix": f"{place}/refused?{SIGNED}", "async": False}},
        "422 azure": {"azure_blob_upload": {"container": CANARY, "sas_token": CANARY, "connection_string": CANARY}},
        "422 hf": {"hf_upload": {"repo": "mine", "token": CANARY}},
        "400 s3": {"s3": {"bucket": "x", "access_key_id": CANARY, "prefix": f"../{CANARY}"}},
    }


async def test_secrets_of_callers_of_comfyui_api_stay_where_they_were_told(tmp_path: Path) -> None:
    """Credentials for models, signed prefixes and webhooks, tokens in the graph itself: the answers, which repeat the
    request, do without them."""
    async with watching(tmp_path, "comfyui") as watch:
        place = f"http://store.example:{watch.server.port}"
        watch.server.otherwise = Answer(200)
        watch.server.routes["/refused/a_ComfyUI_00001_.png"] = Answer(403)
        await made_everywhere(watch, {name: one for name, one in COMFYUI.items() if one[0] != "/v1/jobs"})
        for auth in AUTHS:
            graph = prompt()["prompt"]
            loaded = {**graph, "4": {**graph["4"], "inputs": {"ckpt_name": f"{place}/gone/x.safetensors?{SIGNED}"}}}
            credentials = [{"url_pattern": f"{place}/**", "auth": auth}]
            await watch.ask("/prompt", {"prompt": loaded, "credentials": credentials})
            await watch.ask("/prompt", {**prompt(), "credentials": credentials})
            await watch.ask("/download", {"url": f"{place}/gone/x.safetensors", "model_type": "loras", "auth": auth})
        for status, fields in elsewhere(place).items():
            answer = await watch.ask("/prompt", {**prompt(id="a"), **fields})
            assert str(answer.status_code) == status[:3], answer.text
        await wait_until(lambda: any("prompt.complete" in body for body in watch.sent))
