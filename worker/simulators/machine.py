"""The innards of one server process: its settings, its models, the start timers, and how a model gets selected."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from worker.simulators.dialects import Dialect
from worker.simulators.errors import ServerError
from worker.simulators.knobs import Fault, Knobs
from worker.simulators.models import Disk, ModelFile
from worker.simulators.options import default_options
from worker.simulators.state import State, Stats, TurnLock, until


class Unreadable(Exception):
    """The file of a model is gone or is no model."""


class Machine:
    """A server process. `boot` makes it new; only the settings, which the servers keep in a file, outlive that."""

    def __init__(self, dialect: Dialect, knobs: Knobs, stats: Stats, disk: Disk) -> None:
        self.dialect = dialect
        self.knobs = knobs
        self.stats = stats
        self.disk = disk
        self.rng = random.Random(knobs.random_seed)
        self.options = default_options(dialect)
        self.defaults = default_options(dialect)
        self.fall: Callable[[Fault], None] = lambda _: None
        """What brings the process down; the server sets it."""
        self.boot()

    def boot(self) -> None:
        """Forget everything but the settings and begin the start timers."""
        self.disk.hashing = self.dialect.hashing if self.knobs.hashing is None else self.knobs.hashing
        self.disk.refresh()
        self.state = State()
        self.lock = TurnLock(fair=self.dialect.fair_lock, rng=self.rng)
        self.threads = asyncio.Semaphore(self.knobs.threads)
        self.log: deque[str] = deque(maxlen=100)
        self.loaded: ModelFile | None = None
        self.corrupt = False
        self.stuck_on: ModelFile | None = None
        self.out_of_memory = 0
        self._set_now: set[str] = set()
        self.released = asyncio.Event()
        self._leaked: list[bytes] = []
        self.started = time.monotonic()
        self._booted = False
        if self.options["sd_model_checkpoint"] is None and (models := self.disk.of_kind("checkpoint")):
            self.options["sd_model_checkpoint"] = self.disk.title(models[0])

    @property
    def uptime(self) -> float:
        """Seconds since the process began."""
        return time.monotonic() - self.started

    @property
    def port_due(self) -> bool:
        """Whether it listens by now."""
        return self.uptime >= self.knobs.start_port_seconds

    @property
    def routes_ready(self) -> bool:
        """Whether the API answers anything but 404."""
        return self.uptime >= self.knobs.start_port_seconds + self.knobs.start_routes_seconds

    @property
    def leaked_bytes(self) -> int:
        """Memory that the loads of models have used up."""
        return sum(map(len, self._leaked))

    def notice_boot(self) -> None:
        """Carry out the end of the first load if it is due by now."""
        _ = self.booted

    @property
    def booted(self) -> bool:
        """Whether the model's first load is over; what depends on it happens when it is asked for."""
        timers = self.knobs.start_port_seconds + self.knobs.start_routes_seconds + self.knobs.start_model_seconds
        if not self._booted and (self.dialect.lazy_load or self.uptime >= timers):
            self._finish_boot()
        return self._booted

    def _finish_boot(self) -> None:
        self._booted = True
        self.log.append(f"Startup time: {self.uptime:.2f}")
        model = self.configured() if self.options.get("sd_checkpoint_autoload", True) else None
        if model is not None and not self.dialect.lazy_load and self.disk.exists(model):
            self._now_loaded(model)

    async def until_booted(self) -> None:
        """Wait for the first load, as every job of a server that does not answer without a model."""
        await until(lambda: self.booted)

    def begin(self, job: str, count: int) -> None:
        """Mark the start of a job or of a part of it."""
        self.state.begin(job, count, f"{self.rng.getrandbits(60):015x}")

    def release(self) -> None:
        """Let whatever hangs go on."""
        self.released.set()
        self.released = asyncio.Event()

    def configured(self) -> ModelFile | None:
        """The model that the settings name; Automatic1111 falls back to the first when it vanished."""
        name = self.options["sd_model_checkpoint"]
        found = self.disk.find_loosely(str(name)) if name else None
        models = self.disk.of_kind("checkpoint")
        return found or (models[0] if models and not self.dialect.current else None)

    async def load(self, model: ModelFile) -> None:
        """Load a model. Raises `Unreadable` after the time it takes."""
        if self.dialect.sdnext:
            self.begin("Load model", 1)
        seconds = self.knobs.load_seconds if model.load_seconds is None else model.load_seconds
        await asyncio.sleep(seconds)
        if not self.disk.exists(model):
            raise Unreadable(model.name)
        self._now_loaded(model)

    def _now_loaded(self, model: ModelFile) -> None:
        was_configured = self.configured() == model
        self.loaded = model
        self.corrupt = False
        self.disk.note_loaded(model)
        self._leaked.append(b"\1" * self.knobs.leak_bytes_per_load)
        self.stats.loads.append(model.without_extension)
        if was_configured:
            self.configure(model)

    def configure(self, model: ModelFile) -> None:
        """Note the model in the settings by its title."""
        self.options["sd_model_checkpoint"] = self.disk.title(model)
        self.options["sd_checkpoint_hash"] = model.sha256 if self.disk.known_hash(model) else None

    def listed_options(self) -> dict[str, Any]:
        """`GET /options`: on the current SD.Next only what its file holds, the changed ones, and what was set since."""
        if not self.dialect.current or self.knobs.new_install:
            return dict(self.options)
        return {k: v for k, v in self.options.items() if v != self.defaults[k] or k in self._set_now}

    async def set_options(self, changes: dict[str, Any]) -> Any:
        """`POST /options`: the answer's body. Raises `ServerError`."""
        self.stats.options_posts.append(changes)
        if self.dialect.sdnext:
            return {"updated": [{name: await self._set_sdnext_option(name, v)} for name, v in changes.items()]}
        name = changes.get("sd_model_checkpoint")
        if name is not None and self.disk.find(str(name)) is None:
            raise ServerError("RuntimeError", f"model {name!r} not found")
        for key, value in changes.items():
            self.check_option(key, value)
            self.options[key] = value
        if name is not None and not self.dialect.lazy_load:
            await self._reload_or_roll_back(str(name))
        return None

    async def _reload_or_roll_back(self, name: str) -> None:
        model = self.disk.find(name)
        async with self.lock:
            if model is None or model == self.loaded:
                return
            try:
                await self.load(model)
            except Unreadable:
                if self.loaded is not None:
                    self.configure(self.loaded)

    def check_option(self, name: str, value: Any) -> None:
        """Raises `ServerError` where a name that does not exist is an error: null passes."""
        if name not in self.options and self.dialect.unknown_option_fails and value is not None:
            raise ServerError("KeyError", repr(name))

    async def _set_sdnext_option(self, name: str, value: Any) -> bool:
        self.check_option(name, value)
        if name not in self.options or self.options[name] == value:
            return False
        self.options[name] = value
        self._set_now.add(name)
        if name == "sd_model_checkpoint":
            async with self.lock:
                await self.select(str(value))
                self.state.end()
        return True

    async def select(self, name: str) -> bool:
        """SD.Next's selection by its option: whether a model was loaded.

        The current one is left without a model by a name that it does not know or a file that it cannot read.
        """
        model = self.disk.find_loosely(name)
        if model is not None and model == self.loaded and not self.corrupt:
            self.configure(model)
            return False
        previous = self.loaded
        self.loaded = None
        try:
            if model is None:
                self._look_elsewhere(name)
                return False
            await self.load(model)
        except Unreadable:
            self.loaded = None if self.dialect.current else previous
            return False
        self.configure(model)
        return True

    def _look_elsewhere(self, name: str) -> None:
        """A name like a repository's or a URL makes SD.Next of today download gigabytes; here it is only noted."""
        if self.dialect.current and self.options["sd_checkpoint_autodownload"] and "/" in name:
            self.stats.downloads.append(name)

    async def prepare(self, request: dict[str, Any]) -> ModelFile | None:
        """The model that a job runs with, loaded; None where SD.Next goes on without one. Raises `ServerError`."""
        overrides = request["override_settings"] or {}
        for key, value in overrides.items():
            self.check_option(key, value)
        wanted = overrides.get("sd_model_checkpoint")
        if self.dialect.current:
            return await self._prepare_current(request, wanted)
        await self.until_booted()
        return await (self._prepare_2023(wanted) if self.dialect.sdnext else self._prepare_a1111(wanted))

    async def _prepare_current(self, request: dict[str, Any], wanted: Any) -> ModelFile | None:
        if not self.booted:
            return None
        if top := request.get("sd_model_checkpoint"):
            self.options["sd_model_checkpoint"] = top
            await self.select(str(top))
        if self.loaded is None and (configured := self.configured()):
            await self.select(self.disk.title(configured))
        if self.loaded is None:
            return None
        override = self.disk.find(str(wanted)) if wanted else None
        if override is not None and override != self.loaded:
            previous = self.loaded
            try:
                await self.load(override)
            except Unreadable as error:
                await self.load(previous)
                raise ServerError("TypeError", "'NoneType' object is not callable") from error
        return self.loaded

    async def _prepare_2023(self, wanted: Any) -> ModelFile:
        override = self.disk.find(str(wanted)) if wanted else None
        model = override or self.loaded or self.configured()
        if model is None:
            raise ServerError("AttributeError", "'NoneType' object has no attribute 'images'")
        if model != self.loaded:
            try:
                await self.load(model)
            except Unreadable as error:
                raise ServerError("AttributeError", "'NoneType' object has no attribute 'images'") from error
        return model

    async def _prepare_a1111(self, wanted: Any) -> ModelFile:
        model = (self.disk.find(str(wanted)) if wanted else None) or self.configured()
        if model is None:
            self._no_model()
        if self.stuck_on == model:
            raise ServerError("AttributeError", "'NoneType' object has no attribute 'sd_checkpoint_info'")
        self.stuck_on = None
        if model != self.loaded:
            try:
                await self.load(model)
            except Unreadable as error:
                self._cannot_read(model, error)
        return model

    def _no_model(self) -> NoReturn:
        if self.dialect.lazy_load:
            text = "You do not have any model! Please download at least one model in [models/Stable-diffusion]."
            raise ServerError("ValueError", text)
        text = "No checkpoints found. When searching for checkpoints, looked at:\n - directory /models/Stable-diffusion"
        raise ServerError("FileNotFoundError", text)

    def _cannot_read(self, model: ModelFile, error: Unreadable) -> NoReturn:
        """Forge renames the file and has no model from then on until another one is asked for."""
        if not self.dialect.lazy_load:
            raise ServerError("SafetensorError", "Error while deserializing header: HeaderTooLarge") from error
        self.disk.remove(model.name)
        self.loaded = None
        self.stuck_on = self.configured()
        raise ServerError("ValueError", "Failed to recognize model type!") from error

    def put_back(self, request: dict[str, Any], saved: dict[str, Any]) -> None:
        """Undo `override`, if the request has it so."""
        if request["override_settings_restore_afterwards"]:
            self.options |= {k: v for k, v in saved.items() if k != "sd_model_checkpoint"}

    async def finish(self, request: dict[str, Any], model: ModelFile, saved: dict[str, Any]) -> None:
        """What follows a job: settings put back or kept, and SD.Next's swap back to the model before."""
        self.put_back(request, saved)
        if not request["override_settings_restore_afterwards"]:
            self.configure(model)
        elif self.dialect.sdnext and "sd_model_checkpoint" in saved:
            previous = self.disk.find_loosely(str(saved["sd_model_checkpoint"]))
            if previous is not None and previous != self.loaded:
                interrupted = self.state.interrupted
                await self.load(previous)
                self.state.interrupted = interrupted

    def override(self, request: dict[str, Any]) -> dict[str, Any]:
        """Apply the other settings of a job; returns what they were."""
        changes = {k: v for k, v in (request["override_settings"] or {}).items() if k in self.options}
        saved = {k: self.options[k] for k in changes}
        self.options |= {k: v for k, v in changes.items() if k != "sd_model_checkpoint"}
        return saved

    def option_for(self, request: dict[str, Any], name: str) -> Any:
        """A setting that SD.Next also takes as a field of the request."""
        value = request.get(name)
        return self.options.get(name) if value is None else value
