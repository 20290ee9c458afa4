"""Models that comfyui-api's callers name: with credentials of their own, which are theirs alone, and ordered."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.support.model_host import FORBIDDEN, HostedFile, ModelHost, redirect
from tests.support.prompts import Prompts, a_graph, prompting
from tests.support.receiver import Request
from tests.support.s3 import ACCESS_KEY, SECRET_KEY
from tests.support.waiting import wait_until
from tests.support.weights import weights
from worker.models.auth import fits

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "hush-hush-of-ann"
BEARER = {"type": "bearer", "token": TOKEN}
URL = "http://[::1]:1/x.safetensors"
EVERYWHERE = "http://**"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(moto_server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prompts]:
    async with prompting(tmp_path_factory.mktemp("models"), moto_server) as prompts:
        yield prompts


async def made(here: Prompts, url: str, *credentials: dict[str, Any], text: str = "") -> tuple[int, dict[str, Any]]:
    """A prompt whose checkpoint is a URL: status and body of the answer."""
    graph = a_graph(text or url)
    graph["4"]["inputs"]["ckpt_name"] = url
    with capture_logs() as logs:
        answer = await here.prompt(graph, **({"credentials": list(credentials)} if credentials else {}))
    assert "hush" not in str(logs)
    assert "hush" not in answer.text
    assert "credentials" not in answer.json()
    return answer.status_code, answer.json()


def asked_for(file: HostedFile, header: str) -> list[str]:
    return [one.headers.get(header, "") for one in file.requests]


def guarded(path: str, header: str, value: str, here: Prompts) -> HostedFile:
    """A model that is given to nobody but who sends this."""
    file = here.node.offer(path, path)
    file.chosen = lambda request: None if request.headers.get(header) == value else FORBIDDEN
    return file


BASIC = base64.b64encode(b"ann:hush").decode()


@pytest.mark.parametrize(
    ("auth", "header", "value"),
    [
        (BEARER, "authorization", f"Bearer {TOKEN}"),
        ({"type": "basic", "username": "ann", "password": "hush"}, "authorization", f"Basic {BASIC}"),
        ({"type": "header", "header_name": "X-API-Key", "header_value": "hush-key"}, "x-api-key", "hush-key"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
async def test_a_model_comes_with_the_callers_credentials(
    here: Prompts, auth: dict[str, Any], header: str, value: str, named: bool
) -> None:
    """The first pattern that fits gives them, whether the URL tells the file's name or the server has to."""
    path = f"/{auth['type']}/{'m.safetensors' if named else 'download'}"
    file = guarded(path, header, value, here)
    file.disposition = 'attachment; filename="told.safetensors"'
    other = {"url_pattern": "https://elsewhere.example/**", "auth": {"type": "bearer", "token": "hush-other"}}
    mine = {"url_pattern": here.node.host.url(f"/{auth['type']}/*"), "auth": auth}
    status, _ = await made(here, here.node.host.url(path), other, mine)
    assert status == 200
    assert set(asked_for(file, header)) == {value}


async def test_a_signature_goes_into_the_query(here: Prompts) -> None:
    """`query`: as shared access signatures are; what the URL says beside it stays."""
    file = here.node.offer("/sas/m.safetensors", "sas")
    file.signature = "hush/+sig"
    auth = {"type": "query", "query_param": "sig", "query_value": "hush/+sig"}
    url = here.node.host.url("/sas/m.safetensors?version=2")
    assert (await made(here, url, {"url_pattern": EVERYWHERE, "auth": auth}))[0] == 200
    assert all("version=2" in one.target for one in file.requests)


