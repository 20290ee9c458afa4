"""`python -m benchmarks.models_download`: how fast a model file comes over loopback, beside the usual tools.

Every contestant runs as a process of its own against the same server and writes into the same folder. Seconds of
Python contestants are those of the transfer, without the interpreter's start; processor time and peak memory are
the whole process's. Ours always computes SHA-256; "without sha256" is there for the figure only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MB = 1_000_000
SLICE = 1 << 22
CONNECTIONS = 8
CHECKED = "curl, then sha256sum"
"""What one would do by hand for what ours does in one go."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Seconds of wall and processor, peak resident megabytes."""

    seconds: float
    cpu_s: float
    peak_mb: float


class Server(threading.Thread):
    """Serves one file by ``sendfile``, ranges included; ``rate`` in bytes a second of each connection, 0 for any."""

    def __init__(self, path: Path, rate: int) -> None:
        super().__init__(name="server", daemon=True)
        self._path, self._rate = path, rate
        self._listening = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=64)
        self.port: int = self._listening.getsockname()[1]

    def run(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            connection,
            self._path.open("rb") as file,
            contextlib.suppress(ConnectionError),
            connection.makefile("rb") as lines,
        ):
            while request := lines.readline():
                headers = dict(self._header(line) for line in iter(lines.readline, b"\r\n"))
                start, end = self._answered(connection, headers)
                if not request.startswith(b"HEAD"):
                    self._send(connection, file.fileno(), start, end)

    @staticmethod
    def _header(line: bytes) -> tuple[str, str]:
        name, _, value = line.decode("latin-1").partition(":")
        return name.lower(), value.strip()

    def _answered(self, connection: socket.socket, headers: dict[str, str]) -> tuple[int, int]:
        size = self._path.stat().st_size
        first, _, last = headers.get("range", "bytes=0-").partition("=")[2].partition("-")
        start, end = int(first), min(int(last) + 1, size) if last else size
        status = "206 Partial Content" if "range" in headers else "200 OK"
        told = [
            *(f"HTTP/1.1 {status}", 'ETag: "one"', "Accept-Ranges: bytes", "Content-Type: application/octet-stream"),
            f"Content-Length: {end - start}",
            *([f"Content-Range: bytes {start}-{end - 1}/{size}"] if "range" in headers else []),
        ]
        connection.sendall("\r\n".join([*told, "", ""]).encode())
        return start, end

    def _send(self, connection: socket.socket, fd: int, start: int, end: int) -> None:
        step = self._rate // 50 or SLICE
        due = time.monotonic()
        while start < end:
            start += os.sendfile(connection.fileno(), fd, start, min(end - start, step))
            if self._rate:
                due += step / self._rate
                time.sleep(max(0.0, due - time.monotonic()))


@contextlib.contextmanager
def serving(path: Path, rate: int) -> Iterator[str]:
    """The file's URL, served by another process."""
    command = [sys.executable, "-m", "benchmarks.models_download", "--serve", str(path), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603
        try:
            told = b"" if process.stdout is None else process.stdout.readline()
            yield f"http://[::1]:{int(told)}/model.bin"
        finally:
            process.kill()


async def ours(url: str, out: Path, *, hashed: bool) -> float:
    """Seconds that our own fetcher takes."""
    from worker.clock import SystemClock
    from worker.models.base import Location, Wanted
    from worker.models.download import Downloads
    from worker.settings.models import ModelsSettings
    from worker.urls import Guard

    if not hashed:
        hashlib.sha256 = _Unhashed  # type: ignore[assignment]

    async def locate() -> AsyncIterator[Location]:
        yield Location(url, "the benchmark")

    async def room(total: int) -> None:
        return None

    settings = ModelsSettings(connections=CONNECTIONS)
    downloads = Downloads(settings, Guard(), clock=SystemClock(), rng=random.Random(1))
    began = time.perf_counter()
    await downloads.fetch(locate, out, Wanted("checkpoint", "model.dat"), room=room, on_bytes=lambda there, size: None)
    took = time.perf_counter() - began
    await downloads.aclose()
    return took


class _Unhashed:
    """Stands in for a hash, to show what it costs."""

    def update(self, data: Any) -> None: ...

    def hexdigest(self) -> str:
        return ""


def hugging_face(url: str, out: Path) -> float:
    """Seconds that `huggingface_hub`'s own downloader takes for the same URL, over one connection as it does."""
    from huggingface_hub.file_download import http_get  # type: ignore[import-not-found]

    began = time.perf_counter()
    with out.open("wb") as file:
        http_get(url, file)
    return time.perf_counter() - began


async def by_httpx(url: str, out: Path) -> float:
    """Seconds of the plain way in Python: a stream of httpx over one connection, written as it comes."""
    import httpx

    began = time.perf_counter()
    async with httpx.AsyncClient(trust_env=False) as client, client.stream("GET", url) as response:
        with out.open("wb", buffering=0) as file:
            async for chunk in response.aiter_raw():
                file.write(chunk)
    return time.perf_counter() - began


def bare(source: Path, out: Path) -> float:
    """Seconds of copying the bytes from memory into the file: no network, no hash."""
    buffer = memoryview(bytearray(1 << 20))
    began = time.perf_counter()
    with source.open("rb", buffering=0) as file, out.open("wb", buffering=0) as copy:
        while count := file.readinto(buffer):
            copy.write(buffer[:count])
    return time.perf_counter() - began


def contestants(source: Path, out: Path, url: str, hub: str) -> dict[str, list[str]]:
    """Name to command; what is not installed is left out, and said."""
    us = [sys.executable, "-m", "benchmarks.models_download", "--one"]
    found = {
        "copy in memory": [*us, "bare", str(source), str(out)],
        "ours": [*us, "ours", url, str(out)],
        "ours without sha256": [*us, "unhashed", url, str(out)],
        "httpx": [*us, "httpx", url, str(out)],
        "curl": ["curl", "--silent", "--globoff", "--fail", "--output", str(out), url],
        CHECKED: ["sh", "-c", 'curl -sgf -o "$0" "$1" && sha256sum "$0" >&2', str(out), url],
        "wget": ["wget", "--quiet", "--output-document", str(out), url],
        f"aria2c -x{CONNECTIONS}": [
            *("aria2c", f"-x{CONNECTIONS}", f"-s{CONNECTIONS}", "-k1M", "--file-allocation=none", "--quiet=true"),
            *("--allow-overwrite=true", f"--dir={out.parent}", f"--out={out.name}", url),
        ],
        "huggingface_hub": [hub, *us[1:], "hf", url, str(out)],
    }
    missing = {name for name, command in found.items() if shutil.which(command[0]) is None}
    if hub == sys.executable and find_spec("huggingface_hub") is None:
        missing.add("huggingface_hub")
    for name in sorted(missing):
        print(f"not installed here: {name}")
    return {name: command for name, command in found.items() if name not in missing}


def measured(command: list[str], out: Path) -> Figure:
    """Run it once, from nothing."""
    out.unlink(missing_ok=True)
    peak_mb = 0.0
    with tempfile.TemporaryFile() as told:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.DEVNULL)  # noqa: S603
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}")
        told.seek(0)
        inner = told.read().strip()
    seconds = json.loads(inner) if inner else seconds
    return Figure(seconds, used.ru_utime + used.ru_stime, peak_mb)


