"""What the node says of itself to a queue: seen and measured things only, never what is meant to be.

In memory is what the server itself says that it holds, else what the last verified generation used; the later word
counts. On disk is what the cache has whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from worker.engines.base import EngineState, Output, Reach, Work
from worker.errors import WorkerError
from worker.live import Live
from worker.mentions import Mention, Place, stem_of
from worker.metrics import Metrics
from worker.models.base import Entry
from worker.node import Report, Vitals
from worker.rates import Speeds
from worker.result import EngineResult
from worker.wire import DiskReport, HeldModel

MAIN = frozenset({"checkpoint", "unet"})
"""Kinds of the file that takes the memory: another one of these drives out the last."""


class Shelf(Protocol):
    """The cache, as far as it is reported."""

    @property
    def bytes(self) -> int: ...

    @property
    def cap(self) -> int: ...

    @property
    def free(self) -> int:
        """Raises `WorkerError` where nobody can tell."""
        ...

    def entries(self) -> tuple[Entry, ...]: ...


@dataclass(frozen=True, slots=True)
class Proof:
    """What a verified generation has shown to be in the server's memory."""

    uses: frozenset[Place] = frozenset()

    @property
    def main(self) -> frozenset[Place]:
        return frozenset(place for place in self.uses if place.kind in MAIN)


@dataclass(frozen=True, slots=True)
class Bill:
    """What the node costs, whatever it does: ``price`` an hour, in whatever money, over ``paid_s`` seconds until now.

    ``busy_s`` are the seconds of these in which the server generated, ``images`` what came of it.
    """

    price: float
    paid_s: float
    busy_s: float
    images: int

    @property
    def cost(self) -> float:
        return self.price * self.paid_s / 3600

    def told(self) -> dict[str, float]:
        """For people and programs; no cost an image before the first one."""
        found = {"paid_s": round(self.paid_s, 1), "busy_s": round(self.busy_s, 1), "cost": round(self.cost, 6)}
        if self.images:
            found["cost_per_image"] = round(self.cost / self.images, 6)
        return found


class Reporter:
    """Gathers what is seen of the server and its files, and reports it.

    ``shelf`` is None where the worker has no folder of models. ``fit`` says whether the server is in use at all:
    while it is being recovered nobody knows what it holds.
    """

    def __init__(
        self,
        live: Live,
        metrics: Metrics,
        *,
        shelf: Callable[[], Shelf | None] = lambda: None,
        fit: Callable[[], bool] = lambda: True,
        vram_gb: float | None = None,
        speeds: Speeds | None = None,
        vitals: Vitals | None = None,
        bill: Callable[[], Bill | None] = lambda: None,
    ) -> None:
        self.speeds = speeds or Speeds()
        self._live = live
        self._metrics = metrics
        self._shelf = shelf
        self._fit = fit
        self._vram_gb = vram_gb
        self._vitals = vitals or Vitals()
        self._bill = bill
        self._proof: Proof | None = None
        self._told: frozenset[Place] | None = None
        self._is_newer = False
        """Whether the server's word is later than the proof."""
        self._loaded: set[Place] = set()
        """What generations have shown to be loaded since the server's start: it may lie in its RAM."""

    def verified(self, work: Work, output: Output, *, typical: bool = True) -> None:
        """A generation's images are what was asked for; ``typical`` unless it was none of a job."""
        shelf = self._shelf()
        proof = proof_of(work, output, shelf.entries() if shelf is not None else ())
        before = self._proof or Proof()
        if changed(before, proof):
            self.speeds.loaded(output.load_s)
            self._read(proof, output.load_s)
        if typical and (output.load_s > 0 or stayed(before, proof)):
            self.speeds.generated(output.generate_s, work.steps, len(output.images))
        self._proof, self._is_newer = proof, False
        self._loaded |= proof.main

    def looked(self, state: EngineState) -> None:
        """The server was looked at; away, or not yet there, it holds nothing that is known."""
        if state.reach is not Reach.READY:
            self.forget()
        elif state.holds is not None:
            self._told, self._is_newer = state.holds, True

    def forget(self) -> None:
        """What the server held is unknown from now on: it let go of files, or is another process."""
        self._proof = self._told = None
        self._loaded.clear()

    def bill(self) -> Bill | None:
        """What the node has cost since its start; None where its price is not known."""
        return self._bill()

    def report(self) -> Report:
        """As `Node.report`, at once."""
        shelf = self._shelf()
        return Report(
            models=held(shelf.entries() if shelf is not None else (), self.memory),
            disk=_disk(shelf),
            rates=self.speeds.rates(),
            vram_gb=self._vram_gb,
            jobs={job.id: (job.progress, str(job.hop)) for job in self._live},
            stats=self._stats(),
        )

    @property
    def memory(self) -> frozenset[Place]:
        """The files that the server is known to have in its memory."""
        return in_memory(self._told, self._proof, is_newer=self._is_newer) if self._fit() else frozenset()

    def _read(self, proof: Proof, seconds: float) -> None:
        """A checkpoint that this server loaded for the first time was read from the disk."""
        shelf = self._shelf()
        sizes = {entry.place: entry.size for entry in shelf.entries()} if shelf is not None else {}
        if not proof.main & self._loaded and proof.main <= sizes.keys():
            self.speeds.read(sum(sizes[place] for place in proof.main), seconds)

    def _stats(self) -> Mapping[str, Any]:
        """Since the start of the process: jobs by how they ended, seconds in which the server generated, and money.

        Beside them the latest figures of the machine, and how the run before this one ended.
        """
        ended, vitals, bill = self._metrics.jobs(), self._vitals, self.bill()
        found: dict[str, Any] = {
            "done": ended.get("succeeded", 0),
            "failed": ended.get("failed", 0),
            "busy_s": round(self._metrics.busy_s, 1),
        }
        if bill is not None:
            found |= bill.told()
        for name, use in (("memory", vitals.memory), ("vram", vitals.vram)):
            if use is not None:
                found[name] = use.to_dict()
        if vitals.previous is not None:
            found["previous"] = vitals.previous.model_dump(exclude_none=True)
        return found


