"""The driver of ComfyUI behind the seam `worker.engines.base.Engine`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import structlog

from worker.engines.answer import Answer
from worker.engines.base import EngineState, Files, NativeCall, Output, Progress, Reach, Work
from worker.engines.client import Client
from worker.engines.comfyui.api import Server, is_comfy, usable, version_of
from worker.engines.comfyui.disk import OURS, Folders, candidates, claimed, started_in
from worker.engines.comfyui.follow import idle
from worker.engines.comfyui.holding import Holding
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.listing import relisted
from worker.engines.comfyui.mentions import mentions
from worker.engines.comfyui.models import folder_in
from worker.engines.comfyui.native import prefixes_of
from worker.engines.comfyui.outputs import flaw, sorted_out
from worker.engines.comfyui.pace import NORMAL, Pace
from worker.engines.comfyui.run import Done, Run
from worker.engines.comfyui.sizes import is_open, sized
from worker.engines.comfyui.staging import Shelf, stage
from worker.engines.comfyui.translate import headers_wanted, translate
from worker.engines.comfyui.ways import Way, prompt, shows, way_of
from worker.engines.given import provided
from worker.engines.watchdog import Kind
from worker.errors import (
    ConfigError,
    EngineCrashed,
    FieldError,
    InvalidJob,
    ModelNotFound,
    OutputEmpty,
    OutputMismatch,
    WrongModel,
)
from worker.job import Job, Limits
from worker.mentions import Mention, Place, unexplained
from worker.result import EngineResult
from worker.settings.groups import EngineSettings
from worker.tasks import to_the_end

log = structlog.get_logger(__name__)

SUBMITS = 64
"""Attempts whose submits are counted, so that no two of one attempt share a prompt's id."""

_PROBE = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU"
    b"\x00\x00\x00\nIDATx\x9cc`\x00\x00\x00\x02\x00\x01H\xaf\xa4q\x00\x00\x00\x00IEND\xaeB`\x82"
)
"""A picture of one pixel; what follows its end is ours."""


