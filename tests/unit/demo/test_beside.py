"""What the demo compares its fleet with."""

from __future__ import annotations

from demo.beside import computed
from demo.plan import BYTES, Plan, jobs_of


def test_fifo_costs_several_times_as_much() -> None:
    """Every job is done under either rule, and a fleet whose models matter loads and downloads far less."""
    plan = Plan("run", jobs=200)
    jobs = jobs_of(plan)
    fifo, ours = (computed(name, plan, jobs, {"node-2": 4.0}) for name in ("fifo", "sd-dispatcher"))
    assert fifo.loads > 2 * ours.loads >= 2 * len({job.model for job in jobs})
    assert fifo.downloads > ours.downloads
    assert fifo.bytes == fifo.downloads * BYTES
