"""Why a job is where it is, and what a node would get: the decision's own weighing, in documents."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from dispatcher import batch, matching
from dispatcher.batch import Line
from dispatcher.fleet import Seat
from dispatcher.store.base import JobRow
from dispatcher.view import View
from dispatcher.words import NO_MODEL, Choice, Demand, Key, NodeView, Option, Waiting
from worker.clock import isoformat

NODES_MOST = 20
HEADS = 2
OPTIONS_MOST = 50


async def job(row: JobRow, view: View) -> dict[str, Any]:
    """Why the job is where it is; for one that waits, what it would cost on the nodes where it would begin soonest."""
    key = row.needs[0].key if row.needs else NO_MODEL
    found: dict[str, Any] = {"id": row.id, "status": row.status, "model": key or None, "why": _why(row, view)}
    given = view.desk.assignments.get(row.id)
    if given is not None:
        found["assigned"] = {"node": given.node, "at": isoformat(given.at), **_option(given.option)}
    if row.status != "waiting":
        return found
    waiting = Waiting(row.id, row.needs, row.priority, row.rank, user=row.user, since=row.queued_at)
    demand = view.demands.index.get(key) or Demand(key)
    heads, oldest, passed = await view.store.board({key: 1}, but=view.desk.lookout.aside)
    first = heads.get(key)
    found |= {
        "first_of_its_model": bool(first) and first is not None and first[0].id == row.id,
        "first_in_line": oldest is not None and oldest.id == row.id,
        "passed_over": passed if oldest is not None and oldest.id == row.id else None,
        "max_skips": view.desk.rules.max_skips,
        "demand": _demand(demand),
        "nodes": _costs(waiting, view),
    }
    return found


def _why(row: JobRow, view: View) -> str:
    match row.status:
        case "leased":
            until = isoformat(row.lease_until) if row.lease_until is not None else "it is renewed no more"
            cancelling = "; it was cancelled, and its node is told so" if row.cancelling else ""
            return f"node {row.node} does it, under a lease until {until}{cancelling}"
        case "delayed":
            last = row.attempts[-1].code if row.attempts else None
            until = isoformat(row.visible_at) if row.visible_at is not None else "soon"
            return f"it came back ({last or 'its node vanished'}) and may be given again at {until}"
        case "waiting":
            key = row.needs[0].key if row.needs else NO_MODEL
            demand = view.demands.index.get(key) or Demand(key)
            alive = len(view.fleet.alive())
            if not alive:
                return "no node was heard of lately"
            waited = timedelta(seconds=round((view.clock.now() - row.queued_at).total_seconds()))
            return (
                f"it has waited for {waited}; of {alive} nodes {demand.warm} have its model in memory,"
                f" {demand.copies} on disk, {demand.coming} fetch it; {demand.waiting} jobs wait for it"
            )
        case _:
            return f"it is over: {row.code or 'succeeded'}"


def _costs(waiting: Waiting, view: View) -> list[dict[str, Any]]:
    """What it would take on each node before the first step, the soonest first."""
    found = []
    for seat in view.fleet.alive():
        node = view.fleet.view(seat)
        why, cost_s = matching.cost_s(node, waiting, view.desk.rules)
        fits = matching.fits(node, waiting)
        found.append({"node": seat.id, "why": why, "cost_s": round(cost_s, 2), "fits": fits, "running": node.running})
    found.sort(key=lambda one: (not one["fits"], one["cost_s"], one["node"]))
    return found[:NODES_MOST]


async def node(seat: Seat, view: View) -> dict[str, Any]:
    """What the node would get now, everything that was weighed for it, and its orders."""
    looked = view.fleet.view(seat)
    keys, line = await _heads(looked, view)
    choice = batch.decide(looked, list(keys), lambda key: keys[key], view.demands.index, line, view.desk.rules)
    return {
        "id": seat.id,
        "alive": view.fleet.is_alive(seat),
        "loaded": sorted(looked.loaded),
        "resident_s": round(looked.resident_s, 1),
        "idle_s": round(looked.idle_s, 1),
        "measured": {name: getattr(looked.measured, name) for name in ("disk", "network", "load", "step")},
        "orders": {
            "download": [need.key for need in seat.due.download],
            "evict": [need.key for need in seat.due.evict],
        },
        "would_get": _option(choice.option) | {"job": choice.option.job.id} if choice.option is not None else None,
        "weighed": _weighed(choice),
        "skipped": dict(choice.skipped),
    }


async def _heads(looked: NodeView, view: View) -> tuple[dict[Key, list[Waiting]], Line]:
    keys = matching.interests(looked, view.demands.index, view.desk.rules)
    heads, oldest, passed = await view.store.board(dict.fromkeys(keys, HEADS), but=view.desk.lookout.aside)
    return {key: heads.get(key, []) for key in keys}, Line(oldest, passed)


def _weighed(choice: Choice) -> list[dict[str, Any]]:
    return [{"job": one.job.id, "model": one.job.key or None, **_option(one)} for one in choice.options[:OPTIONS_MOST]]


def _option(option: Option) -> dict[str, Any]:
    return {
        "why": option.why,
        "skip": option.skip,
        "cost_s": round(option.cost_s, 2),
        "gain_s": round(option.gain_s, 2),
        "note": option.note,
    }


def _demand(demand: Demand) -> dict[str, Any]:
    return {
        "waiting": demand.waiting,
        "work_s": round(demand.work_s, 1),
        "arrivals_per_minute": round(demand.arrivals * 60, 2),
        "warm": demand.warm,
        "copies": demand.copies,
        "coming": demand.coming,
    }
