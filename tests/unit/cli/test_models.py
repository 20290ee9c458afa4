"""`sd-worker models`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.cache import FakeHub, Kept, kept
from tests.support.made import safetensors
from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.receiver import Answer, ScriptedServer
from tests.support.serving import serving
from tests.support.waiting import wait_until
from tests.unit.cli.conftest import Command, Ran
from worker.api.app import View, create_app
from worker.api.fetches import Fetches
from worker.api.models import Shown
from worker.cli import pulling
from worker.cli.rows import size_shown
from worker.live import Live
from worker.metrics import Metrics
from worker.models.acts import survey
from worker.models.baked import read_baked
from worker.models.folders import OURS
from worker.node import Identity
from worker.settings.http import HttpSettings
from worker.status import Status

BYTES = safetensors(bytes(4096))
OTHER = safetensors(bytes(range(256)) * 16)
KEY = "schlüssel-8"
Typed = Callable[..., Coroutine[Any, Any, Ran]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of ComfyUI's models, as the settings name it, with one file."""
    root = tmp_path / "models"
    put(root / "loras" / "old.safetensors")
    monkeypatch.setenv("WORKER_MODELS_DIR", str(root))
    monkeypatch.setenv("WORKER_ENGINE", "comfyui")
    monkeypatch.setenv("WORKER_HTTP_PORT", "0")
    return root


@pytest.fixture
def typed(command: Command) -> Typed:
    """Run a command line in a thread, while the test's own servers answer."""

    async def run(*argv: str) -> Ran:
        return await asyncio.to_thread(command, "models", *argv)

    return run


