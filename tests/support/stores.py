"""Jobs for a store under test, and short words for what is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from dispatcher.store.base import Grant, JobRow, NewJob, Pick, Store
from dispatcher.words import Key, Need
from tests.support.queues import result_of

LEASE = timedelta(seconds=120)
SOON = timedelta(seconds=10)
NOW = timedelta(0)
MOST = 3
"""Deliveries, in these tests."""


def key(model: str) -> Key:
    return f"checkpoint/{model}" if model else ""


def new_job(
    job_id: str,
    model: str = "a",
    *,
    user: str = "u",
    priority: int = 0,
    work_s: float = 6.0,
    deadline: datetime | None = None,
    fingerprint: str = "",
    **document: Any,
) -> NewJob:
    needs = (Need(key(model), "checkpoint", model, size=7, sha256=None),) if model else ()
    return NewJob(
        id=job_id,
        document={"id": job_id, "params": {"prompt": "a cat"}, **document},
        fingerprint=fingerprint or job_id,
        needs=needs,
        user=user,
        priority=priority,
        work_s=work_s,
        deadline=deadline,
    )


async def put(store: Store, *ids: str, model: str = "a", user: str = "u", priority: int = 0) -> None:
    assert all(await store.submit([new_job(one, model, user=user, priority=priority) for one in ids]))


async def take(store: Store, job_id: str | None = None, *, model: str = "a", node: str = "n1") -> Grant | None:
    """This job, or the first of its model."""
    [found] = await store.grant([Pick(node, key(model), job_id)], LEASE, passed=None)
    return found


async def held(store: Store, job_id: str | None = None, *, model: str = "a", node: str = "n1") -> Grant:
    found = await take(store, job_id, model=model, node=node)
    assert found is not None
    return found


async def known(store: Store, job_id: str) -> JobRow:
    found = await store.job(job_id)
    assert found is not None
    return found


async def is_done(store: Store, grant: Grant) -> bool:
    return await store.end(grant.job.id, grant.token, result_of(grant.job.id), dead=False)


async def is_dead(store: Store, grant: Grant, code: str = "invalid_job") -> bool:
    return await store.end(grant.job.id, grant.token, result_of(grant.job.id, "failed", code=code), dead=True)


async def give_back(
    store: Store, grant: Grant, code: str = "disk_full", *, delay: timedelta = NOW, charged: bool = False
) -> JobRow | None:
    return await store.release(
        grant.job.id, grant.token, code=code, delay=delay, charged=charged, worker=f"worker-of-{grant.job.id}"
    )


async def ids(store: Store, status: str | None = None, **more: Any) -> list[str]:
    return [row.id for row in await store.jobs(status=status, **more)]


async def waiting(store: Store) -> dict[Key, tuple[int, float]]:
    return {one.key: (one.waiting, one.work_s) for one in await store.backlog()}


async def in_order(store: Store, model: str = "a", many: int = 100) -> list[str]:
    heads, _, _ = await store.board({key(model): many})
    return [job.id for job in heads.get(key(model), ())]


def ids_of(grants: Sequence[Grant | None]) -> list[str | None]:
    return [None if one is None else one.job.id for one in grants]
