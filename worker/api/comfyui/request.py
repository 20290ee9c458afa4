"""What `POST /prompt` is asked for in comfyui-api's language, and the job document that it comes to. No I/O."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from worker import http
from worker.errors import FieldError, InvalidJob
from worker.job import JobId, Url, field_errors
from worker.models.auth import Credential

ECHOED = ("convert_output", "webhook", "webhook_v2", "s3", "http_upload")
"""What an answer repeats of its request: never ``credentials``."""

_ELSEWHERE = {
    "azure_blob_upload": "is not in this worker; have the blobs put with http_upload, by a URL with its SAS, or use s3",
    "hf_upload": "is not in this worker; use s3 or http_upload",
}
_SAVERS = re.compile(r"save|preview", re.IGNORECASE)
_AUTH = re.compile(r"\bauth\.(?:bearer|basic|header|query|s3)(?=\.|$)")
_TAG = re.compile(r"Input tag '.*' found using '(\w+)' does not match any of the expected tags:", re.DOTALL)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_OPENING = re.compile(r"[a-z][a-z0-9+.-]{0,31}://[^\s@?#]{0,8000}[@?#]", re.IGNORECASE)
"""URLs with a part that may open something: user information, a query or a fragment."""

_NO_SAVER = "must contain a node that saves what it makes, such as SaveImage: one with a filename_prefix"


class Unsaved(InvalidJob):
    """No node of the graph saves anything."""

    code = "invalid_job"


def _relative(prefix: str) -> str:
    if _UNSAFE.search(prefix) or any(part in (".", "..") for part in prefix.split("/")):
        raise ValueError("must have no '.' or '..' parts, backslash or control character")
    return prefix


def _is_no_text(value: Any) -> Any:
    if isinstance(value, str | bool):
        raise ValueError("must be a number")
    return value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


Percent = Annotated[int, Field(ge=1, le=100), BeforeValidator(_is_no_text)]


class EncoderOptions(_Part):
    """sharp's options of both formats: what is of the other one counts for nothing, as in comfyui-api."""

    model_config = ConfigDict(extra="forbid")

    quality: Percent = 80
    progressive: bool = False
    chromaSubsampling: Literal["4:4:4", "4:2:0"] = "4:2:0"  # noqa: N815 - their name
    optimizeCoding: bool = True  # noqa: N815
    mozjpeg: bool = False
    trellisQuantisation: bool = False  # noqa: N815
    overshootDeringing: bool = False  # noqa: N815
    optimizeScans: bool = False  # noqa: N815
    quantisationTable: Annotated[int, Field(ge=0, le=8), BeforeValidator(_is_no_text)] = 0  # noqa: N815
    alphaQuality: Annotated[int, Field(ge=0, le=100), BeforeValidator(_is_no_text)] = 100  # noqa: N815
    lossless: bool = False
    nearLossless: bool = False  # noqa: N815
    smartSubsample: bool = False  # noqa: N815
    preset: Literal["default", "photo", "picture", "drawing", "icon", "text"] = "default"
    effort: Annotated[int, Field(ge=0, le=6), BeforeValidator(_is_no_text)] = 4


IGNORED = {
    "jpeg": ("mozjpeg", "trellisQuantisation", "overshootDeringing", "quantisationTable"),
    "webp": ("nearLossless", "smartSubsample", "preset"),
}
"""What our encoder does not have: asked for, it is a warning. mozjpeg's scans and tables are made all the same."""


class ConvertOutput(_Part):
    model_config = ConfigDict(extra="forbid")

    format: Literal["jpeg", "jpg", "webp"]
    options: EncoderOptions = EncoderOptions()

    @property
    def encoded(self) -> Literal["jpeg", "webp"]:
        return "webp" if self.format == "webp" else "jpeg"

    @property
    def output(self) -> dict[str, Any]:
        """The same in words of the job document."""
        given = self.options
        if self.encoded == "webp":
            encoder = {"alpha_quality": given.alphaQuality, "effort": given.effort}
            return {"format": "webp", "quality": given.quality, "lossless": given.lossless, "encoder": encoder}
        told: dict[str, Any] = {
            "progressive": given.progressive or given.optimizeScans or given.mozjpeg,
            "subsampling": given.chromaSubsampling,
            "optimize": given.optimizeCoding or given.mozjpeg,
        }
        return {"format": "jpeg", "quality": given.quality, "encoder": told}

    @property
    def ignored(self) -> tuple[str, ...]:
        """The options asked for that count for nothing here."""
        plain = EncoderOptions()
        asked = (name for name in IGNORED[self.encoded] if getattr(self.options, name) != getattr(plain, name))
        return tuple(f"option_ignored:{name}" for name in asked)


class _Upload(_Part):
    """``async`` is true unless it is given, as comfyui-api's documentation has it."""

    asynchronous: bool = Field(True, alias="async")


