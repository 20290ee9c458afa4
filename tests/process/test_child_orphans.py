"""No process is left over: whatever the server starts, however the worker ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.process.children import FAMILY, FOREVER, alive, child_of, numbers, python, said
from tests.support.waiting import wait_until
from tests.support.workshop import ROOT
from worker.simulators import free_port

CAP_SYS_PTRACE = 19
PR_CAPBSET_DROP = 24

SCRUBBED = FAMILY.replace(
    """            while True:
                signal.pause()
        os._exit""",
    """            os.execve('/bin/sleep', ['sleep', '600'], {})
        os._exit""",
)
"""Its daemon runs without any environment; nothing but its parent tells whose it is."""


class Worker:
    """A worker in a process of its own, which does what it is told."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process = process
        self.address = address

    async def tell(self, order: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{order}\n".encode())
        async with asyncio.timeout(20):
            return json.loads(await self.process.stdout.readline())

    async def family(self) -> dict[str, int]:
        """Start it, and wait until each of the server's processes has told its number."""
        await self.tell("start")

        async def complete() -> bool:
            return len(numbers(await self.tell("lines"))) == 3

        await wait_until(complete)
        return numbers(await self.tell("lines"))


@asynccontextmanager
async def working(*command: str, user: str = "", preexec: Callable[[], None] | None = None) -> AsyncIterator[Worker]:
    """It ends with its input at the end of the block, and stops its server."""
    address = f"http://[::1]:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.process.child_worker", address, user, *command),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=ROOT,
        preexec_fn=preexec,
    )
    try:
        yield Worker(process, address)
    finally:
        try:
            async with asyncio.timeout(10):
                await process.communicate(b"")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_nothing_that_a_server_started_outlives_it() -> None:
    """Neither its child nor a daemon that left its session, group and parent, and ignores SIGTERM."""
    async with child_of(*python(FAMILY)) as child:
        await child.start()
        await said(child, "server", "child", "daemon")
        family = numbers(child.log.since(0))
        assert all(map(alive, family.values()))
        await child.stop()
        assert not any(map(alive, family.values()))


async def test_nothing_outlives_a_server_that_was_killed() -> None:
    """The next start ends what its crash left behind."""
    async with child_of(*python(FAMILY)) as child:
        await child.start()
        await said(child, "server", "child", "daemon")
        family = numbers(child.log.since(0))
        os.kill(family["server"], signal.SIGKILL)
        await child.ended()
        assert alive(family["child"])
        assert alive(family["daemon"])
        await child.start()
        assert not any(map(alive, family.values()))


async def test_a_worker_in_a_hurry_leaves_nothing() -> None:
    """Also what can only be found by its environment."""
    async with child_of(*python(FAMILY)) as child:
        await child.start()
        await said(child, "server", "child", "daemon")
        family = numbers(child.log.since(0))
        child.stop_at_once()
        await wait_until(lambda: not any(map(alive, family.values())))


@pytest.mark.parametrize("order", ["stop", "kill"])
async def test_a_daemon_without_environment_is_found_by_its_parent(order: str) -> None:
    """The kernel gives the orphans of the server to the worker."""
    async with working(*python(SCRUBBED)) as worker:
        family = await worker.family()
        assert alive(family["daemon"])
        await worker.tell(order)
        await wait_until(lambda: not any(map(alive, family.values())))


async def test_the_server_dies_with_its_worker() -> None:
    """The kernel sees to it; what else is left, the next worker kills before it starts its own."""
    async with working(*python(FAMILY)) as first:
        family = await first.family()
        first.process.kill()
        await first.process.wait()
        await wait_until(lambda: not alive(family["server"]))
    async with child_of(*python(FOREVER), address=first.address) as second:
        await second.start()
        assert not any(map(alive, family.values()))
        assert second.pid is not None


async def test_the_server_of_another_worker_is_left_alone() -> None:
    """As long as that one lives."""
    async with working(*python(FAMILY)) as other:
        family = await other.family()
        async with child_of(*python(FOREVER)) as child:
            await child.start()
            await child.stop()
        assert all(map(alive, family.values()))
        await other.tell("stop")


async def test_orphans_are_buried() -> None:
    """They come to the worker, which takes their exit codes and nobody else's."""
    script = """
import os, signal, time
for _ in range(30):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os._exit(3)
        os._exit(0)
    os.wait()
print('server', os.getpid(), flush=True)
signal.pause()
"""
    async with working(*python(script)) as worker:
        await worker.tell("start")

        async def started() -> bool:
            return bool(await worker.tell("lines"))

        async def none_left() -> bool:
            return not await worker.tell("zombies")

        await wait_until(started)
        assert await worker.tell("codes") == list(range(20))
        await wait_until(none_left)
        assert await worker.tell("codes") == list(range(20))
        assert await worker.tell("stop") == "stopped by the worker"
        await wait_until(none_left)


async def test_signals_are_passed_on() -> None:
    """Those that mean nothing to a worker reach its server."""
    script = """
import signal
numbers = signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
print('up', flush=True)
while True: print('heard', signal.Signals(signal.sigwait(numbers)).name, flush=True)
"""
    async with working(*python(script)) as worker:
        await worker.tell("start")
        for number, count in ((signal.SIGHUP, 2), (signal.SIGUSR1, 3), (signal.SIGUSR2, 4)):

            async def heard(count: int = count) -> bool:
                return len(await worker.tell("lines")) == count

            await wait_until(lambda: worker.tell("lines"))
            worker.process.send_signal(number)
            await wait_until(heard)
        assert await worker.tell("lines") == ["up", "heard SIGHUP", "heard SIGUSR1", "heard SIGUSR2"]


def _drop_ptrace() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)


LISTENING = """
import signal, socket, sys
sys.stdout.write('')
server = socket.create_server(('::1', {port}), family=socket.AF_INET6)
print('server', flush=True)
signal.pause()
"""


async def test_root_without_all_rights_still_sees_a_server_of_another_user() -> None:
    """As in a container by default: its environment and its sockets are looked at with that user's eyes."""
    user = "daemon" if os.geteuid() == 0 else ""
    port = free_port()
    async with working(
        "/bin/sh", "-c", f'exec python3 -c "{LISTENING.format(port=port)}"', user=user, preexec=_drop_ptrace
    ) as worker:
        pid = await worker.tell("start")
        await wait_until(lambda: worker.tell("lines"))
        stranger, listens = await worker.tell("stranger")
        assert stranger is None
        assert pid in await worker.tell("marked")
        assert listens == [port]
        await worker.tell("stop")
        assert not alive(pid)
