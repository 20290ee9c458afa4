"""The seam to the image server: what it is asked, what it answers, and how it says what state it is in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from worker.job import Job, ModelRef
from worker.result import EngineResult


class Reach(StrEnum):
    """How far the server has come; each but the last is a wait of its own."""

    PORT_CLOSED = "engine_port_closed"
    ROUTES_MISSING = "engine_routes_missing"
    MODEL_NOT_LOADED = "engine_model_not_loaded"
    READY = "engine_ready"


@dataclass(frozen=True, slots=True)
class EngineState:
    """What a look at the server found; ``busy`` when it generates or loads something."""

    reach: Reach
    name: str | None = None
    version: str | None = None
    model: str | None = None
    busy: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input image that the job names by URL or as base64; ``field`` is where it stands in the document."""

    field: str
    value: str = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the answer must be. Sizes in pixels, None where the request does not settle it.

    ``seeds`` holds one for each image. ``checkpoint`` is the model that must have been used.
    """

    count: int
    width: int | None
    height: int | None
    seeds: tuple[int, ...]
    checkpoint: str | None = None

    @property
    def pixels(self) -> int:
        """Pixels of all images together, 1024x1024 for each of unknown size."""
        return self.count * (self.width or 1024) * (self.height or 1024)


@dataclass(frozen=True, slots=True)
class Work:
    """A job as the engine will run it: the native request, and what must be there first."""

    request: Mapping[str, Any] = dataclasses.field(repr=False)
    endpoint: str
    expect: Expectation
    models: tuple[ModelRef, ...] = ()
    inputs: tuple[InputRef, ...] = ()
    steps: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Files:
    """What was provided for a job: input images by their `InputRef.field`.

    ``version`` grows whenever model files changed on disk, so that an engine refreshes the server's lists.
    """

    inputs: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    version: int = 0


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far the generation is: fraction 0-1, steps, and the seconds that the server expects it to take yet."""

    fraction: float
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    sampling: bool = False
    """True from the first step on: the end of loading."""


Progress = Callable[[ProgressReport], None]


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as the server sent it, not yet opened."""

    data: bytes = dataclasses.field(repr=False)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What the server made. ``load_s`` from submit to the first step, ``generate_s`` from there to the answer."""

    images: tuple[RawImage, ...]
    engine: EngineResult
    load_s: float = 0.0
    generate_s: float = 0.0
    warnings: tuple[str, ...] = ()


class Engine(Protocol):
    """One image server. `generate` owns it until it returns: when cancelled it interrupts and waits for idle.

    Raises `GenerationRejected`, `ModelNotFound`, `InvalidJob` for the job's faults; `OutputEmpty`,
    `OutputMismatch`, `WrongModel` for answers that are not what was asked for; `EngineOutOfMemory`,
    `EngineCrashed`, `EngineStalled`, `GpuFault` for the server's.
    """

    name: str

    async def look(self) -> EngineState:
        """Changes nothing and raises nothing but `AuthFailed`."""
        ...

    async def prepare(self) -> None:
        """The one-time settings after the server's start."""
        ...

    async def admit(self, job: Job) -> Work:
        """The native request and all that must be checked before the GPU is used."""
        ...

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        """Run it. ``fresh`` defeats the server's caches and has it load the model anew."""
        ...

    async def free(self, everything: bool) -> None:
        """Give memory back; with ``everything`` the loaded models too."""
        ...

    async def aclose(self) -> None: ...
