"""What is done to the tables, each within a transaction that the caller holds. Runs in the driver's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from worker.errors import IdConflict, LeaseLost
from worker.queues.base import Delivery, JobState
from worker.queues.policy import (
    CANCELLED,
    HandOver,
    Policy,
    attempts_of,
    deliveries_of,
    end_code,
    has_images,
    is_charged,
    is_charged_loss,
    job_code,
    open_status,
    rest_of,
)
from worker.result import Result
from worker.wire import NODE_RESTARTED, PreviousRun

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

IS_ANYTHING_DUE = """
SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'waiting')
    OR EXISTS (SELECT 1 FROM jobs WHERE status IN ('delayed', 'leased') AND visible_at <= ?)
"""
NEXT_WAITING = """
SELECT place, id, run, queued_at, visible_at FROM jobs
WHERE status = 'waiting' ORDER BY priority DESC, queued_at, place LIMIT 1
"""
UNWANTED = """
SELECT place, visible_at FROM jobs
WHERE status IN ('delayed', 'leased') AND visible_at <= ? AND cancelling
"""
SURFACE = "UPDATE jobs SET status = 'waiting' WHERE status IN ('delayed', 'leased') AND visible_at <= ?"
FORGET_OLD = "DELETE FROM jobs WHERE status = 'done' AND ended_at < ?"
FORGET_MANY = """
DELETE FROM jobs WHERE place IN (
    SELECT place FROM jobs WHERE status = 'done' ORDER BY ended_at DESC, place DESC LIMIT -1 OFFSET ?
)
"""
LOST = """
SELECT place, hand_overs.ended_at IS NULL AND jobs.token = hand_overs.token, cancelling, hand_overs.run
FROM hand_overs JOIN jobs USING (place)
WHERE hand_overs.token = :token AND id = :id AND worker = :worker AND hand_overs.code IS NULL
"""
FORGET_IMAGES = "DELETE FROM inline_results WHERE number <= (SELECT max(number) FROM inline_results) - ?"


def stamp(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def moment(stamped: int) -> datetime:
    return _EPOCH + stamped * _MICROSECOND


def is_anything_due(db: sqlite3.Connection, now: datetime) -> bool:
    """Whether a claim would find something to do; reads two index entries and writes nothing."""
    return bool(db.execute(IS_ANYTHING_DUE, (stamp(now),)).fetchone()[0])


def claim(db: sqlite3.Connection, now: datetime, worker: str, policy: Policy) -> Delivery | None:
    """Hand over the job of the highest priority, the oldest among equals."""
    for place, visible_at in db.execute(UNWANTED, (stamp(now),)).fetchall():
        _withdraw(db, place, now, visible_at, policy)
    db.execute(SURFACE, (stamp(now),))
    found = db.execute(NEXT_WAITING).fetchone()
    if found is None:
        return None
    place, job_id, run, queued_at, visible_at = found
    _end_hand_over(db, place, visible_at, None)
    earlier = _handed(db, place)
    token = db.execute(
        "INSERT INTO hand_overs (place, run, worker) VALUES (?, ?, ?) RETURNING token", (place, run, worker)
    ).fetchone()[0]
    db.execute(
        "UPDATE jobs SET status = 'leased', token = ?, visible_at = ? WHERE place = ?",
        (token, stamp(now + policy.visibility), place),
    )
    body = db.execute("SELECT body FROM bodies WHERE place = ?", (place,)).fetchone()[0]
    return policy.delivery(job_id, body, moment(queued_at), HandOver(token, run, worker), earlier)


def give_back(db: sqlite3.Connection, tokens: Iterable[int]) -> None:
    """Undo claims that nobody took: the jobs wait again and the hand-overs never were."""
    for token in tokens:
        db.execute("DELETE FROM hand_overs WHERE token = ?", (token,))
        db.execute("UPDATE jobs SET status = 'waiting', token = NULL WHERE token = ?", (token,))


def extend(db: sqlite3.Connection, delivery: Delivery, until: datetime) -> bool:
    """Renew the lease; true when the job's owner has cancelled it."""
    place, cancelling = _held(db, delivery)
    db.execute("UPDATE jobs SET status = 'leased', visible_at = ? WHERE place = ?", (stamp(until), place))
    return cancelling


