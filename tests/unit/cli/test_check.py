"""`sd-worker check`: a try of each part, whatever became of the others."""

from __future__ import annotations

import asyncio
import shutil
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.fakes import FakeProcess
from tests.support.receiver import Answer, ScriptedServer
from tests.unit.cli.conftest import Command
from worker.cli import local
from worker.cli.check import Report, part_reports
from worker.cli.local import Finding
from worker.engines.base import EngineState, Reach
from worker.errors import AuthFailed, ConfigError, QueueUnavailable, UploadFailed
from worker.settings import Settings, load_settings

READY = EngineState(Reach.READY, name="sdnext", version="1.2", model="juggernaut")


class Part:
    """Stands in for engine, queue and storage: answers, or raises, what it is given."""

    def __init__(self, found: Any) -> None:
        self._found = found

    async def look(self) -> Any:
        return await self.check()

    async def check(self) -> Any:
        if isinstance(self._found, BaseException):
            raise self._found
        if isinstance(self._found, asyncio.Event):
            await self._found.wait()
        return self._found


class Parts:
    """Opens fake parts as the composition root opens real ones, and notes what was opened and closed."""

    def __init__(self, process: FakeProcess | None = None, **found: Any) -> None:
        self.process = process or FakeProcess()
        self.found: Mapping[str, Any] = {"engine": READY, "queue": "3 jobs", "storage": "writable", **found}
        self.closed: list[set[str]] = []

    @asynccontextmanager
    async def opened(self, settings: Settings, parts: set[str]) -> AsyncIterator[Any]:
        try:
            yield SimpleNamespace(**{part: Part(self.found[part]) for part in parts}, process=self.process)
        finally:
            self.closed.append(parts)


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


async def reports(parts: Parts, settings: Settings | None = None, limit_s: float = 30) -> dict[str, Report]:
    settings = settings or load_settings({"WORKER_ENGINE_URL": "http://[::1]:1"})
    return {report.part: report async for report in part_reports(settings, parts.opened, limit_s)}


async def test_each_part_is_tried_and_closed() -> None:
    """Opened one at a time, so that none depends on another."""
    parts = Parts()
    found = await reports(parts)
    assert list(found) == ["engine", "queue", "storage", "webhook", "models", "sources", "disk", "clock", "gpu"]
    assert found["engine"].finding == Finding.ok("sdnext 1.2 juggernaut")
    assert found["queue"].finding == Finding.ok("3 jobs")
    assert found["storage"].finding == Finding.ok("writable")
    assert parts.closed == [{"engine"}, {"queue"}, {"storage"}]
    assert {report.code for report in found.values()} == {0}


@pytest.mark.parametrize(
    ("reach", "verdict", "code"),
    [
        (Reach.PORT_CLOSED, "FAILED", 1),
        (Reach.ROUTES_MISSING, "FAILED", 1),
        (Reach.MODEL_NOT_LOADED, "note", 0),
        (Reach.READY, "ok", 0),
    ],
)
async def test_how_far_the_server_has_come(reach: Reach, verdict: str, code: int) -> None:
    """A server that loads its model when asked is no failure; one that does not answer is."""
    engine = (await reports(Parts(engine=EngineState(reach))))["engine"]
    assert (engine.finding.verdict, engine.code) == (verdict, code)
    assert "http://[::1]:1" in engine.finding.text


async def test_a_server_of_ours_need_not_run_yet() -> None:
    """The daemon starts it; that it can is checked all the same."""
    parts = Parts(FakeProcess(owned=True), engine=EngineState(Reach.PORT_CLOSED))
    engine = (await reports(parts))["engine"]
    assert (engine.finding.verdict, engine.code) == ("note", 0)
    assert "the worker starts" in engine.finding.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QueueUnavailable("locked"), 1),
        (UploadFailed("503"), 1),
        (AuthFailed("403"), 64),
        (ConfigError("no such region"), 64),
    ],
)
async def test_a_part_that_fails_stops_no_other(error: Exception, code: int) -> None:
    """Its code and message are told; refused credentials count as bad configuration."""
    found = await reports(Parts(storage=error))
    assert found["storage"].code == code
    assert str(error) in found["storage"].finding.text
    assert found["gpu"].finding.verdict == "note"


async def test_a_part_that_never_answers_fails() -> None:
    """Within the limit, and is closed."""
    parts = Parts(queue=asyncio.Event())
    found = await reports(parts, limit_s=0.05)
    assert found["queue"].finding == Finding.failed("no answer within 0.05 s")
    assert {"queue"} in parts.closed


