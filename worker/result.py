"""The result document: how a job ended, as it is stored, sent and read again. Readers ignore unknown fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from worker.errors import Fault


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class ImageResult(_Part):
    """One artifact: where it is or what it holds; ``bytes`` and ``sha256`` are of the file, sizes in pixels."""

    index: int
    url: str | None = None
    key: str | None = None
    base64: str | None = None
    format: str
    width: int
    height: int
    bytes: int
    sha256: str
    seed: int | None = None


class FileResult(_Part):
    """What was made beside images: a video, sound, text. ``name`` is what the server called it, ``node`` who made it.

    ``index`` goes on after the images'. ``format`` and ``media_type`` are told from the bytes.
    """

    index: int
    url: str | None = None
    key: str | None = None
    base64: str | None = None
    name: str
    format: str
    media_type: str
    bytes: int
    sha256: str
    node: str | None = None


class EngineResult(_Part):
    """What generated, with the proof of the model: ``hash``, ``name`` or ``none``."""

    name: str
    version: str | None = None
    model: str | None = None
    model_hash: str | None = None
    proof: Literal["hash", "name", "none"] = "none"
    info: Any = None


class ErrorResult(_Part):
    code: str
    message: str
    retryable: bool
    fault: Fault


class Timings(_Part):
    """Seconds."""

    queued: float | None = None
    models: float | None = None
    load: float | None = None
    generate: float | None = None
    images: float | None = None
    upload: float | None = None
    total: float | None = None


class AttemptResult(_Part):
    """An earlier attempt at the job, by which worker and how it ended; ``charged``: it was the job's own doing."""

    worker: str
    ended: AwareDatetime | None = None
    code: str | None = None
    charged: Literal[True] | None = None


class WorkerResult(_Part):
    id: str
    machine: str | None = None
    gpu: str | None = None
    version: str


class Result(_Part):
    """``client_id`` is what the caller of an HTTP job calls it, where it ran under an id of ours.

    ``run``: which submission of the job failed, by its queue's name for it, where only such documents tell of attempts.
    """

    v: Literal[1] = 1
    id: str
    client_id: str | None = None
    status: Literal["succeeded", "failed", "cancelled"]
    images: tuple[ImageResult, ...] = ()
    files: tuple[FileResult, ...] = ()
    engine: EngineResult | None = None
    error: ErrorResult | None = None
    timings: Timings = Timings()
    warnings: tuple[str, ...] = ()
    cost: float | None = None
    attempts: tuple[AttemptResult, ...] = ()
    worker: WorkerResult
    job_sha256: str | None = None
    run: str | None = None
    metadata: Any = None
    created_at: AwareDatetime
    finished_at: AwareDatetime

    @property
    def outputs(self) -> tuple[ImageResult | FileResult, ...]:
        """Everything that was made, by index."""
        return (*self.images, *self.files)

    def to_json(self, *, base64: bool = True) -> bytes:
        """Compact UTF-8; without ``base64`` what was made is named but not held."""
        exclude = None if base64 else {"images": {"__all__": {"base64"}}, "files": {"__all__": {"base64"}}}
        return self.model_dump_json(exclude_none=True, exclude=exclude).encode()
