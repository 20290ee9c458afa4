"""Where things are kept below a place's root: keys, and what a standing result document says.

The key of what was made holds the job's id and a hash of the content, so no late writer can change what a result names.
A result document's key depends on the job's id alone: one id has one success, whatever prefix a job asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import Formatter
from typing import Any

import pydantic_core
from pydantic import ValidationError

from worker.errors import ConfigError, FieldError, IdConflict, InvalidJob, UnsupportedDocument
from worker.job import Job
from worker.result import Result
from worker.storage.base import Storable

HASH_LENGTH = 12
DEFAULT_PATTERN = "{prefix}/{id}/{index}-{hash}.{ext}"
_REQUIRED = ("id", "index", "hash")
_KNOWN = frozenset({"prefix", "ext", *_REQUIRED})
_FAILURE = re.compile(r"failure-(\d{1,9})\.json")
_MAX_KEY = 1024
FAILURES_MOST = 100
_ADVICE = "write it like " + DEFAULT_PATTERN


class Keys:
    """The keys of one place.

    ``prefix`` and ``result_prefix`` are the operator's; a job's ``output.prefix`` goes below the first.
    Raises `ConfigError` for a pattern or prefix that could not tell jobs or contents apart.
    """

    def __init__(self, *, prefix: str = "", result_prefix: str | None = None, pattern: str = DEFAULT_PATTERN) -> None:
        self._prefix = _checked_prefix(prefix, "WORKER_S3_PREFIX")
        self._results = (
            self._prefix if result_prefix is None else _checked_prefix(result_prefix, "WORKER_RESULT_PREFIX")
        )
        self._pattern = _checked_pattern(pattern)

    def artifact(self, job: Job, artifact: Storable[object]) -> str:
        filled = self._pattern.format(
            prefix=joined(self._prefix, job.output.prefix or ""),
            id=job.id,
            index=artifact.index,
            hash=artifact.sha256[:HASH_LENGTH],
            ext=artifact.extension,
        )
        return _bounded(joined(filled))

    def mark(self, job: Job) -> str:
        """Where the job's success stands."""
        return self.mark_of(job.id)

    def mark_of(self, job_id: str) -> str:
        """Where the success of the job of this id stands."""
        return _bounded(joined(self._results, job_id, "result.json"))

    def failure(self, job: Job, attempt: int) -> str:
        return self.failure_of(job.id, attempt)

    def failure_of(self, job_id: str, attempt: int) -> str:
        return _bounded(self.failures_of(job_id) + f"{attempt}.json")

    def failures_of(self, job_id: str) -> str:
        """What the keys of the job's failures begin with."""
        return joined(self._results, job_id, "failure-")

    def trial(self) -> str:
        """Where a check may write."""
        return joined(self._results, "sd-worker-check.txt")


def joined(*parts: str) -> str:
    """Segments joined by one slash each, none at the ends."""
    return "/".join(segment for part in parts for segment in part.split("/") if segment)


def standing(job: Job, body: bytes) -> Result | None:
    """The success that a stored document is for this job; None where it is no success at all.

    Raises `IdConflict` when it is of another document, `UnsupportedDocument` when a newer worker wrote it.
    """
    document = _document(body)
    if document is None or document.get("status") != "succeeded":
        return None
    if document.get("job_sha256") not in (None, job.sha256):
        raise IdConflict(f"{job.id} was already done for another document")
    try:
        return Result.model_validate(document)
    except ValidationError:
        raise UnsupportedDocument(
            f"the result that stands for {job.id} has a form that this worker cannot read"
        ) from None


def told(body: bytes) -> Result | None:
    """How a job ended, as a stored document tells it; None where it is none that this worker can read."""
    try:
        return Result.model_validate(_document(body))
    except ValidationError:
        return None


def failures_among(names: Iterable[str]) -> list[int]:
    """The numbers of the failures among names of documents, the smallest first; at most the `FAILURES_MOST` largest."""
    found = (_FAILURE.fullmatch(name.rpartition("/")[2]) for name in names)
    return sorted(int(match[1]) for match in found if match is not None)[-FAILURES_MOST:]


def in_order(bodies: Iterable[bytes | None]) -> tuple[Result, ...]:
    """The failures that stored documents are, given by their numbers; the latest last.

    Numbers begin anew with each run of a job: what came later, the documents themselves tell.
    """
    found = [one for one in (told(body) for body in bodies if body is not None) if one is not None]
    return tuple(sorted(found, key=lambda one: (one.created_at, one.finished_at)))


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        document = pydantic_core.from_json(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _bounded(key: str) -> str:
    if len(key.encode()) > _MAX_KEY:
        raise InvalidJob(f"makes a key of more than {_MAX_KEY} bytes", field="output.prefix")
    return key


def _checked_prefix(prefix: str, variable: str) -> str:
    if any(part in (".", "..") for part in prefix.split("/")) or re.search(r"[\\\x00-\x1f]", prefix):
        raise ConfigError((FieldError(variable, "must have no '.', '..', backslash or control character"),))
    return joined(prefix)


def _checked_pattern(pattern: str) -> str:
    mistake = _pattern_mistake(pattern)
    if mistake is not None:
        raise ConfigError((FieldError("WORKER_S3_KEY", mistake),))
    return pattern


def _pattern_mistake(pattern: str) -> str | None:
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        return f"{error}; {_ADVICE}"
    names = [name for _, name, _, _ in parts if name is not None]
    unknown = sorted(set(names) - _KNOWN)
    missing = [name for name in _REQUIRED if name not in names]
    if unknown:
        return f"{{{unknown[0]}}} is not known; {_ADVICE}"
    if missing:
        return f"{{{missing[0]}}} is required; {_ADVICE}"
    if any(spec or conversion for _, _, spec, conversion in parts):
        return f"a placeholder is a name alone; {_ADVICE}"
    return _shape_mistake(pattern)


def _shape_mistake(pattern: str) -> str | None:
    if pattern.startswith("/") or any(part in (".", "..") for part in pattern.split("/")):
        return "must be relative, without '.' or '..' parts"
    if re.search(r"[\\\x00-\x1f]", pattern):
        return "must have no backslash or control character"
    if re.search(r"\{(id|index|hash)\}\{(id|index|hash)\}", pattern):
        return "needs something between {id}, {index} and {hash}"
    return None