def settle(
    db: sqlite3.Connection, delivery: Delivery, now: datetime, status: str, result: Result, policy: Policy
) -> None:
    """The job is over: ``done`` or ``dead``, with its result."""
    place, _ = _held(db, delivery)
    _end_hand_over(db, place, stamp(now), end_code(result), charged=is_charged(result))
    db.execute("INSERT INTO results VALUES (?, ?)", (place, result.to_json(base64=False)))
    if has_images(result):
        db.execute("INSERT INTO inline_results (place, result) VALUES (?, ?)", (place, result.to_json()))
        db.execute(FORGET_IMAGES, (policy.keep_inline,))
    _finish(db, place, now, status, job_code(result, dead=status == "dead"), policy)


def release(
    db: sqlite3.Connection,
    delivery: Delivery,
    now: datetime,
    delay: timedelta,
    code: str,
    charged: bool,
    policy: Policy,
) -> None:
    """The job waits again, after the delay; it is over when its owner has cancelled it meanwhile."""
    place, cancelling = _held(db, delivery)
    if cancelling:
        _withdraw(db, place, now, stamp(now), policy, code=code, charged=charged)
        return
    _end_hand_over(db, place, stamp(now), code, charged=charged)
    _wait(db, place, now, delay)


def recall(db: sqlite3.Connection, worker: str, run: PreviousRun, now: datetime, policy: Policy) -> None:
    """Jobs that this worker held when its last run ended: given back, or noted where the lease ran out before."""
    for job in run.jobs:
        found = db.execute(LOST, {"token": job.token, "id": job.id, "worker": worker}).fetchone()
        if found is None:
            continue
        place, is_held, cancelling, turn = found
        code = run.code_of(job)
        earlier = [one.attempt for one in _handed(db, place) if one.run == turn and one.token != job.token]
        charged = is_charged_loss(code, worker, earlier)
        if is_held and cancelling:
            _withdraw(db, place, now, stamp(now), policy, code=code, charged=charged)
        elif is_held:
            _end_hand_over(db, place, stamp(now), code, charged=charged)
            _wait(db, place, now, timedelta(0) if code == NODE_RESTARTED else rest_of(len(earlier)))
        else:
            db.execute("UPDATE hand_overs SET code = ?, charged = ? WHERE token = ?", (code, charged, job.token))


