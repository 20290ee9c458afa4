"""One prompt on the wire: submitted once, followed to its entry in the history, and never left running.

The history is the truth, the socket only makes it faster. A prompt is left by one of four ways: its entry, the
server's end, a stall, or being stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import structlog

from worker.engines.answer import Answer
from worker.engines.base import Progress
from worker.engines.comfyui.api import Queued, Server
from worker.engines.comfyui.events import Track
from worker.engines.comfyui.failure import refused
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.pace import Pace
from worker.engines.watchdog import Shown, Stage, Watchdog
from worker.errors import EngineCrashed, EngineStalled

log = structlog.get_logger(__name__)

LOOKS = 2
"""A submit counts as never arrived only when so many looks in a row did not find it."""


class Whereabouts:
    """Judges looks at the queue while the history has no entry yet. No I/O; times are of the event loop."""

    def __init__(self, prompt_id: str, pace: Pace) -> None:
        self._id, self._dead_s, self._apart_s = prompt_id, pace.dead_s, pace.poll_s / 2
        self._missed_since: float | None = None
        self._waits_since: float | None = None

    def see(self, queue: Queued, now: float) -> None:
        """Raises `EngineCrashed` for a lost prompt, `EngineStalled` when nothing runs although ours waits.

        It is lost when two looks that are some time apart, and none between them, found it.
        """
        if self._id in queue:
            self._missed_since = None
        elif self._missed_since is None:
            self._missed_since = now
        elif now - self._missed_since >= self._apart_s:
            raise EngineCrashed("lost: the prompt is neither in the queue nor in the history")
        if self._id not in queue.pending or queue.running:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        elif now - self._waits_since > self._dead_s:
            raise EngineStalled(f"nothing runs although a prompt has waited for {self._dead_s:g} s: its worker is dead")


class Watch:
    """Tells a slow prompt from a stuck one. No I/O; times are of the event loop.

    A model that is read in the middle of a graph has the time of a first load, whatever steps took.
    """

    def __init__(self, watchdog: Watchdog, shown: Shown, load: timedelta, mute_s: float) -> None:
        self._watchdog, self._shown = watchdog, shown
        self._load_s, self._mute_s = load.total_seconds(), mute_s
        self._node: tuple[str | None, float] = (None, 0.0)
        self._began: float | None = None

    @property
    def step_s(self) -> float:
        """What a step took at most."""
        return self._shown.step_s

    def see(self, track: Track, now: float) -> None:
        """Take a reading. Raises `EngineStalled`."""
        if track.node != self._node[0]:
            self._node = (track.node, now)
        if track.started and self._began is None:
            self._began = now
        if self._began is not None and not track.running and now - self._began > self._mute_s:
            raise EngineStalled(f"nothing followed the start of the prompt for {self._mute_s:g} s")
        if not track.loading or self._watchdog.stage is Stage.LOADING:
            self._watchdog.see(track, now)
        elif now - self._node[1] > self._load_s:
            raise EngineStalled(f"node {track.node} reads a model for more than {self._load_s:g} s")


class Following:
    """Follows one prompt that was submitted, or may have been."""

    def __init__(self, server: Server, track: Track, watch: Watch, pace: Pace, on_progress: Progress) -> None:
        self._server, self._track, self._watch, self._pace = server, track, watch, pace
        self._on_progress = on_progress
        self._stirred = asyncio.Event()
        self._whereabouts: Whereabouts | None = None
        self._reported: tuple[Any, ...] | None = None
        self._reported_at = -pace.tick_s
        self._looked_at = -1
        self._over: float | None = None
        self.on_executed: Callable[[], None] = lambda: None
        """Called when a node ended; for who reads outputs while later nodes run."""

    def heard(self, message: str | bytes) -> None:
        """Take a message of the socket."""
        made, now = len(self._track.executed), asyncio.get_running_loop().time()
        stirs = self._track.hear(message, now)
        if len(self._track.executed) > made:
            self.on_executed()
        with contextlib.suppress(EngineStalled):
            self._watch.see(self._track, now)
        if stirs:
            self.stir()

    def stir(self) -> None:
        """Have it look at once."""
        self._stirred.set()

    async def to_the_end(self) -> Mapping[str, Any]:
        """The prompt's entry in the history, whatever that says.

        Raises `EngineCrashed` when the server or the prompt is gone, `EngineStalled` when it makes no progress.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + self._pace.poll_s
        while True:
            if self._stirred.is_set() or loop.time() >= due:
                self._stirred.clear()
                entry = await self._look()
                if entry is not None:
                    return entry
                due = loop.time() + (self._pace.eager_s if self._is_eager(loop.time()) else self._pace.poll_s)
            self._watch.see(self._track, loop.time())
            self._report(loop.time())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), max(min(due - loop.time(), self._pace.tick_s), 0.001))

    def _is_eager(self, now: float) -> bool:
        """Whether the entry must come any moment, since the socket has told of the end."""
        if not self._track.over:
            return False
        self._over = now if self._over is None else self._over
        return now - self._over < self._pace.eager_for_s

    async def _look(self) -> Mapping[str, Any] | None:
        now = asyncio.get_running_loop().time()
        try:
            entry = await self._server.history(self._track.prompt_id)
            if entry is not None:
                return entry
            if self._looked_at == self._track.heard and not self._is_eager(now):
                self._judge(await self._server.queue(), now)
            self._looked_at = self._track.heard
        except EngineCrashed as error:
            if error.message.startswith("lost") or not await self._server.listens():
                raise
            log.info("engine_look_failed", error=error.message)
        return None

    def _judge(self, queue: Queued, now: float) -> None:
        if self._whereabouts is None:
            self._whereabouts = Whereabouts(self._track.prompt_id, self._pace)
        self._whereabouts.see(queue, now)

    def _report(self, now: float) -> None:
        """Tell of progress, at most once a tick."""
        signature = self._track.signature
        if signature != self._reported and self._track.started and now - self._reported_at >= self._pace.tick_s:
            self._reported, self._reported_at = signature, now
            self._on_progress(self._track.report(self._track.left(self._watch.step_s)))

    async def told(self) -> bool:
        """Whether the socket has told of the end too, for which there is a little time."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._pace.eager_for_s
        while not self._track.over and loop.time() < ends:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), max(ends - loop.time(), 0.001))
        return self._track.over


async def submitted(server: Server, body: Mapping[str, Any], pace: Pace, inventory: Inventory | None = None) -> str:
    """Hand a prompt over once; the id under which the server runs it.

    An answer that is lost says nothing: the prompt is looked for by its own id before it is sent again, once.
    Raises what a refusal means, and `EngineCrashed`.
    """
    prompt_id = str(body["prompt_id"])
    timeout = timedelta(seconds=pace.submit_s)
    try:
        answer = await server.submit(body, timeout=timeout)
    except EngineCrashed as error:
        log.warning("engine_submit_unanswered", error=error.message)
        if await arrived(server, prompt_id, pace):
            return prompt_id
        answer = await server.submit(body, timeout=timeout)
    if _is_about_id(answer):
        answer = await server.submit({k: v for k, v in body.items() if k != "prompt_id"}, timeout=timeout)
    told = answer.json
    if not answer.ok or not isinstance(told, dict) or not isinstance(told.get("prompt_id"), str):
        raise refused(answer, body["prompt"], inventory)
    if told.get("node_errors"):
        await stopped(server, told["prompt_id"], pace)
        raise refused(answer, body["prompt"], inventory)
    return str(told["prompt_id"])


async def arrived(server: Server, prompt_id: str, pace: Pace) -> bool:
    """Whether a submit got through, by several looks. Raises `EngineCrashed`."""
    for look in range(LOOKS):
        if look:
            await asyncio.sleep(pace.poll_s)
        if prompt_id in await server.queue() or await server.history(prompt_id) is not None:
            return True
    return False


def _is_about_id(answer: Answer) -> bool:
    body = answer.json if answer.status == 400 else None
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.get("type") == "invalid_prompt_id"


async def stopped(server: Server, prompt_id: str, pace: Pace) -> None:
    """Delete or interrupt a prompt until it is gone from the queue; a server that is gone runs nothing.

    Raises `EngineStalled` when it does not go within ``quiet_s``.
    """
    await _until_gone(server, lambda queue: [prompt_id] if prompt_id in queue else [], pace, pace.quiet_s, [prompt_id])


async def idle(server: Server, pace: Pace, load: timedelta) -> None:
    """Delete and interrupt whatever another left on the server, until nothing runs. Raises `EngineStalled`.

    It may be reading a model, which no interrupt ends: so it has the time of a load.
    """
    if await server.remaining() == 0:
        return
    if await _until_gone(server, lambda queue: [*queue.pending, *queue.running], pace, load.total_seconds(), []):
        raise EngineCrashed("the server went away")


async def _until_gone(
    server: Server, left: Callable[[Queued], list[str]], pace: Pace, most_s: float, ids: list[str]
) -> bool:
    """Cancel and look, with growing pauses, until nothing is left; True when the server is gone itself."""
    loop = asyncio.get_running_loop()
    ends, pause = loop.time() + most_s, pace.eager_s
    while True:
        try:
            if ids:
                await server.cancel(ids)
            ids = left(await server.queue())
            if not ids:
                return False
        except EngineCrashed:
            if not await server.listens():
                return True
        if loop.time() >= ends:
            raise EngineStalled(f"the server did not react to interrupts for {most_s:g} s")
        await asyncio.sleep(pause)
        pause = min(pause * 2, pace.interrupt_s)
