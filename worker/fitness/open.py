"""Puts the checks together that the settings ask for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worker.clock import CorrectedClock
from worker.errors import Owner
from worker.fitness.disk import DiskRoom
from worker.fitness.download import DownloadSpeed
from worker.fitness.fitness import Fitness, WarmStep
from worker.fitness.gpu import FreeVram
from worker.fitness.tries import Check
from worker.fitness.upload import UploadSpeed
from worker.job import Job
from worker.models.base import Wanted
from worker.models.declared import FetchS3, declared, is_declared
from worker.models.measure import RESERVE
from worker.rates import Moving
from worker.settings.groups import Settings
from worker.settings.node import FitnessSettings
from worker.status import Status
from worker.urls import Guard


@dataclass(frozen=True, slots=True)
class Site:
    """The node, as far as its measurements need it.

    ``room`` are the bytes of the disk that the worker may fill, by default what is free where it stands; ``is_taken``
    whether the server runs already and holds memory of the GPU; ``measured`` learns how fast files come.
    """

    guard: Guard
    clock: CorrectedClock
    node_id: str
    fetch_s3: FetchS3
    warm_up: Job | None = None
    room: Callable[[], int] = lambda: shutil.disk_usage(Path.cwd()).free
    is_taken: bool = False
    measured: Callable[[Moving], None] = lambda moving: None

    def over(self, room: Callable[[], int]) -> Site:
        """The same with another account of its disk."""
        return replace(self, room=room)


def open_fitness(settings: Settings, site: Site, status: Status) -> Fitness:
    """The node's verdict, with nothing measured yet."""
    fitness = settings.fitness
    step = WarmStep(None if fitness.step is None else fitness.step.total_seconds())
    return Fitness(tuple(checks_of(settings, site)), step, status, never=settings.engine.give_up == "never")


def checks_of(settings: Settings, site: Site) -> Iterator[Check]:
    """What can be measured without the server, the quickest first."""
    fitness = settings.fitness
    if fitness.vram is not None:
        yield FreeVram(fitness.vram, is_taken=site.is_taken)
    yield DiskRoom(disk_wanted(settings), site.room)
    if fitness.upload is not None:
        yield UploadSpeed(fitness.upload, settings.storage, site.clock, site.node_id)
    if fitness.download is not None:

        async def first() -> Sequence[Wanted]:
            listed = await declared(settings, site.fetch_s3) if is_declared(settings) else None
            items = () if listed is None else tuple(item.wanted for item in listed.items)
            return (*items, *named_by(site.warm_up))

        yield DownloadSpeed(
            fitness.download,
            settings,
            guard=site.guard,
            clock=site.clock,
            wanted_first=first,
            measured=site.measured,
        )


def disk_wanted(settings: Settings) -> int | None:
    """The disk counts where the operator says how large it is, and asks for a fit node in any other way."""
    is_ordered = "disk_size" in settings.node.model_fields_set
    return settings.node.disk_size - RESERVE if is_ordered and settings.fitness != FitnessSettings() else None


def named_by(job: Job | None) -> tuple[Wanted, ...]:
    """The models that the warm-up job names outright."""
    if job is None:
        return ()
    listed = [Wanted(one.kind, one.name, one.url, one.sha256, one.size, owner=Owner.OPERATOR) for one in job.models]
    if job.checkpoint is not None:
        listed.append(Wanted("checkpoint", job.checkpoint, owner=Owner.OPERATOR))
    return tuple(listed)
