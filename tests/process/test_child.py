"""The server as our child, with real processes: started, watched, ended, and started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.process.children import FOREVER, PLAIN, alive, child_of, python, said
from tests.support.waiting import wait_until
from worker.engines.child import container, open_process, processes
from worker.engines.child.marker import VARIABLE
from worker.errors import ConfigError, EngineCrashed
from worker.settings.groups import EngineSettings

SEGFAULT = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (python("print('bye')"), "ended by itself with exit code 0"),
        (python("raise SystemExit(3)"), "ended with exit code 3"),
        (python(SEGFAULT), "crashed with SIGSEGV"),
        (("sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"), "crashed with SIGSEGV, exit code 139"),
        (("sh", "-c", "kill -TERM $$"), "ended by SIGTERM"),
        (python(KILLED), "killed by SIGKILL from outside"),
    ],
)
async def test_ends_are_told_apart(command: tuple[str, ...], words: str) -> None:
    """Whoever waits for the end hears how it came, and it is remembered."""
    async with child_of(*command) as child:
        await child.start()
        how = await child.ended()
        assert how.startswith(words)
        assert child.end == how
        assert child.pid is None
        await child.stop()
        assert child.end == how


@pytest.mark.parametrize("script", [KILLED, "raise SystemExit(137)"])
async def test_a_kill_for_memory_is_named(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the container's count of such kills grew meanwhile."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    events = tmp_path / "memory.events"
    events.write_text("oom_kill 4\n")
    monkeypatch.setattr(container, "PROC", tmp_path)
    monkeypatch.setattr(container, "CGROUPS", tmp_path)
    async with child_of(*python(f"open({str(events)!r}, 'w').write('oom_kill 5\\n')\n{script}")) as child:
        await child.start()
        assert (await child.ended()).startswith("killed for memory by the kernel")


async def test_being_stopped_is_no_end_that_anybody_waits_for() -> None:
    """The end is ours, and who waits goes on to wait for the next start's."""
    async with child_of(*python(FOREVER)) as child:
        await child.start()
        waiting = asyncio.create_task(child.ended(), name="waiting")
        await said(child, "up")
        await child.stop()
        assert child.end == "stopped by the worker"
        await child.start()
        assert not child.end
        assert not waiting.done()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        assert (await waiting).startswith("killed by SIGKILL")


async def test_a_server_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    """It may save what it has."""
    saved = tmp_path / "saved"
    script = f"""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print('up', flush=True)
signal.sigwait([signal.SIGTERM])
open({str(saved)!r}, 'w').write('all')
"""
    async with child_of(*python(script)) as child:
        await child.start()
        await said(child, "up")
        await child.stop()
        assert saved.read_text() == "all"
        assert child.end == "stopped by the worker"


async def test_a_server_that_does_not_listen_is_killed() -> None:
    """After the grace, and a frozen one too."""
    async with child_of(*python(DEAF), grace=0.1) as child:
        for number in (signal.SIGCONT, signal.SIGSTOP):
            mark = child.log.mark()
            await child.start()
            pid = child.pid
            assert pid is not None
            await wait_until(partial(child.log.since, mark))
            os.kill(pid, number)
            await child.stop()
            assert not alive(pid)


async def test_starting_and_stopping_twice_is_starting_and_stopping_once() -> None:
    """At the same time too, and before any start."""
    async with child_of(*python(FOREVER)) as child:
        await child.stop()
        child.stop_at_once()
        assert (child.end, child.pid, child.memory(), child.stranger()) == (None, None, None, None)
        await asyncio.gather(child.start(), child.start())
        pid = child.pid
        await child.start()
        assert child.pid == pid
        await asyncio.gather(child.stop(), child.stop())
        assert child.end == "stopped by the worker"


async def test_a_stop_that_is_given_up_kills() -> None:
    """Who has no time for the grace leaves nothing behind all the same."""
    async with child_of(*python(DEAF)) as child:
        await child.start()
        await said(child, "up")
        pid = child.pid
        assert pid is not None
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await child.stop()
        await wait_until(lambda: not alive(pid))


async def test_a_worker_in_a_hurry_kills_at_once() -> None:
    """Without a turn of the loop."""
    async with child_of(*python(FOREVER)) as child:
        await child.start()
        pid = child.pid
        assert pid is not None
        child.stop_at_once()
        await wait_until(lambda: child.end == "stopped by the worker")
        assert not alive(pid)


def _held() -> tuple[int, int, int]:
    me = os.getpid()
    mine = [one for one in processes.table().values() if one.parent == me]
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(mine)  # noqa: PTH208


async def test_ten_restarts_leave_nothing_behind() -> None:
    """No descriptors, no threads, no processes; whether it was stopped or crashed."""
    async with child_of(*python(FOREVER)) as child:
        await child.start()
        await child.stop()
        before = _held()
        for number in range(10):
            await child.start()
            if number % 2:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                await child.ended()
            else:
                await said(child, "up")
            await child.stop()
        await wait_until(lambda: _held() == before)


