"""`python -m benchmarks.footprint`: what a worker costs that has nothing to do.

Resident memory and processor time of an idle READY worker with the embedded queue, once with a directory and once
with S3 after its first upload, and the time from the start of its process to the first probe answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.parts import answers, cpu_s, resident_mb, simulator, worker
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, made_bucket, running_rclone
from worker.clock import SystemClock
from worker.queues import open_producer
from worker.settings.queue import QueueSettings

SETTLED_S = 3.0
"""After READY or the end of a job, before an idle worker is measured."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Seconds, megabytes, and the share of one core."""

    probe_s: float
    probe_cpu_s: float
    ready_s: float
    idle_mb: float
    idle_cpu: float
    used_mb: float
    used_cpu: float


async def first_probe(url: str) -> float:
    """The loop's time at which `/live` answered first."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client, asyncio.timeout(60):
        while True:
            try:
                (await client.get(f"{url}/live")).raise_for_status()
            except httpx.TransportError:
                await asyncio.sleep(0.005)
            else:
                return asyncio.get_running_loop().time()


async def idle(pid: int, seconds: float) -> tuple[float, float]:
    """Resident megabytes, and the share of one core that was used meanwhile."""
    await asyncio.sleep(SETTLED_S)
    before = cpu_s(pid)
    await asyncio.sleep(seconds)
    return resident_mb(pid), (cpu_s(pid) - before) / seconds


async def one_job(queue: QueueSettings) -> None:
    producer = open_producer(queue, SystemClock())
    await producer.submit("first", json.dumps({"id": "first", "params": {"prompt": "a hill", "steps": 4}}).encode())
    async with asyncio.timeout(60):
        while (await producer.jobs("done")) == []:
            await asyncio.sleep(0.05)
    await producer.aclose()


async def footprint(storage: dict[str, str], folder: Path, seconds: float) -> Footprint:
    queue = QueueSettings(kind="sqlite", sqlite_path=folder / "queue.db")
    environment = {"WORKER_ENGINE": "sdnext", "WORKER_QUEUE": "sqlite", "WORKER_SQLITE_PATH": str(queue.sqlite_path)}
    async with simulator(step_s=0.01) as engine:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with worker({**environment, "WORKER_ENGINE_URL": engine, **storage}) as one:
            probe_s = await first_probe(one.url) - began
            probe_cpu_s = cpu_s(one.process.pid)
            await answers(f"{one.url}/ready")
            ready_s = loop.time() - began
            idle_mb, idle_cpu = await idle(one.process.pid, seconds)
            await one_job(queue)
            used_mb, used_cpu = await idle(one.process.pid, seconds)
    return Footprint(probe_s, probe_cpu_s, ready_s, idle_mb, idle_cpu, used_mb, used_cpu)


async def measure(seconds: float) -> dict[str, Footprint]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="footprint-") as name, running_rclone(Path(name)) as store:
        root = Path(name)
        bucket = await asyncio.to_thread(made_bucket, store)
        (root / "a").mkdir()
        (root / "b").mkdir()
        found["directory"] = await footprint({"WORKER_STORAGE_DIRECTORY": str(root / "a" / "out")}, root / "a", seconds)
        s3 = {
            "WORKER_S3_BUCKET": bucket.name,
            "WORKER_S3_ENDPOINT_URL": store,
            "WORKER_S3_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        found["s3"] = await footprint(s3, root / "b", seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for which an idle worker is watched")
    found = asyncio.run(measure(parser.parse_args().seconds))
    print(f"{'':>10}{'probe':>8}{'its cpu':>9}{'ready':>8}{'idle':>10}{'cpu':>7}{'after a job':>14}{'cpu':>7}")
    for name, one in found.items():
        print(
            f"{name:>10}{one.probe_s:>6.2f} s{one.probe_cpu_s:>7.2f} s{one.ready_s:>6.2f} s"
            f"{one.idle_mb:>7.1f} MB{one.idle_cpu:>7.2%}"
            f"{one.used_mb:>11.1f} MB{one.used_cpu:>7.2%}"
        )


if __name__ == "__main__":
    main()
