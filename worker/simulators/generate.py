"""One generation from request to answer: checks, the wait for the lock, the model, the steps, the pictures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn
from urllib.parse import urlsplit

from PIL import Image

from worker.simulators import pictures
from worker.simulators.errors import HttpError, OtherAnswer, ServerError
from worker.simulators.info import Job, info_document, infotext, lora_names
from worker.simulators.knobs import Fault
from worker.simulators.machine import Machine
from worker.simulators.models import ModelFile
from worker.simulators.samplers import resolved_sampler
from worker.simulators.state import Generation

_MEMORY_TEXT = "CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total capacity of 23.65 GiB."
_NAN_TEXT = "A tensor with all NaNs was produced in Unet. Use --disable-nan-check commandline argument to disable this."


class Generator:
    """Generates on one machine. Of all that a request may ask for, one runs at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def answer(self, endpoint: str, request: dict[str, Any]) -> tuple[dict[str, Any], Fault | None]:
        """The response document, and the fault that its sending shall suffer.

        ``request`` has passed the schema. Raises `HttpError`, `ServerError`, `OtherAnswer`.
        """
        machine = self._machine
        sampler, scheduler = resolved_sampler(machine.dialect, request)
        self._check_scripts(request)
        init = self._init_image(request) if endpoint == "img2img" else None
        machine.booted  # noqa: B018 - a load that is due by now is noted before the job hides it
        async with machine.lock:
            machine.begin("img2img" if init else "txt2img", -1 if not machine.dialect.sdnext else 1)
            made = await self._guarded(endpoint, request, (sampler, scheduler), init)
        if made is None:
            return {"images": [], "parameters": _echo(machine, request), "info": ""}, None
        job, images, fault = made
        document = await self._document(job, images, fault)
        return document, fault

    async def _guarded(
        self, endpoint: str, request: dict[str, Any], sampler: tuple[str, str], init: Image.Image | None
    ) -> tuple[Job, list[Image.Image], Fault | None] | None:
        """Run under the lock. SD.Next forgets to end its state after an exception, so that it looks busy."""
        machine = self._machine
        try:
            made = await self._run(endpoint, request, sampler, init)
        except ServerError:
            if not machine.dialect.sdnext:
                machine.state.end()
            raise
        machine.state.end()
        return made

    async def _run(
        self, endpoint: str, request: dict[str, Any], sampler: tuple[str, str], init: Image.Image | None
    ) -> tuple[Job, list[Image.Image], Fault | None] | None:
        machine = self._machine
        fault = machine.knobs.take(request["prompt"] or "")
        saved = machine.override(request)
        try:
            model = await machine.prepare(request)
            if model is None:
                return None
            ran = _another(machine, model) if fault and fault.kind == "wrong_model" else model
            job = self._job(endpoint, request, sampler, init, ran)
            if fault and fault.kind == "wrong_seed":
                job.seeds = [seed + 1 for seed in job.seeds]
            images = await self._recorded(job, fault)
        except ServerError:
            if request["override_settings_restore_afterwards"]:
                machine.options |= saved
            raise
        interrupted = machine.state.interrupted
        await machine.finish(request, model, saved)
        machine.state.interrupted = interrupted
        return job, images, fault

    def _job(
        self,
        endpoint: str,
        request: dict[str, Any],
        sampler: tuple[str, str],
        init: Image.Image | None,
        model: ModelFile,
    ) -> Job:
        machine = self._machine
        count = (request["batch_size"] or 0) * (request["n_iter"] or 0)
        if count <= 0:
            raise ServerError("IndexError", "list index out of range")
        if not machine.dialect.sdnext and not request["steps"]:
            raise ServerError("ZeroDivisionError", "division by zero")
        width, height = self._size(request)
        known = {m.stem for m in machine.disk.of_kind("lora")}
        known |= {name.replace(".", "_") for name in known} if machine.dialect.current else set()
        vae = machine.options["sd_vae"]
        vaes = {m.name.rpartition("/")[2] for m in machine.disk.of_kind("vae")}
        return Job(
            request=request,
            endpoint=endpoint,
            model=model,
            model_hash=machine.disk.known_hash(model),
            sampler=sampler[0],
            scheduler=sampler[1],
            width=width,
            height=height,
            seeds=self._seeds(request, count, "seed"),
            subseeds=self._seeds(request, count, "subseed"),
            vae=vae if vae in vaes else None,
            loras=[name for name in lora_names(request["prompt"] or "") if name in known],
            init=init,
        )

    def _size(self, request: dict[str, Any]) -> tuple[int, int]:
        """The size of the result: a multiple of eight, larger with the high-resolution pass."""
        machine = self._machine
        standard = machine.dialect.size if machine.dialect.current else 0
        width, height = (request[side] or standard for side in ("width", "height"))
        if request.get("enable_hr") and (not machine.dialect.sdnext or request["hr_upscaler"] not in (None, "None")):
            if request["hr_resize_x"] and request["hr_resize_y"]:
                width, height = request["hr_resize_x"], request["hr_resize_y"]
            else:
                width, height = int(width * request["hr_scale"]), int(height * request["hr_scale"])
        if machine.dialect.current and 0 < min(width, height) < 16:
            raise ServerError("TypeError", "unsupported operand type(s) for /: 'NoneType' and 'int'")
        return width - width % 8, height - height % 8

    def _seeds(self, request: dict[str, Any], count: int, name: str) -> list[int]:
        first = request[name]
        if first is None or first == -1:
            first = self._machine.rng.getrandbits(32)
        grows = name == "subseed" or not request["subseed_strength"]
        return [first + (n if grows else 0) for n in range(count)]

    async def _recorded(self, job: Job, fault: Fault | None) -> list[Image.Image]:
        """Generate, with an entry in the statistics whatever becomes of it."""
        machine = self._machine
        entry = Generation(
            endpoint=job.endpoint,
            prompt=job.prompt,
            seed=job.seeds[0],
            model=job.model.without_extension,
            width=job.width,
            height=job.height,
            steps=job.request["steps"] or 0,
            started=time.time(),
            fault=fault.kind if fault else None,
        )
        machine.stats.generations.append(entry)
        try:
            images = await self._images(job, fault)
            entry.images = len(images)
            return images
        finally:
            entry.interrupted = machine.state.interrupted
            entry.finished = time.time()

    async def _images(self, job: Job, fault: Fault | None) -> list[Image.Image]:
        """The pictures as the server would return them, faults of their content included."""
        machine = self._machine
        machine.begin("Inference", job.request["n_iter"]) if machine.dialect.sdnext else None
        machine.state.job_count = job.request["n_iter"]
        if machine.corrupt or min(job.width, job.height) <= 0:
            return self._swallowed("RuntimeError", f"Invalid size {job.width}x{job.height}")
        drawing = asyncio.get_running_loop().run_in_executor(None, partial(_drawn, job))
        try:
            cut = await self._steps(job, fault)
        except _OutOfMemory:
            machine.out_of_memory += 1
            if not machine.dialect.swallows_errors:
                raise ServerError("OutOfMemoryError", _MEMORY_TEXT) from None
            machine.state.interrupted = True
            cut = 0
        images = await drawing
        if cut is not None:
            images = self._cut_short(job, images, cut)
        return _spoilt(job, images, fault)

    def _swallowed(self, kind: str, text: str) -> list[Image.Image]:
        """An error in the pipeline: SD.Next logs it and goes on without pictures."""
        if not self._machine.dialect.swallows_errors:
            raise ServerError(kind, text)
        self._machine.state.interrupted = True
        return []

    def _cut_short(self, job: Job, images: list[Image.Image], done: int) -> list[Image.Image]:
        """What is left of a generation that was interrupted or skipped after ``done`` whole rounds.

        Automatic1111 decodes the unfinished round. SD.Next of 2023 returns nothing. The current one returns its
        preview if a poll of the progress has made one and ``keep_incomplete`` is on.
        """
        machine = self._machine
        if machine.dialect.sdnext:
            keeps = machine.dialect.current and machine.option_for(job.request, "keep_incomplete")
            return [pictures.blurred(images[0])] if keeps and machine.state.preview else []
        size = job.request["batch_size"]
        finished = images[: done * size]
        return finished + [pictures.blurred(i) for i in images[done * size : (done + 1) * size]]

    async def _steps(self, job: Job, fault: Fault | None) -> int | None:
        """Let the time pass that the steps take. The number of whole rounds when cut short, None when not."""
        machine, loop = self._machine, asyncio.get_running_loop()
        state = machine.state
        state.sampling_steps = steps = max(job.request["steps"] or 0, 1)
        due = loop.time() + machine.knobs.overhead_seconds
        due += fault.seconds if fault and fault.kind == "slow" else 0.0
        await asyncio.sleep(due - loop.time())
        for state.job_no in range(job.request["n_iter"]):
            for state.sampling_step in range(steps):
                due = max(due, loop.time() - 1.0) + machine.knobs.step_seconds * job.request["batch_size"]
                await asyncio.sleep(max(due - loop.time(), 0.0))
                if state.sampling_step == steps - 1 and fault:
                    await self._strike(fault)
                if state.interrupted or (state.skipped and machine.dialect.sdnext):
                    return int(state.job_no)
                if state.skipped:
                    state.skipped = False
                    return int(state.job_no)
        return None

    async def _strike(self, fault: Fault) -> None:
        """Faults of the process, just before the last step's end."""
        machine = self._machine
        match fault.kind:
            case "oom":
                raise _OutOfMemory
            case "nan" if machine.dialect.checks_nan:
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

    def _check_scripts(self, request: dict[str, Any]) -> None:
        """Scripts that are not installed: SD.Next of today minds the always-on ones only."""
        machine = self._machine
        installed = {name.lower() for name in machine.knobs.scripts}
        if request["script_name"] and not machine.dialect.current:
            raise HttpError(422, f"Script '{request['script_name']}' not found")
        for name in request["alwayson_scripts"]:
            if name.lower() not in installed:
                known = "Always on script not found: {}" if machine.dialect.current else "Script '{}' not found"
                raise HttpError(422, known.format(name))

    def _init_image(self, request: dict[str, Any]) -> Image.Image:
        dialect = self._machine.dialect
        images = request["init_images"]
        if not images:
            if dialect.current:
                raise OtherAnswer(400, {"error": "Init image is none"})
            raise HttpError(404, "Init image not found")
        value = str(images[0])
        if value.startswith(("http://", "https://")) and not dialect.sdnext:
            _refuse_url(value)
        try:
            return pictures.decode_base64_image(value)
        except ValueError as error:
            raise HttpError(500, "Invalid encoded image") from error

    async def _document(self, job: Job, images: list[Image.Image], fault: Fault | None) -> dict[str, Any]:
        """Encode by the global format, which is in force again by now, and word the answer."""
        machine, request = self._machine, job.request
        made = len(images)
        if request["save_images"] and made > 1 and machine.option_for(request, "return_grid"):
            images = [pictures.grid(images), *images]
            job.first = 1
        encoded = await asyncio.to_thread(self._encoded, job, images)
        if fault and fault.kind == "truncated_image":
            encoded = [data[: len(data) // 2] for data in encoded]
        if fault and fault.kind == "not_an_image":
            encoded = [b"<html><body>Bad Gateway</body></html>" for _ in encoded]
        return {
            "images": [pictures.to_base64(data) for data in encoded] if request["send_images"] else [],
            "parameters": _echo(machine, request),
            "info": info_document(machine.dialect, job, made),
        }

    def _encoded(self, job: Job, images: list[Image.Image]) -> list[bytes]:
        options = self._machine.options
        kind = str(options["samples_format"])
        if kind.lower() not in pictures.FORMATS:
            raise HttpError(500, "Invalid image format")
        noted = options.get("enable_pnginfo", options.get("image_metadata"))
        texts = [infotext(self._machine.dialect, job, max(n - job.first, 0)) for n in range(len(images))]
        quality = int(options["jpeg_quality"])
        return [
            pictures.encode(image, kind, quality, text if noted else "")
            for image, text in zip(images, texts, strict=True)
        ]


class _OutOfMemory(Exception):
    """The graphics memory is used up."""


def _drawn(job: Job) -> list[Image.Image]:
    """All pictures of a job, the same for the same prompt, seed, model and LoRAs."""
    strength = 1.0 if job.init is None else float(job.request["denoising_strength"] or 0.0)
    keys = [
        f"{job.prompt}|{job.negative}|{seed}|{job.model.sha256}|{','.join(job.loras)}|{subseed}"
        if job.request["subseed_strength"]
        else f"{job.prompt}|{job.negative}|{seed}|{job.model.sha256}|{','.join(job.loras)}"
        for seed, subseed in zip(job.seeds, job.subseeds, strict=True)
    ]
    return [pictures.draw(key, job.width, job.height, job.init, strength) for key in keys]


def _spoilt(job: Job, images: list[Image.Image], fault: Fault | None) -> list[Image.Image]:
    """The pictures after a fault of their content."""
    match fault.kind if fault else "":
        case "black" | "nan":
            return [pictures.flat(job.width, job.height, (0, 0, 0)) for _ in images]
        case "flat":
            return [pictures.flat(job.width, job.height, (127, 127, 127)) for _ in images]
        case "preview":
            small = (max(job.width // 8, 1), max(job.height // 8, 1))
            return [pictures.blurred(i).resize(small) for i in images[:1]]
        case "empty":
            return []
        case "short_count":
            return images[:-1]
        case "wrong_size":
            return [i.resize((max(i.width // 2, 1), max(i.height // 2, 1))) for i in images]
        case _:
            return images


def _another(machine: Machine, model: ModelFile) -> ModelFile:
    """Some other model than this one."""
    others = [m for m in machine.disk.of_kind("checkpoint") if m != model]
    return others[0] if others else replace(model, name="some_other_model.safetensors", sha256="0" * 64)


def _refuse_url(value: str) -> NoReturn:
    """Automatic1111 would fetch the image; nothing outside can be reached from here."""
    host = urlsplit(value).hostname or ""
    if host in ("localhost", "::1") or host.startswith(("127.", "10.", "192.168.", "169.254.")):
        raise HttpError(500, "Request to local resource not allowed")
    raise HttpError(500, "Invalid image url")


def _echo(machine: Machine, request: dict[str, Any]) -> dict[str, Any]:
    """The request with its defaults; input images are left out."""
    echo = dict(request)
    if not request.get("include_init_images"):
        echo |= {name: None for name in ("init_images", "mask") if name in request and request[name] is not None}
    if machine.dialect.current:
        for name in ("ip_adapter", "face", "face_id", "control_units", "init_control", "extra"):
            echo.pop(name, None)
    return echo
