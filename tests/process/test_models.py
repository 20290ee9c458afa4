"""Workers as processes that die, drain and begin while models come: `sd-worker run` over real folders."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.receiver import Answer
from tests.support.stocked import BASE, OPEN, bare_server, folders_of
from tests.support.supervised import Kind, Supervised, SupervisingLife, supervised
from tests.support.weights import sha256_of, weights
from worker.mentions import Place

LARGE = 12 << 20
SILENT = Twist(cut=0, end="silence")


def stuck_after(file: HostedFile, sent: int) -> None:
    """Have a host send so much of a file, about, and then say no more."""
    edge = file.sent + sent
    file.chosen = lambda _: SILENT if file.sent >= edge else Twist(cut=2_000_000, end="silence")


class Stand:
    """A worker's surroundings, its folder of models, and a host."""

    def __init__(self, around: Supervised, host: ModelHost) -> None:
        self.around = around
        self.host = host
        self.models = around.folder / ("comfyui" if around.kind == "comfyui" else "server") / "models"
        bare_server(around.kind, self.models)

    def path(self, name: str) -> Path:
        return folders_of(self.around.kind, self.models).path(Place("checkpoint", name))

    @asynccontextmanager
    async def life(self, **changes: str) -> AsyncIterator[SupervisingLife]:
        place = () if self.around.kind == "comfyui" else ("--models-dir", str(self.models))
        command = self.around.simulator("--models", "", *place)
        async with self.around.worker(*command, WORKER_MODELS_DIR=str(self.models), **OPEN, **changes) as life:
            yield life

    async def submit(self, job_id: str, name: str, **params: Any) -> None:
        url, body = self.host.url(f"/{name}"), self.host.files[f"/{name}"].body
        models = [{"kind": "checkpoint", "name": name, "url": url, "sha256": sha256_of(body)}]
        given = {"prompt": job_id, "width": 64, "height": 64, "steps": 4, **params}
        document = {"v": 1, "id": job_id, "params": given, "checkpoint": name, "models": models}
        self.around.wanted[job_id] = None
        await self.around.producer.submit(job_id, json.dumps(document).encode())

    def noted(self) -> list[range]:
        """The bytes that a process killed now leaves to the next, by its record."""
        records = [json.loads(path.read_text()) for path in self.models.rglob(".*.part.json")]
        return [range(start, end) for record in records for start, end in record["done"]]


@asynccontextmanager
async def stand(kind: Kind, folder: Path) -> AsyncIterator[Stand]:
    async with ModelHost() as host, supervised(kind, folder) as around:
        host.otherwise = Answer(404)
        yield Stand(around, host)


async def test_a_transfer_outlives_a_kill_and_a_drain(tmp_path: Path) -> None:
    """SIGKILL, then SIGTERM, while a job's model comes: each next life asks for the rest alone, and the job is done."""
    async with stand("sdnext", tmp_path) as one:
        file = one.host.host("/large.safetensors", weights("large", LARGE))
        stuck_after(file, 4_000_000)
        await one.submit("job", "large.safetensors")
        async with one.life() as killed:
            await killed.until(one.noted)
            await killed.kill()
        assert not one.path("large.safetensors").exists()
        before, asked = one.noted(), len(file.requests)
        assert 0 < sum(map(len, before)) < len(file.body)
        stuck_after(file, 1_000_000)
        async with one.life(WORKER_DRAIN_TIMEOUT="50s") as drained:
            await drained.ready()
            await drained.until(lambda: len(file.requests) > asked)
            await drained.drained()
        assert not one.path("large.safetensors").exists()
        assert sum(map(len, one.noted())) >= sum(map(len, before))
        file.chosen = lambda _: None
        async with one.life() as last:
            await last.jobs_ended()
            await last.drained()
        begun = [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in file.ranges_asked[asked:]]
        assert begun
        assert not any(start in span for start in begun for span in before)
        assert one.path("large.safetensors").read_bytes() == file.body
        assert (await one.around.ledger()).breaches() == []
        assert [charged for _, charged in await one.around.codes("job") if charged] == []


async def test_a_server_starts_with_the_models_that_it_was_declared(tmp_path: Path) -> None:
    """What must be there before it starts is there; a job that names it needs no transfer, one that does not waits."""
    async with stand("comfyui", tmp_path) as one:
        first = one.host.host("/first.safetensors", weights("first"))
        later = one.host.host("/later.safetensors", weights("later"))
        listed = [{"kind": "checkpoint", "name": "first.safetensors", "url": one.host.url("/first.safetensors")}]
        await one.submit("a", "first.safetensors")
        await one.submit("b", "later.safetensors")
        async with one.life(WORKER_MODELS_MANIFEST=json.dumps(listed)) as life:
            await life.jobs_ended()
            provided, started = life.events("model_provided"), life.events("engine_process_started")
            assert [line["model"] for line in provided] == ["checkpoint/first.safetensors"]
            assert provided[0]["timestamp"] <= started[0]["timestamp"]
            loads = (await one.around.stats())["loads"]
            assert {"checkpoints/first.safetensors", "checkpoints/later.safetensors"} <= set(loads)
            await life.drained()
        assert (first.sent, later.sent) == (len(first.body), len(later.body))
        assert one.path(BASE).exists()
        assert (await one.around.ledger()).breaches() == []
