"""`sd-worker models` as processes: beside a daemon that has the folder, and cut off."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.made import safetensors
from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.waiting import wait_until
from tests.support.workshop import living
from worker import http
from worker.metrics import MODELS_DOWNLOADED_BYTES
from worker.settings.source import surroundings
from worker.simulators import free_port

BODY = safetensors(bytes(range(256)) * 16_000)
CUT = 3_000_000
"""Bytes that come before the server falls silent: more than are written in one go, which are noted together."""

PATIENCE_S = 40.0


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a worker of ComfyUI's that finds no server, and may fetch from this machine."""
    (folder / "models" / "loras").mkdir(parents=True, exist_ok=True)
    return {
        **surroundings(),
        "WORKER_ENGINE": "comfyui",
        "WORKER_ENGINE_URL": f"http://[::1]:{free_port()}",
        "WORKER_HTTP_PORT": "0",
        "WORKER_MODELS_DIR": str(folder / "models"),
        "WORKER_MODELS_HOSTS": "*",
        "WORKER_URLS_ALLOW_PRIVATE": "true",
        "WORKER_SQLITE_PATH": str(folder / "queue.db"),
        "WORKER_STORAGE_DIRECTORY": str(folder / "outputs"),
        "WORKER_LOG_FORMAT": "json",
        **more,
    }


def written(folder: Path) -> int:
    """Bytes that are on disk of what has not landed yet."""
    return sum(path.stat().st_size for path in (folder / "models" / "loras").glob(".*.part"))


async def models(environ: Mapping[str, str], *argv: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "models", *argv, env=environ, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return Ended(process.returncode or 0, out.decode(), err.decode())


async def test_a_daemon_that_has_the_folder_does_what_the_commands_ask(tmp_path: Path) -> None:
    """With its key it fetches, lists and removes; without, the command says what to do and touches nothing.

    Its status page and metrics tell of the same file.
    """
    environ = environment(tmp_path, WORKER_API_KEY="a-key")
    async with (
        ModelHost() as host,
        living("worker", "run", environment=environ, log=tmp_path / "worker.log") as life,
    ):
        host.host("/loras/ink.safetensors", BODY)
        await wait_until(lambda: life.events("listening") or life.over, PATIENCE_S)
        environ["WORKER_HTTP_PORT"] = str(life.events("listening")[0]["port"])
        pulled = await models(environ, "pull", host.url("/loras/ink.safetensors"))
        assert (pulled.code, pulled.out.split("\t")[0]) == (0, "lora/ink.safetensors"), pulled.err + life.tail()
        async with http.client(loopback=True, base_url=f"http://[::1]:{environ['WORKER_HTTP_PORT']}") as client:
            status = await client.get("/v1/status", headers={"x-api-key": "a-key"})
            metrics = await client.get("/metrics", headers={"x-api-key": "a-key"})
        assert [status.json()["cache"][name] for name in ("entries", "used", "transfers")] == [1, len(BODY), []]
        assert status.json()["sources_paused"] == {}
        [downloaded] = [line for line in metrics.text.splitlines() if line.startswith(MODELS_DOWNLOADED_BYTES)]
        assert float(downloaded.split()[-1]) == len(BODY)
        listed = await models(environ, "list", "--json")
        assert [row["name"] for row in json.loads(listed.out)] == ["ink.safetensors"]
        keyless = {name: value for name, value in environ.items() if name != "WORKER_API_KEY"}
        refused = await models(keyless, "remove", "lora/ink.safetensors")
        assert (refused.code, "WORKER_API_KEY" in refused.err) == (1, True)
        removed = await models(environ, "remove", "lora/ink.safetensors")
        assert (removed.code, removed.out) == (0, "lora/ink.safetensors\n")
    assert not (tmp_path / "models" / "loras" / "ink.safetensors").exists()
    assert "model_evicted" in life.log.read_text()


async def test_an_interrupted_pull_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-C leaves what has come; the next pull asks for the rest alone."""
    environ = environment(tmp_path)
    async with ModelHost() as host:
        file = host.host("/loras/ink.safetensors", HostedFile(BODY, twist=Twist(cut=CUT, end="silence")))
        log = tmp_path / "pull.log"
        argv = ("worker", "models", "pull", host.url("/loras/ink.safetensors"))
        async with living(*argv, environment=environ, log=log) as life:
            await wait_until(lambda: written(tmp_path) == CUT or life.over, PATIENCE_S)
            life.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(PATIENCE_S):
                assert await life.died() != 0
        file.twist = Twist()
        asked = len(file.requests)
        pulled = await models(environ, *argv[2:])
    assert pulled.code == 0, pulled.err
    assert file.ranges_asked[asked:] != []
    assert all(not one.startswith("bytes=0-") for one in file.ranges_asked[asked:])
    assert (tmp_path / "models" / "loras" / "ink.safetensors").read_bytes() == BODY
