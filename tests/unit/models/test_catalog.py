"""The operator's catalogue: what is read of it, how models are looked up, and what happens while it is away."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.receiver import Answer, ScriptedServer
from tests.support.waiting import wait_until
from worker.errors import DownloadFailed
from worker.models import catalog as module
from worker.models.catalog import Catalog, Index, parsed

SHA = "A" * 64
NOW = timedelta(0)
ITEMS: list[dict[str, Any]] = [
    {"kind": "checkpoint", "name": "xl/base.safetensors", "url": "hf://o/r/base.safetensors", "sha256": SHA, "size": 9},
    {"kind": "lora", "name": "a/twin.safetensors", "url": "https://x.test/1"},
    {"kind": "lora", "name": "b/twin.safetensors", "url": "s3://b/2"},
    {"kind": "lora", "name": "only.v2.safetensors", "base": "sdxl", "x-note": "ours"},
]


def names(index: Index) -> list[str]:
    return [item.name for item in index.items]


def read(items: Any) -> Index:
    index, mistakes = parsed(json.dumps(items).encode())
    assert not mistakes
    return index


def found(index: Index, kind: str, name: str) -> str | None:
    item = index.named(kind, name)
    return item.name if item else None


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("checkpoint", "xl/base.safetensors", "xl/base.safetensors"),
        ("refiner", "xl/base.safetensors", "xl/base.safetensors"),
        ("checkpoint", "base.safetensors", "xl/base.safetensors"),
        ("checkpoint", "base", "xl/base.safetensors"),
        ("checkpoint", "xl/base", "xl/base.safetensors"),
        ("lora", "only.v2", "only.v2.safetensors"),
        ("lora", "base", None),
        ("lora", "twin", None),
        ("lora", "b/twin", "b/twin.safetensors"),
        ("lora", "only", None),
    ],
)
def test_models_are_looked_up_by_name(kind: str, name: str, expected: str | None) -> None:
    """By the name itself, else by file name or stem where only one has it; a refiner is a checkpoint."""
    assert found(read(ITEMS), kind, name) == expected


def test_models_are_looked_up_by_content_and_url() -> None:
    """A hash in any case, and any form of the URL."""
    index = read(ITEMS)
    assert index.with_digest("refiner", "a" * 64) == index.items[0]
    assert index.with_digest("lora", "a" * 64) is None
    assert index.at("checkpoint", "hf:o/r@main/base.safetensors") == index.items[0]
    assert index.at("lora", "s3://b/2") == index.items[2]
    assert index.at("vae", "s3://b/2") is None


def test_a_wrong_entry_costs_that_entry() -> None:
    """Each is named with its mistake; the rest is used."""
    wrong: list[Any] = [
        {"kind": "lora", "name": "../up", "url": "https://x.test/1"},
        {"kind": "Lora", "name": "n"},
        {"kind": "lora", "name": "n", "url": "ftp://x.test/1"},
        {"kind": "lora", "name": "n", "url": "https://huggingface.co/org/repo"},
        {"kind": "lora", "name": "n", "sha256": "abc"},
        {"kind": "lora", "name": "n", "size": "5"},
        {"name": "n"},
        "text",
        ITEMS[0],
    ]
    index, mistakes = parsed(json.dumps([*wrong, *ITEMS]).encode())
    assert sorted(names(index)) == sorted(item["name"] for item in ITEMS)
    assert [text.partition("]")[0] + "]" for text in mistakes] == [*(f"[{n}]" for n in range(8)), "[9]"]
    assert "'../up'" in mistakes[0]
    assert "names no file at Hugging Face" in mistakes[3]
    assert "listed twice" in mistakes[8]


@pytest.mark.parametrize("text", [b"", b"{", b'{"models": []}', b"\xff"])
def test_what_is_no_list_is_no_catalogue(text: bytes) -> None:
    """There is nothing to keep of it."""
    with pytest.raises(ValueError, match="is not"):
        parsed(text)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        server.otherwise = Answer(200, {"etag": '"1"'}, json.dumps(ITEMS).encode())
        yield server


async def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    """Its version changes with it, for whoever reports what this node knows."""
    path = tmp_path / "models.json"
    path.write_text(json.dumps(ITEMS[:1]))
    catalog = Catalog(str(path), every=NOW)
    try:
        assert catalog.version == ""
        first = await catalog.index()
        assert names(first) == ["xl/base.safetensors"]
        assert await catalog.index() is first
        path.write_text(json.dumps(ITEMS))
        await catalog.index()
        await wait_until(lambda: catalog.version != first.version)
        assert len((await catalog.index()).items) == len(ITEMS)
    finally:
        await catalog.aclose()


async def test_a_url_is_read_again_by_its_etag(server: ScriptedServer) -> None:
    """What has not changed is not sent again."""
    catalog = Catalog(server.url("/models.json?key=secret"), every=NOW)
    try:
        first = await catalog.index()
        server.otherwise = Answer(304)
        assert await catalog.index() is first
        await wait_until(lambda: len(server.requests) == 2)
        assert server.requests[1].headers["if-none-match"] == '"1"'
        assert catalog.name == server.url("/models.json")
        server.otherwise = Answer(200, {"etag": '"2"'}, b"[]")

        async def renewed() -> bool:
            return not (await catalog.index()).items

        await wait_until(renewed)
    finally:
        await catalog.aclose()


async def test_it_is_not_read_more_often_than_every_five_minutes(server: ScriptedServer) -> None:
    """Between them the list in memory answers."""
    catalog = Catalog(server.url("/"))
    try:
        for _ in range(5):
            assert (await catalog.index()).items
        assert len(server.requests) == 1
    finally:
        await catalog.aclose()


@pytest.mark.parametrize("bad", [Answer(500), Answer(200, {}, b"<html>"), Answer(raw=b"nonsense\r\n\r\n")])
async def test_the_last_good_one_is_kept(server: ScriptedServer, bad: Answer) -> None:
    """While the URL is away or gives no list; that is logged once, and its return too."""
    catalog = Catalog(server.url("/"), every=NOW, again=NOW)
    try:
        with capture_logs() as lines:
            first = await catalog.index()
            server.otherwise = bad

            async def asked(times: int) -> bool:
                assert await catalog.index() is first
                return len(server.requests) > times

            await wait_until(lambda: asked(3))
            server.otherwise = Answer(200, {}, b"[]")

            async def renewed() -> bool:
                return await catalog.index() is not first

            await wait_until(renewed)
        events = [line["event"] for line in lines]
        assert events.count("catalog_unavailable") == 1
        assert events.index("catalog_available") > events.index("catalog_unavailable")
    finally:
        await catalog.aclose()


async def test_without_any_it_is_away(server: ScriptedServer, tmp_path: Path) -> None:
    """Nobody may conclude that a model is missing."""
    server.otherwise = Answer(404)
    for where, words in [(server.url("/a?b=c"), r"/a: answered 404$"), (str(tmp_path / "none"), "cannot be read")]:
        catalog = Catalog(where)
        for _ in range(2):
            with pytest.raises(DownloadFailed, match=words):
                await catalog.index()
        await catalog.aclose()
    assert len(server.requests) == 1


async def test_one_that_does_not_answer_is_given_up(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that hangs costs its time limit, and is away."""
    monkeypatch.setattr(module, "_WITHIN", timedelta(0))
    server.otherwise = Answer(hang=True)
    catalog = Catalog(server.url("/"))
    with pytest.raises(DownloadFailed, match="took too long"):
        await catalog.index()
    await catalog.aclose()


