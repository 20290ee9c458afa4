"""Jobs, nodes and models as users see them: documents out of what is known. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import pydantic_core

from dispatcher.documents import attempt_of
from dispatcher.fleet import Seat
from dispatcher.store.base import JobRow
from dispatcher.view import View
from dispatcher.words import Need, Source
from worker.clock import isoformat


def job(row: JobRow, *, result: bool = True) -> dict[str, Any]:
    """A job; without ``result`` as it stands in lists."""
    found: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "priority": row.priority,
        "models": [model(need) for need in row.needs],
        "queued_at": isoformat(row.queued_at),
        "deliveries": row.deliveries,
        "attempts": [attempt_of(attempt) for attempt in row.attempts],
        "code": row.code,
        "cancelling": row.cancelling,
        "ended_at": _time(row.ended),
        "visible_at": _time(row.visible_at),
        "node": row.node,
        "lease_until": _time(row.lease_until),
        "progress": row.progress,
        "hop": row.hop,
    }
    found = {name: value for name, value in found.items() if value is not None and value is not False}
    found["code"] = row.code
    if result:
        found["result"] = pydantic_core.from_json(row.result.to_json()) if row.result is not None else None
    return found


def model(need: Need) -> dict[str, str]:
    return {"kind": need.kind, "name": need.name}


def source(entry: Source) -> dict[str, Any]:
    """An entry of the catalogue."""
    found = {name: getattr(entry, name) for name in ("kind", "name", "url", "sha256", "size", "base")}
    return {name: value for name, value in found.items() if value is not None}


def node(seat: Seat, view: View) -> dict[str, Any]:
    """What is known of a node; sizes in bytes, times in seconds."""
    asked = seat.asked
    held = asked.held
    return {
        "id": seat.id,
        "alive": view.fleet.is_alive(seat),
        "seen_at": isoformat(seat.seen),
        "gpu": asked.node.gpu,
        "vram_gb": asked.node.vram_gb,
        "version": asked.node.version,
        "rates": asked.node.rates.model_dump(exclude_none=True) if asked.node.rates is not None else {},
        "disk": asked.disk.model_dump() if asked.disk is not None else None,
        "loaded": [f"{one.kind}/{one.name}" for one in held if one.tier == "vram"],
        "held": len(held),
        "running": [one.model_dump(exclude={"token"}, exclude_none=True) for one in asked.running],
        "fetching": [need.name for need in seat.due.download],
        "stats": asked.stats or {},
    }


def fleet(view: View, *, most: int = 50) -> dict[str, Any]:
    """All nodes, and the models that are most in want of one."""
    seats = sorted(view.fleet, key=lambda seat: (not view.fleet.is_alive(seat), seat.id))
    alive = sum(view.fleet.is_alive(seat) for seat in seats)
    index = view.demands.index
    first = sorted((one for one in index.values() if one.waiting), key=lambda one: (-one.work_s, one.key))
    return {
        "waiting": view.demands.waiting,
        "leased": sum(len(seat.asked.running) for seat in view.fleet.alive()),
        "polls_held": view.desk.polls,
        "alive": alive,
        "away": len(seats) - alive,
        "nodes": [node(seat, view) for seat in seats],
        "models": [
            {
                "model": one.key or "none",
                "waiting": one.waiting,
                "work_s": round(one.work_s, 1),
                "arrivals_per_minute": round(one.arrivals * 60, 2),
                "warm": one.warm,
                "copies": one.copies,
                "coming": one.coming,
            }
            for one in first[:most]
        ],
    }


def jobs(rows: Iterable[JobRow]) -> list[dict[str, Any]]:
    return [job(row, result=False) for row in rows]


def _time(at: datetime | None) -> str | None:
    return isoformat(at) if at is not None else None
