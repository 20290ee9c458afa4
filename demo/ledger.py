"""The books: every job is held against what the dispatcher, the storage and the customer's receiver know of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.plan import Wanted
from worker.cli.demo_parts import Receiver, image_problem
from worker.queues.base import JobState
from worker.result import Result

SUCCEEDED = "job.succeeded"
ENDS = frozenset({SUCCEEDED, "job.failed", "job.cancelled"})


class Witness(Receiver):
    """A receiver that remembers every genuine delivery: by job, the pairs of event and webhook id, as they came."""

    def __init__(self, secret: str) -> None:
        super().__init__(secret)
        self.deliveries: dict[str, list[tuple[str, str]]] = {}

    async def take(self, request: Any) -> Any:
        answer = await super().take(request)
        if answer.status_code < 300:
            event = json.loads(await request.body())
            self.deliveries.setdefault(event["data"]["id"], []).append((event["type"], request.headers["webhook-id"]))
        return answer

    @property
    def ended(self) -> int:
        """Jobs of whose end somebody was told."""
        return sum(any(event in ENDS for event, _ in told) for told in self.deliveries.values())


@dataclass(slots=True)
class Ledger:
    """``strays``: pictures that no result names, which a worker may leave that lost its lease in mid-upload."""

    jobs: int = 0
    succeeded: int = 0
    results: int = 0
    announced: int = 0
    deliveries: int = 0
    pictures: int = 0
    strays: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def balances(self) -> bool:
        return not self.problems

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("jobs", str(self.jobs)),
            ("succeeded, once each", str(self.succeeded)),
            ("result documents", str(self.results)),
            ("success webhooks, by id", f"{self.announced} ({self.deliveries} deliveries)"),
            ("pictures that agree with their results", str(self.pictures)),
            ("stray pictures", str(self.strays)),
        ]


def balanced(
    jobs: Sequence[Wanted],
    states: Mapping[str, JobState | None],
    deliveries: Mapping[str, Sequence[tuple[str, str]]],
    store: Path,
) -> Ledger:
    """What became of these jobs. ``store`` is the folder that all workers share."""
    ledger, seen = Ledger(len(jobs)), set[str]()
    for job in jobs:
        told = deliveries.get(job.id, ())
        wrong = _problems(job, states.get(job.id), told, store, seen)
        ledger.problems += (f"{job.id}: {problem}" for problem in wrong)
        ledger.succeeded += not wrong
        ledger.deliveries += len(told)
        ledger.announced += len({webhook_id for event, webhook_id in told if event == SUCCEEDED})
        named = _named(store / job.id)
        ledger.results += named is not None
        ledger.pictures += len(named or ())
        there = {path.name for path in (store / job.id).glob("*-*.png")}
        ledger.strays += len(there - set(named or ()))
    strangers = sorted(deliveries.keys() - {job.id for job in jobs})
    ledger.problems += (f"{job_id}: a webhook of a job that nobody submitted" for job_id in strangers)
    return ledger


def _problems(
    job: Wanted, state: JobState | None, told: Iterable[tuple[str, str]], store: Path, seen: set[str]
) -> list[str]:
    result = state.result if state is not None else None
    if state is None or result is None:
        return [f"it has not ended: {state.status if state else 'unknown'}"]
    if state.status != "done" or result.status != "succeeded":
        return [f"it is {state.status} and {result.status}: {result.error.message if result.error else state.code}"]
    return [problem for problem in (*_told_wrong(job.id, told), *_made_wrong(job, result, store, seen)) if problem]


def _told_wrong(job_id: str, told: Iterable[tuple[str, str]]) -> list[str]:
    """What is wrong with its webhooks: there must be one id of a success, the one that follows from the job's."""
    told = list(told)
    ids = {webhook_id for event, webhook_id in told if event == SUCCEEDED}
    wanted = f"succeeded_{hashlib.sha256(job_id.encode()).hexdigest()[:32]}"
    found = [] if ids == {wanted} else [f"its success was announced as {sorted(ids) or 'nothing'}"]
    return found + [f"{event} was announced too" for event, _ in told if event in ENDS - {SUCCEEDED}]


def _made_wrong(job: Wanted, result: Result, store: Path, seen: set[str]) -> list[str]:
    """What is wrong with its pictures, and with the result that stands for it."""
    folder = store / job.id
    stands = _read(folder / "result.json")
    if stands is None:
        return ["there is no result document"]
    known = [(image.key, image.sha256) for image in result.images]
    found = [] if [(image.key, image.sha256) for image in stands.images] == known else ["two results disagree"]
    if len(known) != 1:
        return [*found, f"it has {len(known)} pictures"]
    if stands.engine is None or Path(job.model).stem not in (stands.engine.model or ""):
        found.append(f"it was made by {stands.engine.model if stands.engine else 'nobody'}, not by {job.model}")
    image, body = stands.images[0], json.dumps(job.document).encode()
    return [*found, image_problem(body, image, store / (image.key or ""), "verified", folder, seen)]


def _read(path: Path) -> Result | None:
    return Result.model_validate_json(path.read_bytes()) if path.is_file() else None


def _named(folder: Path) -> list[str] | None:
    """The pictures that the standing result names; None where none stands."""
    result = _read(folder / "result.json")
    return None if result is None else [Path(image.key or "").name for image in result.images]
