"""Callers with bad intentions: whatever URL, name or path they write, nothing is visited, read or touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.bench import SMALL, RunningWorker, params, running_worker
from tests.support.comfy_engine import graph
from tests.support.hostile import ENCODED, GOOD, NAMES, PATHS, urls
from tests.support.network import Network, listening
from tests.support.receiver import Answer, ScriptedServer
from tests.support.sims import base64_png, in_background
from tests.support.waiting import wait_until

KEY = "key-canary-5b1c"
Document = dict[str, Any]


@dataclass
class Stand:
    """A worker that takes HTTP jobs, the network as it sees it, and a port of this machine that nobody may call."""

    worker: RunningWorker[Any]
    network: Network
    port: int
    accepted: list[str]
    root: Path

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.worker.client.request(method, path, **options)

    def untouched(self) -> None:
        """Nothing was called, nothing generated, and what lies outside the folders still lies there."""
        assert self.network.dialled == []
        assert self.accepted == []
        stats = self.worker.sim.stats
        assert (stats.prompts if hasattr(stats, "prompts") else stats.generations) == []
        assert (self.root / "secret.safetensors").read_bytes() == b"secret"


@asynccontextmanager
async def standing(
    root: Path, network: Network | None = None, kind: str = "sdnext", **variables: str
) -> AsyncIterator[Stand]:
    (root / "models").mkdir()
    (root / "secret.safetensors").write_bytes(b"secret")
    network = network or Network(NAMES)
    names: dict[str, Any] = {
        "WORKER_ENGINE": kind,
        "WORKER_QUEUE": "none",
        "WORKER_API_KEY": KEY,
        "WORKER_WARMUP": "none",
        "WORKER_MODELS_DIR": str(root / "models"),
        "WORKER_MODELS_HOSTS": "*",
        **variables,
    }
    with listening() as (port, accepted):
        async with running_worker(root, kind, ready=False, changed=network.patch, **names) as worker:
            worker.client.headers["x-api-key"] = KEY
            await worker.ready()
            network.dialled.clear()
            network.usual = {_port(worker.sim.url), _port(str(worker.client.base_url)), worker.receiver.port}
            yield Stand(worker, network, port, accepted, root)


def _port(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port


def image_to_image(url: str) -> Document:
    return {"request": {"prompt": "x", "init_images": [url], **SMALL}, "endpoint": "img2img"}


def control(url: str) -> Document:
    args = [{"image": url, "module": "none", "model": "none"}]
    return {"request": {"prompt": "x", "alwayson_scripts": {"ControlNet": {"args": args}}, **SMALL}}


def placed(**output: Any) -> Document:
    return {"params": params(), "output": output}


def model(url: str) -> Document:
    return {"params": params(), "models": [{"kind": "lora", "name": "x.safetensors", "url": url}]}


JOBS: dict[str, Callable[[str], Document]] = {
    "webhook": lambda url: {"params": params(), "webhook": url},
    "webhook.url": lambda url: {"params": params(), "webhook": {"url": url, "events": ["succeeded"]}},
    "params.image": lambda url: {"params": params(image=url)},
    "params.mask": lambda url: {"params": params(image=base64_png(), mask=url)},
    "request.init_images": image_to_image,
    "request.mask": lambda url: {
        **image_to_image(base64_png()),
        "request": {**image_to_image(base64_png())["request"], "mask": url},
    },
    "request.alwayson_scripts": control,
    "models.0": model,
    "output.upload_urls": lambda url: placed(upload_urls=[url]),
    "output.result_urls.put": lambda url: placed(upload_urls=[GOOD], result_urls={"put": url, "get": GOOD}),
    "output.result_urls.get": lambda url: placed(upload_urls=[GOOD], result_urls={"put": GOOD, "get": url}),
    "job_url": lambda url: {"job_url": url},
}
"""Where a job may name a URL, by the field that a refusal has to name."""


def drawn(**fields: Any) -> Document:
    return {"prompt": "x", **SMALL, **fields}


SDNEXT: dict[str, tuple[str, Callable[[str], Document]]] = {
    **{field: ("/v1/jobs", make) for field, make in JOBS.items()},
    "init_images": ("/sdapi/v1/img2img", lambda url: drawn(init_images=[url])),
    "mask": ("/sdapi/v1/img2img", lambda url: drawn(init_images=[base64_png()], mask=url)),
    "image": ("/sdapi/v1/extra-single-image", lambda url: {"image": url}),
    "webhook ": ("/sdapi/v1/txt2img", lambda url: drawn(webhook=url)),
    "models": ("/sdapi/v1/txt2img", lambda url: drawn(models=[{"kind": "lora", "name": "x.safetensors", "url": url}])),
    "output": ("/sdapi/v1/txt2img", lambda url: drawn(output={"upload_urls": [url]})),
    "url": ("/v1/models", lambda url: {"kind": "lora", "url": url, "wait": True}),
}
"""Every place of this server's endpoints that takes a URL, by the field that a refusal has to name."""

