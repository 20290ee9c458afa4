"""The duties of the first process, done by this one: only what nobody waits for is reaped."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from worker.engines.child import Foreign, Reaper, processes
from worker.tasks import cancel_all


def orphan() -> int:
    """A child of this process that nobody waits for; it ends at once."""
    return os.posix_spawn("/bin/sh", ["sh", "-c", "exit 5"], {})


def is_zombie(pid: int) -> bool:
    seen = processes.look_at(pid)
    return seen is not None and not seen.alive


@asynccontextmanager
async def reaping(unclaimed_s: float = 0.02) -> AsyncIterator[Reaper]:
    reaper = Reaper(Foreign("http://[::1]:1"), unclaimed_s=unclaimed_s)
    task = asyncio.create_task(reaper.run(), name="reaper")
    try:
        yield reaper
    finally:
        await cancel_all({task})


async def test_a_zombie_that_nobody_reaps_is_reaped() -> None:
    """One that was there before, and one that comes; the signal's handler is gone afterwards."""
    first = orphan()
    await wait_until(lambda: is_zombie(first))
    async with reaping():
        await wait_until(lambda: processes.look_at(first) is None)
        second = orphan()
        await wait_until(lambda: processes.look_at(second) is None)
        assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def exit_code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def test_a_zombie_is_given_time() -> None:
    """Whoever started it may come for its exit code yet."""
    pid = orphan()
    await wait_until(lambda: is_zombie(pid))
    reaper = Reaper(Foreign("http://[::1]:1"), unclaimed_s=60)
    reaper.look()
    reaper.look()
    assert exit_code_of(pid) == 5
    reaper.look()


async def test_asyncio_gets_its_exit_codes() -> None:
    """While orphans are reaped beside them."""
    async with reaping(unclaimed_s=0.2):
        orphans = [orphan() for _ in range(10)]
        started = [await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}") for number in range(10)]
        assert [await process.wait() for process in started] == list(range(10))
        await wait_until(lambda: not any(map(processes.look_at, orphans)))


async def test_where_zombies_cannot_be_looked_at_none_is_reaped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without `waitid` or `/proc`."""
    pid = orphan()
    await wait_until(lambda: is_zombie(pid))
    reaper = Reaper(Foreign("http://[::1]:1"), unclaimed_s=0)
    with monkeypatch.context() as patch:
        patch.delattr(os, "waitid")
        reaper.look()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "PROC", tmp_path)
        reaper.look()
    assert is_zombie(pid)
    reaper.look()
    assert not is_zombie(pid)
    reaper.look()


def test_in_a_thread_it_looks_now_and_then() -> None:
    """No signal can be heard there."""
    pid = orphan()

    async def reaped() -> None:
        async with reaping():
            await wait_until(lambda: processes.look_at(pid) is None)

    thread = threading.Thread(target=lambda: asyncio.run(reaped()))
    thread.start()
    thread.join()
    assert processes.look_at(pid) is None
