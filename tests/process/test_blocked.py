"""A real worker on SaladCloud whose operator made a mistake: it stays, says so, and is there when it is mended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.support.metadata import MetadataService
from tests.support.supervised import Supervised, SupervisingLife, supervised
from tests.support.workshop import ROOT
from worker import http

SECRET = "hunter2-hunter2"


async def port_of(life: SupervisingLife) -> int:
    await life.until(lambda: life.events("listening"))
    return int(life.events("listening")[0]["port"])


async def answers(port: int, path: str) -> list[tuple[int, str, list[str]]]:
    """Of a probe, over IPv6 and over IPv4."""
    async with http.client(loopback=True) as client:
        got = [await client.get(f"http://{host}:{port}{path}") for host in ("[::1]", "127.0.0.1")]
    return [(one.status_code, one.json()["status"], one.json()["reasons"]) for one in got]


async def becomes(life: SupervisingLife, port: int, phase: str) -> None:
    async def is_it() -> bool:
        return (await answers(port, "/startup"))[0][1] == phase

    await life.until(is_it)


async def probed(port: int, which: str) -> int:
    """The exit code of `sd-worker probe`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker", "probe", which),
        env={"PATH": os.environ["PATH"], "WORKER_HTTP_PORT": str(port)},
        cwd=ROOT,
        stdout=PIPE,
        stderr=PIPE,
    )
    await process.communicate()
    return process.returncode or 0


async def served_while_blocked(life: SupervisingLife, around: Supervised, mistakes: list[str]) -> None:
    port = await port_of(life)
    await becomes(life, port, "blocked")
    for path in ("/startup", "/ready"):
        assert await answers(port, path) == [(503, "blocked", mistakes)] * 2
    assert await answers(port, "/live") == [(200, "blocked", [])] * 2
    await life.until(lambda: around.left() == [])
    assert not await around.port_open()
    assert SECRET not in life.log.read_text()


async def test_settings_that_do_not_parse_are_told_until_a_signal_ends_it(tmp_path: Path) -> None:
    """On both families from the first moment on; SIGTERM is exit 0 at once, and no server was ever started."""
    mistakes = [
        "WORKER_QUEUE_WINDOW: must be greater than or equal to 1",
        "WORKER_WEBHOOK_SECRET: a secret is `whsec_` and base64",
    ]
    wrong = {"WORKER_QUEUE_WINDOW": "0", "WORKER_WEBHOOK_SECRET": f"whsec_{SECRET}", "WORKER_DRAIN_TIMEOUT": "1h"}
    async with supervised("sdnext", tmp_path) as around, MetadataService() as platform:
        async with around.worker(**platform.variables(), **wrong) as life:
            await served_while_blocked(life, around, mistakes)
            port = await port_of(life)
            assert [await probed(port, which) for which in ("startup", "live")] == [1, 0]
            life.process.send_signal(signal.SIGTERM)
            assert await life.died() == 0, life.tail()
            assert [one["exit_code"] for one in life.events("stopped")] == [0]
        assert platform.reasons == []


async def test_a_refused_password_is_tried_again_until_it_opens(tmp_path: Path) -> None:
    """The server is stopped while it is BLOCKED and started again for the next try; then jobs are done as ever."""
    credentials = {"WORKER_ENGINE_USERNAME": "user", "WORKER_ENGINE_PASSWORD": SECRET}
    async with supervised("sdnext", tmp_path) as around, MetadataService() as platform:
        opens = tmp_path / "opens"
        opens.write_text("user:another")
        command = ("sh", "-c", 'exec "$@" --auth "$(cat "$0")"', str(opens), *around.simulator())
        async with around.worker(*command, **platform.variables(), **credentials) as life:
            names = "WORKER_ENGINE_USERNAME and _PASSWORD, or WORKER_ENGINE_API_KEY"
            refusal = f"auth_failed: {names}: the server answered 401: Unauthorized"
            await served_while_blocked(life, around, [refusal])
            opens.write_text(f"user:{SECRET}")
            await around.submit("a")
            await life.ready()
            assert (await answers(await port_of(life), "/startup"))[0][0] == 200
            await life.jobs_ended(["a"])
            await life.drained()
            assert len(life.events("listening")) == 1
