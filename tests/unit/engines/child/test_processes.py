"""Processes as `/proc` shows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.engines.child import kernel, marker, processes
from worker.engines.child.foreign import Foreign
from worker.engines.child.marker import Marker, leftovers, own_marker, parse_marker
from worker.engines.child.processes import Seen, parse_stat, parse_status, with_descendants

STAT = "41 (a (b) c) S 7 41 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 20 18446744073709551615"


def seen(pid: int, parent: int, state: str = "S", session: int = 1) -> Seen:
    return Seen(pid, f"p{pid}", state, parent, session, session, pid)


def test_a_name_may_hold_blanks_and_parentheses() -> None:
    """The fields behind it are still found."""
    assert parse_stat(STAT) == Seen(41, "a (b) c", "S", 7, 41, 41, 98765)


def test_a_zombie_is_not_alive() -> None:
    """It holds nothing but its number."""
    assert [seen(1, 0, state).alive for state in "SRDTtZXx"] == [True] * 5 + [False] * 3


def test_descendants_are_found_through_all_generations() -> None:
    """And only from roots that exist; a circle ends."""
    among = {one.pid: one for one in (seen(1, 0), seen(2, 1), seen(3, 2), seen(4, 1), seen(5, 6), seen(6, 5))}
    assert with_descendants({2}, among) == {2, 3}
    assert with_descendants({1, 99}, among) == {1, 2, 3, 4}
    assert with_descendants({5}, among) == {5, 6}


def test_memory_that_the_kernel_can_drop_is_not_counted() -> None:
    """Anonymous and shared, not mapped files; none for a zombie."""
    status = "Name:\tx\nVmRSS:\t  600 kB\nRssAnon:\t  100 kB\nRssFile:\t  400 kB\nRssShmem:\t  50 kB\n"
    assert parse_status(status) == 150 * 1024
    assert parse_status("Name:\tx\nState:\tZ\n") is None
    assert processes.memory_of([]) is None
    assert (processes.memory_of([os.getpid(), 2**22 + 1]) or 0) > 1 << 20


def test_a_system_without_proc_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No error either."""
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    assert processes.table() == {}
    assert not processes.visible()
    assert processes.look_at(os.getpid()) is None
    assert processes.variable_of(os.getpid(), "PATH") is None
    assert processes.memory_of([os.getpid()]) is None
    assert own_marker("http://x").started == 0
    assert Foreign("http://[::1]:7860").memory() is None


def test_a_number_that_was_given_away_is_another_process() -> None:
    """The time of its start tells; nothing is killed then."""
    own = processes.look_at(os.getpid())
    assert own is not None
    assert processes.is_same(own)
    other = Seen(own.pid, own.name, own.state, own.parent, own.group, own.session, own.started + 1)
    assert not processes.is_same(other)
    processes.kill(other)


def test_a_marker_is_read_as_it_was_written() -> None:
    """What no worker wrote is none."""
    mine = own_marker("http://[::1]:7860")
    assert parse_marker(str(mine)) == mine
    assert [parse_marker(text) for text in (None, "", "x", "a b c d", "a b 1 d", "a b 1 2 3")] == [None] * 6


def test_a_marker_is_orphaned_only_for_certain() -> None:
    """Its worker runs, is gone, was followed by another of its number, or counts in a namespace that we cannot see."""
    mine = own_marker("x")
    assert not mine.is_orphaned
    assert Marker("x", mine.space, 2**22 + 1, 1).is_orphaned
    assert Marker("x", mine.space, mine.worker, mine.started - 1).is_orphaned
    assert not Marker("x", "pid:[1]", 2**22 + 1, 1).is_orphaned


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable of our own: the workers of tests that run beside this one kill what is marked as orphaned."""
    name = f"SD_WORKER_SERVER_{os.getpid()}"
    monkeypatch.setattr(marker, "VARIABLE", name)
    return name


def test_we_are_never_a_leftover_ourselves(variable: str) -> None:
    """A worker that was started from within an orphaned server spares itself and those that it comes from."""
    script = (
        "import os, sys\n"
        "from worker.engines.child import marker, processes\n"
        f"marker.VARIABLE = {variable!r}\n"
        "found = marker.leftovers(marker.own_marker('y'), processes.table())\n"
        "print(sorted(one.pid for one in found if one.pid in (os.getpid(), os.getppid())))\n"
    )
    gone = Marker("x", own_marker("x").space, 2**22 + 1, 1)
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"]
    answer = subprocess.run(
        command, env={**os.environ, variable: str(gone)}, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "[]\n"


def test_the_servers_of_living_workers_are_no_leftovers(variable: str) -> None:
    """Those of a worker that is gone are, wherever they listened."""
    own = own_marker("x")
    with subprocess.Popen(["sleep", "60"], env={variable: str(Marker("z", own.space, 2**22 + 1, 1))}) as gone:
        with subprocess.Popen(["sleep", "60"], env={variable: str(own)}) as ours:
            found = {one.pid for one in leftovers(Marker("y", own.space, own.worker, own.started), processes.table())}
            same = {one.pid for one in leftovers(own, processes.table())}
            ours.kill()
        gone.kill()
    assert gone.pid in found
    assert ours.pid not in found
    assert {gone.pid, ours.pid} <= same


def test_another_system_does_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders to a Linux kernel are given to no other."""
    monkeypatch.setattr(kernel, "_linux", lambda: False)
    assert not kernel.become_subreaper()
    assert not kernel.adopts()
    kernel.dies_with_parent()()


async def test_what_something_else_started_is_only_watched() -> None:
    """Starting, stopping and killing do nothing; only the memory of a server on this machine can be told."""
    foreign = Foreign("http://gpu.example:7860")
    await foreign.start()
    await foreign.stop()
    foreign.stop_at_once()
    assert (foreign.owned, foreign.end, foreign.stranger(), foreign.memory()) == (False, None, None, None)
    assert foreign.log.since(foreign.log.mark()) == ()
