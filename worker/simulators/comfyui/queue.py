"""The prompt queue: a heap, what runs, the history, and the flags that the worker looks at between prompts."""

from __future__ import annotations

import asyncio
import copy
import heapq
from collections.abc import Callable
from typing import Any

from worker.simulators.comfyui.values import WorkerDied

Item = tuple[float, str, dict[str, Any], dict[str, Any], list[str]]
"""Number, prompt id, graph, extra data, the output nodes to run."""

_SECRET = ("auth_token_comfy_org", "api_key_comfy_org")


class PromptQueue:
    """Calls ``changed`` whenever the number of prompts may have changed."""

    def __init__(self, changed: Callable[[], None], history_limit: Callable[[], int]) -> None:
        self._changed = changed
        self._history_limit = history_limit
        self.pending: list[Item] = []
        self.running: dict[int, Item] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self._taken = 0
        self._flags: dict[str, Any] = {}
        self._wake = asyncio.Event()

    @property
    def remaining(self) -> int:
        """Prompts that run or wait."""
        return len(self.pending) + len(self.running)

    def put(self, item: Item) -> None:
        """Add a prompt. Raises `TypeError` for a second one with the same number and id, which is queued even so."""
        heapq.heappush(self.pending, item)
        self._changed()
        self._wake.set()

    async def first(self) -> Item | None:
        """Wait for work: the prompt that is next, still in the queue, or None when only a flag was raised."""
        while not self.pending and not self._flags:
            self._wake.clear()
            await self._wake.wait()
        return self.pending[0] if self.pending else None

    def take(self) -> tuple[Item, int]:
        """The next prompt begins to run. Raises `WorkerDied` where two in the heap cannot be compared."""
        try:
            item = heapq.heappop(self.pending)
        except TypeError as error:
            raise WorkerDied from error
        number = self._taken
        self._taken += 1
        self.running[number] = copy.deepcopy(item)
        self._changed()
        return item, number

    def end(self, number: int) -> Item:
        """The prompt no longer runs."""
        item = self.running.pop(number)
        for secret in _SECRET:
            item[3].pop(secret, None)
        return item

    def file(self, item: Item, entry: dict[str, Any]) -> None:
        """Write the history's entry; the oldest makes room."""
        if len(self.history) > self._history_limit():
            self.history.pop(next(iter(self.history)))
        self.history[item[1]] = {"prompt": list(item), **entry}

    def tell(self) -> None:
        """Say that the number of prompts has changed."""
        self._changed()

    def clear(self) -> None:
        """Drop all that wait."""
        self.pending = []
        self._changed()

    def delete(self, prompt_id: str) -> bool:
        """Drop one that waits; nobody hears of it but by the number of prompts, which is told twice for the last."""
        for index, item in enumerate(self.pending):
            if item[1] == prompt_id:
                if len(self.pending) == 1:
                    self.clear()
                    self._changed()
                    return True
                self.pending.pop(index)
                heapq.heapify(self.pending)
                self._changed()
                return True
        return False

    def flag(self, name: str, value: Any) -> None:
        """Raise a flag for the worker."""
        self._flags[name] = value
        self._wake.set()

    @property
    def flagged(self) -> bool:
        """Whether a flag waits for the worker."""
        return bool(self._flags)

    def flags(self) -> dict[str, Any]:
        """The flags raised since the last look."""
        raised, self._flags = self._flags, {}
        return raised

    def past(self, max_items: int | None, offset: int) -> dict[str, Any]:
        """A part of the history, oldest first; without an offset the newest so many."""
        keys = list(self.history)
        if offset < 0 and max_items is not None:
            offset = len(keys) - max_items
        keys = keys[max(offset, 0) :]
        return {key: self.history[key] for key in (keys if max_items is None else keys[:max_items])}