class S3Upload(_Upload):
    bucket: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
    prefix: Annotated[str, StringConstraints(max_length=512), AfterValidator(_relative)] = ""

    def url(self, filename: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{filename}"


class HttpUpload(_Upload):
    url_prefix: Url = Field(repr=False)

    def url(self, filename: str) -> str:
        """The file below the prefix; a query, as a shared access signature is, stays at the end."""
        place, mark, query = self.url_prefix.partition("?")
        return f"{place.rstrip('/')}/{filename}{mark}{query}"


class Wishes(_Part):
    """What may stand beside a prompt, or a workflow's input, in a request of comfyui-api 1.18; fields that it does not
    know are left out, as it does."""

    id: JobId = Field(default_factory=lambda: str(uuid.uuid4()), description="comes back, and begins the file names")
    convert_output: ConvertOutput | None = None
    webhook: Url | None = Field(None, repr=False, description="deprecated: one unsigned POST a file")
    webhook_v2: Url | None = Field(None, repr=False, description="one signed POST at the end")
    s3: S3Upload | None = None
    http_upload: HttpUpload | None = None
    credentials: tuple[Credential, ...] = Field((), max_length=32, description="for URLs of models in the prompt")

    @property
    def upload(self) -> S3Upload | HttpUpload | None:
        return self.s3 or self.http_upload

    @property
    def waits(self) -> bool:
        """Whether the caller is answered when all is done: nothing else would tell him."""
        sent_on = self.webhook is not None or self.webhook_v2 is not None
        return not sent_on and (self.upload is None or not self.upload.asynchronous)

    @property
    def output(self) -> dict[str, Any]:
        """How the job's pictures are encoded, in words of the job document."""
        return self.convert_output.output if self.convert_output is not None else {}

    @property
    def ignored(self) -> tuple[str, ...]:
        return self.convert_output.ignored if self.convert_output is not None else ()


class PromptRequest(Wishes):
    """A whole request."""

    prompt: dict[str, Any] = Field(repr=False, description="a graph in API format", min_length=1)

    @property
    def document(self) -> dict[str, Any]:
        """The job that it comes to."""
        return {"id": self.id, "workflow": self.prompt, **({"output": self.output} if self.output else {})}


W = TypeVar("W", bound=Wishes)


def read(document: Mapping[str, Any]) -> PromptRequest:
    """The request that a document is. Raises `InvalidJob` naming every wrong field, `Unsaved`."""
    request = wishes(document, PromptRequest)
    check_saver(request.prompt)
    return request


def wishes(document: Mapping[str, Any], kind: type[W]) -> W:
    """What of a document is of this kind. Raises `InvalidJob` naming every wrong field."""
    wrong = [FieldError(name, said) for name, said in _ELSEWHERE.items() if document.get(name) is not None]
    if wrong:
        raise InvalidJob(errors=tuple(wrong))
    try:
        request = kind.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        raise Malformed(errors=wrong_fields(error)) from None
    if request.s3 is not None and request.http_upload is not None:
        raise Malformed("cannot be given beside s3: what is made goes to one place", field="http_upload")
    return request


def wrong_fields(error: ValidationError) -> tuple[FieldError, ...]:
    """Every mistake, without the caller's values; the kind of credentials is no field of the document."""
    return tuple(
        replace(one, field=_AUTH.sub("auth", one.field), message=_TAG.sub(r"\1 must be one of", one.message))
        for one in field_errors(error)
    )


class Malformed(InvalidJob):
    """The request is not of comfyui-api's form."""

    code = "invalid_request"


def check_saver(prompt: Mapping[str, Any]) -> None:
    """Raises `Unsaved`."""
    if not saves(prompt):
        raise Unsaved(_NO_SAVER, field="prompt")


def saves(prompt: Mapping[str, Any]) -> bool:
    """Whether a node shows that it saves something; what is no graph at all is for admission to tell."""
    nodes = [node for node in prompt.values() if isinstance(node, Mapping)]
    return len(nodes) < len(prompt) or any(map(_is_saver, nodes))


def _is_saver(node: Mapping[str, Any]) -> bool:
    inputs, kind = node.get("inputs"), node.get("class_type")
    named = isinstance(inputs, Mapping) and "filename_prefix" in inputs
    return named or not isinstance(kind, str) or _SAVERS.search(kind) is not None


def echo(request: Wishes, document: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer repeats of its request: as it was given, but for credentials, those in any URL included."""
    told = {name: without_secrets(document[name]) for name in ECHOED if document.get(name) is not None}
    return {**told, "id": request.id, "prompt": without_secrets(document["prompt"])}


def without_secrets(node: Any) -> Any:
    """The same with every text that is a URL shown as `http.shown` does, where it has more than that."""
    match node:
        case str():
            return http.shown(node) if _OPENING.match(node) else node
        case Mapping():
            return {name: without_secrets(value) for name, value in node.items()}
        case list():
            return [without_secrets(value) for value in node]
    return node
