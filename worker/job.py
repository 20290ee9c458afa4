"""The job document: what one job says, checked and bounded, without any I/O.

Contract: a body becomes a `Job`, or raises `InvalidJob` naming every wrong field, or `UnsupportedDocument`.
Messages never repeat a value, because values hold prompts and images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from worker.errors import FieldError, InvalidJob, UnsupportedDocument

VERSION: Literal[1] = 1
ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_ID = re.compile(ID)
_UNDIGESTED = ("webhook", "priority", "timeout", "deadline")
_UNDIGESTED_OUTPUT = ("upload_urls", "result_urls")
_PIECE = 65_536
SOURCES = ("params", "request", "workflow", "template")

JobId = Annotated[str, StringConstraints(pattern=f"^{ID}$")]
Prefix = Annotated[str, StringConstraints(pattern=f"^{ID}(/{ID})*$", max_length=512)]
Text = Annotated[str, StringConstraints(max_length=100_000)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=8192)]
Event = Literal["started", "progress", "succeeded", "failed", "cancelled"]
Int = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
ImageFormat = Literal["keep", "png", "jpeg", "webp"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {k: v for k, v in data.items() if not (isinstance(k, str) and k.startswith("x-"))}
        return data


def _relative(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(p in ("", ".", "..") for p in parts):
        raise ValueError("must be a relative name without empty, '.' or '..' parts")
    return name


class Lora(_Part):
    name: Name
    weight: Number = Field(1.0, ge=-10, le=10)


class Refiner(_Part):
    checkpoint: Name
    switch_at: Number = Field(0.8, gt=0, lt=1)


class Params(_Part):
    """Portable parameters; a field left out takes the engine's own documented default."""

    prompt: Text
    negative_prompt: Text = ""
    width: Int | None = Field(None, ge=64)
    height: Int | None = Field(None, ge=64)
    steps: Int | None = Field(None, ge=1)
    cfg: Number | None = Field(None, ge=0, le=100)
    seed: Int | None = Field(None, ge=-1, lt=2**64)
    sampler: Name | None = None
    scheduler: Name | None = None
    batch_size: Int = Field(1, ge=1)
    clip_skip: Int | None = Field(None, ge=1, le=12)
    loras: tuple[Lora, ...] = Field((), max_length=32)
    vae: Name | None = None
    refiner: Refiner | None = None
    image: str | None = Field(None, min_length=1)
    denoise: Number | None = Field(None, ge=0, le=1)
    mask: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _mask_needs_image(self) -> Self:
        if self.image is None and (self.mask is not None or self.denoise is not None):
            raise ValueError("mask and denoise need an image")
        return self


class Template(_Part):
    name: Name
    input: dict[str, Any] = {}


class ModelRef(_Part):
    """A model that a job needs; ``kind`` is one of the field's kinds or a ComfyUI folder name."""

    kind: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    name: Name
    url: Url | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    size: Int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _name_is_relative(self) -> Self:
        _relative(self.name)
        return self


class ResultUrls(_Part):
    """Presigned places of the result document."""

    put: Url
    get: Url


class EncoderSpec(_Part):
    """What an encoder is told beside the quality: the first three are of jpeg, the others of webp.

    ``effort`` from 0, the fastest, to 6, the smallest file.
    """

    progressive: bool = False
    subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
    optimize: bool = False
    alpha_quality: Int = Field(100, ge=0, le=100)
    effort: Int = Field(4, ge=0, le=6)


class OutputSpec(_Part):
    format: ImageFormat | None = None
    quality: Int | None = Field(None, ge=1, le=100)
    lossless: bool = False
    encoder: EncoderSpec = EncoderSpec()
    metadata: Literal["keep", "strip"] | None = None
    storage: Literal["s3", "directory", "inline", "presigned", "s4"] | None = None
    prefix: Prefix | None = None
    upload_urls: tuple[Url, ...] = ()
    result_urls: ResultUrls | None = None


class WebhookSpec(_Part):
    """Where to tell what happens; ``secret`` is a name in the operator's secrets file."""

    url: Url
    events: tuple[Event, ...] | None = None
    secret: Name | None = None


class Job(_Part):
    v: Literal[1] = VERSION
    id: JobId
    params: Params | None = None
    request: dict[str, Any] | None = None
    endpoint: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)] | None = None
    workflow: dict[str, Any] | None = None
    template: Template | None = None
    checkpoint: Name | None = None
    models: tuple[ModelRef, ...] = Field((), max_length=64)
    output: OutputSpec = OutputSpec()
    webhook: WebhookSpec | None = None
    timeout: Annotated[timedelta, Field(gt=timedelta(0))] | None = None
    deadline: AwareDatetime | None = None
    priority: Int = Field(0, ge=-(2**31), lt=2**31)
    metadata: Any = None
    sha256: Annotated[str, Field(exclude=True)] = ""

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("webhook"), str):
            return {**data, "webhook": {"url": data["webhook"]}}
        return data

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) if given else "none"
            raise ValueError(f"exactly one of {', '.join(SOURCES)} says what to make; given: {said}")
        if self.endpoint is not None and self.request is None:
            raise ValueError("endpoint belongs to request")
        return self

    @property
    def seed(self) -> int:
        """The seed for a job that leaves it to us: the same at every run of this id; 32 bits."""
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4])


