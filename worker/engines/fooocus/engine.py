"""The driver of Fooocus-API behind the seam `worker.engines.base.Engine`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from worker.engines.answer import Answer
from worker.engines.base import EngineState, Expectation, Files, NativeCall, Output, Progress, Reach, ServerLog, Work
from worker.engines.client import Client
from worker.engines.fooocus import sizes
from worker.engines.fooocus.dialects import CLEAN
from worker.engines.fooocus.failure import checked
from worker.engines.fooocus.holding import configured, is_listed, used
from worker.engines.fooocus.inputs import as_rgb, check_mask, filled, size_of
from worker.engines.fooocus.inventory import ENDPOINTS, Inventory, relisted
from worker.engines.fooocus.mentions import mentions
from worker.engines.fooocus.outputs import FOLDERS, Outputs
from worker.engines.fooocus.run import NORMAL, Pace, Request, Run
from worker.engines.fooocus.server import Server
from worker.engines.fooocus.translate import translate
from worker.engines.fooocus.verdict import judged, made
from worker.engines.given import provided
from worker.engines.watchdog import Kind
from worker.errors import AuthFailed, ConfigError, EngineCrashed, FieldError, ModelNotFound
from worker.job import Job, Limits
from worker.mentions import Mention, Place
from worker.settings.groups import EngineSettings
from worker.tasks import gather_bare

log = structlog.get_logger(__name__)


class FooocusEngine:
    """One server; which version it is is found out, never assumed.

    Whatever changes the server takes ``_turn``. Its saved files are fetched rather than pictures as base64: those
    it would encode once more, without what tells of the model. ``server_log`` is where causes of failures stand.
    """

    def __init__(
        self,
        settings: EngineSettings,
        limits: Limits,
        server_log: ServerLog,
        pace: Pace = NORMAL,
        folders: Sequence[Path] = FOLDERS,
    ) -> None:
        self.name = "fooocus"
        self._settings = settings
        self._limits = limits
        self._client = Client(settings)
        self._server = Server(self._client)
        self._inventory: Inventory | None = None
        self._turn = asyncio.Lock()
        self._run = Run(settings, server_log, pace)
        self._outputs = Outputs(folders)
        self._model: str | None = None
        self._configured: frozenset[Place] = frozenset()
        self._used: frozenset[Place] = frozenset()

    async def look(self) -> EngineState:
        if not await self._client.locate():
            self._forget()
            return EngineState(Reach.PORT_CLOSED, detail=f"nothing listens at {self._client.url}")
        try:
            return await self._look()
        except EngineCrashed as error:
            return EngineState(Reach.ROUTES_MISSING, detail=error.message)

    async def _look(self) -> EngineState:
        """``/ping`` would only prove the web server: models that it lists are what it needs to generate."""
        answer = await self._server.models()
        if answer.status in (401, 403):
            raise AuthFailed(f"the server answered {answer.status}")
        listed = answer.json.get("model_filenames") if answer.ok and isinstance(answer.json, dict) else None
        inventory = await self._known() if isinstance(listed, list) else None
        if inventory is None:
            self._forget()
            return EngineState(Reach.ROUTES_MISSING, detail="the port answers, but not as Fooocus-API does")
        busy = (await self._server.queue()).waiting > 0
        return EngineState(
            Reach.READY if listed else Reach.MODEL_NOT_LOADED,
            name=self.name,
            version=inventory.dialect.label,
            model=self._model,
            busy=busy,
            detail=inventory.dialect.title,
        )

    def _forget(self) -> None:
        """What was known of a server that went away."""
        self._inventory = self._model = None
        self._used = frozenset()
        self._run.forget()

    async def _known(self) -> Inventory | None:
        if self._inventory is None:
            self._inventory = await self._server.inventory()
            if self._inventory is not None:
                self._configured = configured(self._inventory)
                log.info("engine_recognised", engine=self.name, dialect=self._inventory.dialect.label)
        return self._inventory

    async def _offered(self) -> Inventory:
        inventory = await self._known()
        if inventory is None:
            raise EngineCrashed(f"what answers at {self._client.url} is no Fooocus-API, or not yet")
        return inventory

    async def prepare(self) -> None:
        """There is nothing to set: every request says all that counts.

        Raises `ConfigError` when another kind of server answers.
        """
        async with self._turn:
            self._forget()
            await self._client.locate()
            if await self._known() is None:
                said = f"is fooocus, but what answers at {self._client.url} is no Fooocus-API"
                raise ConfigError((FieldError("WORKER_ENGINE", said),))

    async def admit(self, job: Job) -> Work:
        inventory = await self._offered()
        try:
            return await asyncio.to_thread(translate, job, inventory, self._limits)
        except ModelNotFound:
            self._inventory = None
        return await asyncio.to_thread(translate, job, await self._offered(), self._limits)

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        async with self._turn:
            return await self._generate(work, files, on_progress, fresh=fresh)

    async def _generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool) -> Output:
        inventory = await self._offered()
        await self._run.wait_for_idle(self._server)
        if fresh:
            await self._unload(inventory)
        await self._check_listed(used(work.request))
        body, expect = await asyncio.to_thread(self._body, work, files, inventory)
        pictures = expect.count or 0
        self._used = used(body)
        request = Request(ENDPOINTS[work.endpoint], body, Kind(expect.checkpoint, expect.pixels), pictures)
        done = await self._run.generate(self._server, request, on_progress)
        self._model = expect.checkpoint
        urls = _urls(done.document)
        try:
            found = made(done.document, expect)
            datas = await gather_bare([self._server.picture(p.url) for p in found], name="engine-pictures")
        finally:
            await self._outputs.remove(self._server, done.job, urls, deletes=inventory.dialect.deletes)
        output = judged(found, datas, expect, version=inventory.dialect.label, sha256=_sha256(work))
        return replace(
            output,
            load_s=done.load_s,
            generate_s=done.generate_s,
            warnings=(*work.warnings, *output.warnings),
        )

    async def _check_listed(self, places: Collection[Place]) -> None:
        """Raises `ModelNotFound` for a file that is gone by now: the server would use its default, or none."""
        self._inventory = await self._relisted()
        for place in sorted(places):
            if not is_listed(self._inventory, place):
                raise ModelNotFound(f"the server no longer lists the {place.kind} {place.name}")

    async def _relisted(self) -> Inventory:
        """With the files that are there now: the server reads its folders whenever it is asked what it has."""
        inventory = await self._offered()
        return relisted(inventory, checked(await self._server.models()).json)

    def _body(self, work: Work, files: Files, inventory: Inventory) -> tuple[dict[str, Any], Expectation]:
        """The request with its images, and what its pictures must be, now that the images' sizes are known."""
        images = provided(work.inputs, files.inputs)
        body, expect = dict(work.request), work.expect
        root = "params" if "params.image" in images else "request"
        where = "params.image" if root == "params" else "request.input_image"
        mask = "params.mask" if root == "params" else "request.input_mask"
        inverted = bool(body["advanced_params"].get("invert_mask_checkbox"))
        inpaints = work.endpoint == "image-inpaint-outpaint"
        if mask in images and inpaints and not body.get("outpaint_selections"):
            check_mask(images[mask], inverted=inverted, field=mask)
        if where in images and work.endpoint in ("image-upscale-vary", "image-inpaint-outpaint"):
            size = size_of(images[where], field=where)
            if root == "params":
                size = (expect.width or size[0], expect.height or size[1])
                images |= {name: as_rgb(data, size, field=name) for name, data in images.items()}
            expect = self._expected(body, expect, size, inventory, field=where)
        return filled(body, images), expect

    def _expected(
        self, body: dict[str, Any], expect: Expectation, size: sizes.Size, inventory: Inventory, *, field: str
    ) -> Expectation:
        method = str(body.get("uov_method", ""))
        if method.startswith("Upscale"):
            grown = sizes.upscaled(size, method, body.get("upscale_value"), inventory.dialect)
            self._limits.check_size(*grown, field=field)
            return expect
        right = sizes.varied(size) if method else sizes.outpainted(size, body)
        self._limits.check_size(*right, field=field)
        return replace(expect, width=right[0], height=right[1])

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        self._inventory = await self._relisted()
        return await asyncio.to_thread(mentions, job, self._inventory)

    async def loaded(self) -> frozenset[Place]:
        return self._used | self._configured

    async def unload(self, places: Collection[Place]) -> None:
        """Where the version can; what it was started with stays, and without that so does what it used last."""
        await self.free(everything=True)

    async def relay(self, call: NativeCall) -> Answer:
        """As the seam says. `CLEAN` changes the server though it is a GET: it takes a turn, ours and the gate's."""
        if call.method == "GET" and call.path != CLEAN:
            return await self._client.relay(call)
        async with self._turn:
            await self._run.wait_for_idle(self._server)
            answer = await self._client.relay(call)
            if call.path == CLEAN:
                self._used = frozenset()
            return answer

    async def free(self, everything: bool) -> None:
        """Unload all models where the version can; 0.4 cannot but by a restart. There is no way to free less."""
        async with self._turn:
            inventory = await self._offered()
            await self._run.wait_for_idle(self._server)
            await self._unload(inventory)

    async def _unload(self, inventory: Inventory) -> None:
        """The models leave the graphics memory; those in RAM stay, and are read from disk only by a new process."""
        if inventory.dialect.cleans:
            await self._server.clean(self._settings.load_timeout)
            self._used = frozenset()
        else:
            log.info("engine_cannot_unload", dialect=inventory.dialect.label)

    async def aclose(self) -> None:
        await self._client.aclose()


def _urls(document: Any) -> tuple[str, ...]:
    listed = document.get("job_result") if isinstance(document, dict) else None
    found = [item.get("url") for item in listed or () if isinstance(item, dict)]
    return tuple(url for url in found if isinstance(url, str))


def _sha256(work: Work) -> str | None:
    """The hash of the checkpoint, where the job tells it."""
    name = (work.expect.checkpoint or "").replace("\\", "/").rpartition("/")[2]
    return next(
        (m.sha256 for m in work.models if m.kind == "checkpoint" and m.name.rpartition("/")[2] == name and m.sha256),
        None,
    )
