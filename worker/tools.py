"""What the life of a job is given: the collaborators, and what the operator decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from worker.dependencies import Dependencies
from worker.drain import Drain
from worker.engines.base import Engine
from worker.gate import Gate
from worker.images import Encoding
from worker.inputs import Inputs
from worker.job import Limits
from worker.live import Live
from worker.lookahead import Pace
from worker.models.auth import Credentials
from worker.models.base import Models
from worker.orders import Duties
from worker.patience import Patience
from worker.report import Reporter
from worker.settlement import Bench
from worker.tasks import Budget
from worker.workflows import Workflows


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided of every job."""

    limits: Limits
    encoding: Encoding
    flat: str
    job_timeout: timedelta
    upload_concurrency: int
    models_max_wait: timedelta
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Tools:
    """The collaborators of a job."""

    bench: Bench
    gate: Gate
    engine: Engine
    inputs: Inputs
    models: Models
    dependencies: Dependencies
    patience: Patience
    live: Live
    orders: Duties
    reporter: Reporter
    drain: Drain
    pace: Pace
    budget: Budget
    rules: Rules
    workflows: Workflows = field(default_factory=Workflows)
    credentials: Callable[[str], Credentials] = lambda job_id: ()
    """What the caller of a job gave for the URLs of its models."""
