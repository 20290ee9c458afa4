"""`sd-worker probe` and the process itself, as a container runtime sees them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.receiver import Answer, ScriptedServer

ROOT = Path(__file__).parents[2]
HEAVY = ("asyncio", "pydantic", "pydantic_settings", "typer", "rich", "structlog", "httpx", "worker.settings.groups")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


async def python(*argv: str, **environ: str) -> Ended:
    """Run Python until it ends by itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=ROOT, env={**clean, **environ}
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def probe(which: str, port: int, **environ: str) -> Ended:
    return await python("-m", "worker", "probe", which, WORKER_HTTP_PORT=str(port), **environ)


@pytest.mark.parametrize("which", ["startup", "live", "ready"])
async def test_a_daemon_that_says_yes_is_0(which: str) -> None:
    """Each probe asks for its own path, and nothing is printed."""
    async with ScriptedServer() as server:
        assert await probe(which, server.port) == (0, "", "")
    assert [request.path for request in server.requests] == [f"/{which}"]


async def test_a_daemon_that_says_no_is_1_with_its_reasons() -> None:
    """`kubectl describe` shows them; 127.0.0.1 is not asked for a second opinion."""
    async with ScriptedServer(Answer(503, body=b'{"reasons": ["engine_port_closed"]}')) as server:
        ended = await probe("ready", server.port)
    assert (ended.code, "engine_port_closed" in ended.err, len(server.requests)) == (1, True, 1)


async def test_no_daemon_is_1() -> None:
    """With the reason."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ended = await probe("live", unused.getsockname()[1])
    assert ended.code == 1
    assert "no answer" in ended.err


async def test_ipv4_is_tried_where_ipv6_refuses() -> None:
    """A kernel without IPv6 has a daemon on 127.0.0.1 alone."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        assert (await probe("live", server.sockets[0].getsockname()[1])).code == 0


@pytest.mark.parametrize(
    "deed", [Answer(hang=True), Answer(stall=True, body=b"x" * 10), Answer(raw=b"nonsense\r\n\r\n")]
)
async def test_a_daemon_that_does_not_answer_properly_is_1(deed: Answer) -> None:
    """The probe ends by itself, whatever it waits for."""
    async with ScriptedServer(deed) as server:
        assert (await probe("live", server.port)).code == 1


async def test_a_daemon_that_accepts_nobody_is_1() -> None:
    """Connecting is bounded too: a listener whose backlog is full lets connections hang."""
    loop = asyncio.get_running_loop()
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        first = sockets.enter_context(socket.socket())
        first.setblocking(False)
        await loop.sock_connect(first, address)
        ended = await probe("live", address[1], WORKER_HTTP_HOST="127.0.0.1")
    assert ended.code == 1


async def test_a_wrong_port_is_1() -> None:
    """A probe cannot say more than no; `check` tells the mistake."""
    ended = await python("-m", "worker", "probe", "live", WORKER_HTTP_PORT="http")
    assert (ended.code, ended.err) == (1, "WORKER_HTTP_PORT is no port\n")


async def test_a_probe_imports_almost_nothing() -> None:
    """It has a second on a busy node; pydantic alone would take a good part of it."""
    async with ScriptedServer() as server:
        script = (
            "import sys; from worker.__main__ import _run; code = _run(['probe', 'live']); print(code, *sys.modules)"
        )
        ended = await python("-c", script, WORKER_HTTP_PORT=str(server.port))
    code, *modules = ended.out.split()
    assert code == "0"
    assert not set(HEAVY) & set(modules)


async def test_the_exit_code_does_not_wait_for_threads() -> None:
    """An executor thread that hangs in somebody's network must not hold the process."""
    script = (
        "import threading, worker.cli as cli, worker.__main__ as entry\n"
        "def stuck(argv):\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"
        "    print('printed')\n"
        "    return 75\n"
        "cli.main = stuck\n"
        "entry.main()\n"
    )
    assert await python("-c", script) == (75, "printed\n", "")


async def test_a_bug_is_70_with_its_traceback_free_of_secrets() -> None:
    """What nobody foresaw is told on stderr, and is no usage error."""
    script = (
        "import worker.cli as cli, worker.__main__ as entry, worker.log as log\n"
        "def broken(argv):\n"
        "    log.hide(['hunt' + 'er2'])\n"
        "    raise RuntimeError('refused ' + 'hunt' + 'er2')\n"
        "cli.main = broken\n"
        "entry.main()\n"
    )
    ended = await python("-c", script)
    assert ended.code == 70
    assert ended.err.rstrip().endswith("RuntimeError: refused ***")


async def test_the_module_is_the_command() -> None:
    """`python -m worker` and `sd-worker` are one."""
    ended = await python("-m", "worker", "version")
    assert (ended.code, ended.out.split()[0]) == (0, "sd-worker")


async def test_a_probe_through_typer_answers_the_same() -> None:
    """Only the three names are answered before typer; the rest of its usage is typer's."""
    async with ScriptedServer(Answer(), Answer(503)) as server:
        ended = await python("-m", "worker", "probe", "--", "live", WORKER_HTTP_PORT=str(server.port))
        again = await python("-m", "worker", "probe", "--", "live", WORKER_HTTP_PORT=str(server.port))
    assert (ended.code, again.code) == (0, 1)
