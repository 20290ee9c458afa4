"""One prompt after another: nodes in order, results kept, messages as the server sends them."""

from __future__ import annotations

import random
import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from worker.simulators.comfyui.cache import Cache, is_link
from worker.simulators.comfyui.call import NodeCall, illegal_access, out_of_memory
from worker.simulators.comfyui.knobs import AtEnd, AtWork, Fault
from worker.simulators.comfyui.nodes.media import READS_FILE, file_digest
from worker.simulators.comfyui.nodes.registry import NODES
from worker.simulators.comfyui.nodes.sampling import SAMPLER_CLASSES
from worker.simulators.comfyui.queue import Item
from worker.simulators.comfyui.schedule import Schedule
from worker.simulators.comfyui.state import Run
from worker.simulators.comfyui.telling import Telling
from worker.simulators.comfyui.values import Interrupted, NodeFailed, Result, WorkerDied

if TYPE_CHECKING:
    from worker.simulators.comfyui.machine import Machine

_TIP = (
    "This error means you ran out of memory on your GPU.\n\nTIPS: If the workflow worked before you might have "
    "accidentally set the batch_size to a large number."
)
_TRACE = [
    '  File "/ComfyUI/execution.py", line 496, in execute\n    output_data, output_ui, has_subgraph = await run\n'
]
_ALPHABET = "abcdefghijklmnopqrstupvxyz"


