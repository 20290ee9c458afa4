"""`sd-worker run` on SaladCloud with a mistake in its configuration: every way to it, and every way out of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support.metadata import MetadataService
from tests.support.receiver import Answer, ScriptedServer
from tests.support.waiting import wait_until
from tests.unit.cli.conftest import Command
from worker import app, aws, blocked, http, memory
from worker.cli import run as module
from worker.cli.run import configured, daemon, guarded
from worker.settings.http import HttpSettings
from worker.settings.source import reading_of
from worker.simulators import running

ON_SALAD = {"SALAD_MACHINE_ID": "machine-7", "SALAD_CONTAINER_GROUP_ID": "group-3"}
PATIENCE_S = 20.0
SECRET = "hunter2-hunter2"
PICTURE = {"params": {"prompt": "x", "width": 64, "height": 64, "steps": 2}}


@dataclass
class Stayed:
    """A worker in this process, from outside."""

    port: int
    events: list[Any]
    client: httpx.AsyncClient
    process: asyncio.Task[int]

    async def get(self, path: str, host: str = "[::1]", **headers: str) -> httpx.Response:
        return await self.client.get(f"http://{host}:{self.port}{path}", headers=headers)

    async def becomes(self, phase: str) -> list[str]:
        """Wait for the phase; its reasons."""
        said: dict[str, Any] = {}

        async def is_it() -> bool:
            assert not self.process.done(), self.process.result()
            said.update((await self.get("/startup")).json())
            return bool(said["status"] == phase)

        await wait_until(is_it, PATIENCE_S, lambda: f"{said}: {self.events[-3:]}")
        return list(said["reasons"])


@asynccontextmanager
async def staying(patch: pytest.MonkeyPatch, *command: str, **environ: str) -> AsyncIterator[Stayed]:
    """A worker on SaladCloud; a signal ends it when the block does, with 0."""
    patch.setattr(app, "prepare_as_init", lambda: False)
    patch.setattr(memory, "start_over", lambda: None)
    patch.setattr(aws, "_without_instance_metadata", aws._without_instance_metadata)
    variables = {"WORKER_HTTP_PORT": "0", "WORKER_ENGINE_URL": "http://[::1]:9", **ON_SALAD, **environ}
    async with MetadataService() as metadata, http.client(loopback=True) as client:
        reading = reading_of({"SALAD_METADATA_URI": metadata.url(), **variables})
        patch.setattr(
            module, "read_environment", lambda: reading_of({"SALAD_METADATA_URI": metadata.url(), **variables})
        )
        with capture_logs() as events:
            process = asyncio.create_task(daemon(configured(reading, command), command), name="daemon")
            try:
                await wait_until(lambda: process.done() or any(one["event"] == "listening" for one in events))
                port = next(one["port"] for one in events if one["event"] == "listening")
                yield Stayed(port, events, client, process)
            finally:
                if not process.done():
                    os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait({process}, timeout=PATIENCE_S)
            assert process.result() == 0


async def is_blocked_by(stayed: Stayed, *mistakes: str) -> None:
    """Every probe says so on both families, and no answer holds a secret."""
    reasons = await stayed.becomes("blocked")
    assert len(reasons) == len(mistakes), reasons
    assert all(mistake in reason for mistake, reason in zip(mistakes, reasons, strict=True)), reasons
    for host in ("[::1]", "127.0.0.1"):
        answers = {path: await stayed.get(path, host) for path in ("/startup", "/ready", "/health", "/live")}
        assert [answer.status_code for answer in answers.values()] == [503, 503, 503, 200]
        assert all(SECRET not in answer.text for answer in answers.values())
    await wait_until(lambda: any(one["event"] == "start_blocked" for one in stayed.events), PATIENCE_S)
    told = next(one for one in stayed.events if one["event"] == "start_blocked")
    assert (told["log_level"], told["mistakes"]) == ("error", reasons)
    assert SECRET not in str(stayed.events)


async def test_settings_that_do_not_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every mistake at once: of values, names, rules and the command line; also that of how long to stay."""
    environ = {
        "WORKER_STRICT": "true",
        "WORKER_SOMETHING": "1",
        "WORKER_HTTP_PROT": "1",
        "WORKER_QUEUE_WINDOW": "0",
        "WORKER_BLOCKED_FOR": "soon",
        "WORKER_WEBHOOK_SECRET": f"whsec_{SECRET}",
        "WORKER_WEBHOOK_SECRETS_FILE": str(tmp_path / "none"),
        "WORKER_PLATFORM": "sald",
        "WORKER_STORAGE": "s3",
        "WORKER_ENGINE_COMMAND": "python main.py",
    }
    names = ["HTTP_PROT", "QUEUE_WINDOW", "WEBHOOK_SECRET", "PLATFORM", "BLOCKED_FOR", "SOMETHING", "S3_BUCKET"]
    async with staying(monkeypatch, "python", "main.py", **environ) as stayed:
        mistakes = [f"WORKER_{name}: " for name in (*names, "WEBHOOK_SECRETS_FILE", "ENGINE_COMMAND")]
        await is_blocked_by(stayed, *mistakes)
        assert stayed.events[-1]["exits_in_s"] == pytest.approx(1800, abs=60)


