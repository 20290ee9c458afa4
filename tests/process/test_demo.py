"""`sd-worker demo`, as a newcomer runs it, and its judgement of what came out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.pictures import encoded, opened, picture
from worker.cli.demo import ENGINES
from worker.cli.demo_parts import Finding, Receiver, documents, judged, new_secret
from worker.clock import SystemClock
from worker.queues.base import JobState
from worker.result import ImageResult, Result, WorkerResult
from worker.settings.source import surroundings
from worker.signature import decode_secrets, signature

NOW = SystemClock().now()


def png(width: int, height: int, seed: int = 0) -> bytes:
    return encoded(picture(width, height, seed=seed))


def sd_worker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments], env=surroundings(), capture_output=True, text=True, timeout=90
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_demo_does_the_whole_main_job(engine: str, tmp_path: Path) -> None:
    """Exit 0, a row for each job, images that open, differ and have the sizes asked for, a result beside each."""
    done = sd_worker("demo", "--out", str(tmp_path), "--jobs", "3", "--engine", engine)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 jobs succeeded" in done.stdout
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    results = [json.loads((folder / "result.json").read_bytes()) for folder in folders]
    assert [result["engine"]["name"] for result in results] == [engine] * 3
    pictures = [folder / Path(r["images"][0]["key"]).name for folder, r in zip(folders, results, strict=True)]
    assert [opened(path.read_bytes()).size for path in pictures] == [(512, 512), (768, 512), (512, 768)]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}) == 3


def test_an_engine_that_is_none_is_refused(tmp_path: Path) -> None:
    """The mistake is named, with exit 64."""
    done = sd_worker("demo", "--out", str(tmp_path), "--engine", "invokeai")
    assert done.returncode == 64
    assert "--engine" in done.stderr


@dataclass(frozen=True)
class Case:
    """One job that went well, to be spoilt."""

    out: Path
    wanted: dict[str, bytes]
    state: JobState
    receiver: Receiver

    @property
    def job_id(self) -> str:
        return next(iter(self.wanted))

    @property
    def image(self) -> Path:
        return self.out / self.job_id / "0.png"

    def judge(self) -> Finding:
        return judged(self.wanted, {self.job_id: self.state}, self.receiver, self.out)[0]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    wanted = documents(1, NOW)
    job_id = next(iter(wanted))
    data = png(512, 512)
    folder = tmp_path / job_id
    folder.mkdir()
    (folder / "0.png").write_bytes(data)
    (folder / "result.json").write_text("{}")
    image = ImageResult(
        index=0, key=f"{job_id}/0.png", format="png", width=512, height=512, bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    result = Result(
        id=job_id, status="succeeded", images=(image,), worker=WorkerResult(id="w", version="0"), created_at=NOW,
        finished_at=NOW,
    )  # fmt: skip
    receiver = Receiver(new_secret())
    receiver.taken[job_id] = {}
    return Case(tmp_path, wanted, JobState(job_id, "done", 1, (), None, result), receiver)


def test_a_job_that_went_well_has_no_problem(case: Case) -> None:
    """The unspoilt case passes, so that the spoilt ones prove something."""
    assert case.judge().problem == ""


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda case: case.image.write_bytes(b"no image"), "cannot be opened"),
        (lambda case: case.image.unlink(), "cannot be opened"),
        (lambda case: case.image.write_bytes(png(512, 512, seed=9)), "not the one that the result names"),
        (lambda case: case.image.write_bytes(png(64, 64)), "pixels"),
        (lambda case: (case.out / case.job_id / "result.json").unlink(), "no result.json"),
        (lambda case: case.receiver.taken.clear(), "webhook"),
    ],
    ids=["broken", "missing", "other", "size", "result", "webhook"],
)
def test_what_is_wrong_with_a_result_is_said(case: Case, spoil: Callable[[Case], object], problem: str) -> None:
    """The demo believes nothing: files are opened and held against the result."""
    spoil(case)
    assert problem in case.judge().problem


def test_a_job_that_did_not_succeed_is_a_problem(case: Case) -> None:
    """Unfinished and failed jobs are found too, and two jobs may not have the same image."""
    assert judged(case.wanted, {}, case.receiver, case.out)[0].problem == "it did not end"
    empty = replace(case.state, result=case.state.result and case.state.result.model_copy(update={"status": "failed"}))
    assert judged(case.wanted, {case.job_id: empty}, case.receiver, case.out)[0].problem
    twice = {**case.wanted, "copy": case.wanted[case.job_id]}
    states = {case.job_id: case.state, "copy": case.state}
    assert "another job has the same image" in judged(twice, states, case.receiver, case.out)[1].problem


def test_a_forged_webhook_is_refused() -> None:
    """Neither another key, nor another body, nor an old time passes."""
    secret, body, stamp = new_secret(), b'{"a": 1}', str(int(SystemClock().now().timestamp()))
    receiver = Receiver(secret)

    def headers(key: str, at: str) -> dict[str, str]:
        signed = signature(decode_secrets(key), "id", at, body)
        return {"webhook-id": "id", "webhook-timestamp": at, "webhook-signature": signed}

    assert receiver.is_genuine(headers(secret, stamp), body)
    assert not receiver.is_genuine(headers(new_secret(), stamp), body)
    assert not receiver.is_genuine(headers(secret, stamp), body + b" ")
    assert not receiver.is_genuine(headers(secret, "1600000000"), body)
    assert not receiver.is_genuine({}, body)