async def test_the_environment_is_the_given_one() -> None:
    """And a marker; nothing of the worker's own, no descriptor, no input, a session of its own."""
    script = """
import json, os, sys
print(json.dumps(dict(os.environ)))
print('fds', sorted(int(name) for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}')))
print('input', repr(sys.stdin.read()))
print('session', os.getsid(0) == os.getpgid(0) == os.getpid())
"""
    given = {**PLAIN, "ONE": "1", "LC_CTYPE": "C.UTF-8"}
    async with child_of(*python(script), environment=given, address="http://[::1]:7999") as child:
        await child.start()
        await child.ended()
        environment, *rest = child.log.since(0)
        found = json.loads(environment)
        assert found.pop(VARIABLE).startswith("http://[::1]:7999 ")
        assert found == given
        assert rest == ["fds [0, 1, 2]", "input ''", "session True"]


def _score(pid: int | None) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_the_kernel_kills_the_server_before_us() -> None:
    """When memory runs out its score is the higher one."""
    async with child_of(*python(FOREVER)) as child:
        await child.start()
        assert _score(child.pid) == min(1000, _score(os.getpid()) + 500)


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("nosuch-server", None, "'nosuch-server' is not found"),
        ("./script", 0o644, "is not executable"),
        ("./script", 0o755, "cannot be run: No such file or directory"),
        ("./binary", 0o755, "cannot be run: Exec format error"),
    ],
)
async def test_a_command_that_cannot_be_run_is_the_operators_mistake(
    name: str, mode: int | None, reason: str, tmp_path: Path
) -> None:
    """Not there, no program, or one whose interpreter is not there: the variable and the reason are named."""
    if mode is not None:
        path = tmp_path / name
        path.write_bytes(b"#!/no/such/interpreter\n" if "script" in name else b"\x7fELFxx")
        path.chmod(mode)
        name = str(path)
    before = _held()
    async with child_of(name) as child:
        with pytest.raises(ConfigError, match="WORKER_ENGINE_COMMAND") as caught:
            await child.start()
        assert reason in caught.value.message
        assert child.end is None
    assert _held() == before


async def test_a_system_that_cannot_start_it_now_may_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more processes or memory is the node's fault, not the operator's."""

    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    async with child_of(*python(FOREVER)) as child:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "create_subprocess_exec", refuse)
            with pytest.raises(EngineCrashed, match="cannot be started now: Resource temporarily unavailable"):
                await child.start()
        await child.start()
        assert child.pid is not None


async def test_another_user_runs_it() -> None:
    """With his numbers and his names where we are root; else that is refused."""
    who = ("sh", "-c", "id -u; id -g; echo $HOME $USER $LOGNAME")
    async with child_of(*who, user="daemon:sys", environment={**PLAIN, "HOME": "/root"}) as child:
        if os.geteuid() != 0:
            with pytest.raises(ConfigError, match="WORKER_ENGINE_USER"):
                await child.start()
            return
        await child.start()
        assert await child.ended() == "ended by itself with exit code 0"
        assert child.log.since(0)[:2] == ("1", "3")
        assert child.log.since(0)[2].endswith(" daemon daemon")
        assert "/root" not in child.log.since(0)[2]


async def test_the_servers_memory_is_that_of_all_its_processes() -> None:
    """Anonymous memory of a child of it is counted; that of a mapped file is not."""
    size = 40 << 20
    script = f"""
import os, signal
if os.fork() == 0:
    held = bytearray(b'x' * {size})
    print('held', flush=True)
    signal.pause()
signal.pause()
"""
    async with child_of(*python(script)) as child:
        await child.start()
        await said(child, "held")
        assert size < (child.memory() or 0) < 3 * size


async def test_signals_reach_the_whole_group() -> None:
    """The server and its children; after its end nobody."""
    script = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.fork()
print('up', os.getpid(), flush=True)
signal.sigwait([signal.SIGUSR1])
print('heard', os.getpid(), flush=True)
signal.pause()
"""
    async with child_of(*python(script)) as child:
        await child.start()
        await wait_until(lambda: sum(line.startswith("up") for line in child.log.since(0)) == 2)
        child.send_signal(signal.SIGUSR1)
        await wait_until(lambda: sum(line.startswith("heard") for line in child.log.since(0)) == 2)
        await child.stop()
        child.send_signal(signal.SIGUSR1)


async def test_without_proc_it_works_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be told is None; its group is ended."""
    script = "import os\nos.fork()\n" + FOREVER
    async with child_of(*python(script)) as child:
        with monkeypatch.context() as patch:
            patch.setattr(processes, "PROC", tmp_path)
            await child.start()
            pid = child.pid
            assert pid is not None
            await wait_until(lambda: child.log.since(0) == ("up", "up"))
            assert (child.memory(), child.stranger(), child.listens_on()) == (None, None, ())
            await child.stop()
            assert child.end == "stopped by the worker"
        await wait_until(lambda: not any(one.group == pid and one.alive for one in processes.table().values()))


def test_the_settings_decide_whose_the_process_is() -> None:
    """Ours with a command, else one that something else started."""
    assert not open_process(EngineSettings(kind="sdnext"), {}).owned
    assert open_process(EngineSettings(kind="sdnext", command=("server",)), {}).owned