class ComfyEngine:
    """One ComfyUI. Whatever uses its queue takes ``_turn``: the queue is ours alone while a graph runs."""

    name = "comfyui"

    def __init__(self, settings: EngineSettings, limits: Limits, pace: Pace = NORMAL) -> None:
        self._settings, self._limits, self._pace = settings, limits, pace
        self._client = Client(settings)
        self._server = Server(self._client)
        self._run = Run(settings, self._server, pace)
        self._turn = asyncio.Lock()
        self._listing = asyncio.Lock()
        self._inventory: Inventory | None = None
        self._folders: Folders | None = None
        self._shelf = Shelf()
        self._refreshes = 0
        self._files_version = 0
        self._submits: OrderedDict[str, int] = OrderedDict()
        self._model: str | None = None
        self._holding = Holding()

    async def look(self) -> EngineState:
        """A server whose worker thread is dead looks ready: only a prompt that does not run shows it."""
        if not await self._server.listens():
            self._forget()
            return EngineState(Reach.PORT_CLOSED, detail=f"nothing listens at {self._client.url}")
        try:
            answer = await self._server.stats()
            if not answer.ok or not is_comfy(answer.json):
                detail = f"what listens at {self._client.url} does not answer as ComfyUI does"
                return EngineState(Reach.ROUTES_MISSING, detail=detail)
            busy = await self._server.remaining() > 0
        except EngineCrashed as error:
            return EngineState(Reach.ROUTES_MISSING, detail=error.message)
        version = version_of(answer.json)
        return EngineState(
            Reach.READY, self.name, version, self._model, busy, detail=f"ComfyUI {version or ''}".strip()
        )

    def _forget(self) -> None:
        """What was known of a server that went away."""
        self._inventory = self._folders = self._model = None
        self._holding.forget()

    async def prepare(self) -> None:
        """Learn what the server can do, and how its files can be reached.

        Raises `ConfigError` when it is no ComfyUI.
        """
        async with self._turn, self._listing:
            self._forget()
            await self._server.listens()
            answer = await self._server.stats()
            if answer.status in (404, 405) or (answer.ok and not is_comfy(answer.json)):
                wrong = f"is {self._settings.kind}, but what answers at {self._client.url} is no ComfyUI"
                raise ConfigError((FieldError("WORKER_ENGINE", wrong),))
            usable(answer, "/system_stats")
            self._inventory = await self._server.inventory()
            self._folders = await self._reached(self._inventory)

    async def _reached(self, inventory: Inventory) -> Folders:
        """The server's folders, as far as a file that it stores there is found and removed by us."""
        paths = await self._server.folder_paths()
        cwd = await asyncio.to_thread(started_in, inventory.argv)
        shared = {}
        for kind, places in candidates(inventory.argv, paths, cwd).items():
            content = _PROBE + secrets.token_bytes(16)
            name = await self._server.upload(content, "probe.png", subfolder=OURS, type=kind)
            if (place := await asyncio.to_thread(claimed, places, name, content)) is not None:
                shared[kind] = place
        folders = Folders(shared, paths)
        if unshared := sorted({"input", "output", "temp"} - set(shared)):
            log.warning(
                "engine_files_not_shared", folders=unshared, effect="files that a job leaves there are not removed"
            )
        await asyncio.to_thread(folders.clear)
        return folders

    async def _known(self) -> tuple[Inventory, Folders]:
        """What `prepare` learned; learned now where nobody prepared the server."""
        async with self._listing:
            if self._inventory is None:
                await self._server.listens()
                self._inventory = await self._server.inventory()
            if self._folders is None:
                self._folders = await self._reached(self._inventory)
            return self._inventory, self._folders

    async def admit(self, job: Job) -> Work:
        await self._known()
        seen = self._refreshes
        try:
            return await self._translated(job)
        except ModelNotFound:
            await self._refresh(seen)
        return await self._translated(job)

    async def _refresh(self, seen: int) -> None:
        """List the model files again, unless somebody did so meanwhile: new ones are seen at once, classes are not."""
        inventory, _ = await self._known()
        async with self._listing:
            if seen == self._refreshes:
                self._inventory = relisted(inventory, await self._server.folders())
                self._refreshes += 1

    async def _translated(self, job: Job) -> Work:
        inventory, folders = await self._known()
        wanted = await asyncio.to_thread(headers_wanted, job, inventory)
        contents = await self._shelf.contents(self._server, folders, wanted)
        return await asyncio.to_thread(translate, job, inventory, contents, self._limits)

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        async with self._turn:
            inventory, folders = await self._known()
            if files.version != self._files_version:
                await self._refresh(self._refreshes)
                self._files_version = files.version
            await idle(self._server, self._pace, self._settings.load_timeout)
            if fresh:
                await self._freed(unload=True)
            self._holding.ran(work.models, inventory.argv)
            name = str(uuid5(NAMESPACE_URL, work.key) if work.key else uuid4())
            try:
                images = await asyncio.to_thread(provided, work.inputs, files.inputs)
                names = await stage(self._server, images, name)
                graph = work.request
                if is_open(graph):
                    graph = await asyncio.to_thread(sized, graph, images, self._limits)
                done = await self._made(replace(work, request=graph), names, on_progress, fresh=fresh)
            finally:
                await to_the_end(asyncio.to_thread(folders.clear, name))
            output = await asyncio.to_thread(self._output, work, done, inventory)
            self._model = output.engine.model or self._model
            return output

    async def _made(self, work: Work, names: Mapping[str, str], on_progress: Progress, *, fresh: bool) -> Done:
        """Run the graph; once more when a file is missing, or pictures were lost with the socket."""
        _, folders = await self._known()
        way = way_of(self._settings.comfyui_output, folders.shared)
        done = await self._submit(work, names, way, on_progress, fresh=fresh)
        if done.deaf:
            log.warning("engine_frames_lost")
            way = "preview"
            done = await self._submit(work, names, way, on_progress, fresh=False)
        if done.missing:
            log.warning("engine_file_missing", file=str(done.missing[0]))
            await self._freed(unload=False)
            done = await self._submit(work, names, way, on_progress, fresh=True)
        if done.missing:
            raise OutputEmpty(f"the server tells of the {done.missing[0]}, but has no such file")
        return done

    async def _submit(
        self, work: Work, names: Mapping[str, str], way: Way, on_progress: Progress, *, fresh: bool
    ) -> Done:
        inventory, folders = await self._known()
        prompt_id = self._next_id(work.key)
        ready = await asyncio.to_thread(
            prompt,
            work.request,
            inventory,
            names,
            prefix=f"{OURS}/{prompt_id}",
            way=way,
            fresh=fresh,
            anew=work.anew,
            steps=work.steps,
        )
        kind = Kind(work.expect.checkpoint, work.expect.pixels)
        return await self._run.submit(ready, prompt_id, kind, folders, inventory, on_progress)

    def _next_id(self, key: str) -> str:
        """The id of the next submit of this attempt: found again by it when the answer is lost."""
        if not key:
            return str(uuid4())
        number = self._submits.pop(key, 0)
        self._submits[key] = number + 1
        while len(self._submits) > SUBMITS:
            self._submits.popitem(last=False)
        return str(uuid5(NAMESPACE_URL, f"{key}/{number}"))

    def _output(self, work: Work, done: Done, inventory: Inventory) -> Output:
        """What came, checked against what was asked for. Raises `OutputEmpty`, `OutputMismatch`, `WrongModel`."""
        expect = work.expect
        images, files = sorted_out(done.parts, expect.seeds, expect.count)
        if not images and not files:
            raise OutputEmpty("the graph ran to its end and made nothing that could be sent")
        if expect.count is not None and len(images) != expect.count:
            error = OutputEmpty if len(images) < expect.count else OutputMismatch
            raise error(f"{len(images)} images instead of {expect.count}")
        if told := next((f for i in images if (f := flaw(i.data, expect.width, expect.height))), None):
            raise OutputMismatch(told)
        named = expect.checkpoint is not None and shows(done.graph, expect.checkpoint)
        if expect.checkpoint is not None and done.graph is not None and not named:
            raise WrongModel(f"the server ran a graph that does not load {expect.checkpoint}")
        return Output(
            images,
            EngineResult(
                name=self.name,
                version=inventory.version,
                model=expect.checkpoint,
                proof="name" if named else "none",
                info=info_of(work, done, inventory),
            ),
            load_s=done.load_s,
            generate_s=done.generate_s,
            warnings=work.warnings,
            files=files,
            native={"stats": done.stats, "prefixes": prefixes_of(done.parts, work.request, inventory)},
        )

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        """As the seam says. The files are listed again when one is not found or gone, or a name means several."""
        inventory, folders = await self._known()
        seen = self._refreshes
        with contextlib.suppress(InvalidJob):
            found = await asyncio.to_thread(mentions, job, inventory)
            if not (unexplained(job, found) or await asyncio.to_thread(vanished, found, inventory, folders)):
                return found
        await self._refresh(seen)
        return await asyncio.to_thread(mentions, job, (await self._known())[0])

    async def loaded(self) -> frozenset[Place]:
        return self._holding.places

    async def unload(self, places: Collection[Place]) -> None:
        await self.free(everything=True)

    async def relay(self, call: NativeCall) -> Answer:
        return await self._client.relay(call)

    async def free(self, everything: bool) -> None:
        """Drop the results of nodes; with ``everything`` the models too."""
        async with self._turn:
            await idle(self._server, self._pace, self._settings.load_timeout)
            await self._freed(unload=everything)

    async def _freed(self, *, unload: bool) -> None:
        """Ask for it, and wait a little until the graphics memory shows it: the worker thread does it when it likes."""
        loop = asyncio.get_running_loop()
        before = await self._reserved()
        await self._server.free(unload=unload)
        if unload:
            self._holding.forget()
        ends = loop.time() + self._pace.free_s
        while unload and before:
            if loop.time() >= ends or await self._reserved() < before:
                return
            await asyncio.sleep(self._pace.eager_s)

    async def _reserved(self) -> float:
        """Bytes of graphics memory that the server holds; 0 where it does not say."""
        return reserved((await self._server.stats()).json)

    async def aclose(self) -> None:
        await self._client.aclose()


