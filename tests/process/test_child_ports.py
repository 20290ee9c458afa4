"""The port is the server's own: free before the start, and held by it afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from functools import partial

import pytest

from tests.process.children import PLAIN, child_of, python, said
from tests.support.waiting import wait_until
from tests.support.workshop import ROOT
from worker.engines.child import Foreign, processes
from worker.errors import ConfigError
from worker.simulators import free_port

SERVER = """
import os, signal, socket
{before}
server = socket.create_server(('{host}', {port}), family=socket.AF_INET6 if ':' in '{host}' else socket.AF_INET)
print('listening', flush=True)
while True: signal.pause()
"""


def server(port: int, host: str = "::1", before: str = "") -> tuple[str, ...]:
    return python(SERVER.format(port=port, host=host, before=before))


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "::", "0.0.0.0"])
async def test_a_port_that_is_taken_is_the_operators_mistake(host: str) -> None:
    """Whoever would answer instead of our server is named; with the port free it starts."""
    port = free_port()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    async with child_of(*server(port), address=f"http://[::1]:{port}") as child:
        with socket.create_server((host, port), family=family):
            with pytest.raises(ConfigError, match="WORKER_ENGINE_URL") as caught:
                await child.start()
            assert f"port {port} is held by {processes.look_at(os.getpid())}" in caught.value.message
            assert child.end is None
        await child.start()
        await said(child, "listening")


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "::"])
async def test_a_server_at_its_port_is_no_stranger(host: str) -> None:
    """Also when a child of it listens."""
    port = free_port()
    before = "if os.fork(): signal.pause()"
    async with child_of(*server(port, host, before), address=f"http://[::1]:{port}") as child:
        await child.start()
        assert child.stranger() is None
        await said(child, "listening")
        assert child.stranger() is None
        assert child.listens_on() == (port,)


async def test_a_port_that_was_taken_meanwhile_is_seen() -> None:
    """Its holder is named, and where the server went."""
    port = free_port()
    moved = free_port()
    async with child_of(*server(moved), address=f"http://[::1]:{port}") as child:
        await child.start()
        await said(child, "listening")
        with socket.create_server(("127.0.0.1", port)):
            own = processes.look_at(os.getpid())
            assert child.stranger() == f"port {port} is held by {own}; the server listens on {moved}"
            assert await asyncio.to_thread(child.stranger) == child.stranger()
        await child.stop()
        assert child.stranger() is None


async def test_a_server_that_took_the_next_port_is_seen() -> None:
    """As gradio does without a word, though its port is free by now."""
    port = free_port()
    script = SERVER.format(port="PORT", host="::1", before="").replace("'PORT'", "PORT")
    search = f"""
import socket
for PORT in range({port} + 1, {port} + 100):
    try: socket.create_server(('::1', PORT), family=socket.AF_INET6).close(); break
    except OSError: pass
"""
    async with child_of(*python(search + script), address=f"http://[::1]:{port}") as child:
        await child.start()
        await said(child, "listening")
        (moved,) = child.listens_on()
        assert child.stranger() == f"nothing listens on port {port}; the server listens on {moved}"


async def test_a_simulated_server_is_owned() -> None:
    """A real one, asynchronous and with packages: started, found at its port, stopped."""
    port = free_port()
    command = (sys.executable, "-m", "worker.simulators", "sdnext", "--port", str(port))
    environment = {**PLAIN, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    async with child_of(*command, environment=environment, address=f"http://[::1]:{port}") as child:
        for _ in range(2):
            mark = child.log.mark()
            await child.start()
            await wait_until(partial(child.log.since, mark), timeout=20)
            assert child.stranger() is None
            assert child.listens_on() == (port,)
            assert (child.memory() or 0) > 10 << 20
            foreign = Foreign(f"http://[::1]:{port}")
            assert (foreign.memory() or 0) > 10 << 20
            assert foreign.memory() is not None
            await child.stop()
            assert foreign.memory() is None
