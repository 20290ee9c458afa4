"""The seam to where images, other files and result documents go.

What was made is stored first, under keys that carry their hash; a ``succeeded`` result is stored last and is the
commit mark: it stands for ever, and a redelivered job that finds it is settled again without generating.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from worker.files import Kind
from worker.job import Job
from worker.result import FileResult, ImageResult, Result

EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Storable(Protocol[R_co]):
    """What can be stored: bytes and how they are to be named; ``R_co`` is what the result document says of them."""

    @property
    def index(self) -> int:
        """Its place among all that the job made."""
        ...

    @property
    def data(self) -> bytes: ...

    @property
    def sha256(self) -> str: ...

    @property
    def extension(self) -> str: ...

    @property
    def media_type(self) -> str: ...

    def result(self, *, url: str | None = None, key: str | None = None, base64: str | None = None) -> R_co: ...


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified image that is ready to be stored; sizes in pixels."""

    index: int
    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    seed: int | None
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())

    @property
    def extension(self) -> str:
        return EXTENSIONS[self.format]

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    def result(self, *, url: str | None = None, key: str | None = None, base64: str | None = None) -> ImageResult:
        """The artifact as the result document names it."""
        return ImageResult(
            index=self.index,
            url=url,
            key=key,
            base64=base64,
            format=self.format,
            width=self.width,
            height=self.height,
            bytes=len(self.data),
            sha256=self.sha256,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class FileArtifact:
    """A verified file that is no image and is ready to be stored."""

    index: int
    data: bytes = field(repr=False)
    name: str
    kind: Kind
    sha256: str = ""
    node: str | None = None

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())

    @property
    def extension(self) -> str:
        return self.kind.extension

    @property
    def media_type(self) -> str:
        return self.kind.media_type

    def result(self, *, url: str | None = None, key: str | None = None, base64: str | None = None) -> FileResult:
        """The file as the result document names it."""
        return FileResult(
            index=self.index,
            url=url,
            key=key,
            base64=base64,
            name=self.name,
            format=self.kind.format,
            media_type=self.kind.media_type,
            bytes=len(self.data),
            sha256=self.sha256,
            node=self.node,
        )


class Storage(Protocol):
    """A place for artifacts and result documents.

    Every method raises `UploadFailed` (whose owner says whether the operator or the job named the place),
    `AuthFailed` for the operator's refused credentials, `UploadForbidden` for a refused URL of the job.
    """

    name: str

    def accepts(self, job: Job, outputs: int) -> None:
        """Refuse what can never be stored here: before the GPU works for it, and again before the first upload.

        Raises `InvalidJob` where the job's output does not fit this place or that many images and files.
        """
        ...

    def marks(self, job: Job) -> bool:
        """Whether a success of this job will stand here, to be found by a later delivery."""
        ...

    async def find_mark(self, job: Job) -> Result | None:
        """The standing success of this job, its links signed anew; `IdConflict` when it is of another document.

        A 403 counts as absent, with one warning.
        """
        ...

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        """Store it and say where it is; doing so again changes nothing."""
        ...

    async def put_mark(self, job: Job, result: Result) -> Result:
        """Store a success and give back the one that stands, which may be an earlier one.

        Conditional where the store has conditions, else looked up right before. Raises `IdConflict` when what
        stands is of another document, `ResultTooLarge` for inline results over the limit.
        """
        ...

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        """Keep how an attempt failed; never touches the mark."""
        ...

    async def check(self) -> str:
        """Try it with the smallest policy that works and say in a few words what was found."""
        ...

    async def aclose(self) -> None: ...


@runtime_checkable
class Archive(Protocol):
    """A place whose documents are found again by a job's id alone. Raises as `Storage` does."""

    @property
    def name(self) -> str: ...

    async def find_result(self, job_id: str) -> Result | None:
        """How the job ended as far as it stands here, links signed anew: its success, else its latest failure."""
        ...

    async def find_failures(self, job_id: str) -> tuple[Result, ...]:
        """The failures under this id, the latest last: of every run, and of other documents too."""
        ...


class Stores(Protocol):
    """The places there are: ``default`` is the operator's, `of` the one that a job's images and documents go to."""

    @property
    def default(self) -> Storage: ...

    def of(self, job: Job) -> Storage:
        """Raises `InvalidJob` for a place that is not configured."""
        ...
