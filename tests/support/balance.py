"""The ledger of a crowd: what its nodes remember against what stands in the database, to the job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tests.support.crowd import MOST_ATTEMPTS, TIMED_OUT, Crowd
from tests.support.ledger import Told
from tests.support.posts import AnyRow, Books
from worker.errors import UNCOUNTED_CODES
from worker.signature import webhook_id

HERE = "dispatcher"
ENDS: Mapping[str, frozenset[tuple[str, str | None]]] = {
    "good": frozenset({("done", None)}),
    "bad": frozenset({("dead", TIMED_OUT)}),
    "cursed": frozenset({("dead", "delivery_limit")}),
    "late": frozenset({("dead", "expired")}),
    "gone": frozenset({("done", None), ("done", "cancelled")}),
}
"""How a job of each kind may end: its status and code."""


class Balance:
    """``breaches`` are all the promises that were not kept, in words; none when all is well."""

    def __init__(self, crowd: Crowd, books: Books, told: Iterable[Told], refused: Iterable[str] = ()) -> None:
        self.breaches = [*crowd.breaches, *(f"a webhook was refused: {why}" for why in refused)]
        self.unreceived = 0
        self._crowd = crowd
        self._books = books
        self._told = list(told)
        self._judge_whole()
        for job_id, job in books.jobs.items():
            tried = books.tried.get(job_id, [])
            self._judge_end(job, tried)
            self._judge_account(job, tried)
            if job.status == "done":
                self._judge_holder(job, tried)
        self._judge_hands()
        self._judge_webhooks()

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.breaches.append(otherwise)

    def _judge_whole(self) -> None:
        lost = self._crowd.submitted ^ self._books.jobs.keys()
        self._expect(not lost, f"jobs that were lost or came from nowhere: {lost}")
        self._expect(not self._books.leased, f"{self._books.leased} leases are left")
        self._expect(not self._books.owed, f"{self._books.owed} webhooks are owed still")
        self._expect(not self._books.uneven, f"the count of waiting jobs is off by {self._books.uneven}")

    def _judge_end(self, job: AnyRow, tried: list[AnyRow]) -> None:
        kind = job.id.partition("-")[0]
        self._expect((job.status, job.code) in ENDS[kind], f"{job.id} ended as {job.status} ({job.code})")
        self._expect(job.id in self._books.results, f"{job.id} has no result")
        charged = sum(one.charged for one in tried)
        if kind == "bad":
            self._expect(charged == MOST_ATTEMPTS, f"{job.id} was charged {charged} times")

    def _judge_account(self, job: AnyRow, tried: list[AnyRow]) -> None:
        """Every hand-over stands there once, and is counted where it counts."""
        self._expect(job.handed == len(tried), f"{job.id} was handed over {job.handed} times, {len(tried)} ended")
        counted = sum(one.code not in UNCOUNTED_CODES for one in tried)
        self._expect(job.deliveries == counted, f"{job.id} counts {job.deliveries} deliveries, not {counted}")
        latest = tried[-1].token if tried else None
        self._expect(job.token == latest, f"{job.id} has the token {job.token}, not {latest}")
        ended = [one.ended_at for one in tried]
        self._expect(ended == sorted(ended), f"{job.id} was handed over before the last hand-over had ended")

    def _judge_holder(self, job: AnyRow, tried: list[AnyRow]) -> None:
        """What was accepted came once, and from the holder of the newest token."""
        result = self._books.results[job.id]
        if result.worker.id == HERE:
            self._expect(all(one.code != "succeeded" for one in tried), f"{job.id} was withdrawn and succeeded")
            return
        final = [one for one in tried if one.code in ("succeeded", "cancelled")]
        last = tried[-1]
        self._expect(final == [last], f"{job.id} was ended {len(final)} times")
        self._expect(result.metadata == {"token": last.token}, f"{job.id} has the result of {result.metadata}")
        self._expect(result.worker.id == last.worker, f"{job.id} has the result of {result.worker.id}")

    def _judge_hands(self) -> None:
        """What each node knows of its hand-overs is what stands there."""
        rows = {one.token: (job_id, one) for job_id, tried in self._books.tried.items() for one in tried}
        self.unreceived = len(rows.keys() - self._crowd.hands.keys())
        for token, hand in self._crowd.hands.items():
            if token not in rows:
                self.breaches.append(f"{hand.job}: the hand-over {token} stands nowhere")
                continue
            job_id, row = rows[token]
            self._expect((job_id, row.worker) == (hand.job, hand.node), f"the hand-over {token} is another's")
            accepted, possible = hand.accepted(), hand.possible()
            self._expect(len(accepted) < 2, f"{hand.job}: {token} ended as {accepted}")
            allowed: set[str | None] = {*accepted} if accepted else {*possible, None}
            self._expect(row.code in allowed, f"{hand.job}: {token} ended as {row.code}, its node says {allowed}")
        for token in rows.keys() - self._crowd.hands.keys():
            job_id, row = rows[token]
            self._expect(row.code in (None, "draining"), f"{job_id}: {token}, never received, ended as {row.code}")

    def _judge_webhooks(self) -> None:
        """Who ended in the dispatcher's own hands was told, under the id of that end; nobody else was."""
        told: dict[str, set[str]] = {}
        for one in self._told:
            told.setdefault(one.data["id"], set()).add(one.id)
        owed = {
            job_id: {webhook_id(result.status, job_id)}
            for job_id, result in self._books.results.items()
            if result.worker.id == HERE
        }
        self._expect(told == owed, f"webhooks were told of {told.keys() ^ owed.keys()} and should not, or the reverse")

    def ends(self) -> Counter[str]:
        """How many jobs ended how."""
        return Counter(f"{job.status} {job.code or ''}".strip() for job in self._books.jobs.values())

    def line(self) -> str:
        """The figures of a run."""
        handed = sum(job.handed for job in self._books.jobs.values())
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self._crowd.counts.items()))
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends().items()))
        return (
            f"{len(self._books.jobs)} jobs ({ends}), {handed} hand-overs ({self.unreceived} never received), "
            f"{len(self._told)} webhooks; {counts}"
        )
