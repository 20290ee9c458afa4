"""The binary as an image's entrypoint: one process, its server's environment, other users, and bad places."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.binary.conftest import Binary
from tests.support.waiting import wait_until
from worker.engines.child.marker import VARIABLE
from worker.simulators import free_port, running

pytestmark = pytest.mark.binary

PATIENCE_S = 60.0
NOBODY = 65534
TELL = "env -0 | tr '\\0' '\\n' | sed 's/^/told /'; exit 3"
GIVEN = {
    "LD_LIBRARY_PATH": "/usr/lib/nowhere",
    "LD_PRELOAD": "",
    "PYTHONHOME": "/nowhere",
    "PYTHONPATH": "/nowhere",
    "PLAIN": "1",
}
"""Of an image whose own Python needs them; ours would not start with the home."""


@asynccontextmanager
async def worker(binary: Binary, log: Path, *command: str, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`sd-worker run`; killed at the end of the block."""
    environ = binary.environment(WORKER_LOG_FORMAT="json", WORKER_NODE_ID="w1", **more)
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            binary.path, "run", *command, env=environ, stdout=sink, stderr=sink, cwd=log.parent
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(PATIENCE_S):
            await process.wait()


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def users_of(home: Path) -> set[int]:
    """Every process that runs a program below this folder."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            runs = entry.name.isdecimal() and (entry / "exe").readlink().is_relative_to(home)
        except OSError:
            continue
        if runs:
            found.add(int(entry.name))
    return found


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
async def test_a_worker_is_one_process_from_start_to_end(binary: Binary, tmp_path: Path, sent: signal.Signals) -> None:
    """It does a job; one SIGTERM is one drain; and SIGKILL of its pid leaves no process and no file behind."""
    before, log, port = sorted(binary.base.iterdir()), tmp_path / "log", free_port()
    async with (
        running("sdnext") as sim,
        worker(binary, log, WORKER_ENGINE_URL=sim.url, WORKER_HTTP_PORT=str(port)) as process,
        httpx.AsyncClient(base_url=f"http://[::1]:{port}", trust_env=False, timeout=PATIENCE_S) as client,
    ):

        async def is_ready() -> bool:
            try:
                return (await client.get("/ready")).is_success
            except httpx.TransportError:
                return False

        await wait_until(is_ready, PATIENCE_S, log.read_text)
        assert users_of(binary.home) == {process.pid}
        made = await client.post("/v1/jobs", json={"params": {"prompt": "a cat", "width": 64, "height": 64}})
        assert made.json()["status"] == "succeeded"
        process.send_signal(sent)
        code = await asyncio.wait_for(process.wait(), PATIENCE_S)
    phases = [event["phase"] for event in events(log) if event["event"] == "phase_changed"]
    if sent is signal.SIGTERM:
        assert (code, phases[-2:], phases.count("draining")) == (0, ["draining", "stopped"], 1)
    else:
        assert (code, phases[-1]) == (-signal.SIGKILL, "ready")
    assert users_of(binary.home) == set()
    assert sorted(binary.base.iterdir()) == before


async def test_the_server_gets_the_images_environment(binary: Binary, tmp_path: Path) -> None:
    """Every variable as it was given, none of ours, whatever they would do to our own Python."""
    log = tmp_path / "log"
    command = ("--", "sh", "-c", TELL)
    async with worker(
        binary, log, *command, WORKER_ENGINE="sdnext", WORKER_ENGINE_RESTARTS="1/10m", WORKER_HTTP_PORT="0", **GIVEN
    ) as process:
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 69
    fault = next(event for event in events(log) if event["event"] == "engine_fault_found")
    told = dict(line.removeprefix("told ").split("=", 1) for line in fault["lines"] if line.startswith("told "))
    shells = {"PWD", "SHLVL", "_", "OLDPWD"}
    assert {name: value for name, value in told.items() if name not in shells | {VARIABLE, "PYTHONUNBUFFERED"}} == {
        "PATH": os.environ["PATH"],
        **GIVEN,
    }


def test_what_root_unpacked_serves_every_user(binary: Binary) -> None:
    """At an image's build it is root, at run time perhaps nobody: no home, nothing of theirs to write to."""
    done = subprocess.run(
        [binary.path, "version"],
        env={**binary.environment(), "TMPDIR": "/nowhere"},
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sd-worker ")


def test_what_another_user_unpacked_is_not_run_by_root(binary: Binary, folder: Path) -> None:
    """Nor by a third one."""
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    environ = binary.environment(SD_WORKER_BUNDLE_DIR=str(theirs))
    words = [str(binary.path), "version"]
    subprocess.run(words, env=environ, user=NOBODY, group=NOBODY, extra_groups=[], check=True)
    done = subprocess.run(words, env=environ, capture_output=True, text=True)
    assert done.returncode == 70
    assert f"belongs to user {NOBODY}" in done.stderr


def test_a_read_only_root_will_do_once_it_is_unpacked(binary: Binary) -> None:
    """Nothing is written at a call, temporary files neither."""
    done = binary.apart("mount --make-rprivate /; mount --rbind / /mnt; mount -o remount,bind,ro /mnt",
                        "chroot", "/mnt", binary.path, "version")  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=4m", ("cannot unpack into", "No space left")), ("noexec", ("noexec", "Permission denied"))],
)
def test_a_bad_place_is_named_with_its_remedy(
    binary: Binary, folder: Path, options: str, said: tuple[str, ...]
) -> None:
    """A /tmp that is full or must not run programs, where nothing was unpacked at the build."""
    place = folder / "place"
    place.mkdir(exist_ok=True)
    done = binary.apart(
        f"mount -t tmpfs -o {options},mode=755 place {place}", binary.path, "version", SD_WORKER_BUNDLE_DIR=str(place)
    )
    assert done.returncode == 70
    assert all(word in done.stderr for word in (*said, "SD_WORKER_BUNDLE_DIR"))