async def test_too_much_is_refused(tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list has a largest size, from a file and from a URL."""
    monkeypatch.setattr(module, "LARGEST", 10)
    path = tmp_path / "models.json"
    path.write_text(json.dumps(ITEMS))
    for where in (str(path), server.url("/")):
        catalog = Catalog(where)
        with pytest.raises(DownloadFailed, match="more than 10 bytes"):
            await catalog.index()
        await catalog.aclose()


async def test_closing_ends_a_reading(server: ScriptedServer) -> None:
    """Nothing is left behind that still waits for an answer."""
    catalog = Catalog(server.url("/"), every=NOW)
    await catalog.index()
    server.otherwise = Answer(hang=True)
    await catalog.index()
    await wait_until(lambda: len(server.requests) == 2)
    await catalog.aclose()


async def test_mistakes_are_named_in_the_log(tmp_path: Path) -> None:
    """Once for each version of the list, and not all of thousands."""
    path = tmp_path / "models.json"
    path.write_text(json.dumps([{"kind": "lora"}] * 50))
    catalog = Catalog(str(path))
    with capture_logs() as lines:
        assert (await catalog.index()).items == ()
    await catalog.aclose()
    [warning] = [line for line in lines if line["event"] == "catalog_entries_skipped"]
    assert (warning["count"], len(warning["entries"])) == (50, 20)
