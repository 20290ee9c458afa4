"""The warm-up job: it makes the server ready at the start, and tells later whether the server is fit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from worker import http
from worker.engines.base import Engine, Files, Output, ProgressReport, Work
from worker.errors import ConfigError, EngineStalled, JobRefused, OutputFlat, Owner, WorkerError
from worker.gate import Gate
from worker.images import Encoding
from worker.inputs import Inputs
from worker.job import Job, Limits, as_job, document_of, parse
from worker.made import verified
from worker.models.base import Models
from worker.report import used
from worker.wants import settled, wants_of
from worker.workflows import Workflows

DEFAULT = {"params": {"prompt": "a red apple on a wooden table", "width": 256, "height": 256, "steps": 4, "seed": 1}}
"""The warm-up job where the operator names none: small, and quick on every GPU."""


async def written(setting: str) -> bytes:
    """The warm-up job as the operator names it: a word, inline JSON, a URL or a path. Raises `ConfigError`."""
    if setting in ("default", "none"):
        return json.dumps(DEFAULT).encode()
    if setting.lstrip().startswith("{"):
        return setting.encode()
    if "://" in setting:
        with http.translating(lambda message: ConfigError(f"WORKER_WARMUP: {message}"), url=setting):
            async with http.client(timeout=timedelta(seconds=30), loopback=http.is_loopback(setting)) as client:
                response = await client.get(setting)
        if not response.is_success:
            raise ConfigError(f"WORKER_WARMUP: {http.shown(setting)} answered {response.status_code}")
        return response.content
    try:
        return await asyncio.to_thread(Path(setting).read_bytes)
    except OSError as error:
        raise ConfigError(f"WORKER_WARMUP: the file cannot be read: {error.strerror}") from None


def canary_job(document: bytes, limits: Limits) -> Job:
    """The warm-up job that the operator wrote, or the graph that he exported; `ConfigError` when it is none."""
    try:
        return parse(as_job(document_of(document, max_body=limits.max_body)), fallback_id="warm-up", limits=limits)
    except WorkerError as error:
        raise ConfigError(f"WORKER_WARMUP: {error.message}") from None


async def expanded(job: Job, workflows: Workflows, limits: Limits) -> Job:
    """The warm-up job with its template expanded, where it names one; `ConfigError` when that cannot be done."""
    try:
        return await workflows.expanded(job, limits)
    except WorkerError as error:
        raise ConfigError(f"WORKER_WARMUP: {error.message}") from None


class Canary:
    """The one job whose picture is known to be makeable: it warms the server up, and judges it later.

    ``on_verified`` is told of each picture that came out well.
    """

    def __init__(
        self,
        job: Job,
        inputs: Inputs,
        models: Models,
        timeout: timedelta,
        on_verified: Callable[[Work, Output], None] = lambda work, output: None,
    ) -> None:
        self._on_verified = on_verified
        self._job = job
        self._inputs = inputs
        self._models = models
        self._timeout_s = timeout.total_seconds()

    async def run(self, gate: Gate) -> None:
        """Generate and verify it, in a turn of the engine service; raises what is wrong with the server.

        Its models are there before the turn: making room for one may take a turn of its own.
        """
        mentions = await gate.engine.mentions(self._job)
        async with AsyncExitStack() as pins:
            with _accused():
                wanted = [replace(one, owner=Owner.OPERATOR) for one in wants_of(self._job, mentions)]
                models = await pins.enter_async_context(self._models.provided(wanted))
                job = settled(self._job, mentions, models.places)
            async with gate.maintenance() as engine:
                with _accused():
                    work = replace(await engine.admit(job), anew=True)
                work = replace(work, uses=used(work.request, mentions, models.places))
                await self._made(engine, work, models.version)

    async def _made(self, engine: Engine, work: Work, version: int) -> None:
        files = Files(inputs=await self._inputs.images(work.inputs), version=version)
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await engine.generate(work, files, _unheard, fresh=False)
        except TimeoutError:
            raise EngineStalled(f"the warm-up took longer than {self._timeout_s:g} s") from None
        if (await verified(output, work.expect, Encoding())).flat:
            raise OutputFlat("the warm-up image has one colour all over")
        self._on_verified(work, output)


@contextmanager
def _accused() -> Iterator[None]:
    """What this server can never do is the operator's to change, not the node's fault."""
    try:
        yield
    except JobRefused as error:
        raise ConfigError(f"WORKER_WARMUP: this server cannot do the warm-up job: {error.message}") from None


def _unheard(report: ProgressReport) -> None:
    """The canary's progress interests nobody."""