async def test_an_object_of_s3_is_read_with_the_callers_keys(here: Prompts, moto_server: str) -> None:
    """From the store that they name; keys that another store takes say nothing of the operator's."""
    here.bucket.write("private/m.safetensors", weights("s3"))
    keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "endpoint": moto_server}
    url = f"s3://{here.bucket.name}/private/m.safetensors"
    mine = {"url_pattern": f"s3://{here.bucket.name}/**", "auth": {"type": "s3", "session_token": "hush", **keys}}
    assert (await made(here, url, mine))[0] == 200
    unfit = {"url_pattern": "s3://**", "auth": BEARER}
    status, body = await made(here, url, unfit)
    assert (status, body["location"]) == (422, "prompt.4.inputs.ckpt_name")


async def test_a_token_never_follows_a_redirect_to_another_host(here: Prompts) -> None:
    """Neither while the file's name is looked for nor while it is fetched."""
    async with ModelHost() as elsewhere:
        store = elsewhere.host("/store/m.safetensors", weights("moved"))
        for path in ("/hop/m.safetensors", "/hop/download"):
            file = guarded(path, "x-key", "hush", here)
            file.chosen = lambda request: redirect(elsewhere.url("/store/m.safetensors"))
            auth = {"type": "header", "header_name": "X-Key", "header_value": "hush"}
            status, _ = await made(here, here.node.host.url(path), {"url_pattern": EVERYWHERE, "auth": auth})
            assert status == 200
            assert set(asked_for(file, "x-key")) == {"hush"}
        assert set(asked_for(store, "x-key")) == {""}


async def test_who_has_no_credentials_is_not_given_what_others_fetched(here: Prompts) -> None:
    """The same URL with none, or with wrong ones, is asked for anew and refused; with right ones the file is stored
    once, whoever they are of."""
    file = here.node.offer("/private/m.safetensors", "private")
    letters = {"Bearer hush-ann", "Bearer hush-bob"}
    file.chosen = lambda request: None if request.headers.get("authorization") in letters else FORBIDDEN
    url = here.node.host.url("/private/m.safetensors")

    def of(name: str) -> dict[str, Any]:
        return {"url_pattern": url, "auth": {"type": "bearer", "token": f"hush-{name}"}}

    assert (await made(here, url, of("ann")))[0] == 200
    stored = here.node.stored()
    for credentials in ((), (of("eve"),)):
        status, body = await made(here, url, *credentials, text="private too")
        assert (status, body["code"]) == (422, "model_forbidden")
    before = len(file.requests)
    assert (await made(here, url, of("ann"), text="again"))[0] == 200
    assert len(file.requests) == before
    assert (await made(here, url, of("bob"), text="shared"))[0] == 200
    assert len(file.requests) > before
    assert here.node.stored() == stored


async def test_what_anybody_may_have_is_not_what_credentials_open(here: Prompts) -> None:
    """A host may give different files by one URL: what came without credentials is not taken for what they give."""
    file = here.node.offer("/tenant/m.safetensors", "for all")
    tenant = weights("for ann", 8192)

    def by_tenant(request: Request) -> None:
        file.body = tenant if request.headers.get("authorization") else weights("for all")

    file.chosen = by_tenant
    url = here.node.host.url("/tenant/m.safetensors")
    assert (await made(here, url))[0] == 200
    assert (await made(here, url, {"url_pattern": EVERYWHERE, "auth": BEARER}, text="tenant"))[0] == 200
    assert tenant in here.node.stored().values()
    assert weights("for all") in here.node.stored().values()


async def test_a_model_is_ordered_and_waited_for(here: Prompts) -> None:
    """`POST /download`: its name, size and time; the server lists it in the folder."""
    file = guarded("/order/x.safetensors", "authorization", f"Bearer {TOKEN}", here)
    url = here.node.host.url("/order/x.safetensors")
    order = {"url": url, "model_type": "loras", "filename": "my-lora.safetensors", "wait": True, "auth": BEARER}
    answer = await here.ask("/download", order)
    body = answer.json()
    assert answer.status_code == 200, body
    assert body.pop("duration") >= 0
    told = {"url": url, "model_type": "loras", "filename": "my-lora.safetensors"}
    assert body == {**told, "status": "completed", "size": len(file.body)}
    assert "hush" not in answer.text
    assert "my-lora.safetensors" in (await here.node.worker.client.get("/models")).json()["loras"]


