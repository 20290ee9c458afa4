"""A worker that is killed, and the next one on its disk: what it tells, and what becomes of the job."""

from __future__ import annotations

from pathlib import Path

from tests.support.supervised import STEPS, supervised
from worker.blackbox.record import last_run
from worker.blackbox.ring import Ring


async def test_a_killed_worker_is_told_of_by_the_next_one_on_its_disk(tmp_path: Path) -> None:
    """SIGKILL while it generates: one event with the job, its hop and what was printed; no lease is waited for."""
    async with supervised("sdnext", tmp_path, step_seconds=0.5) as around:
        async with around.worker() as first:
            await around.submit("a", steps=STEPS)
            await first.sampling()

            def recorded() -> bool:
                held = last_run(_texts(box))[-1].jobs if box.exists() else ()
                return [(job.id, job.hop) for job in held] == [("a", "generate")]

            box = tmp_path / "queue.db.w1.blackbox"
            await first.until(recorded)
            await first.kill()
        around.at_start()
        async with around.worker(WORKER_QUEUE_VISIBILITY="10m") as second:
            await second.jobs_ended()
            (told,) = second.events("previous_run_ended")
            assert (told["cause"], told["at_work"], told["phase"]) == ("killed", ["a"], "ready")
            assert any("simulator listening" in line for line in told["lines"])
            assert await around.codes("a") == [("node_restarted", False), ("succeeded", False)]
            assert 'sd_worker_previous_runs_total{cause="killed"} 1.0' in (await second.get("/metrics")).text
            await second.drained()
        assert second.events("worker_stats")[-1]["last"] is True
        end = last_run(_texts(box))[-1].end
        assert end is not None
        assert (end.exit_code, end.drained) == (0, True)


def _texts(box: Path) -> list[bytes]:
    """The records as they stand there, also while a worker has the file."""
    copy = box.with_suffix(".copy")
    copy.write_bytes(box.read_bytes())
    ring = Ring(copy)
    ring.close()
    return list(ring.records)
