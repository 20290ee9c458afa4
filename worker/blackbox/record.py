"""What one record of the black box says. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.node import Use

LINE_MOST = 400
"""Characters of a printed line that are kept."""


class Part(BaseModel):
    """Readers ignore what they do not know, so that another version's records can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Held(Part):
    """A job held, and how far it is; ``hop_s`` and ``held_s`` in seconds, ``token`` as the queue gave it."""

    id: str
    hop: str
    hop_s: float = 0.0
    held_s: float = 0.0
    progress: float | None = None
    token: int | str | None = None


class Server(Part):
    """The image server: ``end`` how its process ended (None while it runs), ``memory`` bytes that it holds."""

    owned: bool = False
    end: str | None = None
    restarts: int = 0
    memory: int | None = None


class End(Part):
    """The run ended in order: with this exit code, and whether every job had been settled or given back."""

    exit_code: int
    drained: bool = False
    error: str | None = None


class Record(Part):
    """One second of a run.

    ``run`` names the run of the process, ``worker`` the node, ``boot`` the start of the machine and ``cgroup`` the
    container's account of memory. ``at`` in seconds since 1970, ``up_s`` since the start. Bytes throughout.
    ``oom_kills`` is how many processes of the container the kernel has killed for memory.
    """

    run: str
    worker: str
    at: float
    up_s: float = 0.0
    boot: str = ""
    cgroup: str = ""
    phase: str = ""
    reasons: tuple[str, ...] = ()
    jobs: tuple[Held, ...] = ()
    more_jobs: int = 0
    server: Server | None = None
    memory: Use | None = None
    vram: Use | None = None
    oom_kills: int | None = None
    disk_free: int | None = None
    lines: tuple[str, ...] = ()
    end: End | None = None

    @property
    def held(self) -> int:
        return len(self.jobs) + self.more_jobs

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True).encode()


def fitted(record: Record, most: int) -> bytes:
    """The record in at most so many bytes: first the oldest lines are left out, then the jobs named last."""
    text = record.to_json()
    while len(text) > most and (record.lines or record.jobs):
        keep: dict[str, Any]
        if record.lines:
            keep = {"lines": record.lines[(len(record.lines) + 1) // 2 :]}
        else:
            left = record.jobs[: len(record.jobs) // 2]
            keep = {"jobs": left, "more_jobs": record.held - len(left)}
        record = record.model_copy(update=keep)
        text = record.to_json()
    return text


def last_run(texts: Iterable[bytes]) -> list[Record]:
    """The records of the latest run among these, which come in their order; what cannot be read is passed over."""
    found: list[Record] = []
    for text in texts:
        try:
            found.append(Record.model_validate_json(text))
        except ValidationError:
            continue
    return [record for record in found if record.run == found[-1].run]


def cut(lines: Sequence[str]) -> tuple[str, ...]:
    """Printed lines, each cut to what is kept of it."""
    return tuple(line if len(line) <= LINE_MOST else f"{line[:LINE_MOST]}..." for line in lines)