async def test_a_model_is_ordered_and_not_waited_for(here: Prompts) -> None:
    """202 with the name that the URL ends with; a token in a URL is not repeated."""
    here.node.offer("/order/y.safetensors", "y")
    url = here.node.host.url("/order/y.safetensors")
    answer = await here.ask("/download", {"url": f"{url}?token=hush", "model_type": "checkpoints"})
    told = {"url": url, "model_type": "checkpoints", "filename": "y.safetensors", "status": "started"}
    assert (answer.status_code, answer.json()) == (202, told)
    await wait_until(lambda: "y.safetensors" in here.node.stored())


@pytest.mark.parametrize(
    ("order", "status", "location"),
    [
        ({"url": URL, "model_type": "nope"}, 400, "model_type"),
        ({"url": URL, "model_type": "custom_nodes"}, 400, "model_type"),
        ({"url": "no url", "model_type": "loras"}, 400, "url"),
        ({"model_type": "loras"}, 400, "url"),
        ({"url": "http://[::1]:1/x", "model_type": "loras", "filename": "../x.safetensors"}, 400, "filename"),
        ({"url": "http://169.254.169.254/x.safetensors", "model_type": "loras", "wait": True}, 422, "url"),
        ({"url": "http://[::1]:1/x.ckpt", "model_type": "checkpoints", "wait": True}, 422, "url"),
        (
            {"url": URL, "model_type": "loras", "auth": {"type": "s3"}},
            400,
            "auth.access_key_id",
        ),
        (
            {
                "url": URL,
                "model_type": "loras",
                "auth": {"type": "header", "header_name": "Host", "header_value": "x"},
            },
            400,
            "auth.header_name",
        ),
    ],
)
async def test_a_wrong_order_is_refused_by_its_field(
    here: Prompts, order: dict[str, Any], status: int, location: str
) -> None:
    """Before anything is fetched."""
    answer = await here.ask("/download", order)
    assert (answer.status_code, answer.json()["location"]) == (status, location), answer.text


async def test_a_server_that_is_away_lists_nothing(here: Prompts) -> None:
    """503 in the same words as any problem."""
    here.node.worker.sim.restart(0.3)
    answer = await here.node.worker.client.get("/models")
    assert answer.status_code == 503
    assert answer.json()["error"] == answer.json()["detail"]
    await here.node.worker.ready()


async def test_nothing_of_credentials_is_written_down(here: Prompts) -> None:
    """Neither into the index of models nor beside what is fetched."""
    root = here.node.models.parent.parent
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"hush" in path.read_bytes()]


@pytest.mark.parametrize(
    ("pattern", "url", "is_fit"),
    [
        ("https://huggingface.co/**", "https://huggingface.co/a/b/c.safetensors", True),
        ("https://*.s3.amazonaws.com/**", "https://mine.s3.amazonaws.com/models/flux.safetensors", True),
        ("s3://my-bucket/*", "s3://my-bucket/a.safetensors", True),
        ("s3://my-bucket/*", "s3://my-bucket/a/b.safetensors", False),
        ("s3://my-bucket/**", "s3://my-bucket/a/b.safetensors", True),
        ("https://x/?.bin", "https://x/a.bin", True),
        ("https://x/?.bin", "https://x/ab.bin", False),
        ("https://x/a.bin", "https://x/aXbin", False),
        ("https://x/a", "https://x/ab", False),
        ("***", "anything/at/all", True),
        ("https://x/**/y", "https://x//y", True),
        ("*" * 3 + "a" + "**a" * 600, "a" * 8000 + "b", False),
    ],
)
async def test_patterns_fit_as_documented(pattern: str, url: str, is_fit: bool) -> None:
    """In a time that no pattern makes long."""
    assert fits(pattern, url) is is_fit