async def test_a_place_where_nobody_can_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes are answered where they would be without the wrong variable."""
    monkeypatch.setattr(module, "HttpSettings", lambda: HttpSettings(port=0))
    async with staying(monkeypatch, WORKER_HTTP_HOST="192.0.2.1") as stayed:
        await is_blocked_by(stayed, "WORKER_HTTP_HOST: cannot listen on 192.0.2.1")


async def test_a_driver_that_refuses_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern of keys that cannot tell two pictures apart is seen when the store is opened."""
    store = {"WORKER_S3_BUCKET": "pictures", "WORKER_S3_KEY": "same-{id}"}
    async with staying(monkeypatch, **store) as stayed:
        await is_blocked_by(stayed, "WORKER_S3_KEY: ")


async def test_a_queue_that_can_never_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its check says so before the server is started."""
    file = tmp_path / "notes.txt"
    file.write_bytes(b"no database" * 500)
    async with staying(monkeypatch, WORKER_QUEUE="sqlite", WORKER_SQLITE_PATH=str(file)) as stayed:
        await is_blocked_by(stayed, "is not an SQLite database")


async def test_refused_credentials_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the server is started, without the token."""
    async with ScriptedServer() as server:
        server.otherwise = Answer(401)
        queue = {"WORKER_QUEUE": "availability", "WORKER_AVAILABILITY_URL": server.url(), "WORKER_STORAGE": "directory"}
        async with staying(monkeypatch, WORKER_AVAILABILITY_TOKEN=SECRET, **queue) as stayed:
            await is_blocked_by(stayed, "auth_failed: ")


