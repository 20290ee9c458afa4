"""Memory limits and out-of-memory kills of the container, on faked cgroup trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engines.child import container
from worker.engines.child.container import container_memory, oom_kills

GIB = 1 << 30


class Machine:
    """A machine of 64 GiB whose cgroup files a test writes."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "meminfo", f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\n")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def member(self, text: str) -> None:
        self.write(self.proc / "self" / "cgroup", text)

    def cgroup(self, path: str, text: str) -> None:
        self.write(self.cgroups / path, text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(container, "PROC", made.proc)
    monkeypatch.setattr(container, "CGROUPS", made.cgroups)
    return made


def test_a_container_of_its_own_namespace(machine: Machine) -> None:
    """cgroup v2: the root of what we see is our container."""
    machine.member("0::/\n")
    machine.cgroup("memory.max", f"{8 * GIB}\n")
    machine.cgroup("memory.events", "low 0\noom 2\noom_kill 3\noom_group_kill 9\n")
    assert container_memory() == 8 * GIB
    assert oom_kills() == 3


def test_the_least_limit_around_us_counts(machine: Machine) -> None:
    """Nested groups bound each other; ``max`` bounds nothing."""
    machine.member("0::/pod/container\n")
    machine.cgroup("pod/container/memory.max", "max\n")
    machine.cgroup("pod/memory.max", f"{4 * GIB}\n")
    machine.cgroup("memory.max", f"{6 * GIB}\n")
    machine.cgroup("pod/container/memory.events", "oom_kill 1\n")
    machine.cgroup("pod/memory.events", "oom_kill 7\n")
    assert container_memory() == 4 * GIB
    assert oom_kills() == 1


def test_the_older_cgroups(machine: Machine) -> None:
    """cgroup v1, seen from outside its namespace: the path is not there, its mount is."""
    machine.member("9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/docker/abc\n")
    machine.cgroup("memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    machine.cgroup("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert container_memory() == 2 * GIB
    assert oom_kills() == 5


def test_no_limit_is_the_machine(machine: Machine) -> None:
    """v1 writes a huge number for none; a limit above the machine's memory is none either."""
    machine.member("4:memory:/\n")
    machine.cgroup("memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert container_memory() == 64 * GIB
    machine.cgroup("memory/memory.limit_in_bytes", f"{100 * GIB}\n")
    assert container_memory() == 64 * GIB


def test_without_linux_the_system_is_asked(machine: Machine) -> None:
    """No `/proc`, no cgroups: the machine's memory by another way, and no count."""
    (machine.proc / "meminfo").unlink()
    assert container_memory() > 1 << 20
    assert oom_kills() is None
