"""What the fleet of the demo is given to do."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from demo.plan import BYTES, GAP_S, Plan, jobs_of, weights
from worker.models.header import check_model_file


def test_jobs_come_in_time_and_want_few_models_often() -> None:
    """Some at once, the others one by one; ids are all different; a Zipf distribution prefers the first models."""
    plan = Plan("run", models=60, jobs=300)
    jobs = jobs_of(plan)
    assert len({job.id for job in jobs}) == 300
    assert [job.at for job in jobs] == sorted(job.at for job in jobs)
    assert (jobs[119].at, jobs[120].at, jobs[121].at) == (0, GAP_S, 2 * GAP_S)
    wanted = Counter(job.model for job in jobs)
    assert set(wanted) <= set(plan.names)
    assert wanted.most_common(1)[0][0] in plan.names[:3]
    assert all(job.document["checkpoint"] == job.model for job in jobs)


def test_the_same_seed_gives_the_same_jobs_under_other_ids() -> None:
    """What differs between two runs is their name."""
    one, two = jobs_of(Plan("one", jobs=20)), jobs_of(Plan("two", jobs=20))
    assert [job.model for job in one] == [job.model for job in two]
    assert {job.id for job in one}.isdisjoint(job.id for job in two)
    assert [job.model for job in jobs_of(Plan("one", jobs=20, seed=2))] != [job.model for job in one]


@pytest.mark.parametrize(
    ("kills", "freezes", "acts"),
    [(2, 1, ["kill", "freeze", "kill"]), (1, 0, ["kill"]), (0, 0, []), (0, 2, ["freeze", "freeze"])],
)
def test_disturbances_are_spread_over_the_run(kills: int, freezes: int, acts: list[str]) -> None:
    """Each happens well before the end, in order, one after another."""
    found = Plan("run", kills=kills, freezes=freezes).disturbances
    shares = [share for share, _ in found]
    assert [act for _, act in found] == acts
    assert shares == sorted(set(shares))
    assert all(0 < share < 0.6 for share in shares)


def test_model_files_are_whole_and_differ(tmp_path: Path) -> None:
    """A worker takes them for models; two of them are never the same file."""
    one, two = weights("one.safetensors"), weights("two.safetensors")
    assert one != two
    path = tmp_path / "one"
    path.write_bytes(one)
    check_model_file(path, "one.safetensors")
    header = json.loads(one[8 : 8 + int.from_bytes(one[:8], "little")])
    assert header["weight"]["data_offsets"] == [0, BYTES]
