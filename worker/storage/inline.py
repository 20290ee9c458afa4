"""What was made, inside the result itself, as base64: nothing is stored, so there is no commit mark."""

from __future__ import annotations

import pybase64

from worker.errors import ResultTooLarge
from worker.job import Job
from worker.result import Result
from worker.storage.base import R, Storable


class InlineStorage:
    """Holds nothing; ``limit`` is the total length of the base64 text in one result."""

    name = "inline"

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def accepts(self, job: Job, outputs: int) -> None:
        """Any job; only what is finished tells how long it is."""

    def marks(self, job: Job) -> bool:
        return False

    async def find_mark(self, job: Job) -> Result | None:
        return None

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        self._check(4 * -(-len(artifact.data) // 3))
        return artifact.result(base64=pybase64.b64encode_as_string(artifact.data))

    async def put_mark(self, job: Job, result: Result) -> Result:
        self._check(sum(len(output.base64 or "") for output in result.outputs))
        return result

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        """A failure goes nowhere but into its webhook and to its queue."""

    async def check(self) -> str:
        return f"inline, up to {self._limit} characters of base64 a result"

    async def aclose(self) -> None:
        """Nothing is open."""

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise ResultTooLarge(f"{length} characters of base64, {self._limit} are allowed")
