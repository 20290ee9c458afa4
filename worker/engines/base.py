"""The seam to the image server: what it is asked, what it answers, and how it says what state it is in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol

from worker.engines.answer import Answer
from worker.job import Job, ModelRef
from worker.live import Preview
from worker.mentions import Mention, Place
from worker.result import EngineResult


class Reach(StrEnum):
    """How far the server has come; each but the last is a wait of its own."""

    PORT_CLOSED = "engine_port_closed"
    ROUTES_MISSING = "engine_routes_missing"
    MODEL_NOT_LOADED = "engine_model_not_loaded"
    READY = "engine_ready"


@dataclass(frozen=True, slots=True)
class EngineState:
    """What a look at the server found; ``busy`` when it generates or loads something.

    ``holds`` are the checkpoints that the server itself says are in its memory; None where it tells of none.
    """

    reach: Reach
    name: str | None = None
    version: str | None = None
    model: str | None = None
    busy: bool = False
    detail: str = ""
    holds: frozenset[Place] | None = None


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input image that the job names by URL or as base64; ``field`` is where it stands in the document."""

    field: str
    value: str = dataclasses.field(repr=False)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the answer must be. Sizes in pixels, None where the request does not settle it.

    ``count`` of images; None where only the server knows, as with a graph: then anything at all must come.
    ``seeds`` holds one for each image. ``checkpoint`` is the model that must have been used.
    """

    count: int | None
    width: int | None
    height: int | None
    seeds: tuple[int, ...]
    checkpoint: str | None = None

    @property
    def pixels(self) -> int:
        """Pixels of all images together, 1024x1024 for each of unknown size."""
        return (self.count or 1) * (self.width or 1024) * (self.height or 1024)


@dataclass(frozen=True, slots=True)
class Work:
    """A job as the engine will run it: the native request, and what must be there first.

    ``key`` names this very attempt among all of this job and of others, on every node, and ``uses`` are the files on
    disk that the request names: both set by who runs it.
    ``anew``: none of its picture may be one that the server kept from before, since it is to prove that the server
    can make it; models may stay loaded.
    """

    request: Mapping[str, Any] = dataclasses.field(repr=False)
    endpoint: str
    expect: Expectation
    models: tuple[ModelRef, ...] = ()
    inputs: tuple[InputRef, ...] = ()
    steps: int | None = None
    warnings: tuple[str, ...] = ()
    key: str = ""
    uses: frozenset[Place] = frozenset()
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """What was provided for a job: input images by their `InputRef.field`.

    ``version`` grows whenever model files changed on disk, so that an engine refreshes the server's lists.
    """

    inputs: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)
    version: int = 0


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far the generation is: fraction 0-1, steps, and the seconds that the server expects it to take yet.

    ``preview`` asks for the newest look at the picture, where the server gives one without harm to the result.
    """

    fraction: float
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    sampling: bool = False
    """True from the first step on: the end of loading."""
    preview: Preview | None = None


Progress = Callable[[ProgressReport], None]


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image as the server sent it, not yet opened."""

    data: bytes = dataclasses.field(repr=False)
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class RawFile:
    """What the server made beside images: a video, sound, text. ``name`` is a file name; ``node`` who made it."""

    data: bytes = dataclasses.field(repr=False)
    name: str
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What the server made. ``load_s`` from submit to the first step, ``generate_s`` from there to the answer.

    ``native`` is what else its own answer said, for callers who asked in its own language.
    """

    images: tuple[RawImage, ...]
    engine: EngineResult
    load_s: float = 0.0
    generate_s: float = 0.0
    warnings: tuple[str, ...] = ()
    files: tuple[RawFile, ...] = ()
    native: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A request of a caller's in the server's own language, beside the jobs; ``path`` begins with a slash.

    ``timeout`` bounds the whole of it.
    """

    method: str
    path: str
    query: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    body: bytes | None = dataclasses.field(default=None, repr=False)
    media_type: str | None = None
    timeout: timedelta = timedelta(seconds=30)


class ServerLog(Protocol):
    """The last lines that the server printed, where the worker owns its process.

    Some servers tell why a generation failed nowhere else.
    """

    def mark(self) -> int:
        """The present end."""
        ...

    def since(self, mark: int) -> tuple[str, ...]:
        """The lines after a mark, as far as they are still kept; oldest first."""
        ...


class NoLog:
    """The log of a server that something else started."""

    def mark(self) -> int:
        return 0

    def since(self, mark: int) -> tuple[str, ...]:
        return ()


class Engine(Protocol):
    """One image server. `generate` owns it until it returns: when cancelled it interrupts and waits for idle.

    Raises `GenerationRejected`, `ModelNotFound`, `InvalidJob` for the job's faults; `OutputEmpty`,
    `OutputMismatch`, `WrongModel` for answers that are not what was asked for; `EngineOutOfMemory`,
    `EngineCrashed`, `EngineStalled`, `GpuFault` for the server's.
    """

    @property
    def name(self) -> str: ...

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

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        """Every place where the job names a model file, what it lists in ``models`` included.

        Raises `InvalidJob` for what cannot be understood, never `ModelNotFound`: what is missing may be fetched.
        """
        ...

    async def loaded(self) -> frozenset[Place]:
        """The files that the server holds in memory or falls back to, as far as it or our own use of it tells."""
        ...

    async def unload(self, places: Collection[Place]) -> None:
        """Have it let go of these files, so that they can be deleted. To be called under a turn."""
        ...

    async def relay(self, call: NativeCall) -> Answer:
        """Pass a request on with the worker's own credentials, and give back whatever the server answers.

        A GET may be passed at any time; anything else is to be called under a turn. What is learned or undone by it,
        the driver takes note of, and what would make later jobs lie it refuses: `InvalidJob`, `ModelNotFound`.
        Raises `ResultTooLarge`, and `EngineCrashed` when there is no whole answer in time.
        """
        ...

    async def free(self, everything: bool) -> None:
        """Give memory back; with ``everything`` the loaded models too. Not every server can."""
        ...

    async def aclose(self) -> None: ...


class Process(Protocol):
    """The process that the image server runs in: our child, or one that something else started.

    Memory is what the kernel cannot take back (anonymous and shared), of the process and all it started.
    """

    @property
    def owned(self) -> bool:
        """Whether we start, stop and restart it; else `start` and `stop` do nothing."""
        ...

    @property
    def end(self) -> str | None:
        """How it ended, in words; None while it runs, before its first start, and where nobody knows."""
        ...

    @property
    def log(self) -> ServerLog: ...

    def check(self) -> str:
        """What would be run, in words. Raises `ConfigError` for a command or user that cannot be used."""
        ...

    async def start(self) -> None:
        """Run it. Raises `EngineCrashed` when it cannot be started, `ConfigError` when the port is another's."""
        ...

    async def stop(self) -> None:
        """End it and everything that it started: asked first, then killed."""
        ...

    async def ended(self) -> str:
        """Until it has ended without being asked to; how."""
        ...

    def stop_at_once(self) -> None:
        """Kill it and everything that it started, for a worker that is about to be gone."""
        ...

    def memory(self) -> int | None:
        """Bytes that it holds; None where it cannot be told."""
        ...

    def stranger(self) -> str | None:
        """Why what listens on the port is not this process, in words; None when it is, or where nobody knows."""
        ...
