"""One server process: its queue, and the single thread that works through it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from worker.simulators import pictures
from worker.simulators.fooocus import painting
from worker.simulators.fooocus.jobs import Job, Journal, Picture, now_ms
from worker.simulators.fooocus.knobs import Fault, Knobs
from worker.simulators.fooocus.schema import STEPS, STEPS_UPSCALING
from worker.simulators.state import Generation, Stats, until

_OOM = "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacty of 7.79 GiB"
_TRACEBACK = """Traceback (most recent call last):
  File "/app/fooocusapi/worker.py", line 893, in process_generate
    imgs = pipeline.process_diffusion(
{kind}: {text}"""
_DIED = """Exception in thread Thread-3 (task_schedule_loop):
Traceback (most recent call last):
  File "/usr/lib/python3.10/threading.py", line 1016, in _bootstrap_inner
    self.run()
{kind}: {text}"""


class _Stopped(Exception):
    """The flag of a stop was up at a step."""


class _Failed(Exception):
    """Whatever a job may raise; ``sampling`` is where 0.4 prints a traceback."""

    def __init__(self, text: str, *, sampling: bool = True) -> None:
        super().__init__(text)
        self.sampling = sampling


class _Died(Exception):
    """What ends the generating thread."""


class Machine:
    """A server process. `boot` makes it new; the files that it wrote outlive that."""

    def __init__(self, series: str, knobs: Knobs, stats: Stats, journal: Journal, outputs: Path) -> None:
        self.series = series
        self.knobs = knobs
        self.stats = stats
        self.journal = journal
        self.outputs = outputs
        self.default_model = ""
        self.unloadable: Callable[[str, str], str | None] = lambda kind, name: None
        """Why a file of a folder cannot be loaded; the server sets it."""
        self.sha256_of: Callable[[str], str] = lambda name: hashlib.sha256(name.encode()).hexdigest()
        """What a model's file hashes to; the server sets it where files are real."""
        self.fall: Callable[[Fault], None] = lambda _: None
        """What brings the process down; the server sets it."""
        self.webhooks: list[str] = []
        self.boot()

    def boot(self) -> None:
        """Forget everything and begin the start timers."""
        self.queue: list[Job] = []
        self.history: list[Job] = []
        self.last_job_id: str | None = None
        self.interrupt = False
        self.loaded: str | None = None
        self.last_model: str | None = None
        self.broken: str | None = None
        self.dead = False
        self.released = asyncio.Event()
        self.started = time.monotonic()

    @property
    def port_due(self) -> bool:
        """Whether it listens by now."""
        return time.monotonic() - self.started >= self.knobs.start_port_seconds

    @property
    def booted(self) -> bool:
        """Whether the default model is loaded, without which no job begins."""
        timers = self.knobs.start_port_seconds + self.knobs.start_model_seconds
        return time.monotonic() - self.started >= timers

    def release(self) -> None:
        """Let a job that hangs go on."""
        self.released.set()
        self.released = asyncio.Event()

    def add(self, job: Job) -> bool:
        """Queue a job; False when too many wait or run."""
        if len(self.queue) >= self.knobs.queue_size:
            return False
        self.queue.append(job)
        self.last_job_id = job.id
        return True

    def find(self, job_id: str) -> Job | None:
        """A job that waits, runs or is still remembered."""
        return next((job for job in (*self.queue, *self.history) if job.id == job_id), None)

    async def work(self) -> None:
        """The generating thread: one job after the other, until something ends it."""
        try:
            while True:
                await until(lambda: bool(self.queue))
                await until(lambda: self.booted)
                await self._process(self.queue[0])
        except _Died as error:
            self.dead = True
            self.journal.raw(_DIED.format(kind="IndexError", text=error))

    async def _process(self, job: Job) -> None:
        fault = job.fault = self.knobs.at_work(job.body.prompt)
        if fault is not None and fault.kind == "dead_worker":
            raise _Died("list index out of range")
        if self.series == "0.5" and job.body.meta_scheme not in ("fooocus", "a1111"):
            raise _Died(f"'{job.body.meta_scheme}' is not a valid MetadataScheme")
        await self._take(job)
        record = Generation(job.endpoint, job.body.prompt, job.seed, job.body.base_model_name, 0, 0, 0, time.time())
        self.stats.generations.append(record)
        late: list[str] = []
        try:
            await self._generate(job, record)
        except _Stopped:
            record.interrupted = True
            self._note_stop(job)
        except (_Failed, ValueError, IndexError) as error:
            late = self._note_failure(job, error)
        record.finished = time.time()
        record.images = len([p for p in job.pictures or () if p.file])
        record.fault = job.fault.kind if job.fault is not None else None
        self._finish(job)
        for line in late:
            self.journal.error(line)

    async def _take(self, job: Job) -> None:
        """0.4 unloads the model of the last job before it notes the start; 0.5 never notes one."""
        if self.series == "0.5":
            self.journal.info(f"[Task Queue] Start task, job_id={job.id}, pid=17")
            return
        self.journal.info(f"[Task Queue] Task queue start task, job_id={job.id}")
        if self.last_model not in (None, job.body.base_model_name):
            await asyncio.sleep(self.knobs.load_seconds)
            self.loaded = None
        self.last_model = job.body.base_model_name
        job.start_ms = now_ms()

    def _progress(self, job: Job, number: int, text: str, *, printed: bool = True) -> None:
        job.progress, job.status = min(number, 100), text
        if printed:
            self.journal.info(f"[Fooocus] {text}")

    async def _generate(self, job: Job, record: Generation) -> None:
        adp: Any = job.body.advanced_params
        if adp.debugging_cn_preprocessor or adp.debugging_inpaint_preprocessor:
            await self._debug(job)
        mode = job.body.performance_selection.value
        made = painting.plan(job, self.series, STEPS[mode], STEPS_UPSCALING[mode])
        record.width, record.height, record.steps = *made.size, made.steps
        self._progress(job, 1, "Initializing ...")
        await self._load(job)
        self._progress(job, 5, "Encoding positive #1 ...")
        self._progress(job, 6, "Encoding negative #1 ...")
        if self.broken is not None:
            raise _Failed(self.broken, sampling=False)
        if made.image is not None:
            self._progress(job, 13, "VAE encoding ...")
        self._progress(job, 13, "Moving model to GPU ...", printed=False)
        if job.fault is not None and job.fault.kind == "slow":
            await asyncio.sleep(job.fault.seconds)
        await asyncio.sleep(self.knobs.overhead_seconds)
        finished: list[Picture] = []
        job.pictures = None
        try:
            for index in range(made.count):
                await self._sample(job, made, index)
                finished.append(await self._saved(job, made, index))
        except _Stopped:
            job.pictures = finished
            raise
        job.settle(self._spoilt(job, finished), failed=False)

    async def _debug(self, job: Job) -> None:
        """0.4 stumbles while it saves the preprocessor's picture; 0.5 begins the job anew for ever."""
        if self.series == "0.4":
            raise _Failed("unsupported operand type(s) for +: 'bool' and 'str'", sampling=False)
        await asyncio.Event().wait()

    async def _load(self, job: Job) -> None:
        self._progress(job, 3, "Loading models ...")
        name = job.body.base_model_name
        if self.loaded != name:
            await asyncio.sleep(self.knobs.load_seconds)
            self._check("checkpoints", name)
            self.loaded = name
            self.stats.loads.append(name)
            self.journal.raw(f"Base model loaded: /app/models/checkpoints/{name}")
        for lora in job.body.loras:
            if lora.model_name != "None":
                self._check("loras", lora.model_name)

    def _check(self, kind: str, name: str) -> None:
        """A checkpoint that is gone or cut off ends the job; a LoRA only when it is cut off."""
        why = self.unloadable(kind, name)
        if why is not None and kind == "loras" and "corrupted" not in why:
            self.journal.raw(f"Lora file not found: {name}")
        elif why is not None:
            raise _Failed(why, sampling=False)

    async def _sample(self, job: Job, made: painting.Plan, index: int) -> None:
        """The callback first looks at the flag of a stop, then tells the step."""
        fault = job.fault.kind if job.fault is not None else None
        middle = max(made.steps // 2, 1)
        if made.size[0] * made.size[1] > self.knobs.memory_pixels:
            raise _Failed(_OOM)
        for step in range(made.steps):
            await asyncio.sleep(self.knobs.step_seconds)
            if step == middle and job.fault is not None:
                await self._strike(job.fault)
            if step == made.steps - 1 and fault == "hang":
                await self.released.wait()
            if self.interrupt:
                self.interrupt = False
                raise _Stopped
            done = index * made.steps + step
            text = f"Step {step}/{made.steps} in the {index + 1}-th Sampling"
            share = int(15 + 85 * done / (made.steps * made.count))
            self._progress(job, share, text, printed=False)

    async def _strike(self, fault: Fault) -> None:
        """What happens in the middle of the sampling."""
        match fault.kind:
            case "oom":
                raise _Failed(_OOM)
            case "cuda":
                self.broken = fault.text
                raise _Failed(fault.text)
            case "error":
                raise _Failed(fault.text)
            case "user_cancel_by_other":
                self.interrupt = True
            case "crash" | "exit" | "restart":
                if fault.kind == "crash":
                    self.journal.raw("terminate called after throwing an instance of 'c10::Error'")
                self.fall(fault)
                await asyncio.Event().wait()
            case _:
                pass

    async def _saved(self, job: Job, made: painting.Plan, index: int) -> Picture:
        """Draw a picture and write it below the folder of outputs."""
        body, fault = job.body, job.fault.kind if job.fault is not None else None
        step = 0 if body.advanced_params.disable_seed_increment else 1
        seed = (job.seed + index * step) % 2**63
        model = self.default_model if fault == "wrong_model" else body.base_model_name
        extension = body.save_extension if body.save_extension in pictures.FORMATS else "png"
        name = f"{time.strftime('%Y-%m-%d')}/{body.save_name or job.id}-{index}.{extension}"
        path = self.outputs / name

        def write() -> None:
            picture = self._picture(job, made, model, seed, fault)
            hashed = self.sha256_of(model)
            info = painting.metadata(job, self.series, model, hashed, seed, picture.size) if body.save_meta else None
            data = painting.encoded(picture, extension, info)
            data = data[: len(data) // 2] if fault == "truncated_image" else data
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"<html></html>" if fault == "not_an_image" else data)
            if fault == "missing_file":
                path.unlink()

        await asyncio.to_thread(write)
        return Picture(name, str(seed) if made.seeded else "-1")

    def _picture(self, job: Job, made: painting.Plan, model: str, seed: int, fault: str | None) -> Image.Image:
        width, height = made.size
        if fault in ("black", "flat"):
            return pictures.flat(width, height, (0, 0, 0) if fault == "black" else (9, 90, 160))
        picture = painting.drawn(job, model, seed, made)
        return picture.resize((width // 2, height // 2)) if fault == "wrong_size" else picture

    def _spoilt(self, job: Job, finished: list[Picture]) -> list[Picture]:
        kind = job.fault.kind if job.fault is not None else None
        return [] if kind == "empty" else finished[:-1] if kind == "short_count" else finished

    def _note_stop(self, job: Job) -> None:
        """0.5 calls a stopped job a success, with the pictures that it has."""
        if self.series == "0.4":
            self.journal.warn("[Fooocus] User stopped")
            job.settle([Picture(None, str(job.seed), "USER_CANCEL")], failed=True)
        else:
            self.journal.raw("User stopped")
            job.settle(job.pictures or [], failed=False)

    def _note_failure(self, job: Job, error: Exception) -> list[str]:
        """Print the cause, which nothing else tells; 0.5 does so after the job is over: then it is given back."""
        sampling = isinstance(error, _Failed) and error.sampling
        job.settle([Picture(None, str(job.seed), "ERROR")] if sampling and self.series == "0.4" else [], failed=True)
        if self.series == "0.5":
            return [f"[Task Queue] Finish task with error: {error}, job_id={job.id}"]
        self.journal.error(f"[Fooocus] {'Process' if sampling else 'Worker'} error: {error}")
        if sampling:
            kind = "torch.cuda.OutOfMemoryError" if "out of memory" in str(error) else "RuntimeError"
            self.journal.raw(_TRACEBACK.format(kind=kind, text=error))
        return []

    def _finish(self, job: Job) -> None:
        """To the history. With the database a job that failed before its sampling ends the thread.

        The reason of its end is taken from its first result, of which it has none.
        """
        job.finished, job.finish_ms = True, now_ms()
        if job.body.webhook_url:
            self.webhooks.append(job.body.webhook_url)
        if job in self.queue:
            self.queue.remove(job)
        self.history.append(job)
        if self.knobs.persistent and not job.pictures:
            raise _Died("list index out of range")
        self.journal.info(f"[Task Queue] Finish task, job_id={job.id}")
        if 0 < self.knobs.queue_history < len(self.history):
            self.delete(self.history.pop(0))

    def delete(self, job: Job) -> None:
        """Take a job's files away."""
        for picture in job.pictures or ():
            if picture.file is not None:
                (self.outputs / picture.file).unlink(missing_ok=True)
