"""What `sd-worker check` finds on this machine itself: disk, clock, GPU, and what an image must bring."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from worker.cli import launch
from worker.clock import CorrectedClock, SystemClock
from worker.errors import ConfigError, DownloadFailed
from worker.settings.groups import Settings
from worker.settings.source import server_environment
from worker.settings.units import size_text

RESERVE = 2_000_000_000
"""Bytes of the disk that stay free."""

OLDEST_GLIBC = (2, 28)
_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
_GB = 1_000_000_000


class Finding(NamedTuple):
    """What a try found; a ``note`` is worth knowing and no failure."""

    verdict: Literal["ok", "note", "FAILED"]
    text: str

    @classmethod
    def ok(cls, text: str) -> Finding:
        return cls("ok", text)

    @classmethod
    def note(cls, text: str) -> Finding:
        return cls("note", text)

    @classmethod
    def failed(cls, text: str) -> Finding:
        return cls("FAILED", text)


def disk(settings: Settings) -> Finding:
    """The free space where images or the queue are written, beside what WORKER_DISK_SIZE says."""
    folder = _existing(settings.storage.directory)
    free = shutil.disk_usage(folder).free
    said = f"{free / _GB:.1f} GB free at {folder}, WORKER_DISK_SIZE={size_text(settings.node.disk_size)}"
    if free < RESERVE:
        return Finding.failed(f"{said}: less than the {size_text(RESERVE)} that must stay free")
    return Finding.ok(said) if free >= settings.node.disk_size - RESERVE else Finding.note(said)


async def clock_offset(settings: Settings) -> Finding:
    """How far this clock is from that of the store. What runs on this machine has the same clock."""
    from worker import http

    url = settings.storage.endpoint_url or "https://s3.amazonaws.com"
    if settings.store.chosen == "s4":
        url = settings.salad.storage_uri
    elif settings.store.chosen != "s3":
        return Finding.note("nothing to compare with: images stay on this machine")
    clock = CorrectedClock(SystemClock())
    async with http.client(timeout=timedelta(seconds=10), loopback=http.is_loopback(url)) as client:
        try:
            with http.translating(DownloadFailed, url=url):
                response = await client.head(url)
        except DownloadFailed as error:
            return Finding.note(f"nothing to compare with: {error.message}")
    if "date" not in response.headers:
        return Finding.note(f"nothing to compare with: {http.shown(url)} sends no Date")
    http.observe_date(response, clock)
    if not clock.offset:
        return Finding.ok(f"agrees with {http.shown(url)}")
    text = f"off by {clock.offset.total_seconds():.0f} s from {http.shown(url)}; signatures are corrected"
    return Finding.note(text)


async def gpu() -> Finding:
    """What nvidia-smi lists, where there is such a command."""
    if shutil.which(_NVIDIA[0]) is None:
        return Finding.note("none found (no nvidia-smi)")
    process = await asyncio.create_subprocess_exec(
        *_NVIDIA, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = "; ".join(output.decode("utf-8", "replace").split("\n")).strip("; ")
    if process.returncode:
        return Finding.failed(f"nvidia-smi ended with {process.returncode}: {said[:200]}")
    return Finding.ok(said) if said else Finding.note("none found")


def image_findings(settings: Settings) -> Iterator[tuple[str, Finding]]:
    """What can be known while an image is built, without server, queue or store."""
    yield "libc", _libc()
    yield "user", _user()
    if settings.queue.kind == "sqlite":
        yield "queue", writable(settings.queue.sqlite_path.parent)
    if settings.store.chosen == "directory":
        yield "storage", writable(settings.storage.directory)
    yield "temp", writable(Path(tempfile.gettempdir()))
    yield "port", _port(settings.http.host, settings.http.port)
    if settings.engine.command:
        yield "command", _command(settings)
        yield "server", _server_port(settings)


def _command(settings: Settings) -> Finding:
    """Whether the server's command, the script and the Python that it names, and its user are there."""
    from worker.engines.child import open_process

    command, environment = settings.engine.command, server_environment(settings.engine.env)
    try:
        program = open_process(settings.engine, environment).check()
    except ConfigError as error:
        return Finding.failed(error.message)
    for name in launch.interpreters_of(command):
        if shutil.which(name, path=environment.get("PATH", os.defpath)) is None:
            return Finding.failed(f"{name!r} is not found")
    script = launch.script_of(command)
    if script is not None and not Path(script).is_file():
        return Finding.failed(f"{script!r} is not found in {Path.cwd()}: is this the image of that server?")
    return Finding.ok(", ".join(filter(None, (program, script))))


def _server_port(settings: Settings) -> Finding:
    """Whether the server listens where the worker looks for it, and not where the worker itself listens."""
    told, looked = launch.port_of(settings.engine.command), [_port_of(url) for url in settings.engine.addresses]
    if told is not None and told not in looked:
        said = f"is told port {told}, the worker looks for it at {' and '.join(settings.engine.addresses)}"
        return Finding.failed(f"{said} (WORKER_ENGINE_URL)")
    if settings.http.port and settings.http.port in looked:
        return Finding.failed(f"port {settings.http.port} is the worker's own (WORKER_HTTP_PORT)")
    return Finding.ok(f"looked for at {' and '.join(settings.engine.addresses)}")


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _libc() -> Finding:
    name, version = platform.libc_ver()
    if name != "glibc":
        return Finding.note(f"{name or 'not glibc'} {version}: not what the images are tested with")
    is_old = tuple(int(part) for part in version.split(".")[:2]) < OLDEST_GLIBC
    return (Finding.failed if is_old else Finding.ok)(f"glibc {version}")


def _user() -> Finding:
    """Who this is; servers keep caches in their home."""
    who = f"uid {os.getuid()}{' (root)' if os.getuid() == 0 else ''}"
    try:
        found = writable(Path.home())
    except RuntimeError:
        return Finding.note(f"{who}, which has no home")
    return Finding.ok(who) if found.verdict == "ok" else Finding.note(f"{who}; its home: {found.text}")


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def writable(folder: Path) -> Finding:
    """Whether this user can write into a folder, or make it."""
    existing = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding.failed(f"{existing} cannot be written to: {error.strerror}")
    return Finding.ok(
        f"{folder.absolute()} can be written{'' if existing == folder.absolute() else ' once it is made'}"
    )


def _port(host: str, port: int) -> Finding:
    """Whether it can be listened on; `::` falls back to IPv4 where the kernel has no IPv6, as the daemon does."""
    reason = ""
    for tried in (host, "0.0.0.0") if host == "::" else (host,):  # noqa: S104
        try:
            family = socket.getaddrinfo(tried, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            with socket.socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((tried, port))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno == errno.EADDRINUSE:
                break
        else:
            return Finding.ok(f"{tried} port {port} is free")
    return Finding.failed(f"{host} port {port}: {reason}")
