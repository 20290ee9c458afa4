"""What ComfyUI tells of a prompt over its socket, kept as far as it is of use. No I/O.

The socket may be deaf, late or repeat itself: nothing here decides how a prompt ended, the history does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from worker.engines.base import ProgressReport

PREVIEW = 1
PICTURES = frozenset({1, 2})
"""JPEG and PNG, as binary frames name them."""

PREVIEW_MOST = 1_000_000
"""Bytes of a preview that are kept; the server's own are some 25 kB."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a graph before it runs: who samples, who reads models, who sends pictures by the socket."""

    samplers: frozenset[str] = frozenset()
    loaders: frozenset[str] = frozenset()
    senders: frozenset[str] = frozenset()
    steps: int | None = None


@dataclass(slots=True)
class Track:
    """How one prompt goes. It is also a `Sign` for the watchdog."""

    prompt_id: str
    plan: Plan = field(default_factory=Plan)
    node: str | None = None
    step: int = 0
    steps: int = 0
    started: bool = False
    running: bool = False
    over: bool = False
    succeeded: bool = False
    began_s: float | None = None
    """When it began by the server's clock, in seconds."""
    began_at: float | None = None
    nodes: dict[str, float] = field(default_factory=dict)
    """When it and each node of it was heard to begin, by whoever told `hear` the time."""
    heard: int = 0
    cached: tuple[str, ...] = ()
    executed: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    frames: dict[str, list[bytes]] = field(default_factory=dict)
    preview: bytes | None = field(default=None, repr=False)
    """The newest look at a picture in the making, where the server was started to send such."""
    _sampling: str | None = None
    _done: int = 0
    _finished: int = 0
    _fraction: float = 0.0

    @property
    def busy(self) -> bool:
        return self.started

    @property
    def signature(self) -> tuple[Any, ...]:
        return self.node, self._sampling, self.step, self.steps, len(self.executed), sum(map(len, self.frames.values()))

    @property
    def loading(self) -> bool:
        """Whether a node that reads model files is at work."""
        return self.node in self.plan.loaders

    def hear(self, message: str | bytes, now: float = 0.0) -> bool:
        """Take a message that came ``now``, in seconds of any clock.

        Tells whether somebody should look for the entry at once: at the end, or at a server at rest.
        """
        if isinstance(message, bytes):
            self._frame(message)
            return False
        if message.startswith('{"type": "progress_state"'):
            return False
        try:
            body = pydantic_core.from_json(message)
        except ValueError:
            return False
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, dict):
            return False
        if body.get("type") == "status":
            return bool(_remaining(data) == 0)
        return data.get("prompt_id") == self.prompt_id and self._event(body.get("type"), data, now)

    def _event(self, kind: Any, data: Mapping[str, Any], now: float) -> bool:
        self.heard += 1
        self.started = True
        match kind:
            case "execution_start" if isinstance(data.get("timestamp"), (int, float)):
                self.began_s, self.began_at = data["timestamp"] / 1000, now
            case "execution_cached" if isinstance(data.get("nodes"), list):
                self.running = True
                self.cached = tuple(map(str, data["nodes"]))
            case "executing":
                self.running = True
                self.node = None if data.get("node") is None else str(data["node"])
                self.over = self.over or self.node is None
                if self.node is not None:
                    self.nodes.setdefault(self.node, now)
                return self.over
            case "executed" if isinstance(data.get("output"), dict):
                self.running = True
                self.executed[str(data.get("node"))] = data["output"]
            case "execution_success":
                self.succeeded = True
            case "progress":
                self.running = True
                self._progress(data)
        return False

    def _progress(self, data: Mapping[str, Any]) -> None:
        value, most = data.get("value"), data.get("max")
        if not (isinstance(value, (int, float)) and isinstance(most, (int, float)) and 0 <= value <= most < 1e9):
            return
        node = str(data.get("node"))
        if self.plan.samplers and node not in self.plan.samplers:
            return
        if node != self._sampling or value < self.step:
            self._done += self.steps
            self._finished += self._sampling is not None and node != self._sampling
            self._sampling = node
        self.step, self.steps = int(value), int(most)

    def _frame(self, data: bytes) -> None:
        """A picture of the node at work; the frame itself names neither node nor prompt.

        It is a result when the node is one that sends its pictures so, and else a preview.
        """
        if len(data) < 8 or self.node is None:
            return
        event, kind = struct.unpack(">II", data[:8])
        if event != PREVIEW or kind not in PICTURES:
            return
        if self.node in self.plan.senders:
            self.frames.setdefault(self.node, []).append(data[8:])
        elif len(data) <= PREVIEW_MOST:
            self.preview = data[8:]

    async def look(self) -> bytes | None:
        return self.preview

    def report(self, eta_s: float | None) -> ProgressReport:
        """How far it is; the fraction never falls, whatever the server says."""
        self._fraction = max(self._fraction, min(self._share(), 1.0))
        return ProgressReport(
            fraction=self._fraction,
            step=self.step or None,
            steps=self.steps or None,
            eta_s=eta_s,
            sampling=self.step > 0 or self._done > 0,
            preview=self.look if self.preview is not None else None,
        )

    def _share(self) -> float:
        if self.plan.steps:
            return (self._done + self.step) / self.plan.steps
        if not self.steps:
            return 0.0
        return (self._finished + self.step / self.steps) / max(len(self.plan.samplers), self._finished + 1)

    def left(self, step_s: float) -> float | None:
        """Seconds that the steps yet to come will take; None where that cannot be told."""
        if not (self.step and step_s):
            return None
        whole = max(self.plan.steps or 0, self._done + self.steps)
        return (whole - self._done - self.step) * step_s


def _remaining(data: Mapping[str, Any]) -> Any:
    status = data.get("status")
    info = status.get("exec_info") if isinstance(status, dict) else None
    return info.get("queue_remaining") if isinstance(info, dict) else None
