"""One submit of a graph: from its ready prompt to what it made, leaving nothing behind whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from worker.engines.base import Progress
from worker.engines.comfyui.api import Server
from worker.engines.comfyui.disk import Folders
from worker.engines.comfyui.events import Track
from worker.engines.comfyui.failure import ended
from worker.engines.comfyui.follow import Following, Watch, stopped, submitted
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.native import stats_of
from worker.engines.comfyui.outputs import Item, Made, chosen, listed, of_node
from worker.engines.comfyui.pace import Pace
from worker.engines.comfyui.reading import Reading
from worker.engines.comfyui.socket import opened
from worker.engines.comfyui.ways import Prompt
from worker.engines.watchdog import Experience, Kind, Watchdog
from worker.errors import EngineFault, EngineStalled, JobRefused, WorkerError
from worker.settings.groups import EngineSettings
from worker.tasks import cancel_all, to_the_end

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """What a prompt made. ``missing``: files that the server named and does not have. ``deaf``: pictures that should
    have come by the socket may not all have come. ``graph``: what ran, by the server's own word."""

    parts: Sequence[tuple[Made, bytes]] = field(repr=False)
    missing: Sequence[Item]
    deaf: bool
    graph: Any = field(repr=False)
    cached: frozenset[str]
    load_s: float
    generate_s: float
    stats: Mapping[str, Any] = field(default_factory=dict)
    """As `stats_of` tells."""


class Run:
    """What is submitted to one server, one at a time."""

    def __init__(self, settings: EngineSettings, server: Server, pace: Pace) -> None:
        self._settings, self._server, self._pace = settings, server, pace
        self._experience = Experience()

    async def submit(
        self,
        prompt: Prompt,
        prompt_id: str,
        kind: Kind,
        folders: Folders,
        inventory: Inventory,
        on_progress: Progress,
    ) -> Done:
        """One prompt to its end. Raises what a refusal, a failure or the server's own end mean."""
        track = Track(prompt_id, prompt.plan)
        reading = Reading(self._server, folders, prompt.own)
        entry: Mapping[str, Any] = {}
        try:
            entry, done = await self._followed(prompt, track, reading, kind, inventory, on_progress)
            return done
        finally:
            await reading.aclose()
            await to_the_end(self._forget(track, prompt_id, entry, folders))

    async def _followed(
        self,
        prompt: Prompt,
        track: Track,
        reading: Reading,
        kind: Kind,
        inventory: Inventory,
        on_progress: Progress,
    ) -> tuple[Mapping[str, Any], Done]:
        loop = asyncio.get_running_loop()
        settings, shown = self._settings, self._experience.of(kind)
        watchdog = Watchdog(loop.time(), settings.load_timeout, settings.stall_timeout, shown)
        watch = Watch(watchdog, shown, settings.load_timeout, self._pace.mute_s)
        following = Following(self._server, track, watch, self._pace, on_progress)
        following.on_executed = lambda: reading.begin(track.executed)
        async with opened(settings, self._server.url, self._pace, following.heard, following.stir) as socket:
            entry = await self._entry(prompt, track, following, inventory, socket.client_id)
            deaf = bool(prompt.plan.senders) and not (
                await following.told() and socket.drops == 0 and prompt.plan.senders <= set(track.frames)
            )
        done_at = loop.time()
        watchdog.ended(done_at)
        if (error := ended(entry)) is not None and not self._sent_all(entry, track, deaf):
            raise error
        parts, missing = await reading.all(results(entry, track, prompt.own))
        first = watchdog.first_step
        return entry, Done(
            parts,
            missing,
            deaf,
            graph_of(entry),
            cached_of(entry),
            load_s=first - watchdog.submitted if first is not None else 0.0,
            generate_s=done_at - (first if first is not None else watchdog.submitted),
            stats=stats_of(track, _object(entry.get("status")).get("messages")),
        )

    def _sent_all(self, entry: Mapping[str, Any], track: Track, deaf: bool) -> bool:
        """Whether an entry without any status belongs to a success: all came by the socket, and so did that word."""
        return entry.get("status") is None and track.succeeded and bool(track.frames) and not deaf

    async def _entry(
        self, prompt: Prompt, track: Track, following: Following, inventory: Inventory, client_id: str
    ) -> Mapping[str, Any]:
        """Submit and follow; what neither ended nor was refused is stopped before anything else happens."""
        body = {"prompt": prompt.graph, "client_id": client_id, "prompt_id": track.prompt_id}
        post = asyncio.create_task(submitted(self._server, body, self._pace, inventory), name="comfyui-submit")
        over = False
        try:
            await asyncio.wait({post})
            track.prompt_id = post.result()
            entry = await following.to_the_end()
            over = True
            return entry
        except JobRefused:
            over = True
            raise
        except EngineFault as error:
            over = True
            with contextlib.suppress(EngineStalled):
                await to_the_end(self._stop(post, track))
            raise error
        finally:
            if not over:
                await to_the_end(self._stop(post, track))

    async def _stop(self, post: asyncio.Task[str], track: Track) -> None:
        """Leave nothing of it running. A submit that is under way arrives first, or else it would start later."""
        if not post.done():
            await asyncio.wait({post}, timeout=self._pace.quiet_s)
            await cancel_all({post})
        if not post.cancelled() and post.exception() is None:
            track.prompt_id = post.result()
        await stopped(self._server, track.prompt_id, self._pace)

    async def _forget(self, track: Track, name: str, entry: Mapping[str, Any], folders: Folders) -> None:
        """Delete the prompt's entry and its files: failing to do so is told, and harms nobody at once."""
        try:
            await self._server.forget(track.prompt_id)
        except WorkerError as error:
            log.warning("engine_history_kept", error=error.message)
        outputs = {**track.executed, **_object(entry.get("outputs"))}
        items = {m.item for node, output in outputs.items() for m in of_node(node, output) if m.item is not None}
        left = await asyncio.to_thread(folders.remove, items, track.began_s or began_of(entry))
        left += await asyncio.to_thread(folders.clear, name)
        if left:
            log.warning("engine_files_left", files=left)


def results(entry: Mapping[str, Any], track: Track, own: frozenset[str]) -> tuple[Made, ...]:
    """What goes out, in the order of the nodes: what the history names, and what came by the socket."""
    sent = {node: [Made(node, data=data) for data in frames] for node, frames in track.frames.items()}
    return chosen(listed(_object(entry.get("outputs")), sent), own)


def graph_of(entry: Mapping[str, Any]) -> Any:
    """The graph that ran; None where the entry does not hold it."""
    prompt = entry.get("prompt")
    return prompt[2] if isinstance(prompt, list) and len(prompt) > 2 else None


def messages(entry: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """What the entry's messages of a kind say."""
    told = _object(entry.get("status")).get("messages")
    pairs = [m for m in told if isinstance(m, list) and len(m) == 2] if isinstance(told, list) else []
    return [_object(data) for name, data in pairs if name == kind]


def cached_of(entry: Mapping[str, Any]) -> frozenset[str]:
    """The nodes whose results were there already."""
    nodes = [n for told in messages(entry, "execution_cached") for n in told.get("nodes") or ()]
    return frozenset(map(str, nodes))


def began_of(entry: Mapping[str, Any]) -> float | None:
    """When it began by the server's clock, in seconds."""
    for told in messages(entry, "execution_start"):
        if isinstance(told.get("timestamp"), (int, float)):
            return float(told["timestamp"]) / 1000
    return None


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
