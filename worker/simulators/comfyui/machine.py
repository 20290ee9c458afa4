"""The innards of one server process: queue, worker, sockets, cache, and what a restart loses."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from typing import Any

from worker.simulators.comfyui.cache import Cache
from worker.simulators.comfyui.executor import Execution
from worker.simulators.comfyui.folders import Folders
from worker.simulators.comfyui.hub import Hub
from worker.simulators.comfyui.knobs import AtTaking, Fault, Knobs
from worker.simulators.comfyui.queue import PromptQueue
from worker.simulators.comfyui.state import Stats
from worker.simulators.comfyui.values import WorkerDied

NEWEST_VERSION = "0.33.0"
_NEWEST_FEATURES = {
    "supports_model_type_tags": True,
    "extension": {"manager": {"supports_v4": True}},
    "node_replacements": True,
    "assets": False,
}


class Machine:
    """Lives from one start of the server to its end."""

    def __init__(self, knobs: Knobs, stats: Stats, folders: Folders) -> None:
        self.knobs = knobs
        self.stats = stats
        self.folders = folders
        self.hub = Hub(stats, self.features)
        self.queue = PromptQueue(self._tell_queue, lambda: knobs.history_limit)
        self.fall: Callable[[Fault], None] = lambda _: None
        self.interrupted = False
        self.poisoned = False
        self.dead = False
        """Whether the worker thread has died."""
        self.client_id: str | None = None
        """Whose prompt runs or ran last."""
        self.last_node: str | None = None
        self.number = 0
        self._cache = Cache()
        self._letters: dict[str, str] = {}
        self._released: asyncio.Event | None = None
        self._late: list[asyncio.TimerHandle] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._leaked: list[bytearray] = []

    def start(self) -> None:
        """Begin to work and to publish."""
        self.folders.wipe_temp()
        self._tasks = [
            asyncio.create_task(self._work(), name="simulator-worker"),
            asyncio.create_task(self.hub.publish(), name="simulator-publish"),
        ]

    def stop(self) -> list[asyncio.Task[None]]:
        """End at once, as a killed process does; the tasks that are ending are returned."""
        for handle in self._late:
            handle.cancel()
        for task in self._tasks:
            task.cancel()
        return self._tasks

    @property
    def version(self) -> str:
        """The version that the server tells."""
        return NEWEST_VERSION if self.knobs.newest else self.knobs.version

    @property
    def hangs(self) -> bool:
        """Whether a prompt is stuck between two steps."""
        return self._released is not None

    def features(self) -> dict[str, Any]:
        """The server's feature flags."""
        flags = {"supports_preview_metadata": True, "max_upload_size": self.knobs.max_upload_size}
        return flags | (_NEWEST_FEATURES if self.knobs.newest else {})

    def greeting(self, client_id: str) -> list[tuple[str, dict[str, Any]]]:
        """What a new socket hears first."""
        messages: list[tuple[str, dict[str, Any]]] = [("status", {**self._status(), "sid": client_id})]
        if self.client_id == client_id and self.last_node is not None:
            messages.append(("executing", {"node": self.last_node}))
        return messages

    async def hang(self) -> None:
        """Wait for `release`."""
        self._released = asyncio.Event()
        await self._released.wait()
        self._released = None

    def release(self) -> None:
        """Let a prompt that hangs go on."""
        if self._released is not None:
            self._released.set()

    def leak(self, size: int) -> None:
        """Take memory that never comes back; every page is touched."""
        if size:
            self._leaked.append(bytearray(b"\1") * size)

    def stats_document(self) -> dict[str, Any]:
        """What `GET /system_stats` answers."""
        total, free = 24 << 30, (24 << 30) - (4 << 30)
        argv = ["main.py", "--listen", "::", *self.knobs.argv]
        if self.knobs.cache == "lru":
            argv += ["--cache-lru", str(self.knobs.cache_size)]
        if self.knobs.cache == "none":
            argv += ["--cache-none"]
        if self.knobs.disable_metadata:
            argv += ["--disable-metadata"]
        if self.knobs.preview_method != "none":
            argv += ["--preview-method", self.knobs.preview_method]
        return {
            "system": {
                "os": "linux" if self.knobs.newest else "posix",
                "ram_total": total,
                "ram_free": free,
                "comfyui_version": self.version,
                "required_frontend_version": "1.27.10",
                "installed_templates_version": "0.1.95",
                "required_templates_version": "0.1.95",
                "python_version": f"{platform.python_version()} (main) [GCC 12.2.0]",
                "pytorch_version": "2.8.0+cu128",
                "embedded_python": False,
                "argv": argv,
            },
            "devices": [
                {
                    "name": "cuda:0 NVIDIA GeForce RTX 3090 : cudaMallocAsync",
                    "type": "cuda",
                    "index": 0,
                    "vram_total": total,
                    "vram_free": free,
                    "torch_vram_total": 4 << 30,
                    "torch_vram_free": 1 << 30,
                }
            ],
        }

    def queue_info(self) -> dict[str, Any]:
        """What `GET /prompt` answers."""
        return {"exec_info": {"queue_remaining": self.queue.remaining}}

    def _status(self) -> dict[str, Any]:
        return {"status": self.queue_info()}

    def _tell_queue(self) -> None:
        self.hub.post("status", self._status(), None)

    async def _work(self) -> None:
        try:
            while True:
                await self._turn()
        except WorkerDied:
            self.dead = True

    async def _turn(self) -> None:
        first = await self.queue.first()
        if first is not None:
            if self.knobs.take(AtTaking, first[2]):
                raise WorkerDied
            await self._prompt()
        self._obey(self.queue.flags())

    async def _prompt(self) -> None:
        item, number = self.queue.take()
        execution = Execution(self, self._cache, item, self._letters)
        await execution.go()
        await asyncio.sleep(self.knobs.history_seconds)
        self._file(execution, number)
        self.queue.tell()
        execution.telling.tell("executing", {"node": None, "prompt_id": execution.prompt_id})

    def _file(self, execution: Execution, number: int) -> None:
        item, entry = self.queue.end(number), execution.entry()
        fault = execution.end_fault
        match fault.kind if fault else None:
            case "lost_history":
                return
            case "late_history" if fault:
                loop = asyncio.get_running_loop()
                self._late.append(loop.call_later(fault.seconds, self.queue.file, item, entry))
            case _:
                self.queue.file(item, entry)

    def _obey(self, flags: dict[str, Any]) -> None:
        if flags.get("free_memory"):
            self._cache = Cache()
            self._letters = {}
