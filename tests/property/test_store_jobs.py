"""Any sequence of verbs, by two processes on one database: nothing is lost or held twice, and every count is true."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatcher.store.base import Pick
from dispatcher.store.sql import SqlStore
from tests.support.databases import Given, given_database
from tests.support.queues import result_of
from tests.support.stores import LEASE, MOST, key, new_job, waiting

JOBS, MODELS = 4, 2
MORE = 3
STEP = timedelta(seconds=50)
USUAL = ["submit", "submit", "grant", "grant", "grant_two", "done", "release", "pass", "pass", "sweep"]
RARE = ["dead", "delay", "drain", "extend", "cancel", "requeue"]
RESULT = {"done": ("succeeded", None), "dead": ("failed", "invalid_job")}


@dataclass(frozen=True)
class Verb:
    """What is done by process ``by``, to job ``job``; ``old``: with a token from before."""

    name: str
    by: int
    job: int
    old: bool = False


verbs = st.builds(
    Verb,
    name=st.sampled_from(USUAL + RARE),
    by=st.integers(0, 1),
    job=st.integers(0, JOBS - 1),
    old=st.sampled_from([False, False, False, True]),
)


def model_of(job_id: str) -> str:
    return f"m{int(job_id[1:]) % MODELS}"


@dataclass(frozen=True)
class Known:
    """What must be true of a job."""

    status: str = "waiting"
    token: int | None = None
    until: datetime | None = None
    code: str | None = None
    deliveries: int = 0
    ends: tuple[str | None, ...] = ()
    cancelling: bool = False

    @property
    def is_open(self) -> bool:
        return self.status in ("waiting", "delayed", "leased")

    def gone(self, code: str | None, status: str, until: datetime | None = None) -> Known:
        """Its hand-over has ended so; a cancelled job does not come back."""
        counted = self.deliveries - (code in ("draining", "webhook_undelivered"))
        known = replace(self, token=None, ends=(*self.ends, code), deliveries=counted, cancelling=False)
        if self.cancelling:
            return replace(known, status="done", code="cancelled", until=None)
        return replace(known, status=status, until=until)


@dataclass
class Ledger:
    """The same jobs in the simplest way, and what both say of each other."""

    given_db: Given
    stores: list[SqlStore]
    jobs: dict[str, Known] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    letters: Counter[str] = field(default_factory=Counter)

    @property
    def now(self) -> datetime:
        return self.given_db.clock.now()

    async def apply(self, verb: Verb) -> None:
        await getattr(self, f"_{verb.name}")(self.stores[verb.by], f"j{verb.job}", verb)

    async def _submit(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        assert await store.submit([new_job(job_id, model_of(job_id))]) == [job_id not in self.jobs]
        self.jobs.setdefault(job_id, Known())

    async def _grant(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        await self._granted(store, [job_id], verb)

    async def _grant_two(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        await self._granted(store, [job_id, f"j{(verb.job + MODELS) % JOBS}"], verb)

    async def _granted(self, store: SqlStore, wanted: list[str], verb: Verb) -> None:
        model = model_of(wanted[0])
        free = {
            i for i, one in self.jobs.items() if one.status == "waiting" and int(i[1:]) % MODELS == verb.job % MODELS
        }
        grants = await store.grant([Pick("n", key(model), job_id) for job_id in wanted], LEASE, passed=None)
        got = [one for one in grants if one is not None]
        assert len(got) == min(len(free), len(wanted))
        assert set(wanted) & free <= {one.job.id for one in got}
        greatest = max((token for tokens in self.tokens.values() for token in tokens), default=0)
        for one in got:
            was = self.jobs[one.job.id]
            assert one.job.id in free
            assert one.token > greatest
            assert one.deliveries == was.deliveries + 1
            self.tokens.setdefault(one.job.id, []).append(one.token)
            self.jobs[one.job.id] = replace(
                was, status="leased", token=one.token, until=self.now + LEASE, deliveries=one.deliveries
            )
            free.discard(one.job.id)

    def _token(self, job_id: str, verb: Verb) -> tuple[int, bool]:
        """A token for the job, and whether it is the holder's."""
        tokens = self.tokens.get(job_id, [0])
        token = tokens[0] if verb.old else tokens[-1]
        return token, job_id in self.jobs and self.jobs[job_id].token == token

    async def _ended(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        status, code = RESULT[verb.name]
        token, is_holder = self._token(job_id, verb)
        result = result_of(job_id, status, code=code)  # type: ignore[arg-type]
        is_over = await store.end(job_id, token, result, dead=verb.name == "dead")
        if is_holder:
            was = replace(self.jobs[job_id], cancelling=False)
            self.jobs[job_id] = replace(was.gone(code or "succeeded", verb.name), code=code)
            assert is_over
        elif is_over:
            known = self.jobs[job_id]
            assert (known.status, known.code, self.tokens[job_id][-1]) == (verb.name, code, token)

    _done = _dead = _ended

    async def _released(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        code = "draining" if verb.name == "drain" else "disk_full"
        delay = STEP if verb.name == "delay" else timedelta(0)
        token, is_holder = self._token(job_id, verb)
        row = await store.release(job_id, token, code=code, delay=delay, charged=False, worker="w")
        assert (row is not None) == is_holder
        if is_holder:
            was = self.jobs[job_id]
            status, until = ("delayed", self.now + delay) if delay else ("waiting", None)
            self.jobs[job_id] = was.gone(code, status, until)
            self.letters[job_id] += was.cancelling

    _release = _delay = _drain = _released

    async def _extend(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        token, is_holder = self._token(job_id, verb)
        told = await store.extend([(job_id, token, None, None)], LEASE)
        assert (job_id in told.lost) == (not is_holder)
        assert (job_id in told.cancelled) == (is_holder and self.jobs[job_id].cancelling)
        if is_holder:
            self.jobs[job_id] = replace(self.jobs[job_id], until=self.now + LEASE)

    async def _cancel(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        was = self.jobs.get(job_id)
        assert await store.cancel(job_id) == (was is not None and was.is_open)
        if was is not None and was.status == "leased":
            self.jobs[job_id] = replace(was, cancelling=True)
        elif was is not None and was.is_open:
            self.jobs[job_id] = replace(was, status="done", code="cancelled", until=None)
            self.letters[job_id] += 1

    async def _requeue(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        was = self.jobs.get(job_id)
        assert await store.requeue(job_id) == (was is not None and was.status == "dead")
        if was is not None and was.status == "dead":
            self.jobs[job_id] = Known(ends=was.ends)
            self.letters.pop(job_id, None)

    async def _pass(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        self.given_db.advance(STEP)

    async def _sweep(self, store: SqlStore, job_id: str, verb: Verb) -> None:
        await asyncio.gather(*(one.sweep(max_deliveries=MOST) for one in self.stores))
        for one, was in self.jobs.items():
            known = was
            if was.status == "leased" and was.until is not None and was.until <= self.now:
                known = was.gone(None, "waiting")
            if known.is_open and known.status != "leased" and known.deliveries >= MOST + MORE:
                known = replace(known, status="dead", code="delivery_limit", until=None)
            if known.status == "delayed" and known.until is not None and known.until <= self.now:
                known = replace(known, status="waiting", until=None)
            self.letters[one] += known.code != was.code
            self.jobs[one] = known

    async def expect(self) -> None:
        """Both processes see what the ledger has."""
        rows = await self.stores[0].jobs()
        assert {row.id: row.status for row in rows} == {one: known.status for one, known in self.jobs.items()}
        assert len(rows) == len(self.jobs)
        for row in await self.stores[1].jobs():
            known = self.jobs[row.id]
            assert (row.code, row.deliveries, row.token, row.cancelling) == (
                known.code,
                known.deliveries,
                known.token,
                known.cancelling,
            )
            assert tuple(one.code for one in row.attempts) == known.ends
        models = Counter(
            key(f"m{int(one[1:]) % MODELS}") for one, known in self.jobs.items() if known.status == "waiting"
        )
        assert {one: count for one, (count, _) in (await waiting(self.stores[1])).items()} == models
        heads, first, _ = await self.stores[0].board({key(f"m{number}"): JOBS for number in range(MODELS)})
        assert {one: len(found) for one, found in heads.items()} == models
        assert (first is None) == (not models)


async def play(kind: str, folder: Path, sequence: list[Verb]) -> None:
    given_db = given_database(kind, folder)
    try:
        ledger = Ledger(given_db, [await given_db.store(), await given_db.store()])
        for verb in sequence:
            await ledger.apply(verb)
            if verb.name in ("sweep", "grant_two", "cancel"):
                await ledger.expect()
        await ledger.expect()
        letters = await ledger.stores[0].letters(100, LEASE)
        assert Counter(letter.job_id for letter in letters) == +ledger.letters
    finally:
        await given_db.aclose()


@given(sequence=st.lists(verbs, min_size=5, max_size=25))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ledger_on_sqlite(sequence: list[Verb]) -> None:
    """The ledger balances after any sequence, on a file."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play("sqlite", Path(folder), sequence))


@given(sequence=st.lists(verbs, min_size=10, max_size=25))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ledger_on_postgresql(sequence: list[Verb]) -> None:
    """So it does on a server."""
    asyncio.run(play("postgresql", Path(), sequence))
