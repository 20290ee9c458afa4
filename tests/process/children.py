"""Servers made of a few lines, for tests of the process that a worker owns."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

from tests.support.waiting import wait_until
from worker.engines.child import Child, processes
from worker.engines.child.marker import VARIABLE
from worker.simulators import free_port

PLAIN = {"PATH": os.environ.get("PATH", os.defpath)}
FOREVER = "import signal\nprint('up', flush=True)\nwhile True: signal.pause()\n"

FAMILY = """
import os, signal, sys

def daemon(name):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(name, os.getpid(), flush=True)
            while True:
                signal.pause()
        os._exit(0)
    os.wait()

def child(name):
    if os.fork() == 0:
        print(name, os.getpid(), flush=True)
        while True:
            signal.pause()

child("child")
daemon("daemon")
print("server", os.getpid(), flush=True)
while True:
    signal.pause()
"""
"""A server with a child, and a daemon that left its session and ignores SIGTERM; each prints its number."""


def python(script: str) -> tuple[str, ...]:
    """The command of a small server; it starts quickly since it imports no packages."""
    return sys.executable, "-I", "-S", "-c", script


@asynccontextmanager
async def child_of(
    *command: str,
    environment: Mapping[str, str] = PLAIN,
    address: str | None = None,
    user: str | None = None,
    grace: float = 10.0,
) -> AsyncIterator[Child]:
    """A child not yet started; what is left of it at the end of the block is ended."""
    url = address or f"http://[::1]:{free_port()}"
    child = Child(command, environment, [url], user=user, grace=timedelta(seconds=grace))
    try:
        yield child
    finally:
        await child.stop()


async def said(child: Child, *words: str) -> None:
    """Wait until it has printed lines that begin with these words."""
    await wait_until(lambda: all(any(line.startswith(word) for line in child.log.since(0)) for word in words))


def numbers(lines: Iterable[str]) -> dict[str, int]:
    """What `FAMILY` printed: who has which number."""
    return {name: int(number) for name, _, number in (line.partition(" ") for line in lines) if number.isdecimal()}


def alive(pid: int) -> bool:
    seen = processes.look_at(pid)
    return seen is not None and seen.alive


def marked_for(address: str) -> list[int]:
    """Whatever runs with the marker of a server of this address."""
    found = {pid: processes.variable_of(pid, VARIABLE) or "" for pid, one in processes.table().items() if one.alive}
    return [pid for pid, text in found.items() if text.startswith(f"{address} ")]