async def test_a_warm_up_document_that_cannot_be_used_until_it_can(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither while nobody has it nor while it is none; then BLOCKED is left, with all opened anew."""
    async with ScriptedServer() as server, running("sdnext") as sim:
        monkeypatch.setattr(blocked, "TRY_FIRST_S", 0.1)
        monkeypatch.setattr(blocked, "TRY_MOST_S", 0.1)
        server.otherwise = Answer(404)
        url = server.url("/job.json")
        engine = {"WORKER_ENGINE": "sdnext", "WORKER_ENGINE_URL": sim.url, "WORKER_MODELS_DIR": str(tmp_path)}
        async with staying(monkeypatch, WORKER_WARMUP=f"{url}?key={SECRET}", **engine) as stayed:
            assert await stayed.becomes("blocked") == [f"WORKER_WARMUP: {url} answered 404"]
            assert SECRET not in str(stayed.events)
            server.otherwise = Answer(body=b"{}")
            await wait_until(lambda: any("exactly one of" in str(one) for one in stayed.events), PATIENCE_S)
            server.otherwise = Answer(body=json.dumps(PICTURE).encode())
            assert await stayed.becomes("ready") == []
            assert (await stayed.get("/ready")).status_code == 200
            assert "blocked" not in (await stayed.get("/v1/status")).json()
        assert [one["event"] for one in stayed.events].count("listening") == 1
        phases = [one["phase"] for one in stayed.events if one["event"] == "phase_changed"]
        assert phases[:2] == ["blocked", "provisioning"]
        ups = ["provisioning", "starting", "waiting_for_engine", "warming_up", "ready", "draining", "stopped"]
        assert phases[-7:] == ups


async def test_a_folder_of_models_that_shows_no_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody guesses which server's it is."""
    async with staying(monkeypatch, WORKER_MODELS_DIR=str(tmp_path)) as stayed:
        await is_blocked_by(stayed, "set WORKER_ENGINE")


async def test_models_that_will_never_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of them at once, by their place in the list."""
    async with ScriptedServer() as server:
        server.routes["/gone"], server.routes["/closed"] = Answer(404), Answer(403)
        items = [
            {
                "kind": "checkpoint",
                "name": f"{name}.safetensors",
                "url": server.url(f"/{name}"),
                "when": "before_engine",
            }
            for name in ("gone", "closed")
        ]
        models = {"WORKER_MODELS_DIR": str(tmp_path), "WORKER_MODELS_MANIFEST": json.dumps(items)}
        async with staying(monkeypatch, WORKER_ENGINE="sdnext", **models) as stayed:
            await is_blocked_by(stayed, "WORKER_MODELS_MANIFEST[0]", "WORKER_MODELS_MANIFEST[1]")


async def test_another_server_than_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong engine is told by name."""
    async with (
        running("sdnext") as sim,
        staying(monkeypatch, WORKER_ENGINE="a1111", WORKER_ENGINE_URL=sim.url) as stayed,
    ):
        await is_blocked_by(stayed, "WORKER_ENGINE: is a1111, but SD.Next answers")


async def test_a_warm_up_job_that_this_server_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is nowhere: the operator's document is wrong, not the node."""
    job = json.dumps({"params": PICTURE["params"] | {"sampler": "no such sampler"}})
    async with running("sdnext") as sim, staying(monkeypatch, WORKER_WARMUP=job, WORKER_ENGINE_URL=sim.url) as stayed:
        await is_blocked_by(stayed, "WORKER_WARMUP: ")


async def test_refused_credentials_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the names of their variables, without the password."""
    async with running("sdnext", auth="user:right") as sim:
        engine = {"WORKER_ENGINE_URL": sim.url, "WORKER_ENGINE_USERNAME": "user", "WORKER_ENGINE_PASSWORD": SECRET}
        async with staying(monkeypatch, **engine) as stayed:
            await is_blocked_by(stayed, "auth_failed: WORKER_ENGINE_USERNAME and _PASSWORD")


async def test_a_command_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image has no such server."""
    async with staying(monkeypatch, "no-such-server", "--api") as stayed:
        await is_blocked_by(stayed, "WORKER_ENGINE_COMMAND: ")


async def test_a_port_that_is_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's answers are never taken for our server's."""
    server = (sys.executable, "-c", "pass")
    async with running("sdnext") as sim, staying(monkeypatch, *server, WORKER_ENGINE_URL=sim.url) as stayed:
        await is_blocked_by(stayed, "WORKER_ENGINE_URL: ")


async def test_what_else_is_asked_of_a_blocked_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """State and metrics are what there is; every request for work is answered 503, and why, to who has the key."""
    async with staying(monkeypatch, WORKER_QUEUE_WINDOW="0", WORKER_API_KEY="the-key") as stayed:
        await is_blocked_by(stayed, "WORKER_QUEUE_WINDOW: ")
        assert (await stayed.get("/v1/status")).status_code == 401
        status = (await stayed.get("/v1/status", **{"x-api-key": "the-key"})).json()
        assert (status["phase"], status["node"]["id"]) == ("blocked", "machine-7")
        assert status["blocked"]["tries"] >= 1
        assert 0 < status["blocked"]["exits_in_s"] <= 1800
        metrics = (await stayed.get("/metrics", **{"x-api-key": "the-key"})).text
        assert 'sd_worker_phase{phase="blocked"} 1.0' in metrics
        url = f"http://[::1]:{stayed.port}/v1/jobs"
        assert (await stayed.client.post(url, content=b"{}")).status_code == 401
        answer = await stayed.client.post(url, content=b"{}", headers={"x-api-key": "the-key"})
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "WORKER_QUEUE_WINDOW" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "10"


def test_where_the_key_is_not_known_nobody_has_it(tmp_path: Path) -> None:
    """A file that cannot be read, or a name that is nearly right, opens nothing."""
    for environ in ({"WORKER_API_KEY_FILE": str(tmp_path / "none")}, {"WORKER_API_KY": "x"}):
        reading = reading_of({**ON_SALAD, **environ})
        assert reading.mistakes
        one, other = guarded(reading).api_key, guarded(reading).api_key
        assert one is not None
        assert other is not None
        assert one.get_secret_value() != other.get_secret_value()
    assert guarded(reading_of({**ON_SALAD, "WORKER_QUEUE_WINDOW": "0"})).api_key is None


async def test_a_second_signal_does_not_wait_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a worker at work."""
    exits: list[bool] = []
    closing, closed = asyncio.Event(), asyncio.Event()

    async def slow(self: blocked.Front) -> None:
        closing.set()
        await closed.wait()
        await aclose(self)

    aclose = blocked.Front.aclose
    monkeypatch.setattr(blocked.Front, "aclose", slow)
    monkeypatch.setattr(module, "_stop_at_once", lambda: exits.append(True))
    async with staying(monkeypatch, WORKER_QUEUE_WINDOW="0") as stayed:
        await stayed.becomes("blocked")
        os.kill(os.getpid(), signal.SIGTERM)
        await closing.wait()
        assert exits == []
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: exits == [True])
        closed.set()


def test_after_its_time_it_is_64_as_it_is_at_once_elsewhere(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every mistake on stderr, too."""
    for name, value in {
        **ON_SALAD,
        "WORKER_BLOCKED_FOR": "50ms",
        "WORKER_QUEUE_WINDOW": "0",
        "WORKER_HTTP_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    ran = command("run")
    assert ran.code == 64
    assert "WORKER_QUEUE_WINDOW: " in ran.err
    assert '"start_blocked"' in ran.out
    monkeypatch.setenv("WORKER_PLATFORM", "plain")
    ran = command("run")
    assert ran.code == 64
    assert "WORKER_QUEUE_WINDOW: " in ran.err
    assert ran.out == ""


def test_a_check_is_64_at_once_there_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build or a person reads it, and no node is banned."""
    for name, value in {**ON_SALAD, "WORKER_QUEUE_WINDOW": "0"}.items():
        monkeypatch.setenv(name, value)
    for words in (("check",), ("check", "--image")):
        assert command(*words).code == 64