WHOLE = ("params.image", "webhook.url", "output.upload_urls", "webhook", "http_upload")
"""Each is guarded by a part of its own, so that the whole table is tried; elsewhere a part of it each."""


def table(number: int, field: str, port: int) -> list[str]:
    every = urls(port)
    return every if field in WHOLE else every[number % 6 :: 6]


def wrong_with(response: httpx.Response, *fields: str) -> str | None:
    """What is wrong with a refusal: it has to be a problem that says what field is wrong; None when nothing is."""
    if response.status_code not in (400, 422) or response.headers["content-type"] != "application/problem+json":
        return f"{response.status_code} {response.text[:200]}"
    problem = response.json()
    named = [problem["detail"], *(one["field"] for one in problem["errors"])]
    if any(field in text for field in fields for text in named):
        return None
    return f"does not name {fields}: {problem['detail']}"


async def all_refused(asked: Mapping[str, Awaitable[httpx.Response]], *fields: str) -> None:
    wrong = {what: said for what, answer in asked.items() if (said := wrong_with(await answer, *fields))}
    assert wrong == {}


async def all_places_refuse(stand: Stand, places: Mapping[str, tuple[str, Callable[[str], Document]]]) -> None:
    """Hostile URLs in each of these places."""
    assert len(urls(stand.port)) > 70
    wrong = {}
    for number, (field, (path, make)) in enumerate(places.items()):
        for url in table(number, field, stand.port):
            said = wrong_with(await stand.ask("POST", path, json=make(url)), field.strip())
            if said is not None:
                wrong[f"{path} {field} {url}"] = said
    assert wrong == {}
    stand.untouched()


async def test_no_hostile_url_is_visited(tmp_path: Path) -> None:
    """Each is refused before anything is made, by a problem that names the field, and nobody is called."""
    async with standing(tmp_path) as stand:
        await all_places_refuse(stand, SDNEXT)


def prompt(**fields: Any) -> Document:
    return {"prompt": graph(checkpoint="dreamshaper_8.safetensors"), **fields}


def loading(url: str) -> Document:
    load = {"class_type": "LoadImage", "inputs": {"image": url}}
    save = {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["1", 0]}}
    return {"prompt": {"1": load, "9": save}}


COMFYUI: dict[str, tuple[str, Callable[[str], Document]]] = {
    "webhook": ("/prompt", lambda url: prompt(webhook=url)),
    "webhook_v2": ("/prompt", lambda url: prompt(webhook_v2=url)),
    "http_upload": ("/prompt", lambda url: prompt(http_upload={"url_prefix": url, "async": False})),
    "prompt.1.inputs.image": ("/prompt", loading),
    "workflow.1.inputs.image": ("/v1/jobs", lambda url: {"workflow": loading(url)["prompt"]}),
    "url": ("/download", lambda url: {"url": url, "model_type": "loras", "wait": True}),
}


FOOOCUS: dict[str, tuple[str, Callable[[str], Document]]] = {
    "webhook": ("/v1/generation/text-to-image", lambda url: {"prompt": "x", "webhook_url": url, "async_process": True}),
    "input_image": (
        "/v2/generation/image-upscale-vary",
        lambda url: {"prompt": "x", "input_image": url, "uov_method": "Vary (Subtle)"},
    ),
    "image_prompts": ("/v2/generation/image-prompt", lambda url: {"prompt": "x", "image_prompts": [{"cn_img": url}]}),
    "output": ("/v1/generation/text-to-image", lambda url: {"prompt": "x", "output": {"upload_urls": [url]}}),
}


async def test_no_hostile_url_is_visited_for_fooocus(tmp_path: Path) -> None:
    """Its own way to fetch images is not asked, either."""
    async with standing(tmp_path, kind="fooocus") as stand:
        await all_places_refuse(stand, FOOOCUS)


async def test_no_hostile_url_is_visited_for_a_graph(tmp_path: Path) -> None:
    """In comfyui-api's language as in ours."""
    async with standing(tmp_path, kind="comfyui") as stand:
        await all_places_refuse(stand, COMFYUI)


NAMED: dict[str, Callable[[str], Document]] = {
    "models": lambda name: {"params": params(), "models": [{"kind": "lora", "name": name, "url": GOOD}]},
    "checkpoint": lambda name: {
        "params": params(),
        "checkpoint": name,
        "models": [{"kind": "checkpoint", "name": name}],
    },
    "output.prefix": lambda name: placed(prefix=name),
    "endpoint": lambda name: {"request": {"prompt": "x", **SMALL}, "endpoint": name},
}