class Execution:
    """One prompt that runs."""

    def __init__(self, machine: Machine, cache: Cache, item: Item, letters: dict[str, str]) -> None:
        self._machine = machine
        self._cache = cache
        self._letters = letters
        _, self.prompt_id, self._graph, self._extra_data, self._outputs = item
        client_id = self._extra_data.get("client_id")
        self._fault = machine.knobs.take(AtWork, self._graph)
        self.end_fault = machine.knobs.take(AtEnd, self._graph)
        named = self._fault or self.end_fault
        self.run = Run(self.prompt_id, client_id, time.time(), fault=named.kind if named else None)
        twice = self._fault is not None and self._fault.kind == "duplicate_events"
        self.telling = Telling(machine, self.prompt_id, client_id, twice=twice)
        self._struck = False

    async def go(self) -> None:
        """Run it to its end, whatever that is. Raises `WorkerDied`."""
        machine, telling = self._machine, self.telling
        machine.interrupted = False
        machine.client_id = telling.client_id
        machine.stats.runs.append(self.run)
        if self._fault and self._fault.kind == "deaf_socket":
            machine.hub.deafen(telling.client_id)
        telling.note("execution_start", {"prompt_id": self.prompt_id})
        if self._fault and self._fault.kind == "dead_worker":
            raise WorkerDied
        self._cache.begin(self._graph, self._changed, machine.knobs.cache, machine.knobs.cache_size)
        self.run.cached = [node_id for node_id in self._graph if self._cache.get(node_id) is not None]
        telling.note("execution_cached", {"nodes": self.run.cached, "prompt_id": self.prompt_id})
        schedule = Schedule(self._graph, self._outputs, lambda n: self._cache.get(n) is not None, self._is_output)
        self.run.ended = await self._through(schedule)
        machine.last_node = None
        self.run.finished = time.time()

    async def _through(self, schedule: Schedule) -> Any:
        while schedule:
            node_id = schedule.next()
            try:
                await self._node(node_id)
            except Interrupted:
                self.telling.note("execution_interrupted", self._where(node_id), to_all=True)
                return "interrupted"
            except NodeFailed as failure:
                self._failed(node_id, failure)
                return "error"
            schedule.done(node_id)
        self.telling.note("execution_success", {"prompt_id": self.prompt_id})
        return "success"

    async def _node(self, node_id: str) -> None:
        kept = self._cache.get(node_id)
        if kept is not None:
            self.telling.executed(node_id, kept.ui)
            self.telling.finished(node_id)
            return
        self.telling.started(node_id)
        self.telling.check()
        self._strike(node_id)
        spec = NODES[self._graph[node_id]["class_type"]]
        result = await spec.run(self._call(node_id), self._resolved(node_id))
        if result.ui:
            self.telling.executed(node_id, result.ui)
        self._cache.set(node_id, result)
        self.telling.finished(node_id)
        self.run.executed.append(node_id)

    def _call(self, node_id: str) -> NodeCall:
        letters = self._letters.setdefault(node_id, "".join(random.choice(_ALPHABET) for _ in range(5)))
        return NodeCall(
            node_id=node_id,
            prompt_id=self.prompt_id,
            prompt=self._graph,
            extra_data=self._extra_data,
            telling=self.telling,
            run=self.run,
            fault=self._fault,
            end_fault=self.end_fault,
            letters=letters,
        )

    def _resolved(self, node_id: str) -> dict[str, Any]:
        values = {}
        known = NODES[self._graph[node_id]["class_type"]].inputs
        for name, value in self._graph[node_id].get("inputs", {}).items():
            if name not in known:
                continue
            if is_link(value):
                source = self._cache.get(value[0]) or Result()
                values[name] = source.outputs[value[1]]
            else:
                values[name] = value
        return values

    def _strike(self, node_id: str) -> None:
        if self._machine.poisoned and self._on_gpu(node_id):
            raise illegal_access()
        fault = self._fault
        if fault is None or self._struck or not self._strikes(fault, node_id):
            return
        self._struck = True
        match fault.kind:
            case "oom":
                raise out_of_memory(fault.text)
            case "cuda":
                self._machine.poisoned = True
                raise illegal_access(fault.text)
            case "exception":
                raise NodeFailed(fault.error, fault.text or "something went wrong")

    def _strikes(self, fault: Fault, node_id: str) -> bool:
        wanted = fault.node
        if not wanted:
            classes = {node["class_type"] for node in self._graph.values()}
            return self._on_gpu(node_id) or not classes & SAMPLER_CLASSES
        return wanted in (node_id, self._graph[node_id]["class_type"])

    def _on_gpu(self, node_id: str) -> bool:
        return self._graph[node_id]["class_type"] in SAMPLER_CLASSES

    def _is_output(self, node_id: str) -> bool:
        return NODES[self._graph[node_id]["class_type"]].output_node

    def _changed(self, node_id: str) -> Hashable:
        node = self._graph[node_id]
        if NODES[node["class_type"]].changing:
            return object()
        if node["class_type"] not in READS_FILE:
            return False
        try:
            node["is_changed"] = [file_digest(self._machine.folders.annotated(node["inputs"]["image"]))]
        except (OSError, AttributeError):
            return object()
        return str(node["is_changed"])

    def _where(self, node_id: str) -> dict[str, Any]:
        node_type = self._graph[node_id]["class_type"]
        executed = list(self.run.executed)
        return {"prompt_id": self.prompt_id, "node_id": node_id, "node_type": node_type, "executed": executed}

    def _failed(self, node_id: str, failure: NodeFailed) -> None:
        tip = _TIP if failure.kind == "torch.OutOfMemoryError" else ""
        inputs = {name: [_worded(value)] for name, value in self._resolved(node_id).items()}
        more = {
            "exception_message": f"{failure.message}\n{tip}",
            "exception_type": failure.kind,
            "traceback": list(_TRACE),
            "current_inputs": inputs,
            "current_outputs": list(self._graph),
        }
        self.telling.note("execution_error", self._where(node_id) | more)

    def entry(self) -> dict[str, Any]:
        """The history's entry, as the faults at the end leave it."""
        shown = self._cache.shown() if self.run.ended else {}
        identity = {"parent_node": None}
        meta = {n: {"node_id": n, "display_node": n, **identity, "real_node_id": n} for n in shown}
        completed = self.run.ended == "success"
        kind = self.end_fault.kind if self.end_fault else None
        if kind == "stale_status_str":
            completed = not completed
        status = {
            "status_str": "success" if completed else "error",
            "completed": completed,
            "messages": self.telling.messages,
        }
        if kind == "success_without_outputs":
            shown, meta = {}, {}
        return {"outputs": shown, "status": None if kind == "null_status" else status, "meta": meta}


def _worded(value: object) -> Any:
    return value if isinstance(value, str | int | float | bool) or value is None else str(type(value).__name__)
