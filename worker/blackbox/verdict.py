"""How a run ended, by its last records and by what is found at the next start. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from worker.blackbox.record import Record
from worker.clock import isoformat
from worker.wire import AT_WORK, HeldThen, PreviousRun

FULL = 0.95
"""Of the container's memory, taken by what cannot be dropped: the kernel is about to kill somebody."""

RECENT_S = 10.0
CRASHED = 70


class Cause(StrEnum):
    """How a run ended; the words of the event, of the metric and of the scheduling API."""

    CLEAN = "clean"
    STOPPED = "stopped"
    EXITED = "exited"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    SERVER_DIED = "server_died"
    MACHINE_RESTARTED = "machine_restarted"
    KILLED = "killed"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is found at the next start: the machine's start, the container's account of memory, and its kills so far."""

    boot: str = ""
    cgroup: str = ""
    oom_kills: int | None = None


def cause_of(records: Sequence[Record], scene: Scene) -> Cause:
    """The cause; ``records`` are those of one run, at least one, in their order.

    What the run said of its own end counts. Without a word of that, the strongest sign does: memory, then a server that
    had died, then a machine that was started anew. A node that is taken away leaves no sign.
    """
    last = records[-1]
    if last.end is not None:
        if last.end.exit_code == CRASHED:
            return Cause.CRASHED
        if last.end.exit_code:
            return Cause.EXITED
        return Cause.CLEAN if last.end.drained else Cause.STOPPED
    if was_out_of_memory(records, scene):
        return Cause.OUT_OF_MEMORY
    if last.server is not None and last.server.end is not None:
        return Cause.SERVER_DIED
    return Cause.MACHINE_RESTARTED if last.boot and scene.boot and last.boot != scene.boot else Cause.KILLED


def was_out_of_memory(records: Sequence[Record], scene: Scene) -> bool:
    """Whether memory was full at the end, or the kernel has killed for it in the last seconds or since."""
    last = records[-1]
    late = [record for record in records if record.at >= last.at - RECENT_S]
    if any(one.memory is not None and one.memory.used >= FULL * one.memory.total for one in late):
        return True
    kills = [one.oom_kills for one in late if one.oom_kills is not None]
    if last.cgroup and last.cgroup == scene.cgroup and scene.oom_kills is not None:
        kills.append(scene.oom_kills)
    return bool(kills) and max(kills) > kills[0]


def previous_of(records: Sequence[Record], cause: Cause) -> PreviousRun:
    """What a queue is told of it."""
    last = records[-1]
    held = tuple(HeldThen(id=job.id, token=job.token, hop=job.hop, hop_s=job.hop_s) for job in last.jobs)
    exit_code = None if last.end is None else last.end.exit_code
    return PreviousRun(ended=str(cause), at=_time(last.at), run=last.run, exit_code=exit_code, jobs=held)


def told(records: Sequence[Record], cause: Cause) -> dict[str, Any]:
    """The fields of the event: what was being done, and what the server printed last unless all went well."""
    last = records[-1]
    fields: dict[str, Any] = {
        "cause": str(cause),
        "at": _time(last.at),
        "ran_s": round(last.up_s, 1),
        "previous_worker": last.worker,
        "previous_run": last.run,
        "phase": last.phase,
        "jobs": [job.model_dump(exclude_none=True, exclude={"token"}) for job in last.jobs],
        "more_jobs": last.more_jobs or None,
        "at_work": [job.id for job in last.jobs if job.hop in AT_WORK],
    }
    if last.end is not None:
        fields |= {"exit_code": last.end.exit_code, "drained": last.end.drained, "error": last.end.error}
    if cause is not Cause.CLEAN:
        fields |= {
            "memory": None if last.memory is None else last.memory.to_dict(),
            "vram": None if last.vram is None else last.vram.to_dict(),
            "disk_free": last.disk_free,
            "oom_kills": last.oom_kills,
            "server": None if last.server is None else last.server.model_dump(exclude_none=True),
            "lines": list(last.lines),
        }
    return {name: value for name, value in fields.items() if value is not None}


def _time(at: float) -> str:
    return isoformat(datetime.fromtimestamp(at, UTC))