async def test_no_name_leads_out_of_its_folder(tmp_path: Path) -> None:
    """Names of models, prefixes and endpoints: refused by field, wherever they stand."""
    async with standing(tmp_path) as stand:
        for field, job in NAMED.items():
            hostile = {name: stand.ask("POST", "/v1/jobs", json=job(name)) for name in PATHS}
            await all_refused(hostile, field, "models.0")
        orders = {name: stand.ask("POST", "/v1/models", json={"kind": "lora", "name": name}) for name in PATHS}
        await all_refused(orders, "name")
        kinds = ("../lora", "LORA", "", "lora/..", "a\\b", "a\0", "x" * 65)
        await all_refused({k: stand.ask("POST", "/v1/models", json={"kind": k, "name": "x"}) for k in kinds}, "kind")
        jobs = {k: {"params": params(), "models": [{"kind": k, "name": "x"}]} for k in kinds}
        await all_refused({k: stand.ask("POST", "/v1/jobs", json=job) for k, job in jobs.items()}, "models.0.kind")
        stand.untouched()


async def test_no_path_of_a_request_leads_out_of_its_folder(tmp_path: Path) -> None:
    """However it is encoded: no such thing, or none that can be, or a redirect to the same place with a slash."""
    async with standing(tmp_path) as stand:
        port = _port(str(stand.worker.client.base_url))
        wrong: dict[str, int] = {}
        for path in ENCODED:
            for method, place in (
                ("DELETE", f"/v1/models/lora/{path}"),
                ("DELETE", f"/v1/models/{path}"),
                ("DELETE", f"/v1/models/%2e%2e/{path}"),
                ("GET", f"/v1/jobs/{path}"),
                ("DELETE", f"/v1/jobs/{path}"),
                ("POST", f"/workflow/{path}"),
                ("GET", f"/{path}"),
            ):
                status = await raw(port, method, place)
                if status not in (307, 400, 404, 405, 422):
                    wrong[f"{method} {place}"] = status
        assert wrong == {}
        stand.untouched()


async def raw(port: int, method: str, path: str) -> int:
    """The status of an answer to a request whose path goes over the wire as it stands."""
    reader, writer = await asyncio.open_connection("::1", port)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: 2\r\n\r\n{{}}".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


PUBLIC, INSIDE = "93.184.215.14", "127.0.0.1"


async def test_a_name_that_changes_its_mind_is_not_followed(tmp_path: Path) -> None:
    """A name that is public when it is looked at and private when it is connected to: the second look refuses it, so
    that nobody inside is called, however often it is tried."""
    fields = ("params.image", "webhook.url", "output.upload_urls", "models.0", "job_url")
    names = {f"rebind{number}.example": [[PUBLIC], [INSIDE]] for number in range(len(fields))}
    network = Network({**NAMES, **names})
    async with standing(tmp_path, network) as stand:
        for name, field in zip(names, fields, strict=True):
            url = f"http://{name}:{stand.port}/x.safetensors"
            answer = await stand.ask("POST", "/v1/jobs", json=JOBS[field](url))
            assert answer.status_code in (202, 409, 422), answer.text
        assert {name: network.looked_up[name] > 0 for name in names} == dict.fromkeys(names, True)
        assert stand.accepted == []
        assert {host for host, _ in network.dialled} <= {PUBLIC}


async def test_the_address_that_was_vetted_is_the_one_connected_to(tmp_path: Path) -> None:
    """Not the name, which could mean something else by then."""
    network = Network({"public.example": [[PUBLIC]]})
    async with standing(tmp_path, network) as stand:
        document = JOBS["job_url"]("http://public.example:8080/job.json")
        async with in_background(stand.ask("POST", "/v1/jobs", json=document)):
            await wait_until(lambda: network.dialled)
        assert set(network.dialled) == {(PUBLIC, 8080)}


async def test_a_redirect_leads_nobody_inside(tmp_path: Path) -> None:
    """A public host may send us anywhere: each step is looked at like the first."""
    network = Network({**NAMES, "redirects.example": [["::1"]]})
    async with (
        ScriptedServer() as server,
        standing(tmp_path, network, WORKER_URLS_ALLOW_PRIVATE="redirects.example") as stand,
    ):
        network.usual.add(server.port)
        for place in (
            f"http://127.0.0.1:{stand.port}/x.png",
            "http://metadata.google.internal/x",
            "file:///etc/passwd",
        ):
            server.otherwise = Answer(302, {"location": place})
            url = f"http://redirects.example:{server.port}/x.safetensors"
            for field in ("params.image", "models.0", "job_url"):
                answer = await stand.ask("POST", "/v1/jobs", json=JOBS[field](url))
                assert wrong_with(answer, field) is None, (place, field, answer.text)
        assert server.requests != []
        stand.untouched()
