"""The server as our child: started, watched, and ended with all that it has started."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import structlog

from worker.engines.base import ServerLog
from worker.engines.child import container, ending, kernel, marker, ports, processes
from worker.engines.child.account import Account, account_of
from worker.engines.child.printed import Printed
from worker.engines.child.processes import Seen, Table
from worker.errors import ConfigError, EngineCrashed, FieldError, WorkerError
from worker.tasks import cancel_all

log = structlog.get_logger(__name__)

GRACE = timedelta(seconds=10)
"""From SIGTERM to SIGKILL."""

KILL_S = 5.0
LOOK_FIRST_S, LOOK_MOST_S = 0.01, 0.2
SWEEPS = 5
SACRIFICE = 500
"""Added to the kernel's score for who is killed first when memory runs out: the server, not us."""

OOM_SCORE_MOST = 1000

UNUSABLE = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP, errno.E2BIG})
"""What the system says of a command that no later try makes better."""


class Child:
    """The Protocol `Process` for a server that the worker starts and owns.

    ``addresses`` are the URLs where it is to listen; the first names it to workers after us. ``user`` is
    ``user`` or ``user:group``. Use it from one event loop, in a thread that lives as long as the worker: the
    kernel kills the server when that thread is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        addresses: Sequence[str],
        *,
        user: str | None = None,
        grace: timedelta = GRACE,
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        self._places = tuple(ports.place_of(address) for address in addresses)
        self._marker = marker.own_marker(addresses[0])
        self._user = user
        self._grace_s = grace.total_seconds()
        self._printed = Printed()
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._seen: Seen | None = None
        self._kills: int | None = None
        self._asked = False
        self._end: str | None = None
        self._crashed = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def owned(self) -> bool:
        return True

    @property
    def end(self) -> str | None:
        return self._end

    @property
    def log(self) -> ServerLog:
        return self._printed.tail

    @property
    def pid(self) -> int | None:
        """The server's number while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def check(self) -> str:
        """The file that `start` would run. Raises `ConfigError` for a command or user that cannot be used."""
        if self._user is not None:
            account_of(self._user)
        return self._found_command()

    async def start(self) -> None:
        """Run it, after what a dead worker left of it was killed. Does nothing while it runs.

        Raises `ConfigError` for a command or user that cannot be used and a port that is another's,
        `EngineCrashed` when the system cannot start it now.
        """
        async with self._turn:
            if self.pid is not None:
                return
            await self._end_all()
            account = account_of(self._user) if self._user is not None else None
            program = self._found_command()
            await self._clear_leftovers()
            if (reason := ports.taken(self._places)) is not None:
                raise ConfigError((FieldError("WORKER_ENGINE_URL", reason),))
            await self._run(program, account)

    async def stop(self) -> None:
        """End it: SIGTERM to its group, SIGKILL after the grace, then whatever else came from it."""
        async with self._turn:
            self._asked = True
            try:
                await self._end_all()
            except asyncio.CancelledError:
                self.stop_at_once()
                raise

    async def ended(self) -> str:
        """Until it has ended without being asked to, this time or after a later start; how."""
        await self._crashed.wait()
        return self._end or ""

    def stop_at_once(self) -> None:
        self._asked = True
        for _ in range(SWEEPS):
            if not self._swept():
                return

    def send_signal(self, number: signal.Signals) -> None:
        """Pass a signal on to its group, if it runs."""
        if self.pid is not None:
            self._signal_group(number)

    def memory(self) -> int | None:
        return processes.memory_of(one.pid for one in self._members())

    def listens_on(self) -> tuple[int, ...]:
        """Ports on which it listens now, as far as can be told."""
        found, own = ports.listeners() or [], self._sockets() or frozenset()
        return tuple(sorted({one.port for one in found if one.inode in own}))

    def stranger(self) -> str | None:
        found, own = ports.listeners(), self._sockets()
        if found is None or own is None or self.pid is None:
            return None
        misplaced = ports.misplaced(self._places, found, own)
        return str(misplaced) if misplaced is not None else None

    def _sockets(self) -> frozenset[int] | None:
        """Inodes of the sockets of the whole tree; None where some cannot be seen."""
        each = [ports.sockets_of(one.pid) for one in self._members()]
        known = [inodes for inodes in each if inodes is not None]
        return frozenset().union(*known) if known and len(known) == len(each) else None

    def _found_command(self) -> str:
        """The file that the command's first word names, looked for as the server's own PATH says."""
        name = self._command[0]
        path = shutil.which(name, path=self._environment.get("PATH", os.defpath))
        if path is None:
            raise _refused(f"{name!r} is not executable" if Path(name).exists() else f"{name!r} is not found")
        return path

    async def _clear_leftovers(self) -> None:
        found = marker.leftovers(self._marker, processes.table())
        if found:
            log.warning("engine_leftovers_killed", processes=[str(one) for one in found])
            for one in found:
                processes.kill(one)
            await _until(lambda: not any(map(processes.is_same, found)), KILL_S)

    async def _run(self, program: str, account: Account | None) -> None:
        """Start it, and have its end noticed and its output read."""
        self._asked, self._end, self._kills = False, None, container.oom_kills()
        self._crashed.clear()
        try:
            process = await self._spawned(program, account)
            self._printed.started()
        except OSError as error:
            raise _not_started(error, self._command[0], account) from None
        finally:
            if self._process is None:
                self._printed.close()
        log.info("engine_process_started", pid=process.pid, command=self._command[0])

    async def _spawned(self, program: str, account: Account | None) -> asyncio.subprocess.Process:
        out, err = self._printed.open()
        variables = account.variables if account is not None else {}
        process = await asyncio.create_subprocess_exec(
            *self._command,
            executable=program,
            stdin=DEVNULL,
            stdout=out,
            stderr=err,
            env=self._environment | variables | {marker.VARIABLE: str(self._marker)},
            start_new_session=True,
            preexec_fn=kernel.dies_with_parent(),
            **(account.credentials if account is not None else {}),
        )
        self._process = process
        self._seen = processes.look_at(process.pid)
        self._watch = asyncio.create_task(self._watched(process), name="engine-process")
        _sacrifice(process.pid)
        return process

    async def _watched(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self._printed.drain()
        if self._asked:
            self._end = ending.ASKED
            return
        kills = container.oom_kills()
        grew = None if kills is None or self._kills is None else kills > self._kills
        self._end = ending.described(code, killed_for_memory=grew)
        log.warning("engine_process_ended", pid=process.pid, how=self._end)
        self._crashed.set()

    async def _end_all(self) -> None:
        if self._process is None or self._watch is None:
            return
        if self._runs():
            self._signal_group(signal.SIGTERM)
            await _until(lambda: not self._runs(), self._grace_s)
        if not await _until(lambda: not self._swept(), KILL_S):
            log.error("engine_left_over", processes=[str(one) for one in self._members(thorough=True)])
        await asyncio.wait({self._watch}, timeout=KILL_S)
        await cancel_all({self._watch})
        self._printed.close()
        self._process = self._watch = self._seen = None

    def _runs(self) -> bool:
        """Whether anything of its group does."""
        return self.pid is not None or self._has_group(processes.table())

    def _has_group(self, among: Table) -> bool:
        """Whether some process is in the group that the server was the first of."""
        process = self._process
        members = self._members_among(among)
        return process is not None and any(one.group == one.session == process.pid for one in members)

    def _swept(self) -> bool:
        """Kill all that is left of it; whether there was anything."""
        members = self._members(thorough=True)
        if self.pid is not None or not processes.visible():
            self._signal_group(signal.SIGKILL)
        for one in members:
            processes.kill(one)
        return bool(members) or self.pid is not None

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _members(self, *, thorough: bool = False) -> list[Seen]:
        """What runs of it; ``thorough`` looks at the environment of every process too."""
        if self._process is None:
            return []
        among = processes.table()
        found = self._members_among(among)
        if thorough:
            marked = marker.marked(self._marker, among)
            pids = processes.with_descendants(marked, among) | {one.pid for one in found}
            found = [among[pid] for pid in pids if among[pid].alive]
        return found

    def _members_among(self, among: Table) -> list[Seen]:
        process = self._process
        if process is None:
            return []
        roots = {*_session(process.pid, self._seen, among), *_adopted(process.pid, self._marker, among)}
        return [among[pid] for pid in processes.with_descendants(roots, among) if among[pid].alive]


def _session(leader: int, seen: Seen | None, among: Table) -> list[int]:
    """The processes of the session that the server began, itself included.

    Its number names nothing of ours once another process has it.
    """
    now = among.get(leader)
    if seen is not None and now is not None and now.started != seen.started:
        return []
    return [one.pid for one in among.values() if one.session == leader]


def _adopted(leader: int, mine: marker.Marker, among: Table) -> list[int]:
    """Orphans of the server that the kernel gave to us.

    Whatever else we start stays in our session. As PID 1 we get everybody's orphans: only the marker tells then.
    """
    if not kernel.adopts():
        return []
    me, session = os.getpid(), processes.own_session()
    strange = [one.pid for one in among.values() if one.parent == me and one.session != session and one.pid != leader]
    markers = {pid: marker.marker_of(pid) for pid in strange}
    return [pid for pid, found in markers.items() if found == mine or (found is None and me != 1)]


async def _until(gone: Callable[[], bool], limit_s: float) -> bool:
    """Look again and again until so; whether it became so in time."""
    loop = asyncio.get_running_loop()
    ends, pause_s = loop.time() + limit_s, LOOK_FIRST_S
    while not gone():
        if loop.time() >= ends:
            return False
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LOOK_MOST_S)
    return True


def _sacrifice(pid: int) -> None:
    """Have the kernel kill the server before us when memory runs out."""
    with suppress(OSError, ValueError):
        own = int((processes.PROC / "self" / "oom_score_adj").read_text())
        (processes.PROC / str(pid) / "oom_score_adj").write_text(str(min(OOM_SCORE_MOST, own + SACRIFICE)))


def _refused(reason: str) -> ConfigError:
    return ConfigError((FieldError("WORKER_ENGINE_COMMAND", f"{reason} (or the command after `--`)"),))


def _not_started(error: OSError, name: str, account: Account | None) -> WorkerError:
    """What the refusal of the system to start it means."""
    reason = error.strerror or str(error)
    as_user = f" as {account.name}" if account is not None else ""
    if error.errno in UNUSABLE:
        return _refused(f"{name!r} cannot be run{as_user}: {reason}")
    return EngineCrashed(f"{name!r} cannot be started now{as_user}: {reason}")
