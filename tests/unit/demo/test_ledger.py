"""The books of the fleet's demo: what went well balances, and whatever did not is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from demo.ledger import SUCCEEDED, Ledger, Witness, balanced
from demo.plan import SIDE, Plan, Wanted, jobs_of
from tests.support.pictures import encoded, picture
from worker.cli.demo_parts import new_secret
from worker.clock import SystemClock
from worker.errors import Fault
from worker.queues.base import JobState
from worker.result import EngineResult, ErrorResult, ImageResult, Result, WorkerResult

NOW = SystemClock().now()


def webhook_id(job_id: str) -> str:
    return f"succeeded_{hashlib.sha256(job_id.encode()).hexdigest()[:32]}"


@dataclass
class Books:
    """Two jobs that went well, to be spoilt."""

    store: Path
    jobs: list[Wanted] = field(default_factory=lambda: jobs_of(Plan("run", jobs=2)))
    states: dict[str, JobState | None] = field(default_factory=dict)
    told: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, job in enumerate(self.jobs):
            self.add(job, encoded(picture(SIDE, SIDE, seed=number)))

    @property
    def first(self) -> str:
        return self.jobs[0].id

    @property
    def folder(self) -> Path:
        return self.store / self.first

    def add(self, job: Wanted, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        folder, name = self.store / job.id, f"0-{digest[:12]}.png"
        folder.mkdir()
        (folder / name).write_bytes(data)
        image = ImageResult(
            index=0, key=f"{job.id}/{name}", format="png", width=SIDE, height=SIDE, bytes=len(data), sha256=digest
        )
        result = Result(
            id=job.id,
            status="succeeded",
            images=(image,),
            engine=EngineResult(name="sdnext", model=Path(job.model).stem),
            worker=WorkerResult(id="node-1", version="0"),
            created_at=NOW,
            finished_at=NOW,
        )
        (folder / "result.json").write_bytes(result.to_json())
        self.states[job.id] = JobState(job.id, "done", 1, (), None, result)
        self.told[job.id] = [(SUCCEEDED, webhook_id(job.id))]

    def ends_as(self, **changes: Any) -> None:
        """The dispatcher tells the first job's end otherwise."""
        state = self.states[self.first]
        assert state is not None
        assert state.result is not None
        self.states[self.first] = replace(state, result=state.result.model_copy(update=changes))

    def stands_as(self, **changes: Any) -> None:
        """The result that stands for the first job is another."""
        path = self.folder / "result.json"
        path.write_bytes(Result.model_validate_json(path.read_bytes()).model_copy(update=changes).to_json())

    def balanced(self) -> Ledger:
        return balanced(self.jobs, self.states, self.told, self.store)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_what_went_well_balances(books: Books) -> None:
    """A webhook that came twice under one id is one; a picture that no result names is told, and harms nobody."""
    books.told[books.first] *= 2
    (books.folder / "0-0123456789ab.png").write_bytes(b"left behind")
    ledger = books.balanced()
    assert (ledger.problems, ledger.balances) == ([], True)
    assert (ledger.jobs, ledger.succeeded, ledger.results, ledger.pictures, ledger.strays) == (2, 2, 2, 2, 1)
    assert (ledger.announced, ledger.deliveries) == (2, 3)
    assert ("success webhooks, by id", "2 (3 deliveries)") in ledger.rows()


ERROR = ErrorResult(code="engine_oom", message="too large", retryable=False, fault=Fault.JOB)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda b: b.states.clear(), "it has not ended: unknown"),
        (lambda b: b.states.update({b.first: JobState(b.first, "leased", 1, (), None, None)}), "not ended: leased"),
        (lambda b: b.ends_as(status="failed", images=(), error=ERROR), "failed: too large"),
        (lambda b: b.told.clear(), "announced as nothing"),
        (lambda b: b.told[b.first].append((SUCCEEDED, "succeeded_other")), "succeeded_other"),
        (lambda b: b.told[b.first].append(("job.failed", "failed_1")), "job.failed was announced too"),
        (lambda b: b.told.update(other=[(SUCCEEDED, webhook_id("other"))]), "nobody submitted"),
        (lambda b: (b.folder / "result.json").unlink(), "there is no result document"),
        (lambda b: b.ends_as(images=()), "two results disagree"),
        (lambda b: (b.stands_as(images=()), b.ends_as(images=())), "it has 0 pictures"),
        (lambda b: b.stands_as(engine=EngineResult(name="sdnext", model="other")), "made by other"),
        (lambda b: b.stands_as(engine=None), "made by nobody"),
        (lambda b: next(b.folder.glob("*.png")).write_bytes(b"x"), "cannot be opened"),
        (lambda b: next(b.folder.glob("*.png")).write_bytes(encoded(picture(SIDE, SIDE, seed=9))), "not the one"),
    ],
)
def test_what_did_not_go_well_is_named(books: Books, spoil: Callable[[Books], object], problem: str) -> None:
    """Files are opened and held against the results, and these against what the customer was told."""
    spoil(books)
    ledger = books.balanced()
    assert not ledger.balances
    assert any(problem in one for one in ledger.problems), ledger.problems


async def test_the_receiver_remembers_every_genuine_webhook() -> None:
    """By job, with its event and id; a forged one leaves no trace, and progress is no end."""
    from worker.signature import decode_secrets, signature

    secret = new_secret()
    witness, stamp = Witness(secret), str(int(SystemClock().now().timestamp()))

    async def post(kind: str, webhook: str, key: str = secret) -> int:
        body = b'{"type": "%s", "data": {"id": "job"}}' % kind.encode()
        signed = signature(decode_secrets(key), webhook, stamp, body)
        headers = {"webhook-id": webhook, "webhook-timestamp": stamp, "webhook-signature": signed}
        return int((await witness.take(_Posted(headers, body))).status_code)

    assert (await post("job.progress", "progress_1"), witness.ended) == (204, 0)
    assert (await post(SUCCEEDED, "succeeded_2", new_secret()), witness.ended) == (401, 0)
    assert (await post(SUCCEEDED, "succeeded_1"), witness.ended) == (204, 1)
    assert witness.deliveries == {"job": [("job.progress", "progress_1"), (SUCCEEDED, "succeeded_1")]}


@dataclass(frozen=True)
class _Posted:
    """A request, as far as the receiver reads it."""

    headers: dict[str, str]
    content: bytes

    async def body(self) -> bytes:
        return self.content
