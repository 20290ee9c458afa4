"""The driver of Automatic1111, Forge and SD.Next behind the seam `worker.engines.base.Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pybase64
import structlog

from worker.engines.answer import Answer
from worker.engines.base import EngineState, Expectation, Files, NativeCall, Output, Progress, Reach, Work
from worker.engines.client import Client
from worker.engines.sdapi import relaying, sizes
from worker.engines.sdapi.failure import checked
from worker.engines.sdapi.header import read_header
from worker.engines.sdapi.holding import Holding, changed_in, is_loaded
from worker.engines.sdapi.inputs import filled, first_image
from worker.engines.sdapi.inventory import Inventory, loaded_checkpoint
from worker.engines.sdapi.judge import judged
from worker.engines.sdapi.mentions import check_present, mentions
from worker.engines.sdapi.names import ModelFile
from worker.engines.sdapi.overrides import Overrides
from worker.engines.sdapi.presence import Presence
from worker.engines.sdapi.run import NORMAL, Pace, Run, Standstill, loads
from worker.engines.sdapi.server import API, Server, recognise, stranger
from worker.engines.sdapi.translate import is_scripted, translate
from worker.engines.sdapi.verdict import Context
from worker.engines.watchdog import Kind
from worker.errors import (
    ConfigError,
    EngineCrashed,
    EngineOutOfMemory,
    FieldError,
    GenerationRejected,
    ModelNotFound,
    OutputError,
    WorkerError,
)
from worker.job import Job, Limits
from worker.mentions import Mention, Place, unexplained
from worker.settings.groups import EngineSettings
from worker.tasks import gather_bare

log = structlog.get_logger(__name__)


class SdapiEngine:
    """One server of the family; which dialect it speaks is found out, never assumed.

    Whatever changes the server (generate, free, a refresh of its lists) takes ``_turn``, since the servers
    corrupt themselves when such calls overlap a generation.
    """

    def __init__(self, settings: EngineSettings, limits: Limits, pace: Pace = NORMAL) -> None:
        self.name: str = settings.kind
        """``a1111`` or ``sdnext``; as configured until the server was seen."""
        self._settings = settings
        self._limits = limits
        self._client = Client(settings)
        self._server: Server | None = None
        self._inventory: Inventory | None = None
        self._turn = asyncio.Lock()
        self._run = Run(settings, pace)
        self._lists_version = 0
        self._refreshes = self._refreshed = 0
        """Refreshes begun so far; of these the latest that went through, by its number."""
        self._overrides = Overrides()
        self._freed = False
        self._holding = Holding()
        self._presence = Presence()
        self._empty = Standstill()
        self._server_version: str | None = None

    async def look(self) -> EngineState:
        if not await self._client.locate():
            self._forget()
            return EngineState(Reach.PORT_CLOSED, detail=f"nothing listens at {self._client.url}")
        try:
            return await self._look()
        except EngineCrashed as error:
            return EngineState(Reach.ROUTES_MISSING, detail=error.message)

    async def _look(self) -> EngineState:
        server = await self._known()
        answer = await server.state()
        if answer.status in (401, 403):
            checked(answer)
        if answer.status == 404 or (answer.ok and answer.json is None):
            self._forget()
            return EngineState(Reach.ROUTES_MISSING, detail=f"the port answers, but not yet below {API}")
        pulse = server.read(answer)
        busy = pulse is None or self._run.is_busy(pulse)
        model, ready = await self._loaded_now(server)
        ready = ready or self._freed
        if ready or server.dialect.loads_lazily or pulse is None or (busy and loads(pulse)):
            self._empty.over()
        else:
            ready = await self._stays_empty(server, pulse.signature if busy else None)
        return EngineState(
            Reach.READY if ready else Reach.MODEL_NOT_LOADED,
            name=server.dialect.engine,
            version=self._server_version,
            model=model,
            busy=busy,
            detail=server.dialect.title,
            holds=self._holding.told,
        )

    async def _loaded_now(self, server: Server) -> tuple[str | None, bool]:
        """The model in the server, and whether it can generate; where models load lazily, one to load is enough."""
        if not server.dialect.loads_lazily:
            current = await server.checkpoint()
            loaded = self._holding.heard(self._inventory, current)
            return (str(current.get("title") or current.get("checkpoint")) if loaded else None), loaded
        if not await server.has_models():
            return None, False
        title = (await server.options()).get("sd_model_checkpoint")
        return (title if isinstance(title, str) else None), True

    async def _stays_empty(self, server: Server, shown: tuple[Any, ...] | None) -> bool:
        """Whether SD.Next, without a model, will load none by itself, so that `generate` has to.

        It is idle, or what it shows does not change: it says for ever that it is at work after an exception.
        """
        lasts_s = self._empty.lasts_s(shown)
        return (shown is None and await server.waits_for_choice()) or lasts_s > self._run.quiet_s

    def _forget(self) -> None:
        """What was known of a server that went away."""
        self._server = self._inventory = None
        self._empty.over()
        self._freed = False
        self._run.forget()
        self._holding.forget()

    async def _known(self) -> Server:
        if self._server is None:
            await self._client.locate()
            self._server = Server(self._client, await recognise(self._client))
            self.name = self._server.dialect.engine
            log.info("engine_recognised", engine=self._server.dialect.engine, dialect=self._server.dialect.label)
        return self._server

    async def prepare(self) -> None:
        """Set what makes answers honest, as far as this server has it, and read it back.

        Raises `ConfigError` when the server is not the configured kind.
        """
        async with self._turn:
            self._forget()
            server = await self._configured()
            dialect = server.dialect
            options = await server.options()
            wanted = {k: v for k, v in dialect.settings.items() if k in options and options[k] != v}
            if not options:
                wanted = {"samples_format": "png"}
            if wanted:
                await server.set_options(wanted)
                now = await server.options()
                refused = sorted(k for k, v in wanted.items() if now and now.get(k) != v)
                if refused:
                    log.warning("engine_settings_refused", options=refused)
            self._inventory = await server.inventory()
            if self._holding.home is None:
                loaded = loaded_checkpoint(self._inventory, await server.checkpoint(), options)
                self._holding.home = loaded.label if loaded is not None else None

    async def _configured(self) -> Server:
        """The server, when it is the one that the operator says. Raises `ConfigError`."""
        try:
            server = await self._known()
        except EngineCrashed:
            title = await stranger(self._client)
            if title is None:
                raise
        else:
            title = server.dialect.title
            if self._settings.kind in ("auto", server.dialect.engine):
                return server
        said = f"is {self._settings.kind}, but {title} answers at {self._client.url}"
        raise ConfigError((FieldError("WORKER_ENGINE", said),))

    async def _known_inventory(self) -> Inventory:
        if self._inventory is None:
            self._inventory = await (await self._known()).inventory()
        return self._inventory

    async def _present(self) -> Inventory:
        """What it lists, without files that are seen to be gone."""
        listed = await self._known_inventory()
        present = await asyncio.to_thread(self._presence.present, listed)
        if self._inventory is listed:
            self._inventory = present
        return present

    async def admit(self, job: Job) -> Work:
        seen = self._refreshes
        try:
            return await asyncio.to_thread(translate, job, await self._present(), self._limits)
        except ModelNotFound:
            async with self._turn:
                if self._refreshed <= seen:
                    await self._refresh()
        return await asyncio.to_thread(translate, job, await self._present(), self._limits)

    async def _refresh(self) -> None:
        self._refreshes = began = self._refreshes + 1
        server = await self._known()
        await server.refresh()
        self._inventory = await server.inventory()
        self._refreshed = began

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        async with self._turn:
            try:
                return await self._generate(work, files, on_progress, fresh=fresh)
            except (OutputError, EngineOutOfMemory, GenerationRejected):
                await self._go_home(work.expect.checkpoint)
                raise

    async def _generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool) -> Output:
        server = await self._known()
        self._holding.used()
        if files.version != self._lists_version:
            await self._refresh()
            self._lists_version = files.version
        await self._run.wait_for_idle(server)
        inventory = await self._present()
        check_present(work.models, inventory)
        current, before = await gather_bare([server.checkpoint(), self._swallowed(server)], name="engine-readings")
        wanted = await self._wanted(work.expect, server, inventory, current)
        if await self._have_model(server, wanted, current, fresh=fresh) and wanted is None:
            wanted = await self._wanted(work.expect, server, inventory, await server.checkpoint())
        body, right = await asyncio.to_thread(self._body, work, files, inventory, fresh)
        kind = Kind(wanted.label if wanted is not None else None, work.expect.pixels)
        done = await self._run.submit(server, work.endpoint, body, kind, on_progress)
        context = Context(
            engine=server.dialect.engine,
            checkpoint=None if work.endpoint == "extra-single-image" else wanted,
            sizes=right,
            interrupted=done.interrupted,
            scripted=is_scripted(work.request),
            single=work.endpoint == "extra-single-image",
        )
        self._overrides.sent(body, ok=done.answer.ok)
        output = await judged(server, done.answer, work.expect, context, before)
        self._learn(output, inventory, wanted)
        return Output(
            output.images,
            output.engine,
            load_s=done.load_s,
            generate_s=done.generate_s,
            warnings=(*work.warnings, *output.warnings),
            native=output.native,
        )

    async def _go_home(self, used: str | None) -> None:
        """As `Holding.go_home`: whether that succeeds or not, the job has failed."""
        if used is None or used == self._holding.home:
            return
        try:
            server, inventory = await self._known(), await self._known_inventory()
            await self._holding.go_home(server, inventory, timeout=self._settings.load_timeout)
        except WorkerError as error:
            log.warning("engine_model_not_restored", code=error.code, error=error.message)

    async def _swallowed(self, server: Server) -> int | None:
        """The count of out-of-memory events where the server tells of them in no other way."""
        return await server.out_of_memory_count() if server.dialect.swallows else None

    async def _wanted(
        self, expect: Expectation, server: Server, inventory: Inventory, current: Any
    ) -> ModelFile | None:
        """The model that must be used: the one named, else the one that the server holds now, by ``/checkpoint``."""
        if expect.checkpoint is not None:
            named = [c for c in inventory.checkpoints if c.label == expect.checkpoint]
            if len(named) != 1:
                raise ModelNotFound(f"the server no longer lists the checkpoint {expect.checkpoint}")
            return named[0]
        options = {} if server.dialect.reports_status else await server.options()
        return loaded_checkpoint(inventory, current, options)

    async def _have_model(self, server: Server, wanted: ModelFile | None, current: Any, *, fresh: bool) -> bool:
        """Load what the server would not load by itself: after `free`, at a fresh run, or on an empty SD.Next.

        Automatic1111 only moves a model to RAM and back; Forge and SD.Next read it from disk again. True if it did.
        """
        timeout = self._settings.load_timeout
        dialect = server.dialect
        empty = not dialect.loads_lazily and not is_loaded(current)
        if not (fresh or empty or self._freed):
            return False
        if fresh:
            await server.unload()
        if wanted is not None and (fresh or empty):
            await server.select(wanted.title, timeout=timeout)
        if dialect.reloads and not (dialect.reports_status and wanted is not None):
            await server.reload(timeout=timeout)
        if empty and wanted is None and not (await self._loaded_now(server))[1]:
            await self._choose(server)
        self._freed = False
        return True

    async def _choose(self, server: Server) -> None:
        """Load the first model of a server that has none selected, as Automatic1111 does by itself."""
        listed = (await self._known_inventory()).checkpoints
        if listed:
            log.warning("engine_model_chosen", model=listed[0].title)
            await server.select(listed[0].title, timeout=self._settings.load_timeout)

    def _body(
        self, work: Work, files: Files, inventory: Inventory, fresh: bool
    ) -> tuple[dict[str, Any], frozenset[tuple[int, int]]]:
        body = filled(work.request, files.inputs, work.inputs)
        right: frozenset[tuple[int, int]] = frozenset()
        image = first_image(body)
        if image is not None:
            header = read_header(pybase64.b64decode(image))
            body, right = sizes.from_input(body, work.endpoint, header, self._limits)
        if work.endpoint != "extra-single-image":
            body["override_settings"] = self._overrides.completed(body, inventory, fresh=fresh)
        return body, right

    def _learn(self, output: Output, inventory: Inventory, wanted: ModelFile | None) -> None:
        """Titles gain a hash with a model's first load: then the lists are read again before the next admission."""
        self._server_version = output.engine.version or self._server_version
        self._holding.home = wanted.label if wanted is not None else self._holding.home
        if wanted is not None and output.engine.model_hash is not None and wanted.hash10 is None:
            self._inventory = None

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        """As the seam says. An idle server is told to look again for a name that it does not list."""
        found = await self._mentioned(job)
        if unexplained(job, found) and not self._turn.locked():
            async with self._turn:
                await self._refresh()
            found = await self._mentioned(job)
        return found

    async def _mentioned(self, job: Job) -> tuple[Mention, ...]:
        return await asyncio.to_thread(mentions, job, await self._present())

    async def loaded(self) -> frozenset[Place]:
        try:
            await self._holding.looked_up(await self._known(), await self._known_inventory())
        except WorkerError as error:
            log.info("engine_models_unread", code=error.code, error=error.message)
        return self._holding.places

    async def unload(self, places: Collection[Place]) -> None:
        async with self._turn:
            server, inventory = await self._known(), await self._known_inventory()
            await self._run.wait_for_idle(server)
            timeout = self._settings.load_timeout
            options, emptied = await self._holding.let_go(server, inventory, places, timeout=timeout)
            self._freed = self._freed or emptied
            self._overrides.settled(options)
            self._inventory = changed_in(inventory, options)

    async def relay(self, call: NativeCall) -> Answer:
        server = await self._known()
        if call.method == "GET":
            return await relaying.read(self._client, server, call)
        async with self._turn:
            await self._run.wait_for_idle(server)
            answer = relaying.sound(await self._client.relay(await self._checked(server, call)))
            if call.path == relaying.UNLOAD:
                self._freed = True
            if call.path in relaying.CHOOSING:
                self._freed, inventory, options = False, await self._known_inventory(), await server.options()
                self._holding.chosen(inventory, await server.checkpoint(), options)
                self._overrides.settled(options)
            if call.path in relaying.CHOOSING or call.path.startswith(relaying.REFRESH):
                self._inventory = None
            return answer

    async def _checked(self, server: Server, call: NativeCall) -> NativeCall:
        """As `relaying.checked`; for a model that is not listed the server is told to look again."""
        options = await server.options()
        try:
            return relaying.checked(call, await self._present(), options)
        except ModelNotFound:
            await self._refresh()
        return relaying.checked(call, await self._present(), options)

    async def free(self, everything: bool) -> None:
        """Unload, which also empties the caches; unless everything is to go, load again what is not loaded lazily."""
        async with self._turn:
            server = await self._known()
            await self._run.wait_for_idle(server)
            await server.unload()
            self._freed = True
            if not everything and server.dialect.reloads:
                await server.reload(timeout=self._settings.load_timeout)
                self._freed = False

    async def aclose(self) -> None:
        await self._client.aclose()
