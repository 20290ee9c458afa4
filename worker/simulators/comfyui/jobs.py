"""The newest versions' job routes: one record over queue and history, and a cancel that handles both."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from worker.simulators.comfyui.api import Api, absent, document
from worker.simulators.comfyui.machine import Machine

_ENDS = {
    "execution_success": "completed",
    "execution_error": "failed",
    "execution_interrupted": "cancelled",
}


def add_jobs(api: Api) -> None:
    """All routes below `/api/jobs`; versions that lack them answer 404."""
    machine = api.machine

    async def every(request: Request) -> Response:
        if not machine.knobs.newest:
            return absent(request)
        records = _records(machine)
        wanted = request.query_params.get("status")
        if wanted:
            records = [record for record in records if record["status"] in wanted.split(",")]
        offset = int(request.query_params.get("offset", 0))
        limit = int(request.query_params["limit"]) if "limit" in request.query_params else None
        page = records[offset:] if limit is None else records[offset : offset + limit]
        more = offset + len(page) < len(records)
        pagination = {"offset": offset, "limit": limit, "total": len(records), "has_more": more}
        return document({"jobs": page, "pagination": pagination})

    async def one(request: Request) -> Response:
        job_id = request.path_params["job_id"]
        if not machine.knobs.newest:
            return absent(request)
        found = next((r for r in _records(machine) if r["id"] == job_id), None)
        if found is None:
            return document({"error": "Job not found"}, 404)
        entry = machine.queue.history.get(job_id)
        return document(found | ({"outputs": entry["outputs"]} if entry else {}))

    api.add("GET", "/jobs", every, api="/api")
    api.add("GET", "/jobs/{job_id}", one, api="/api")
    _add_cancel(api)


def _add_cancel(api: Api) -> None:
    machine = api.machine

    async def cancel(request: Request) -> Response:
        if not machine.knobs.newest:
            return absent(request)
        return document({"cancelled": _cancelled(machine, request.path_params["job_id"])})

    async def cancel_many(request: Request) -> Response:
        if not machine.knobs.newest:
            return absent(request)
        try:
            body = await api.json(request)
        except ValueError:
            return document({"error": "Request body must be valid JSON"}, 400)
        if not isinstance(body, dict) or not isinstance(body.get("job_ids"), list):
            return document({"error": "job_ids must be a list"}, 400)
        done = [_cancelled(machine, job_id) for job_id in body["job_ids"]]
        return document({"cancelled": any(done)})

    api.add("POST", "/jobs/cancel", cancel_many, api="/api")
    api.add("POST", "/jobs/{job_id}/cancel", cancel, api="/api")


def _records(machine: Machine) -> list[dict[str, Any]]:
    queue = machine.queue
    records = [{"id": item[1], "status": "pending", "priority": item[0]} for item in sorted(queue.pending)]
    records += [{"id": i[1], "status": "in_progress", "priority": i[0]} for i in queue.running.values()]
    for prompt_id, entry in queue.history.items():
        messages = (entry["status"] or {}).get("messages") or [["", {}]]
        outputs = sum(len(items) for shown in entry["outputs"].values() for items in shown.values())
        status = _ENDS.get(messages[-1][0], "failed")
        records.append({"id": prompt_id, "status": status, "priority": entry["prompt"][0], "outputs_count": outputs})
    return records


def _cancelled(machine: Machine, job_id: str) -> bool:
    if any(item[1] == job_id for item in machine.queue.running.values()):
        machine.stats.interrupts += 1
        machine.interrupted = True
        return True
    machine.stats.queue_deletes.append(job_id)
    return machine.queue.delete(job_id)