def proof_of(work: Work, output: Output, entries: Iterable[Entry]) -> Proof:
    """What a verified generation shows; a job that named no checkpoint used the one that its answer tells of."""
    proof = Proof(work.uses)
    return proof if proof.main else Proof(work.uses | told_by(output.engine, entries))


def told_by(engine: EngineResult, entries: Iterable[Entry]) -> frozenset[Place]:
    """The one checkpoint on disk that an answer means, by its hash, else by its name; none where several could be."""
    checkpoints = [entry for entry in entries if entry.place.kind in MAIN]
    digest, name = engine.model_hash, engine.model
    if digest:
        hashed = [entry.place for entry in checkpoints if entry.sha256 is not None and entry.sha256.startswith(digest)]
        if len(hashed) == 1:
            return frozenset(hashed)
    named = [entry.place for entry in checkpoints if name and name in _names(entry.place)]
    return frozenset(named) if len(named) == 1 else frozenset()


def _names(place: Place) -> tuple[str, ...]:
    last = place.name.rpartition("/")[2]
    return (place.name, stem_of(place.name), last, stem_of(last))


def changed(before: Proof, after: Proof) -> bool:
    """Whether the server had to load another checkpoint in between, as far as both are known."""
    return bool(before.main and after.main) and not after.main <= before.main


def stayed(before: Proof, after: Proof) -> bool:
    """Whether the checkpoint is known to have been there: all the time went into the picture.

    A quick generation may be over before its first step was seen, and then nobody knows how much of it was loading.
    """
    return bool(after.main) and after.main <= before.main


def in_memory(told: frozenset[Place] | None, proof: Proof | None, *, is_newer: bool) -> frozenset[Place]:
    """What the server has in memory: its own word on checkpoints where that ``is_newer`` than the last proof.

    What the proof shows beside the checkpoint (LoRAs, a VAE) stays with that. A proof that tells of no checkpoint
    leaves the server's word standing.
    """
    if proof is None:
        return told or frozenset()
    if told is None:
        return proof.uses
    if is_newer:
        return told | proof.uses if proof.main <= told else told
    return proof.uses if proof.main else proof.uses | told


def held(entries: Collection[Entry], memory: frozenset[Place]) -> tuple[HeldModel, ...]:
    """Every model of the node: those on disk, and what the server holds of its own."""
    ours = {entry.place for entry in entries}
    on_disk = (
        HeldModel(
            kind=entry.place.kind,
            name=entry.place.name,
            sha256=entry.sha256,
            size=entry.size,
            tier="vram" if entry.place in memory else "disk",
        )
        for entry in entries
    )
    others = (HeldModel(kind=place.kind, name=place.name, tier="vram") for place in sorted(memory - ours))
    return (*on_disk, *others)


def used(request: Mapping[str, Any], mentions: Sequence[Mention], places: Sequence[Place]) -> frozenset[Place]:
    """The files that a request makes the server load, by the job's mentions and where each was found.

    What a job only lists in its ``models`` counts where the request itself names it.
    """
    found = list(zip(mentions, places, strict=True))
    named = frozenset(place for mention, place in found if mention.path[:1] != ("models",))
    listed = frozenset(place for _, place in found) - named
    if not listed:
        return named
    texts = {text.replace("\\", "/") for text in _texts(request)}
    return named | {place for place in listed if place.name in texts}


def _texts(node: Any) -> Iterator[str]:
    """The short strings of a document: no name is as long as a picture."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and len(one) <= 1000:
            yield one
        elif isinstance(one, Mapping):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one


def _disk(shelf: Shelf | None) -> DiskReport | None:
    if shelf is not None:
        with suppress(WorkerError):
            return DiskReport(used=shelf.bytes, cap=shelf.cap, free=shelf.free)
    return None
