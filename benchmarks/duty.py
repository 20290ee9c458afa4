"""`python -m benchmarks.duty`: in which share of the time does the engine generate, on real sockets and processes?

The same short jobs three times in one run: through the worker and through a loop that does one job after the other,
both with the same slow store and receiver, and in a loop that only generates, which is as much as this server on
this machine can do. The simulator tells when it generated. Ratios of one run can be compared; times of different
machines cannot.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import itertools
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.parts import delayed, got, receiver, simulator, worker
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, Bucket, made_bucket, running_rclone
from worker.clock import SystemClock
from worker.queues import open_producer
from worker.settings.queue import QueueSettings

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

STEPS = 12
BODY = {"steps": STEPS, "width": 512, "height": 512}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for both: how many jobs, and seconds of each part."""

    jobs: int
    generation_s: float
    storage_s: float
    webhook_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Of the time from the first generation's start to the last one's end; ``gap_s`` is the median between two."""

    share: float
    span_s: float
    generation_s: float
    gap_s: float


def measured(generations: list[dict[str, Any]]) -> Measured:
    runs = sorted((g["started"], g["finished"]) for g in generations if g["prompt"].startswith("job "))
    span = runs[-1][1] - runs[0][0]
    busy = sum(end - start for start, end in runs)
    gaps = sorted(after[0] - before[1] for before, after in itertools.pairwise(runs))
    return Measured(busy / span, span, busy / len(runs), gaps[len(gaps) // 2])


async def through_the_worker(setting: Setting, engine: str, endpoint: str, bucket: Bucket, folder: Path) -> None:
    """All jobs wait in the queue; the worker does them its way."""
    queue = QueueSettings(kind="sqlite", sqlite_path=folder / "queue.db")
    producer = open_producer(queue, SystemClock())
    ids = [f"job-{n}" for n in range(setting.jobs)]
    for n, job_id in enumerate(ids):
        params = {"prompt": f"job {n}", **BODY}
        await producer.submit(job_id, json.dumps({"id": job_id, "params": params}).encode())
    async with receiver(setting.webhook_s) as (hook, taken):
        environment = {
            "WORKER_ENGINE": "sdnext",
            "WORKER_ENGINE_URL": engine,
            "WORKER_QUEUE": "sqlite",
            "WORKER_SQLITE_PATH": str(queue.sqlite_path),
            "WORKER_S3_BUCKET": bucket.name,
            "WORKER_S3_ENDPOINT_URL": endpoint,
            "WORKER_S3_REGION": REGION,
            "WORKER_WEBHOOK_URL": hook,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        async with worker(environment), asyncio.timeout(60 + setting.jobs * 10):
            for job_id in ids:
                while (state := await producer.state(job_id)) is None or state.status not in ("done", "dead"):
                    await asyncio.sleep(0.1)
                if state.status != "done":
                    raise RuntimeError(f"{job_id}: {state.code}")
        if sorted(taken) != sorted(ids):
            raise RuntimeError("a webhook is missing")
    await producer.aclose()


async def generated(http: httpx.AsyncClient, engine: str, n: int) -> bytes:
    body = {"prompt": f"job {n}", "seed": n, **BODY}
    answer = (await http.post(f"{engine}/sdapi/v1/txt2img", json=body)).raise_for_status().json()
    return base64.b64decode(answer["images"][0])


async def one_after_the_other(setting: Setting, engine: str, endpoint: str, bucket: Bucket) -> None:
    """The strict loop: generate, store the image, store the result, tell; only then the next."""
    client = Bucket(endpoint, bucket.name).client()
    async with receiver(setting.webhook_s) as (hook, _), _client(engine) as http:
        for n in range(setting.jobs):
            image = await generated(http, engine, n)
            result = {"id": f"loop-{n}", "sha256": hashlib.sha256(image).hexdigest()}
            await asyncio.to_thread(_store, client, bucket.name, f"loop-{n}/0.png", image)
            await asyncio.to_thread(_store, client, bucket.name, f"loop-{n}/result.json", json.dumps(result).encode())
            (await http.post(hook, json={"data": result})).raise_for_status()


async def nothing_else(setting: Setting, engine: str) -> None:
    """Only generating: the bound that the server itself sets."""
    async with _client(engine) as http:
        for n in range(setting.jobs):
            await generated(http, engine, n)


@asynccontextmanager
async def _client(engine: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that answers in PNG, as the worker has it do."""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        (await http.post(f"{engine}/sdapi/v1/options", json={"samples_format": "png"})).raise_for_status()
        yield http


def _store(client: S3Client, bucket: str, key: str, body: bytes) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=body)


async def measure(setting: Setting) -> dict[str, Measured]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="duty-") as folder, running_rclone(Path(folder)) as store:
        for name in ("worker", "loop", "bound"):
            async with AsyncExitStack() as stack:
                engine = await stack.enter_async_context(simulator(step_s=setting.generation_s / STEPS))
                endpoint = await stack.enter_async_context(delayed(store, setting.storage_s))
                bucket = await asyncio.to_thread(made_bucket, store)
                if name == "worker":
                    await through_the_worker(setting, engine, endpoint, bucket, Path(folder))
                elif name == "loop":
                    await one_after_the_other(setting, engine, endpoint, bucket)
                else:
                    await nothing_else(setting, engine)
                found[name] = measured((await got(f"{engine}/simulator/stats"))["generations"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.duty", description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--generation-ms", type=int, default=300)
    parser.add_argument("--storage-ms", type=int, default=400)
    parser.add_argument("--webhook-ms", type=int, default=300)
    given = parser.parse_args()
    setting = Setting(given.jobs, given.generation_ms / 1000, given.storage_ms / 1000, given.webhook_ms / 1000)
    found = asyncio.run(measure(setting))
    print(
        f"{setting.jobs} jobs of {given.generation_ms} ms; store {given.storage_ms} ms, webhook {given.webhook_ms} ms"
    )
    print(f"{'':>22}{'duty':>8}{'in all':>10}{'generation':>12}{'gap (median)':>14}")
    for name, title in (("worker", "worker"), ("loop", "one after the other"), ("bound", "only generating")):
        one = found[name]
        print(
            f"{title:>22}{one.share:>8.1%}{one.span_s:>8.1f} s{one.generation_s * 1000:>9.0f} ms"
            f"{one.gap_s * 1000:>11.0f} ms"
        )
    worker_, loop, bound = (found[name].share for name in ("worker", "loop", "bound"))
    print(
        f"the worker's duty is {worker_ / loop:.2f} times the loop's, and {worker_ / bound:.1%} of what can be had here"
    )


if __name__ == "__main__":
    main()
