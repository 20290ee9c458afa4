"""A container of an image: its own processes, its own root, the image's user, variables and entrypoint."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.images.store import Store

END_S = 60.0

_ENTER = """
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --rbind /sys "$1/sys"
exec chroot --userspec="$2" "$1" /usr/bin/env -i --chdir="$3" "${@:4}"
"""
"""Every step replaces the one before, so that the image's entrypoint is process 1."""


@dataclass(frozen=True)
class Seen:
    """A process as /proc of the host shows it."""

    pid: int
    parent: int
    state: str
    name: str


class Box:
    """Runs on the writable layer of one container, any number of times, one after the other."""

    def __init__(self, store: Store, tag: str) -> None:
        self._store = store
        self.config = store.config(tag)
        self.name = store.run("from", "--pull-never", tag)
        self.root = Path(store.run("mount", self.name))
        self._unshared: subprocess.Popen[bytes] | None = None
        self.log = store.folder / f"{self.name}.log"

    @property
    def user(self) -> str:
        """As chroot takes it."""
        user = self.config.get("User") or "0"
        return user if ":" in user else f"{user}:{user}"

    @property
    def variables(self) -> dict[str, str]:
        """Of the image."""
        return dict(word.split("=", 1) for word in self.config["Env"])

    def start(self, variables: Mapping[str, str] | None = None, command: Sequence[str] | None = None) -> None:
        """Run the entrypoint with the image's command, or with another one; output goes to ``log``."""
        words = [*self.config["Entrypoint"], *(command or self.config["Cmd"])]
        namespaces = ("unshare", "--fork", "--kill-child", "--pid", "--mount", "--ipc", "--uts")
        inside = [
            "bash",
            "-c",
            _ENTER,
            "enter",
            *self._where(),
            *_assigned(self.variables | dict(variables or {})),
            *words,
        ]
        with self.log.open("wb") as out:
            self._unshared = subprocess.Popen([*namespaces, *inside], stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Another program in the running container, as `docker exec` has it."""
        inside = [
            "chroot",
            f"--userspec={self.user}",
            "/",
            "/usr/bin/env",
            "-i",
            *_assigned(self.variables | variables),
            *words,
        ]
        command = ["nsenter", f"--target={self.pid}", "--pid", "--mount", f"--root=/proc/{self.pid}/root", *inside]
        return subprocess.run(command, capture_output=True, text=True, timeout=END_S)

    @property
    def pid(self) -> int:
        """Process 1 as the host numbers it."""
        if self._unshared is None:
            raise ValueError("not started")
        (child,) = _children(self._unshared.pid)
        return child

    @property
    def runs(self) -> bool:
        return self._unshared is not None and self._unshared.poll() is None

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def processes(self) -> dict[int, Seen]:
        """All that runs in the container, process 1 among them."""
        space = _space_of(self.pid)
        return {one.pid: one for one in _all_seen() if _space_of(one.pid) == space}

    def signal(self, number: signal.Signals) -> None:
        """As the platform sends it: to process 1 alone."""
        os.kill(self.pid, number)

    def ended(self) -> int:
        """Wait for the end; the exit code, any but 0 for a signal."""
        if self._unshared is None:
            raise ValueError("not started")
        code = self._unshared.wait(END_S)
        self._unshared = None
        return code

    def close(self) -> None:
        """Kill what runs, and remove the container."""
        if self._unshared is not None:
            self._unshared.kill()
            self._unshared.wait(END_S)
        self._store.run("umount", self.name)
        self._store.run("rm", self.name)

    def _where(self) -> Iterator[str]:
        yield from (str(self.root), self.user, self.config["WorkingDir"])


def environment(pid: int) -> dict[str, str]:
    """A process's own."""
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def status(pid: int, field: str) -> str:
    """A line of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def listeners(pid: int, port: int) -> set[str]:
    """The addresses that are listened on at this port in a process's network, as the kernel writes them."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            address, _, number = line.split()[1].rpartition(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                found.add(address)
    return found


def _assigned(variables: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _space_of(pid: int) -> int:
    """Which processes it sees: a number that no two such spaces share."""
    try:
        return Path(f"/proc/{pid}/ns/pid").stat().st_ino
    except OSError:
        return 0


def _all_seen() -> Iterator[Seen]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (seen := _seen(folder)) is not None:
            yield seen


def _seen(folder: Path) -> Seen | None:
    try:
        name, _, rest = folder.joinpath("stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return None
    words: list[Any] = rest.split()
    return Seen(int(folder.name), int(words[1]), words[0], name)
