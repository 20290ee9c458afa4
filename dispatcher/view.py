"""What the endpoints may see of the service."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.auth import Access
from dispatcher.demand import Demands
from dispatcher.desk import Desk
from dispatcher.documents import Counts
from dispatcher.fleet import Fleet
from dispatcher.heartbeats import Heartbeats
from dispatcher.losses import Losses
from dispatcher.metrics import Metrics
from dispatcher.settings import Settings
from dispatcher.store.base import Store
from dispatcher.upkeep import Upkeep
from worker.clock import Clock


@dataclass(frozen=True, slots=True)
class View:
    """The parts of one process; ``counts`` are the limits that jobs are handed over with."""

    settings: Settings
    access: Access
    store: Store
    fleet: Fleet
    demands: Demands
    desk: Desk
    heartbeats: Heartbeats
    losses: Losses
    upkeep: Upkeep
    metrics: Metrics
    clock: Clock
    counts: Counts