@pytest.mark.parametrize(
    ("environ", "verdict", "said"),
    [
        ({}, "note", "not signed"),
        ({"WORKER_WEBHOOK_URL": "https://example.com/h"}, "ok", "https://example.com/h, not signed"),
        ({"WORKER_WEBHOOK_SECRET": f"whsec_{'QUJD' * 8}"}, "note", "signed with 1 secret"),
    ],
)
async def test_webhooks_are_looked_at_and_never_called(environ: dict[str, str], verdict: str, said: str) -> None:
    """A receiver might act on a call."""
    webhook = (await reports(Parts(), load_settings({"WORKER_ENGINE_URL": "http://[::1]:1", **environ})))["webhook"]
    assert webhook.finding.verdict == verdict
    assert said in webhook.finding.text


@pytest.mark.parametrize(("free", "verdict"), [(60, "ok"), (48, "ok"), (10, "note"), (1, "FAILED")])
def test_the_disk_is_compared_with_what_was_ordered(free: int, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB must stay free; less than ordered is worth knowing."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 10**9))
    assert local.disk(load_settings({})).verdict == verdict


@pytest.mark.parametrize(
    ("headers", "verdict", "said"),
    [
        ({}, "note", "sends no Date"),
        ({"date": "Sat, 01 Jan 2000 00:00:00 GMT"}, "note", "signatures are corrected"),
    ],
)
async def test_the_clock_is_compared_with_the_store(headers: dict[str, str], verdict: str, said: str) -> None:
    """By the `Date` of its answer."""
    async with ScriptedServer(Answer(headers=headers)) as server:
        settings = load_settings({"WORKER_S3_BUCKET": "bucket", "WORKER_S3_ENDPOINT_URL": server.url()})
        found = await local.clock_offset(settings)
        assert server.requests[0].method == "HEAD"
    assert (found.verdict, said in found.text) == (verdict, True)


async def test_a_clock_that_agrees_is_fine() -> None:
    """Nothing is said of corrections then; and what stays on this machine needs no other clock."""
    from email.utils import format_datetime

    from worker.clock import SystemClock

    now = format_datetime(SystemClock().now(), usegmt=True)
    async with ScriptedServer(Answer(headers={"date": now})) as server:
        settings = load_settings({"WORKER_S3_BUCKET": "bucket", "WORKER_S3_ENDPOINT_URL": server.url()})
        found = await local.clock_offset(settings)
        assert (await local.clock_offset(load_settings({}))).verdict == "note"
        assert len(server.requests) == 1
    assert found.verdict == "ok"


@pytest.fixture
def nvidia_smi(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def install(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (
            "echo 'RTX 4090, 24564 MiB'; echo 'RTX 3060, 12288 MiB'",
            Finding.ok("RTX 4090, 24564 MiB; RTX 3060, 12288 MiB"),
        ),
        ("exit 0", Finding.note("none found")),
        ("echo 'driver mismatch'; exit 9", Finding.failed("nvidia-smi ended with 9: driver mismatch")),
    ],
)
async def test_the_gpu_is_what_nvidia_smi_says(script: str, found: Finding, nvidia_smi: Callable[[str], None]) -> None:
    """None is no failure; a driver that does not work is."""
    nvidia_smi(script)
    assert await local.gpu() == found


async def test_a_hanging_driver_is_left_behind_dead(nvidia_smi: Callable[[str], None]) -> None:
    """A broken GPU makes nvidia-smi hang; the check ends all the same."""
    nvidia_smi("exec /bin/sleep 1000")
    found = await reports(Parts(), limit_s=0.2)
    assert found["gpu"].finding == Finding.failed("no answer within 0.2 s")


def test_the_command_prints_a_line_a_part_and_ends_with_the_worst(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the parts through the composition root."""
    app = types.ModuleType("worker.app")
    app.opened = Parts(queue=QueueUnavailable("locked")).opened  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "worker.app", app)
    monkeypatch.setenv("WORKER_ENGINE_URL", "http://[::1]:1")
    monkeypatch.setenv("WORKER_SOMETHING_ELSE", "1")
    monkeypatch.setenv("LOAD_REFINER", "1")
    ran = command("check")
    assert "LOAD_REFINER: is honoured" in ran.out
    lines = {line.split()[1]: line.split()[0] for line in ran.out.splitlines()}
    assert ran.code == 1
    assert {part: lines[part] for part in ("settings", "engine", "queue", "storage", "gpu")} == {
        "settings": "note",
        "engine": "ok",
        "queue": "FAILED",
        "storage": "ok",
        "gpu": "note",
    }
