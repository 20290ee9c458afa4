"""Memory limits and out-of-memory kills of the container, on faked cgroup trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.engines.child import container
from worker.engines.child.container import account, container_memory, oom_kills

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


def test_what_makes_way_does_not_count_as_held(machine: Machine) -> None:
    """Loading models fills a container's account to its limit with files that were read; these are dropped for free."""
    machine.member("0::/pod/container\n")
    machine.cgroup("pod/container/memory.current", "1\n")
    machine.cgroup("pod/memory.max", "1000\n")
    machine.cgroup("pod/memory.current", "990\n")
    machine.cgroup("pod/memory.stat", "anon 300\nfile 690\ninactive_file 500\nactive_file 150\nslab x\n")
    machine.cgroup("pod/memory.events", "oom_kill 2\n")
    found = account()
    assert (found.held(), found.oom_kills()) == ((340, 1000), 2)
    machine.cgroup("pod/memory.events", "oom_kill 3\n")
    assert found.oom_kills() == 3


def test_what_is_held_by_the_older_cgroups(machine: Machine) -> None:
    """v1 sums over the groups below, under other names."""
    machine.member("4:memory:/\n")
    machine.cgroup("memory/memory.limit_in_bytes", "1000\n")
    machine.cgroup("memory/memory.usage_in_bytes", "700\n")
    machine.cgroup("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n")
    assert account().held() == (550, 1000)


def test_without_a_limit_the_machine_is_asked(machine: Machine) -> None:
    """What it has available is not held; where nobody can tell, nothing is known."""
    machine.member("0::/\n")
    machine.cgroup("memory.max", "max\n")
    assert account().held() is None
    machine.write(machine.proc / "meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    assert account().held() == (600 * 1024, 1000 * 1024)
    machine.cgroup("memory.max", "5000\n")
    assert account().held() is None


def test_one_account_is_told_from_another(machine: Machine) -> None:
    """A container that was made anew counts anew; without a count there is nothing to tell."""
    machine.member("0::/\n")
    assert (account().identity, account().oom_kills()) == ("", None)
    machine.cgroup("memory.events", "oom_kill 0\n")
    first = account()
    assert first.identity == account().identity != ""
    machine.cgroups.rename(machine.cgroups.with_name("gone"))
    assert first.identity == ""