def put(path: Path, content: bytes = BYTES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def lines(ran: Ran) -> list[list[str]]:
    return [line.split("\t") for line in ran.out.splitlines()]


@asynccontextmanager
async def worker(root: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub | None = None) -> AsyncIterator[Kept]:
    """A worker that has the folder, and answers with the key that the command has too."""
    async with kept(root, hub=hub, cap=10**9) as shelf:
        fetches = Fetches(shelf.cache, timedelta(seconds=30))
        view = View(Status(), Live(), Metrics(), Identity("n", "m", "1"), models=Shown(shelf.cache, fetches))
        async with serving(create_app(view, HttpSettings(api_key=SecretStr(KEY)))) as service:
            monkeypatch.setenv("WORKER_API_KEY", KEY)
            monkeypatch.setenv("WORKER_HTTP_PORT", str(service.port))
            try:
                yield shelf
            finally:
                await fetches.aclose()


def test_a_folder_is_listed_without_touching_it(command: Command, root: Path) -> None:
    """The last used first; nothing is written, so that it may be done while an image is built."""
    put(root / "vae" / "new.safetensors", OTHER)
    ran = command("models", "list")
    assert sorted(line[:3] for line in lines(ran)) == [
        ["lora", "old.safetensors", size_shown(len(BYTES))],
        ["vae", "new.safetensors", size_shown(len(OTHER))],
    ]
    [row] = [row for row in json.loads(command("models", "list", "--json").out) if row["kind"] == "vae"]
    assert (row["size"], row["sha256"], row["state"]) == (len(OTHER), None, "on_disk")
    assert not (root / OURS).exists()


def test_a_terminal_gets_a_table(command: Command, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a head."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    head, row = command("models", "list").out.splitlines()
    assert head.split() == ["kind", "name", "size", "used", "sha256", "baked", "state"]
    assert "old.safetensors" in row


def test_without_a_folder_there_is_nothing_to_list(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """64, and what to set."""
    monkeypatch.setenv("WORKER_ENGINE", "comfyui")
    for argv in (("list",), ("pull", "lora/x.safetensors"), ("verify",)):
        ran = command("models", *argv)
        assert (ran.code, "WORKER_MODELS_DIR" in ran.err) == (64, True)


async def test_models_are_pulled_and_each_failure_has_its_reason(typed: Typed, root: Path) -> None:
    """Several at once; a line for each that came, exit 1 when one did not, and no secret of a URL is told."""
    async with ModelHost() as host:
        host.host("/loras/a.safetensors", BYTES)
        host.host("/b", OTHER)
        host.otherwise = Answer(404)
        urls = host.url("/loras/a.safetensors"), host.url("/loras/none.safetensors?token=hush")
        ran = await typed("pull", *urls, "vae/c.safetensors")
        named = await typed("pull", host.url("/b"), "--kind", "vae", "--name", "sub/b.safetensors")
    assert ran.code == 1
    assert [line[:2] for line in lines(ran)] == [["lora/a.safetensors", size_shown(len(BYTES))]]
    reasons = sorted(line.split(": ")[1] for line in ran.err.splitlines())
    assert reasons == ["model_not_found", "model_not_found"]
    assert "hush" not in ran.err
    assert named.code == 0
    assert (root / "loras" / "a.safetensors").read_bytes() == BYTES
    assert (root / "vae" / "sub" / "b.safetensors").read_bytes() == OTHER


async def test_a_pulled_model_is_the_one_that_was_asked_for(typed: Typed, root: Path) -> None:
    """Another hash than `--sha256` says: nothing is kept, and exit 1."""
    async with ModelHost() as host:
        host.host("/a.safetensors", BYTES)
        ran = await typed("pull", host.url("/a.safetensors"), "--kind", "lora", "--sha256", "AB" * 32)
    assert (ran.code, "model_corrupt" in ran.err, ran.out) == (1, True, "")
    assert not (root / "loras" / "a.safetensors").exists()


async def test_models_that_do_not_fit_together_are_told(
    typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that had to make room for another of the same command counts as failed."""
    monkeypatch.setenv("WORKER_MODELS_MAX_SIZE", str(len(BYTES) + 1000))
    monkeypatch.setattr(pulling, "TOGETHER", 1)
    async with ModelHost() as host:
        host.host("/loras/a.safetensors", BYTES)
        host.host("/loras/b.safetensors", OTHER)
        ran = await typed("pull", *(host.url(f"/loras/{name}.safetensors") for name in "ab"))
    assert ran.code == 1
    assert "a.safetensors had to give way" in ran.err
    assert (root / "loras" / "b.safetensors").exists()


async def test_baked_models_are_of_the_image(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed as such with their hash, whatever the cap is; a failed pull bakes nothing."""
    monkeypatch.setenv("WORKER_MODELS_MAX_SIZE", "1000")
    async with ModelHost() as host:
        host.host("/loras/a.safetensors", BYTES)
        host.otherwise = Answer(404)
        failed = await typed("pull", "--bake", host.url("/loras/none.safetensors"))
        assert failed.code == 1
        ran = await typed("pull", "--bake", host.url("/loras/a.safetensors"))
    assert (ran.code, "2 models are part of the image" in ran.err) == (0, True)
    baked = read_baked(root / OURS)
    assert (baked.seen, {place.name for place in baked.models}) == (False, {"a.safetensors", "old.safetensors"})
    listed = {row[1]: row[4:6] for row in lines(await typed("list"))}
    assert listed["a.safetensors"][0]
    assert {row[1] for row in listed.values()} == {"yes"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("pull", "x.safetensors"), "write KIND/NAME"),
        (("pull", "https://x.example/x.safetensors"), "add --kind"),
        (("pull", "https://civitai.com/models/1?token=hush"), "names a model at Civitai but no version"),
        (("pull", "a/b", "c/d", "--sha256", "ab" * 32), "for one model"),
        (("pull", "lora/b", "--sha256", "12"), "64 hexadecimal digits"),
        (("remove", "x"), "write KIND/NAME"),
        (("verify", "x"), "write KIND/NAME"),
    ],
)
def test_wrong_usage_is_told(command: Command, root: Path, argv: tuple[str, ...], said: str) -> None:
    """Typer's 2, before anything is opened; nothing that may be secret is repeated."""
    ran = command("models", *argv)
    words = " ".join(ran.err.replace("│", " ").split())
    assert (ran.code, said in words, "hush" in words) == (2, True, False)


def test_models_are_removed(command: Command, root: Path) -> None:
    """A line for each that went; one that is not there is told and ends with 1."""
    ran = command("models", "remove", "loras/old.safetensors", "lora/none.safetensors", "lora/../x")
    assert (ran.code, ran.out) == (1, "lora/old.safetensors\n")
    assert [line.split(": ")[:2] for line in ran.err.splitlines()] == [
        ["lora/none.safetensors", "model_not_found"],
        ["lora/../x", "model_not_found"],
    ]
    assert not (root / "loras" / "old.safetensors").exists()


async def test_verify_reads_every_byte_and_changes_nothing(typed: Typed, root: Path) -> None:
    """A line each: good, good but never known, corrupt, no model at all, not there; exit 1 for the bad ones."""
    async with ModelHost() as host:
        for name, body in (("a", BYTES), ("b", OTHER)):
            host.host(f"/loras/{name}.safetensors", body)
        await typed("pull", *(host.url(f"/loras/{name}.safetensors") for name in "ab"))
    good = await typed("verify", "loras/a.safetensors")
    assert (good.code, [line[:2] for line in lines(good)]) == (0, [["ok", "lora/a.safetensors"]])
    path = root / "loras" / "b.safetensors"
    spoilt = path.stat()
    path.write_bytes(OTHER[:-1] + b"!")
    os.utime(path, ns=(spoilt.st_atime_ns, spoilt.st_mtime_ns))
    put(root / "vae" / "page.safetensors", b"<html>no</html>")
    ran = await typed("verify")
    assert ran.code == 1
    found = {line[1]: (line[0].strip(), line[2]) for line in lines(ran)}
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "lora/a.safetensors": "ok",
        "lora/b.safetensors": "FAILED",
        "lora/old.safetensors": "ok",
        "vae/page.safetensors": "FAILED",
    }
    assert "of which nothing was known" in found["lora/old.safetensors"][1]
    assert "sd-worker models remove" in found["lora/b.safetensors"][1]
    assert path.exists()
    assert (await typed("verify", "lora/none.safetensors", "custom_nodes/x")).code == 1


async def test_verify_tells_of_a_file_that_goes_away(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be read, which is bad news and no crash."""

    def and_gone(folders: Any) -> Any:
        found = survey(folders)
        (root / "loras" / "old.safetensors").unlink()
        return found

    monkeypatch.setattr("worker.cli.models.survey", and_gone)
    ran = await typed("verify")
    assert (ran.code, lines(ran)[0][0]) == (1, "FAILED")


async def test_what_was_cut_off_is_listed_and_resumed(typed: Typed, root: Path) -> None:
    """As partial, with its bytes; the next pull goes on."""
    async with ModelHost() as host:
        file = host.host("/loras/a.safetensors", HostedFile(BYTES))
        file.twist = Twist(cut=1000, end="close")
        file.chosen = lambda request: None if len(file.requests) < 2 else Twist(403)
        ran = await typed("pull", host.url("/loras/a.safetensors"))
        assert ran.code == 1
        [row] = [row for row in json.loads((await typed("list", "--json")).out) if row["state"] == "partial"]
        assert row["name"] == "a.safetensors"
        file.twist, file.chosen = Twist(), lambda request: None
        assert (await typed("pull", host.url("/loras/a.safetensors"))).code == 0
    assert (root / "loras" / "a.safetensors").read_bytes() == BYTES


async def test_beside_a_worker_without_a_key_the_commands_say_what_to_do(
    typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking is always possible; the rest would be behind the worker's back."""
    async with kept(root):
        for argv in (("pull", "lora/x.safetensors"), ("remove", "lora/old.safetensors"), ("pull", "--bake", "lora/x")):
            ran = await typed(*argv)
            assert (ran.code, "stop it, or give it and this command the same WORKER_API_KEY" in ran.err) == (1, True)
        assert [line[1] for line in lines(await typed("list"))] == ["old.safetensors"]
        assert (await typed("verify")).code == 0
        monkeypatch.setenv("WORKER_API_KEY", KEY)
        ran = await typed("remove", "lora/old.safetensors")
    assert (ran.code, "WORKER_HTTP_PORT" in ran.err) == (1, True)
    assert (root / "loras" / "old.safetensors").exists()


async def test_a_worker_does_what_the_commands_ask(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists what is loaded, fetches, and removes; its refusals are told as our own."""
    async with worker(root, monkeypatch) as shelf:
        hub = shelf.hub
        hub.has("loras/a.safetensors", BYTES)
        shelf.server.held.update(entry.place for entry in shelf.cache.entries())
        pulled = await typed(
            "pull", "https://models.example/loras/a.safetensors", "lora/none.safetensors", "civitai://7"
        )
        assert pulled.code == 1
        assert [line[0] for line in lines(pulled)] == ["lora/a.safetensors"]
        assert {line.split(": ")[1] for line in pulled.err.splitlines()} == {"model_not_found", "invalid_job"}
        assert {line[1]: line[6] for line in lines(await typed("list"))} == {
            "old.safetensors": "loaded",
            "a.safetensors": "on_disk",
        }
        removed = await typed("remove", "lora/a.safetensors", "lora/old.safetensors", "lora/none.safetensors")
        assert (removed.code, removed.out) == (1, "lora/a.safetensors\n")
        assert [line.split(": ")[1] for line in removed.err.splitlines()] == ["model_in_use", "model_not_found"]
        assert shelf.names == ["old.safetensors"]


async def test_transfers_of_a_worker_are_shown(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of what is on its way while a pull waits, and how far it is in the list."""
    monkeypatch.setattr(pulling, "LINE_EVERY_S", 0.05)
    async with worker(root, monkeypatch) as shelf:
        source = shelf.hub.has("loras/a.safetensors", BYTES * 2, go=asyncio.Event())
        assert source.go is not None
        pull = asyncio.create_task(typed("pull", "https://models.example/loras/a.safetensors"), name="pull")
        await wait_until(lambda: shelf.cache.transfers() and shelf.cache.transfers()[0].done)
        row = shelf.cache.transfers()[0]
        asked = shelf.server.looks
        await wait_until(lambda: shelf.server.looks > asked + 1)
        source.go.set()
        ran = await pull
    assert ran.code == 0
    assert f"{row.place}: 0.0 of 0.0 GB" in ran.err


async def test_what_is_no_worker_is_not_asked(typed: Typed, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's server on our port, or a worker of another folder: the folder itself is used."""
    monkeypatch.setenv("WORKER_API_KEY", KEY)
    async with ScriptedServer() as server:
        monkeypatch.setenv("WORKER_HTTP_PORT", str(server.port))
        for body in (b"<html>", b"[]", b'{"folder": "/elsewhere"}', b"\xff"):
            server.otherwise = Answer(200, body=body)
            assert [line[1] for line in lines(await typed("list"))] == ["old.safetensors"]
        server.otherwise = Answer(500, body=b"[]")
        assert (await typed("remove", "lora/old.safetensors")).code == 0
