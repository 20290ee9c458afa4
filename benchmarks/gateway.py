"""`python -m benchmarks.gateway`: more callers than there is time for.

A real worker with a window of one and a simulated SD.Next, each in a process of its own: how long probes take when it
is idle, while a crowd of callers waits, calls and calls again, and while documents with large images come in; how many
jobs a second are done; and for how long the worker's event loop stood still at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.parts import answers, process, resident_mb, simulator
from tests.support.callers import Caller, Watched, all_served, callers, large_image, watched
from worker.settings.source import surroundings
from worker.simulators import free_port

PATIENCE = 1000
IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of the run: seconds, and the stalls of the worker's loop meanwhile."""

    name: str
    took_s: float
    probes: Watched
    crowd: list[Caller]
    stalls: list[float]
    resident_mb: float

    def line(self) -> str:
        refusals = sum(len(caller.told) for caller in self.crowd)
        served = sum(caller.result is not None for caller in self.crowd)
        longest = max((told for caller in self.crowd for told in caller.told), default=0)
        pace = f"{served / self.took_s:6.1f}/s" if served else "       -"
        ms = [self.probes.at(fraction) * 1000 for fraction in (0.5, 0.99, 1.0)]
        return (
            f"{self.name:>22} {self.took_s:6.1f} s {served:5d} {pace} {refusals:8d} {longest:6d} s   "
            f"{ms[0]:7.1f} {ms[1]:7.1f} {ms[2]:7.1f} ms {max(self.stalls, default=0) * 1000:8.0f} ms "
            f"{self.resident_mb:7.0f} MB"
        )


class Bench:
    def __init__(self, port: int, stalls: Path, pid: int) -> None:
        self.port, self.stalls, self.pid = port, stalls, pid
        self.seen = len(stalls.read_text().splitlines())

    async def phase(self, name: str, crowd: list[Caller]) -> Phase:
        loop = asyncio.get_running_loop()
        async with watched(self.port) as probes:
            began = loop.time()
            if crowd:
                await all_served(f"http://[::1]:{self.port}", crowd, patience=PATIENCE)
            else:
                await asyncio.sleep(IDLE_S)
            took_s = loop.time() - began
        stalls = [json.loads(line) for line in self.stalls.read_text().splitlines()]
        new, self.seen = stalls[self.seen :], len(stalls)
        return Phase(name, took_s, probes, crowd, new, resident_mb(self.pid))


def large(count: int, megabytes: float) -> list[Caller]:
    image = large_image(megabytes)
    params = {"width": 64, "height": 64, "steps": 4, "image": image}
    return [Caller(f"l{n}", json.dumps({"params": {"prompt": f"l{n}", **params}}).encode()) for n in range(count)]


async def measure(count: int, step_s: float, pending: int, images: int, megabytes: float) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        stalls = Path(folder) / "stalls"
        stalls.touch()
        async with simulator(step_s=step_s) as engine:
            environment = surroundings() | {
                "WORKER_ENGINE": "sdnext",
                "WORKER_ENGINE_URL": engine,
                "WORKER_HTTP_PORT": str(port),
                "WORKER_QUEUE_WINDOW": "1",
                "WORKER_MAX_PENDING": str(pending),
                "WORKER_MAX_WAIT": "1h",
                "WORKER_LOG_LEVEL": "error",
                "WORKER_STORAGE_DIRECTORY": folder,
            }
            async with process("-m", "benchmarks.watched", str(stalls), "run", environment=environment) as worker:
                await answers(f"http://[::1]:{port}/ready")
                bench = Bench(port, stalls, worker.pid)
                print(f"{'':>22} {'took':>8} {'jobs':>5} {'':>8} {'refusals':>8} {'latest':>8}   probes p50, p99, max")
                for name, crowd in (
                    ("idle", []),
                    ("one caller", callers(1)),
                    (f"{count} callers", callers(count)),
                    (f"{images} of {megabytes:g} MB", large(images, megabytes)),
                    ("idle again", []),
                ):
                    print((await bench.phase(name, crowd)).line(), flush=True)
                async with httpx.AsyncClient(trust_env=False) as client:
                    counters = (await client.get(f"http://[::1]:{port}/v1/status")).json()["counters"]
                print(f"bugs: {counters['bugs']}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--step-seconds", type=float, default=0.05, help="four steps make a picture")
    parser.add_argument("--pending", type=int, default=16, help="WORKER_MAX_PENDING")
    parser.add_argument("--images", type=int, default=20, help="callers with a large image")
    parser.add_argument("--megabytes", type=float, default=10.0)
    given = parser.parse_args()
    asyncio.run(measure(given.callers, given.step_seconds, given.pending, given.images, given.megabytes))


if __name__ == "__main__":
    main()
