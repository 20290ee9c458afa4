"""The ledger's verbs: one run of `ledger.lua` each, and plain reads beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from worker.clock import Clock
from worker.errors import InternalError, QueueUnavailable
from worker.queues.base import JobState
from worker.queues.policy import Policy
from worker.queues.redis.client import Client, Stale
from worker.queues.redis.records import Arrival, Fields, Record, Stray, document_among, moment, span, stamp

KEYS = (
    *("jobs", "open", "waiting", "hidden", "entries", "done", "dead", "buried", "results", "inline", "order"),
    *("claims", "void", "bell", "counters"),
)
"""What stands beside the stream, each under ``{stream}:name``: one slot of a cluster."""

BELL_READER = "idle"
_PAGE = 200

Part = str | bytes | int


@cache
def script() -> tuple[str, str]:
    """The source and its SHA-1, by which a server knows it."""
    source = files(__package__).joinpath("ledger.lua").read_text("utf-8")
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Handed:
    """A job that was handed over, as it then stood."""

    id: str
    record: Record
    body: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought: a job, or entries to adopt first, or neither; ``due``: when to look again at the latest."""

    handed: Handed | None
    strays: Sequence[Stray]
    due: timedelta | None


class Ledger:
    """The queue's keys on the server. ``clock``: another time than the server's own, which counts otherwise.

    Every verb raises as `Client.run` does. ``again``: an earlier call may have come through without our hearing of it.
    """

    def __init__(self, client: Client, policy: Policy, clock: Clock | None = None) -> None:
        self._client = client
        self._clock = clock
        self._policy = policy
        place = client.place
        self._group, self._stream = place.group, place.stream
        self._keys = {name: f"{{{place.stream}}}:{name}" for name in KEYS}

    async def submit(self, job_id: str, fingerprint: str, priority: int, call: str, body: bytes) -> str:
        """``new``, ``known`` or ``conflict``; ``call`` makes a repetition of this very call the same one."""
        return await self._told("submit", job_id, fingerprint, priority, call, body)

    async def claim(self, worker: str, call: str, *, news: bool) -> Claimed:
        """The next job; with ``news`` only after what others put into the stream."""
        strays, handed, due = await self._verb("claim" if news else "take", worker, call)
        return Claimed(
            handed=await self._handed(*handed) if handed else None,
            strays=[Stray(*stray) for stray in strays],
            due=None if int(due) < 0 else timedelta(microseconds=int(due)),
        )

    async def void(self, worker: str, calls: Sequence[str]) -> Sequence[Stray]:
        """Give back what these calls to `claim` got or will get; entries that they may have read."""
        return [Stray(*stray) for stray in await self._verb("void", worker, *calls)]

    async def fields_of(self, stray: Stray) -> Fields | None:
        """All that stands in the entry; None where it is gone."""
        return stray.fields or await self._entry(stray.entry, stray.size)

    async def _handed(self, job_id: bytes, record: bytes, document: bytes, size: int) -> Handed:
        known = Record.of(record)
        if len(document) < size and known.entry is not None:
            fields = await self._entry(known.entry.encode(), size)
            document = b"" if fields is None else document_among(fields)
        if len(document) != size:
            raise QueueUnavailable(f"{self._client.place.shown}: a document went while it was read")
        return Handed(job_id.decode(), known, document)

    async def _entry(self, entry: bytes, size: int) -> Fields | None:
        """The fields of an entry that may be large, read by itself."""
        found = await self._read("XRANGE", self._stream, entry, entry, expected=size)
        fields: Fields | None = found[0][1] if found else None
        return fields

    async def adopt(self, arrivals: Sequence[Arrival]) -> list[str]:
        """Make jobs of them: for each ``new``, ``known``, ``duplicate`` or ``conflict``."""
        told = [part for one in arrivals for part in (one.entry, one.id, one.fingerprint, one.priority)]
        return [verdict.decode() for verdict in await self._verb("adopt", *told)]

    async def extend(self, job_id: str, token: int) -> str:
        """``ok``, ``cancelled`` or ``lost``."""
        return await self._told("extend", job_id, token)

    async def settle(self, job_id: str, token: int, *end: Part, again: bool) -> bool:
        """``end``: status, code, whether charged, the job's code, the result without and with images."""
        return await self._told("settle", job_id, token, *end, again=again) == "ok"

    async def release(
        self, job_id: str, token: int, delay: timedelta, code: str, *, charged: bool, again: bool
    ) -> bool:
        return await self._told("release", job_id, token, span(delay), code, int(charged), again=again) == "ok"

    async def recall(self, job_id: str, token: int, code: str, *, charged: bool, rest: timedelta) -> bool:
        return await self._told("recall", job_id, token, code, int(charged), span(rest)) == "ok"

    async def requeue(self, job_id: str) -> bool:
        return await self._told("requeue", job_id) == "ok"

    async def cancel(self, job_id: str) -> bool:
        return await self._told("cancel", job_id) == "ok"

    async def rung(self, wait: timedelta) -> None:
        """Until somebody put a job there or gave one back, of all who wait only one is told; or until the time is over.

        Nothing is taken: an answer that is lost is a call to look that nobody heard.
        """
        group, wait_ms = f"{self._group}:bell", max(1, wait // timedelta(milliseconds=1))
        await self._client.run(
            *("XREADGROUP", "GROUP", group, BELL_READER, "COUNT", 1, "BLOCK", wait_ms, "NOACK"),
            *("STREAMS", self._stream, self._keys["bell"], ">", ">"),
            wait=wait,
        )

    async def record(self, job_id: str) -> Record | None:
        raw = await self._read("HGET", self._keys["jobs"], job_id)
        return None if raw is None else Record.of(raw)

    async def state(self, job_id: str) -> JobState | None:
        """With the images that stand in its result, if they are still there."""
        record = await self.record(job_id)
        if record is None:
            return None
        result = await self._read("HGET", self._keys["inline"], job_id)
        result = result or await self._read("HGET", self._keys["results"], job_id)
        return record.state(job_id, await self._now(), result)

    async def states(self, status: str | None, limit: int) -> list[JobState]:
        """Open jobs in the order of hand-over, then those that are over, the latest end first; without images."""
        found: list[JobState] = []
        if status in (None, "waiting", "delayed", "leased"):
            found += await self._open(status, limit)
        ended = {"done": ("done",), "dead": ("buried",), None: ("done", "buried")}.get(status, ())
        if ended and len(found) < limit:
            found += await self._ended(ended, limit - len(found))
        return found

    async def counts(self) -> dict[str, int]:
        """How many jobs are open, done and dead."""
        named = {"open": "open", "done": "done", "dead": "buried"}
        return {word: int(await self._read("ZCARD", self._keys[name])) for word, name in named.items()}

    async def open(self) -> None:
        """Make sure that stream and groups are there."""
        await self._verb("open")

    async def info(self, section: str) -> dict[str, str]:
        """What the server tells of itself."""
        told: bytes = await self._read("INFO", section)
        lines = (line.partition(":") for line in told.decode(errors="replace").splitlines())
        return {name: value for name, colon, value in lines if colon}

    async def _open(self, status: str | None, limit: int) -> list[JobState]:
        found: list[JobState] = []
        now, start = await self._now(), 0
        while len(found) < limit:
            places = await self._read("ZRANGE", self._keys["open"], start, start + _PAGE - 1)
            if not places:
                break
            states = await self._states_of([place.decode()[42:] for place in places], now)
            found += [state for state in states if status in (None, state.status)]
            start += len(places)
        return found[:limit]

    async def _ended(self, names: Sequence[str], limit: int) -> list[JobState]:
        ended: list[tuple[float, str]] = []
        for name in names:
            told = await self._read("ZREVRANGE", self._keys[name], 0, limit - 1, "WITHSCORES")
            ended += [(float(score), job_id.decode()) for job_id, score in zip(told[::2], told[1::2], strict=True)]
        ended.sort(key=lambda one: -one[0])
        ids = [job_id for _, job_id in ended[:limit]]
        return await self._states_of(ids, await self._now()) if ids else []

    async def _states_of(self, ids: Sequence[str], now: datetime) -> list[JobState]:
        records = await self._read("HMGET", self._keys["jobs"], *ids)
        results = await self._read("HMGET", self._keys["results"], *ids)
        return [
            Record.of(record).state(job_id, now, result)
            for job_id, record, result in zip(ids, records, results, strict=True)
            if record is not None
        ]

    async def _now(self) -> datetime:
        if self._clock is not None:
            return self._clock.now()
        seconds, micros = await self._read("TIME")
        return moment(int(seconds) * 1_000_000 + int(micros))

    async def _read(self, *command: Part, expected: int = 0) -> Any:
        try:
            return await self._client.run(*command, expected=expected)
        except Stale:
            return await self._client.run(*command, expected=expected)

    async def _told(self, verb: str, *given: Part, again: bool = False) -> str:
        answer = await self._verb(verb, *given, again=again)
        if not isinstance(answer, bytes):
            raise InternalError(f"{self._client.place.shown}: {verb} was answered {type(answer).__name__}")
        return answer.decode()

    async def _verb(self, verb: str, *given: Part, again: bool = False) -> Any:
        try:
            return await self._script(verb, given, again)
        except Stale:
            return await self._script(verb, given, True)

    async def _script(self, verb: str, given: Sequence[Part], again: bool) -> Any:
        """By its hash, which a server that was restarted or flushed does not know."""
        from redis.exceptions import NoScriptError

        source, sha1 = script()
        told = (len(self._keys) + 1, self._stream, *self._keys.values(), verb, *self._header(), int(again), *given)
        try:
            return await self._client.run("EVALSHA", sha1, *told)
        except NoScriptError:
            return await self._client.run("EVAL", source, *told)

    def _header(self) -> tuple[Part, ...]:
        policy, now = self._policy, "" if self._clock is None else str(stamp(self._clock.now()))
        kept = (span(policy.keep_for), policy.keep_done, policy.keep_inline)
        return (now, self._group, span(policy.visibility), *kept)
