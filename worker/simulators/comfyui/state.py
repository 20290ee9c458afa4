"""What a simulated ComfyUI counts, for tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Run:
    """One prompt that was taken from the queue. Times are Unix seconds; ``ended`` is None while it runs."""

    prompt_id: str
    client_id: str | None
    started: float
    ended: Literal["success", "error", "interrupted"] | None = None
    finished: float | None = None
    cached: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    steps: int = 0
    """Sampling steps done."""
    fault: str | None = None


@dataclass
class Sampling:
    """One sampler that ran, with what it was given. ``models`` are the files of the model, LoRAs included."""

    prompt_id: str
    node: str
    models: tuple[str, ...]
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float
    positive: str
    negative: str
    width: int
    height: int
    batch: int
    masked: bool
    inputs: str
    """A key of the input pictures, empty without them."""


@dataclass
class Stats:
    """What the simulator saw, over restarts too."""

    runs: list[Run] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    """Model files that a loader node has read, as folder/name."""
    requests: Counter[str] = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)
    """Ids of the prompts that were queued."""
    refused: int = 0
    interrupts: int = 0
    queue_deletes: list[str] = field(default_factory=list)
    history_deletes: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    frees: list[dict[str, Any]] = field(default_factory=list)
    sockets: int = 0
    """Open now."""
    sockets_opened: int = 0
    starts: int = 0

    @property
    def executed(self) -> int:
        """Prompts in which at least one node ran."""
        return sum(bool(run.executed) for run in self.runs)

    @property
    def cached(self) -> int:
        """Prompts that were served from the cache altogether."""
        return sum(bool(run.cached) and not run.executed and run.ended == "success" for run in self.runs)

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        return asdict(self) | {"requests": dict(self.requests), "executed": self.executed, "cached": self.cached}