def _peak_mb(pid: int) -> float:
    """Since the program itself began, unlike what `wait4` tells; 0 when it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def compare(folder: Path, size: int, rate: int, rounds: int, hub: str) -> dict[str, Figure]:
    """The best of so many rounds of each, in turn."""
    source, out = folder / "source.bin", folder / "out.bin"
    if not source.exists():
        with source.open("wb") as file:
            for seed in range(0, size, 10 * MB):
                file.write(random.Random(seed).randbytes(min(10 * MB, size - seed)))
    found: dict[str, Figure] = {}
    with serving(source, rate) as url:
        commands = contestants(source, out, url, hub)
        for _ in range(rounds):
            for name, command in commands.items():
                figure = measured(command, out)
                if name not in found or figure.seconds < found[name].seconds:
                    found[name] = figure
                same = out.stat().st_size == size
                if not same:
                    raise RuntimeError(f"{name} brought {out.stat().st_size} bytes of {size}")
    out.unlink(missing_ok=True)
    return found


def show(title: str, size: int, found: dict[str, Figure]) -> None:
    print(f"\n{title}\n{'':>22}{'MB/s':>9}{'seconds':>10}{'cpu s':>8}{'peak MB':>10}")
    for name, one in sorted(found.items(), key=lambda item: item[1].seconds):
        print(f"{name:>22}{size / MB / one.seconds:>9.0f}{one.seconds:>10.2f}{one.cpu_s:>8.2f}{one.peak_mb:>10.0f}")
    others = [one.seconds for name, one in found.items() if not name.startswith(("ours", "copy", CHECKED))]
    if others:
        for name in ("ours", "ours without sha256"):
            print(f"{name} takes {found[name].seconds / min(others):.2f} of the time of the best other")
    if CHECKED in found:
        print(f"ours takes {found['ours'].seconds / found[CHECKED].seconds:.2f} of the time of {CHECKED}")


def one(kind: str, source: str, out: Path) -> None:
    """Run one of the Python contestants and print its seconds."""
    match kind:
        case "bare":
            seconds = bare(Path(source), out)
        case "hf":
            seconds = hugging_face(source, out)
        case "httpx":
            seconds = asyncio.run(by_httpx(source, out))
        case _:
            seconds = asyncio.run(ours(source, out, hashed=kind == "ours"))
    print(json.dumps(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models_download", description=__doc__)
    parser.add_argument("--size", type=int, default=1000, help="of the file, in MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=50, help="MB a second of each connection of the slow server")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if left out")
    parser.add_argument("--hub", default=sys.executable, help="a Python that has huggingface_hub")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        server = Server(Path(asked.serve[0]), int(asked.serve[1]))
        print(server.port, flush=True)
        server.run()
    elif asked.one:
        one(asked.one[0], asked.one[1], Path(asked.one[2]))
    else:
        with tempfile.TemporaryDirectory(prefix="models-download-", dir=asked.folder) as name:
            for title, rate in (("a fast server", 0), (f"{asked.rate} MB/s a connection", asked.rate * MB)):
                show(title, asked.size * MB, compare(Path(name), asked.size * MB, rate, asked.rounds, asked.hub))


if __name__ == "__main__":
    main()
