"""`python -m benchmarks.binary`: what the one file costs beside the same program from source. Run `make binary` first.

Its size, packed and unpacked, the first call, `version` and `probe`, and a worker's start and resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.footprint import SETTLED_S, first_probe
from benchmarks.parts import answers, cpu_s, resident_mb, simulator, worker
from worker.settings.source import surroundings

BINARY = Path(__file__).parents[1] / "dist" / "sd-worker"
SOURCE = (sys.executable, "-m", "worker")


def seconds(command: Sequence[str], environ: Mapping[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([*command], check=False, env=dict(environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - began


async def started(binary: str | None, environ: Mapping[str, str]) -> tuple[float, float, float, float]:
    """First probe answered, its processor time, READY, in seconds; then resident megabytes."""
    with tempfile.TemporaryDirectory(prefix="binary-run-") as folder:
        own = {"WORKER_QUEUE": "sqlite", "WORKER_SQLITE_PATH": f"{folder}/q.db", "WORKER_STORAGE_DIRECTORY": folder}
        async with simulator(step_s=0.01) as engine:
            began = asyncio.get_running_loop().time()
            async with worker({**environ, **own, "WORKER_ENGINE_URL": engine}, binary) as one:
                probe_s = await first_probe(one.url) - began
                probe_cpu_s = cpu_s(one.process.pid)
                await answers(f"{one.url}/ready")
                ready_s = asyncio.get_running_loop().time() - began
                await asyncio.sleep(SETTLED_S)
                return probe_s, probe_cpu_s, ready_s, resident_mb(one.process.pid)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.binary", description=__doc__)
    parser.add_argument("--binary", type=Path, default=BINARY)
    parser.add_argument("--rounds", type=int, default=9, help="of which the median is shown")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="binary-base-") as base:
        environ = surroundings() | {"SD_WORKER_BUNDLE_DIR": base}
        first = seconds([str(wanted.binary), "version"], environ)
        unpacked = sum(path.stat().st_size for path in Path(base).rglob("*") if path.is_file())
        packed = wanted.binary.stat().st_size
        print(f"{packed / 1e6:.1f} MB, unpacked {unpacked / 1e6:.1f} MB; first call {first:.2f} s")
        print(f"{'':>8}{'version':>10}{'probe':>10}{'run: probe':>12}{'its cpu':>9}{'ready':>8}{'resident':>11}")
        for name, command in (("binary", (str(wanted.binary),)), ("source", SOURCE)):
            calls = [
                statistics.median(seconds([*command, *words], environ) for _ in range(wanted.rounds))
                for words in (("version",), ("probe", "live"))
            ]
            runs = [asyncio.run(started(command[0] if name == "binary" else None, environ)) for _ in range(3)]
            probe_s, cpu, ready_s, resident = (statistics.median(column) for column in zip(*runs, strict=True))
            print(
                f"{name:>8}{calls[0]:>8.3f} s{calls[1]:>8.3f} s{probe_s:>10.2f} s{cpu:>7.2f} s{ready_s:>6.2f} s"
                f"{resident:>8.1f} MB"
            )


if __name__ == "__main__":
    main()
