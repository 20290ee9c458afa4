"""The seam to where images and result documents go.

Images are stored first, under keys that carry their hash; a ``succeeded`` result is stored last and is the
commit mark: it stands for ever, and a redelivered job that finds it is settled again without generating.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from worker.job import Job
from worker.result import ImageResult, Result

EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


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


class Storage(Protocol):
    """A place for artifacts and result documents.

    Every method raises `UploadFailed` (whose owner says whether the operator or the job named the place),
    `AuthFailed` for the operator's refused credentials, `UploadForbidden` for a refused URL of the job.
    """

    name: str

    def accepts(self, job: Job, images: int) -> None:
        """Refuse what can never be stored here, before the GPU works for it.

        Raises `InvalidJob` where the job's output does not fit this place or that many images.
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

    async def put_image(self, job: Job, artifact: Artifact) -> ImageResult: ...

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


class Stores(Protocol):
    """The places there are: ``default`` is the operator's, `of` the one that a job's images and documents go to."""

    @property
    def default(self) -> Storage: ...

    def of(self, job: Job) -> Storage:
        """Raises `InvalidJob` for a place that is not configured."""
        ...