@dataclass(frozen=True, slots=True)
class Limits:
    """What a single job may ask for; pixels are of one image."""

    max_pixels: int = 4_194_304
    max_steps: int = 150
    max_images: int = 16
    max_timeout: timedelta = timedelta(hours=1)
    max_body: int = 100_000_000

    def check_size(self, width: int, height: int, *, field: str) -> None:
        if width * height > self.max_pixels:
            raise InvalidJob(f"{width}x{height} is more than {self.max_pixels} pixels", field=field)

    def check_steps(self, steps: int, *, field: str) -> None:
        if steps > self.max_steps:
            raise InvalidJob(f"{steps} is more than {self.max_steps}", field=field)

    def check_images(self, images: int, *, field: str) -> None:
        if images > self.max_images:
            raise InvalidJob(f"{images} images are more than {self.max_images}", field=field)


def usable_id(value: Any) -> str | None:
    """The value itself where it can name a job, else None."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def document_of(body: bytes | bytearray, *, max_body: int) -> dict[str, Any]:
    """The JSON object that a body holds; `InvalidJob` otherwise."""
    if len(body) > max_body:
        raise InvalidJob(f"the document has {len(body)} bytes, {max_body} are allowed", field="")
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidJob(f"not JSON: {error}", field="") from None
    if not isinstance(document, dict):
        raise InvalidJob("the document must be a JSON object", field="")
    return document


def job_url_of(document: dict[str, Any]) -> str | None:
    """The URL of the real document, when this one only points at it."""
    if set(document) != {"job_url"}:
        return None
    if not isinstance(document["job_url"], str):
        raise InvalidJob("must be a string", field="job_url")
    return document["job_url"]


def as_job(document: dict[str, Any]) -> dict[str, Any]:
    """The document itself, or that of the job which a bare ComfyUI graph in API format stands for: nodes by their ids,
    each of a class."""
    nodes = document.values()
    is_graph = bool(document) and all(isinstance(n, dict) and isinstance(n.get("class_type"), str) for n in nodes)
    return {"workflow": document} if is_graph else document


def parse(document: dict[str, Any], *, fallback_id: str, limits: Limits) -> Job:
    """The job that a document describes.

    Raises `InvalidJob` with every wrong field, or `UnsupportedDocument` for a version of the future.
    """
    version = document.get("v", VERSION)
    if type(version) is not int:
        raise InvalidJob("must be a whole number", field="v")
    if version > VERSION:
        raise UnsupportedDocument(f"document version {version}, this worker knows up to {VERSION}")
    whole = {**document, "id": document.get("id", fallback_id)}
    try:
        job = Job.model_validate({**whole, "sha256": digest(whole)})
    except ValidationError as error:
        raise InvalidJob(errors=field_errors(error)) from None
    check_limits(job, limits)
    return job


def salvage(document: dict[str, Any], *, fallback_id: str) -> Job:
    """What can be saved of a document that is no job, so that its owner still hears how it ended. Never raises."""
    named = usable_id(document.get("id")) or usable_id(fallback_id)
    saved: dict[str, Any] = {"id": named or hashlib.sha256(fallback_id.encode()).hexdigest(), "params": {"prompt": ""}}
    for field in ("webhook", "output", "metadata"):
        if field not in document:
            continue
        try:
            Job.model_validate({**saved, field: document[field]})
        except ValidationError:
            continue
        saved[field] = document[field]
    return Job.model_validate(saved)


def check_limits(job: Job, limits: Limits) -> None:
    """Raise `InvalidJob` for portable parameters, or a timeout, beyond what one job may ask for."""
    if job.timeout is not None and job.timeout > limits.max_timeout:
        raise InvalidJob(f"is longer than {limits.max_timeout}", field="timeout")
    if job.params is not None:
        params = job.params
        side = 512
        limits.check_size(params.width or side, params.height or side, field="params.width")
        limits.check_steps(params.steps or 1, field="params.steps")
        limits.check_images(params.batch_size, field="params.batch_size")


def digest(document: dict[str, Any]) -> str:
    """``job_sha256``: what a document asks for, whatever its delivery and presigned URLs say."""
    covered = {k: v for k, v in document.items() if k not in _UNDIGESTED and not k.startswith("x-")}
    if isinstance(covered.get("output"), dict):
        covered["output"] = {k: v for k, v in covered["output"].items() if k not in _UNDIGESTED_OUTPUT}
    hashed = hashlib.sha256()
    for piece in _canonical(covered):
        hashed.update(piece.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


def _canonical(node: Any) -> Iterator[str]:
    """The canonical JSON text of a document in pieces.

    Texts that hold images are written a part at a time: the whole of one would keep every other thread of the process
    waiting.
    """
    if not _is_long(node):
        yield _dumped(node)
    elif isinstance(node, str):
        yield '"'
        yield from (_dumped(node[at : at + _PIECE])[1:-1] for at in range(0, len(node), _PIECE))
        yield '"'
    elif isinstance(node, dict):
        for number, (key, value) in enumerate(sorted(node.items())):
            yield f"{',' if number else '{'}{_dumped(key)}:"
            yield from _canonical(value)
        yield "}"
    else:
        for number, value in enumerate(node):
            yield "," if number else "["
            yield from _canonical(value)
        yield "]"


def _is_long(node: Any) -> bool:
    """Whether there is a text in it that is more than a piece."""
    if isinstance(node, str):
        return len(node) > _PIECE
    if isinstance(node, dict):
        return any(map(_is_long, node.values()))
    return isinstance(node, list | tuple) and any(map(_is_long, node))


def _dumped(node: Any) -> str:
    return json.dumps(node, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def field_errors(error: ValidationError) -> tuple[FieldError, ...]:
    """Pydantic's mistakes as dotted fields and messages, without any value."""
    found = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        message = "unknown field" if item["type"] == "extra_forbidden" else item["msg"]
        found.append(FieldError(".".join(map(str, item["loc"])), message.removeprefix("Value error, ")))
    return tuple(found)


def is_before(deadline: datetime | None, now: datetime) -> bool:
    """Whether a job with this deadline may still be started."""
    return deadline is None or now < deadline
