"""One generation from request to answer: checks, the wait for the lock, the model, the steps."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from worker.simulators import pictures
from worker.simulators.errors import ServerError
from worker.simulators.info import Inputs, Job
from worker.simulators.knobs import Fault
from worker.simulators.machine import Machine
from worker.simulators.models import ModelFile
from worker.simulators.requests import check_scripts, decoded_inputs, job_from
from worker.simulators.results import document, drawn, echo, spoilt
from worker.simulators.samplers import resolved_sampler
from worker.simulators.state import Generation

_MEMORY_TEXT = "CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total capacity of 23.65 GiB."
_NAN_TEXT = "A tensor with all NaNs was produced in Unet. Use --disable-nan-check commandline argument to disable this."


class _OutOfMemory(Exception):
    """The graphics memory is used up."""


class Generator:
    """Carries out one request on a machine, where one runs at a time."""

    def __init__(self, machine: Machine, endpoint: str, request: dict[str, Any]) -> None:
        """``request`` has passed the schema; ``endpoint`` is "txt2img" or "img2img"."""
        self._machine = machine
        self._dialect = machine.dialect
        self._endpoint = endpoint
        self._request = request
        self._sampler = ("", "")
        self._inputs: Inputs | None = None
        self._fault: Fault | None = None

    async def answer(self) -> tuple[dict[str, Any], Fault | None]:
        """The response document, and the fault that strikes it.

        Raises `HttpError`, `ServerError`, `OtherAnswer`.
        """
        machine, request = self._machine, self._request
        self._sampler = resolved_sampler(self._dialect, request)
        check_scripts(machine, request)
        if self._endpoint == "img2img":
            self._inputs = await asyncio.to_thread(decoded_inputs, machine, request)
        async with machine.lock:
            made = await self._guarded()
        if made is None:
            return {"images": [], "parameters": echo(machine, request), "info": ""}, None
        return await document(machine, *made, self._fault), self._fault

    async def _guarded(self) -> tuple[Job, list[Image.Image]] | None:
        """Run under the lock. SD.Next forgets to end its state after an exception, so that it looks busy."""
        self._machine.begin(self._endpoint, 1 if self._dialect.sdnext else -1)
        try:
            made = await self._run()
        except ServerError:
            if not self._dialect.sdnext:
                self._machine.state.end()
            raise
        self._machine.state.end()
        return made

    async def _run(self) -> tuple[Job, list[Image.Image]] | None:
        """With the overrides in force. None where SD.Next has no model."""
        machine, request = self._machine, self._request
        self._fault = machine.knobs.take(request["prompt"] or "")
        saved = machine.override(request)
        try:
            model = await machine.prepare(request)
            if model is None:
                return None
            machine.disk.refresh("embedding")
            job = job_from(machine, self._endpoint, request, self._sampler, self._inputs, self._ran(model))
            if self._strikes("wrong_seed"):
                job.seeds = [seed + 1 for seed in job.seeds]
            images = await self._recorded(job)
        except ServerError:
            machine.put_back(request, saved)
            raise
        await machine.finish(request, model, saved)
        return job, images

    def _strikes(self, kind: str) -> bool:
        return self._fault is not None and self._fault.kind == kind

    def _ran(self, model: ModelFile) -> ModelFile:
        """The model that really runs."""
        if not self._strikes("wrong_model"):
            return model
        others = [m for m in self._machine.disk.of_kind("checkpoint") if m != model]
        return others[0] if others else replace(model, name="some_other_model.safetensors", sha256="0" * 64)

    async def _recorded(self, job: Job) -> list[Image.Image]:
        """Generate, with an entry in the statistics whatever becomes of it."""
        entry = Generation(
            endpoint=job.endpoint,
            prompt=job.prompt,
            seed=job.seeds[0],
            model=job.model.without_extension,
            width=job.width,
            height=job.height,
            steps=job.request["steps"] or 0,
            started=time.time(),
            fault=self._fault.kind if self._fault else None,
        )
        self._machine.stats.generations.append(entry)
        try:
            images = await self._images(job, entry)
            entry.images = len(images)
            return images
        finally:
            entry.finished = time.time()

    async def _images(self, job: Job, entry: Generation) -> list[Image.Image]:
        """The pictures as the server would return them, faults of their content included."""
        machine, rounds = self._machine, job.request["n_iter"]
        if self._dialect.sdnext:
            machine.begin("Inference", rounds)
        machine.state.job_count = rounds
        if machine.corrupt or min(job.width, job.height) <= 0:
            self._swallow("RuntimeError", f"Invalid size {job.width}x{job.height}")
            return []
        fits = job.width * job.height * len(job.seeds) <= machine.knobs.memory_pixels
        try:
            if not fits:
                raise _OutOfMemory
            drawing = asyncio.get_running_loop().run_in_executor(None, partial(drawn, job))
            ran, cut = await self._steps()
            entry.interrupted = machine.state.interrupted
        except _OutOfMemory:
            machine.out_of_memory += 1
            self._swallow("OutOfMemoryError", _MEMORY_TEXT)
            ran, cut = 1, {0}
            if not fits:
                return []
        images = await drawing
        return spoilt(job, self._cut_short(images, ran, cut) if cut else images, self._fault)

    def _swallow(self, kind: str, text: str) -> None:
        """An error in the pipeline: SD.Next logs it, calls the job interrupted and goes on; others raise it."""
        if not self._dialect.swallows_errors:
            raise ServerError(kind, text)
        self._machine.state.interrupted = True

    def _cut_short(self, images: list[Image.Image], ran: int, cut: set[int]) -> list[Image.Image]:
        """What is left after an interrupt or a skip: ``ran`` rounds were begun, those in ``cut`` are unfinished.

        Automatic1111 decodes unfinished rounds. SD.Next of 2023 returns nothing. The current one returns its
        preview if a poll of the progress has made one and ``keep_incomplete`` is on.
        """
        machine = self._machine
        if self._dialect.sdnext:
            keeps = self._dialect.current and machine.option_for(self._request, "keep_incomplete")
            shows = keeps and machine.state.preview and not machine.state.skipped
            return [pictures.blurred(images[0])] if shows else []
        size = self._request["batch_size"]
        return [pictures.blurred(i) if n // size in cut else i for n, i in enumerate(images[: ran * size])]

    async def _steps(self) -> tuple[int, set[int]]:
        """Let the time pass that the steps take: the number of rounds begun, and which of them were cut short."""
        state, knobs = self._machine.state, self._machine.knobs
        state.sampling_steps = steps = max(self._request["steps"] or 0, 1)
        cut: set[int] = set()
        pace = _Pace()
        slow = self._fault.seconds if self._fault and self._fault.kind == "slow" else 0.0
        await pace.spend(knobs.overhead_seconds + slow)
        for number in range(self._request["n_iter"]):
            state.job_no, state.sampling_step = number, 0
            for step in range(steps):
                state.sampling_step = step
                await pace.spend(knobs.step_seconds * self._request["batch_size"])
                if step == steps - 1 and self._fault:
                    await self._strike(self._fault)
                if state.interrupted or state.skipped:
                    cut.add(number)
                    break
            if state.interrupted or (state.skipped and self._dialect.sdnext):
                return number + 1, cut
            state.skipped = False
        return self._request["n_iter"], cut

    async def _strike(self, fault: Fault) -> None:
        """Faults of the process, just before a round's last step ends."""
        machine = self._machine
        match fault.kind:
            case "oom":
                raise _OutOfMemory
            case "nan" if self._dialect.checks_nan:
                raise ServerError("NansException", _NAN_TEXT)
            case "error_500":
                raise ServerError(fault.error, fault.text)
            case "hang":
                await machine.released.wait()
            case "exit" | "restart":
                machine.fall(fault)
                await asyncio.Event().wait()
            case _:
                pass


class _Pace:
    """Spends time by a running account, so that late wake-ups do not add up."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()

    async def spend(self, seconds: float) -> None:
        """Wait until the account is spent; a debt of over a second is forgiven."""
        self._due = max(self._due, self._loop.time() - 1.0) + seconds
        await asyncio.sleep(max(self._due - self._loop.time(), 0.0))
