"""What the operator declared, read from where it stands: inline, a file, a web server, a bucket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.support.serving import Service, serving
from worker.errors import ConfigError, DownloadFailed, InvalidJob
from worker.models import declared as module
from worker.models.declared import declared, is_declared
from worker.models.manifest import Manifest
from worker.settings import load_settings

LIST = '[{"kind": "vae", "name": "x.safetensors"}]'


async def no_s3(url: str, limit: int) -> bytes:
    raise InvalidJob("s3 answers 404 NoSuchKey", field="job_url")


async def read(**environ: str) -> Manifest:
    return await declared(load_settings(environ), no_s3)


async def mistake_of(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        await read(**environ)
    return caught.value.message


def fields(manifest: Manifest) -> list[str]:
    return [item.wanted.field for item in manifest.items]


def test_nothing_is_declared_by_default() -> None:
    """Then nobody reads anything; the size of a cache is no list either."""
    assert not is_declared(load_settings({}))
    assert not is_declared(load_settings({"LRU_CACHE_SIZE_GB": "20", "EXTENSION_URLS": "https://a.example/x"}))
    assert all(is_declared(load_settings({name: "[]"})) for name in ("WORKER_MODELS_MANIFEST", "MANIFEST_JSON"))
    assert is_declared(load_settings({"LORA_URLS": "https://a.example/x"}))


async def test_a_list_may_stand_in_the_variable_itself() -> None:
    """Ours, or another image's; several together are one list."""
    assert fields(await read(WORKER_MODELS_MANIFEST=LIST)) == ["WORKER_MODELS_MANIFEST[0]"]
    both = await read(MANIFEST_JSON=LIST, LORA_URLS="https://a.example/x.safetensors", LRU_CACHE_SIZE_GB="20")
    assert fields(both) == ["MANIFEST_JSON[0]", "LORA_URLS[0]"]


async def test_mistakes_of_all_lists_are_told_together() -> None:
    """Whichever variable each is in."""
    said = await mistake_of(MANIFEST_JSON='[{"kind": "vae"}]', LORA_URLS="nonsense")
    assert [line.partition(":")[0] for line in said.splitlines()] == ["MANIFEST_JSON[0]", "LORA_URLS[0]"]


async def test_a_list_may_be_a_file(tmp_path: Path) -> None:
    """JSON or YAML whatever its name, also with the mark that editors put first."""
    path = tmp_path / "models.txt"
    path.write_text("- {kind: vae, name: x.safetensors}\n", "utf-8-sig")
    assert fields(await read(MANIFEST=str(path))) == ["MANIFEST[0]"]
    path.write_text(LIST)
    assert fields(await read(WORKER_MODELS_MANIFEST=str(path))) == ["WORKER_MODELS_MANIFEST[0]"]


async def test_a_file_that_is_no_list_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone since the settings were read, no text, or far too long."""
    path = tmp_path / "models.json"
    path.write_text(LIST)
    settings = load_settings({"WORKER_MODELS_MANIFEST": str(path)})
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        await declared(settings, no_s3)
    path.write_bytes(b"\xff\xfe")
    assert "no UTF-8 text" in await mistake_of(WORKER_MODELS_MANIFEST=str(path))
    path.write_text(LIST)
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    assert await mistake_of(WORKER_MODELS_MANIFEST=str(path)) == "WORKER_MODELS_MANIFEST: has more than 10 bytes"


def answers(status: int) -> Callable[[Request], Response]:
    return lambda request: PlainTextResponse("no", status)


@pytest.fixture
async def web() -> AsyncIterator[Service]:
    routes = [
        Route("/list.json", lambda request: PlainTextResponse(LIST)),
        Route("/moved", lambda request: RedirectResponse("/list.json")),
        Route("/page", lambda request: PlainTextResponse("<html>Sign in</html>")),
        *(Route(f"/{status}", answers(status)) for status in (401, 403, 404, 410, 429, 500, 503)),
    ]
    async with serving(Starlette(routes=routes), host="::1") as service:
        yield service


@pytest.mark.parametrize("path", ["/list.json", "/moved"])
async def test_a_list_may_be_had_over_http(web: Service, path: str) -> None:
    """Also where its server moved it."""
    assert len((await read(WORKER_MODELS_MANIFEST=web.url(path))).items) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_list_that_is_not_there_is_a_mistake(web: Service, status: int) -> None:
    """Told without the query, which may be a signature."""
    said = await mistake_of(WORKER_MODELS_MANIFEST=web.url(f"/{status}?signature=sesame"))
    assert said == f"WORKER_MODELS_MANIFEST: {web.url(f'/{status}')} answered {status}"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_list_whose_server_is_away_may_come_later(web: Service, status: int) -> None:
    """It says nothing of the list itself."""
    with pytest.raises(DownloadFailed, match=f"answered {status}"):
        await read(WORKER_MODELS_MANIFEST=web.url(f"/{status}"))


async def test_a_server_that_does_not_answer_is_away(web: Service) -> None:
    """No connection is no answer."""
    with pytest.raises(DownloadFailed, match="cannot be connected to"):
        await read(WORKER_MODELS_MANIFEST="http://[::1]:1/list.json")


async def test_a_page_is_no_list(web: Service) -> None:
    """Whatever its status."""
    assert "must be a list of models" in await mistake_of(WORKER_MODELS_MANIFEST=web.url("/page"))


async def test_a_list_may_be_an_object_of_a_store() -> None:
    """Read with the operator's credentials; one that is missing is the operator's mistake."""
    asked = []

    async def fetch(url: str, limit: int) -> bytes:
        asked.append((url, limit))
        return LIST.encode()

    settings = load_settings({"WORKER_MODELS_MANIFEST": "s3://models/list.json"})
    assert json.loads(LIST)[0]["name"] == (await declared(settings, fetch)).items[0].wanted.name
    assert asked == [("s3://models/list.json", module.MOST_BYTES)]
    assert await mistake_of(WORKER_MODELS_MANIFEST="s3://models/list.json") == (
        "WORKER_MODELS_MANIFEST: s3 answers 404 NoSuchKey"
    )