def vanished(found: Sequence[Mention], inventory: Inventory, folders: Folders) -> bool:
    """Whether a listed file is not where the server's folders are, as far as they are seen from here. It blocks."""
    known = [(folder_in(inventory, m.kind, field=m.field), m.known) for m in found if m.known is not None]
    return any(folders.sees(folder) and folders.model(folder, name) is None for folder, name in known)


def reserved(stats: Any) -> float:
    """Bytes of graphics memory that torch has taken by ``/system_stats``; on a CPU that number is all there is."""
    devices = stats.get("devices") if isinstance(stats, dict) else None
    found = [d for d in devices if isinstance(d, dict)] if isinstance(devices, list) else []
    taken = [d.get("torch_vram_total") for d in found if d.get("type") != "cpu"]
    return sum(t for t in taken if isinstance(t, (int, float)))


def info_of(work: Work, done: Done, inventory: Inventory) -> dict[str, Any]:
    """What the result says of the run. ``cached``: nothing was computed anew but the files."""
    graph: Mapping[str, Any] = done.graph if isinstance(done.graph, Mapping) else work.request
    makers = [
        i for i, node in graph.items() if not ((c := inventory.nodes.get(node.get("class_type"))) and c.output_node)
    ]
    return {
        "seeds": sorted(set(work.expect.seeds)),
        "cached": bool(makers) and done.cached.issuperset(makers),
        "nodes": len(graph),
    }
