"""The routes that submit, list, interrupt, delete and remember prompts."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from worker.simulators.comfyui.api import Api, ConnectionLost, document, empty
from worker.simulators.comfyui.knobs import AtSubmit, Fault
from worker.simulators.comfyui.machine import Machine
from worker.simulators.comfyui.nodes.registry import known
from worker.simulators.comfyui.validation import Validation, Verdict

_NO_PROMPT = {
    "type": "no_prompt",
    "message": "No prompt provided",
    "details": "No prompt provided",
    "extra_info": {},
}
_INVENTED = {
    "errors": [
        {
            "type": "required_input_missing",
            "message": "Required input is missing",
            "details": "images",
            "extra_info": {"input_name": "images"},
        }
    ],
    "dependent_outputs": ["999"],
    "class_type": "SaveImage",
}


def add_prompts(api: Api) -> None:
    """All routes about prompts."""
    machine = api.machine

    async def depth(_: Request) -> Response:
        return document(machine.queue_info())

    async def submit(request: Request) -> Response:
        return _submitted(machine, await api.json(request))

    async def listed(_: Request) -> Response:
        queue = machine.queue
        return document({"queue_running": list(queue.running.values()), "queue_pending": queue.pending})

    async def change(request: Request) -> Response:
        body = await api.json(request)
        if body.get("clear"):
            machine.queue.clear()
        for prompt_id in body.get("delete", []):
            machine.stats.queue_deletes.append(prompt_id)
            machine.queue.delete(prompt_id)
        return empty()

    api.add("GET", "/prompt", depth)
    api.add("POST", "/prompt", submit)
    api.add("GET", "/queue", listed)
    api.add("POST", "/queue", change)
    _add_worker(api)
    _add_history(api)


def _add_worker(api: Api) -> None:
    machine = api.machine

    async def interrupt(request: Request) -> Response:
        _interrupt(machine, await _lenient(api, request))
        return empty()

    async def free(request: Request) -> Response:
        body = await api.json(request)
        machine.stats.frees.append(body)
        for name in ("unload_models", "free_memory"):
            if body.get(name, False):
                machine.queue.flag(name, body[name])
        return empty()

    api.add("POST", "/interrupt", interrupt)
    api.add("POST", "/free", free)


def _add_history(api: Api) -> None:
    machine = api.machine

    async def past(request: Request) -> Response:
        query = request.query_params
        max_items = int(query["max_items"]) if "max_items" in query else None
        return document(machine.queue.past(max_items, int(query.get("offset", -1))))

    async def one(request: Request) -> Response:
        prompt_id = request.path_params["prompt_id"]
        history = machine.queue.history
        return document({prompt_id: history[prompt_id]} if prompt_id in history else {})

    async def forget(request: Request) -> Response:
        body = await api.json(request)
        if body.get("clear"):
            machine.queue.history = {}
        for prompt_id in body.get("delete", []):
            machine.stats.history_deletes.append(prompt_id)
            machine.queue.history.pop(prompt_id, None)
        return empty()

    api.add("GET", "/history", past)
    api.add("GET", "/history/{prompt_id}", one)
    api.add("POST", "/history", forget)


async def _lenient(api: Api, request: Request) -> dict[str, Any]:
    try:
        body: dict[str, Any] = await api.json(request)
    except ValueError:
        return {}
    return body


def _interrupt(machine: Machine, body: dict[str, Any]) -> None:
    machine.stats.interrupts += 1
    prompt_id = body.get("prompt_id")
    if not prompt_id or any(item[1] == prompt_id for item in machine.queue.running.values()):
        machine.interrupted = True


def _number(machine: Machine, body: dict[str, Any]) -> float:
    if "number" in body:
        return float(body["number"])
    number = -machine.number if "prompt" in body and body.get("front") else machine.number
    machine.number += 1
    return number


def _canonical(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False


def _submitted(machine: Machine, body: Any) -> Response:
    number = _number(machine, body)
    if "prompt" not in body:
        machine.stats.refused += 1
        return document({"error": _NO_PROMPT, "node_errors": {}}, 400)
    given = body.get("prompt_id", str(uuid.uuid4()))
    if machine.knobs.newest and given is None:
        given = str(uuid.uuid4())
    if machine.knobs.newest and not _canonical(given):
        machine.stats.refused += 1
        return document({"error": _bad_id(), "node_errors": {}}, 400)
    knobs, graph = machine.knobs, body["prompt"]
    validation = Validation(
        graph, known(knobs.missing_nodes, newest=knobs.newest), machine.folders, newest=knobs.newest
    )
    verdict = validation.verdict(body.get("partial_execution_targets"))
    if verdict.error:
        machine.stats.refused += 1
        return document({"error": verdict.error, "node_errors": verdict.node_errors}, 400)
    extra_data = body.get("extra_data", {})
    if "client_id" in body:
        extra_data["client_id"] = body["client_id"]
    if machine.knobs.newest:
        extra_data.setdefault("create_time", int(time.time() * 1000))
    return _queued(machine, number, str(given), graph, extra_data, verdict)


def _bad_id() -> dict[str, Any]:
    return {
        "type": "invalid_prompt_id",
        "message": "prompt_id must be a valid UUID",
        "details": "prompt_id must be a UUID string in canonical lowercase hyphenated form; "
        "omit it to let the server generate one",
        "extra_info": {},
    }


def _queued(
    machine: Machine, number: float, prompt_id: str, graph: dict[str, Any], extra: dict[str, Any], verdict: Verdict
) -> Response:
    fault: Fault | None = machine.knobs.take(AtSubmit, graph)
    kind = fault.kind if fault else None
    machine.stats.prompts.append(prompt_id)
    machine.queue.put((number, prompt_id, graph, extra, verdict.outputs))
    if kind == "delete_pending":
        machine.queue.delete(prompt_id)
    if kind == "lost_answer":
        raise ConnectionLost
    errors = verdict.node_errors | ({"999": _INVENTED} if kind == "node_errors_on_200" else {})
    return document({"prompt_id": prompt_id, "number": number, "node_errors": errors})
