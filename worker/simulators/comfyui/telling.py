"""What the clients hear of one prompt, in the server's order."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from worker.simulators.comfyui.values import Interrupted

if TYPE_CHECKING:
    from worker.simulators.comfyui.machine import Machine


class Telling:
    """The messages about one prompt. Those that the history keeps are in ``messages``."""

    def __init__(self, machine: Machine, prompt_id: str, client_id: str | None, *, twice: bool) -> None:
        self.machine = machine
        self.prompt_id = prompt_id
        self.client_id = client_id
        self.messages: list[list[Any]] = []
        self._twice = twice
        self._nodes: dict[str, dict[str, Any]] = {}

    def note(self, event: str, data: dict[str, Any], *, to_all: bool = False) -> None:
        """A message that the history keeps too."""
        stamped = {**data, "timestamp": int(time.time() * 1000)}
        self.messages.append([event, stamped])
        if self.client_id is not None or to_all:
            self._post(event, stamped)

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """A message for the owner alone."""
        if self.client_id is not None:
            self._post(event, data)

    def started(self, node_id: str) -> None:
        """A node begins."""
        self._nodes[node_id] = {"value": 0.0, "max": 1.0, "state": "running"}
        self._progress_state()
        if self.client_id is not None:
            self.machine.last_node = node_id
        self.tell("executing", {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id})

    def executed(self, node_id: str, output: Any) -> None:
        """A node has shown something."""
        data = {"node": node_id, "display_node": node_id, "output": output, "prompt_id": self.prompt_id}
        self.tell("executed", data)

    def finished(self, node_id: str) -> None:
        """A node ends."""
        state = self._nodes.setdefault(node_id, {"value": 0, "max": 1, "state": "pending"})
        self._nodes[node_id] = {"value": state["max"], "max": state["max"], "state": "finished"}
        self._progress_state()

    def progress(self, node_id: str, value: int, total: int, image: tuple[str, bytes] | None) -> None:
        """A step, with a preview if there is one. Raises `Interrupted` as nodes find out of an interrupt here."""
        self.check()
        self._nodes[node_id] = {"value": value, "max": total, "state": "running"}
        self._progress_state()
        hub = self.machine.hub
        described = hub.described_previews(self.client_id)
        if image is not None and described:
            hub.post_described_preview(image, self._identity(node_id), self.client_id)
        self._post("progress", {"value": value, "max": total, "prompt_id": self.prompt_id, "node": node_id})
        if image is not None and not described:
            hub.post_preview(image, self.client_id)

    def check(self) -> None:
        """Raises `Interrupted` when an interrupt is due, which is over by that."""
        if self.machine.interrupted:
            self.machine.interrupted = False
            raise Interrupted

    def _identity(self, node_id: str) -> dict[str, Any]:
        return {
            "node_id": node_id,
            "prompt_id": self.prompt_id,
            "display_node_id": node_id,
            "parent_node_id": None,
            "real_node_id": node_id,
        }

    def _progress_state(self) -> None:
        nodes = {node_id: {**state, **self._identity(node_id)} for node_id, state in self._nodes.items()}
        self._post("progress_state", {"prompt_id": self.prompt_id, "nodes": nodes})

    def _post(self, event: str, data: dict[str, Any]) -> None:
        for _ in range(2 if self._twice else 1):
            self.machine.hub.post(event, data, self.client_id)