def submit(db: sqlite3.Connection, job_id: str, body: bytes, fingerprint: str, priority: int, now: datetime) -> bool:
    known = db.execute("SELECT fingerprint FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if known is not None:
        if known[0] != fingerprint:
            raise IdConflict(f"another document is known under the id {job_id}")
        return False
    place = db.execute(
        "INSERT INTO jobs (id, fingerprint, priority, status, queued_at, visible_at)"
        " VALUES (?, ?, ?, 'waiting', ?, ?) RETURNING place",
        (job_id, fingerprint, priority, stamp(now), stamp(now)),
    ).fetchone()[0]
    db.execute("INSERT INTO bodies VALUES (?, ?)", (place, body))
    return True


def requeue(db: sqlite3.Connection, job_id: str, now: datetime) -> bool:
    """Begin a new run of a dead job."""
    found = db.execute("SELECT place FROM jobs WHERE id = ? AND status = 'dead'", (job_id,)).fetchone()
    if found is None:
        return False
    db.execute("DELETE FROM results WHERE place = ?", found)
    db.execute("DELETE FROM inline_results WHERE place = ?", found)
    db.execute(
        "UPDATE jobs SET status = 'waiting', run = run + 1, queued_at = ?, visible_at = ?, cancelling = 0,"
        " ended_at = NULL, code = NULL WHERE place = ?",
        (stamp(now), stamp(now), *found),
    )
    return True


def cancel(db: sqlite3.Connection, job_id: str, now: datetime, policy: Policy) -> bool:
    """Withdraw a job that nobody holds, mark one that is held; false when there is none or it is over."""
    found = db.execute(
        "SELECT place, token, visible_at FROM jobs WHERE id = ? AND status NOT IN ('done', 'dead')", (job_id,)
    ).fetchone()
    if found is None:
        return False
    place, token, visible_at = found
    if open_status(token, moment(visible_at), now) == "leased":
        db.execute("UPDATE jobs SET cancelling = 1 WHERE place = ?", (place,))
    else:
        _withdraw(db, place, now, visible_at, policy)
    return True


def state(db: sqlite3.Connection, now: datetime, job_id: str) -> JobState | None:
    found = states(db, now, job_id=job_id)
    if not found:
        return None
    inline = db.execute("SELECT result FROM inline_results JOIN jobs USING (place) WHERE id = ?", (job_id,)).fetchone()
    return found[0] if inline is None else replace(found[0], result=Result.model_validate_json(inline[0]))


def states(
    db: sqlite3.Connection, now: datetime, *, job_id: str | None = None, status: str | None = None, limit: int = 1
) -> list[JobState]:
    """Open jobs in the order of hand-over, then those that are over, the latest end first; without images."""
    rows = db.execute(
        "SELECT jobs.place, id, run, code, result, CASE"
        " WHEN status IN ('delayed', 'leased') AND visible_at <= :now THEN 'waiting' ELSE status END AS shown"
        " FROM jobs LEFT JOIN results USING (place)"
        " WHERE (:id IS NULL OR id = :id) AND (:status IS NULL OR shown = :status)"
        " ORDER BY ended_at IS NOT NULL, ended_at DESC, priority DESC, queued_at, jobs.place LIMIT :limit",
        {"now": stamp(now), "id": job_id, "status": status, "limit": limit},
    ).fetchall()
    return [_state(db, *row) for row in rows]


def counts(db: sqlite3.Connection) -> dict[str, int]:
    return dict(db.execute("SELECT status, count(*) FROM jobs GROUP BY status"))


def _state(
    db: sqlite3.Connection, place: int, job_id: str, run: int, code: str | None, result: bytes | None, status: str
) -> JobState:
    handed = _handed(db, place)
    return JobState(
        id=job_id,
        status=status,
        deliveries=deliveries_of([one for one in handed if one.run == run]),
        attempts=attempts_of(handed),
        code=code,
        result=None if result is None else Result.model_validate_json(result),
    )


def _held(db: sqlite3.Connection, delivery: Delivery) -> tuple[int, bool]:
    held = db.execute(
        "SELECT place, cancelling FROM jobs WHERE id = ? AND token = ?", (delivery.id, delivery.receipt)
    ).fetchone()
    if held is None:
        raise LeaseLost
    return held[0], bool(held[1])


def _handed(db: sqlite3.Connection, place: int) -> list[HandOver]:
    rows = db.execute(
        "SELECT token, run, worker, ended_at, code, charged FROM hand_overs WHERE place = ? ORDER BY token", (place,)
    )
    return [
        HandOver(token, run, worker, None if ended is None else moment(ended), code, bool(charged))
        for token, run, worker, ended, code, charged in rows
    ]


def _end_hand_over(
    db: sqlite3.Connection, place: int, ended_at: int, code: str | None, *, charged: bool = False
) -> None:
    """Close the hand-over that is out, if there is one."""
    db.execute(
        "UPDATE hand_overs SET ended_at = ?, code = ?, charged = ? WHERE place = ? AND ended_at IS NULL",
        (ended_at, code, charged, place),
    )


def _wait(db: sqlite3.Connection, place: int, now: datetime, delay: timedelta) -> None:
    db.execute(
        "UPDATE jobs SET status = ?, token = NULL, visible_at = ? WHERE place = ?",
        ("delayed" if delay > timedelta(0) else "waiting", stamp(now + delay), place),
    )


def _withdraw(
    db: sqlite3.Connection,
    place: int,
    now: datetime,
    ended_at: int,
    policy: Policy,
    *,
    code: str | None = None,
    charged: bool = False,
) -> None:
    _end_hand_over(db, place, ended_at, code, charged=charged)
    _finish(db, place, now, "done", CANCELLED, policy)


def _finish(db: sqlite3.Connection, place: int, now: datetime, status: str, code: str | None, policy: Policy) -> None:
    db.execute(
        "UPDATE jobs SET status = ?, token = NULL, ended_at = ?, code = ? WHERE place = ?",
        (status, stamp(now), code, place),
    )
    if status == "done":
        db.execute("DELETE FROM bodies WHERE place = ?", (place,))
        db.execute(FORGET_OLD, (stamp(now - policy.keep_for),))
        db.execute(FORGET_MANY, (policy.keep_done,))
