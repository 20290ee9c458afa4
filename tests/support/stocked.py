"""The real worker over a real folder of models on any of the four servers, and a host from which models come.

The server's own model is part of its image: there before the worker's first run, never counted, never evicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.support.bench import RunningWorker, params, running_worker
from tests.support.model_host import HostedFile, ModelHost
from tests.support.supervised import KINDS, Kind
from tests.support.waiting import wait_until
from tests.support.weights import sha256_of, weights
from worker.mentions import Place, place_of, stem_of
from worker.models import outages
from worker.models.base import Tempo
from worker.models.download import Downloads
from worker.models.find import Sources
from worker.models.folders import Folders
from worker.models.layout import LAYOUTS
from worker.models.pieces import Sizes
from worker.result import Result
from worker.simulators.comfyui import ComfyUI
from worker.simulators.comfyui.weights import Architecture
from worker.simulators.fooocus import Fooocus

__all__ = ["BASE", "KINDS", "SERVERS", "Kind", "Stocked", "bare_server", "hurried", "stocked"]

BASE = "base.safetensors"
SERVERS = KINDS
TEMPO = Tempo(first=timedelta(milliseconds=5), most=timedelta(milliseconds=50))
SIZES = Sizes(piece_least=16384, piece_most=16384, turn=8192, step=16384)
OPEN: dict[str, str] = {"WORKER_MODELS_HOSTS": "*", "WORKER_URLS_ALLOW_PRIVATE": "true"}
"""Jobs may name the test's own host."""

SHAPES: dict[str, Architecture] = {"lora": "lora", "vae": "vae"}


def hurried(patch: pytest.MonkeyPatch) -> None:
    """Shorten what transfers and their retries wait for, and make pieces as small as the files of tests."""
    defaults: Any = Downloads.__init__.__kwdefaults__
    for name, value in {"tempo": TEMPO, "sizes": SIZES, "checkpoint": timedelta(milliseconds=20)}.items():
        patch.setitem(defaults, name, value)
    found: Any = Sources.__init__.__kwdefaults__
    patch.setitem(found, "policy", dataclasses.replace(found["policy"], first=TEMPO.first, most=TEMPO.most))
    patch.setattr(outages, "FIRST", timedelta(milliseconds=100))
    patch.setattr(outages, "MOST", timedelta(milliseconds=200))


def folders_of(kind: Kind, models: Path) -> Folders:
    return Folders(models, LAYOUTS[kind])


def bare_server(kind: Kind, models: Path) -> dict[str, Any]:
    """Arguments of a simulated server that has only what lies in its folder, the one file of its image."""
    base = folders_of(kind, models).path(Place("checkpoint", BASE))
    base.parent.mkdir(parents=True, exist_ok=True)
    if not base.exists():
        base.write_bytes(weights("base"))
    if kind == "comfyui":
        return {"base_dir": models.parent, "checkpoints": {}}
    if kind == "fooocus":
        folders_of(kind, models).path(Place("lora", "x.safetensors")).parent.mkdir(exist_ok=True)
    return {"models_dir": models, "models": (), "loras": ()}


@dataclass
class Stocked:
    """A worker, its server's folder of models, and a host of models."""

    kind: Kind
    worker: RunningWorker[Any]
    host: ModelHost
    models: Path
    taken: list[Any] = field(default_factory=list)
    """Jobs as a Fooocus-API understood them."""

    def path(self, kind: str, name: str) -> Path:
        """Where the server has a file of this name."""
        return folders_of(self.kind, self.models).path(place_of(kind, name))

    def offer(self, path: str, seed: str, *, kind: str = "checkpoint", size: int = 4096) -> HostedFile:
        """Have a model on the host."""
        return self.host.host(path, weights(seed, size, SHAPES.get(kind, "sd15")))

    def ref(self, kind: str, name: str, path: str | None = None, **more: Any) -> dict[str, Any]:
        """An item of a job's ``models`` for what the host offers under that path, with its sha256."""
        item: dict[str, Any] = {"kind": kind, "name": name}
        if path is not None:
            item |= {"url": self.host.url(path), "sha256": sha256_of(self.host.files[path].body)}
        return item | more

    def stored(self, kind: str = "checkpoint") -> dict[str, bytes]:
        """The whole files of a kind but the image's own, by their names."""
        root = self.path(kind, "x.safetensors").parent
        found = sorted(root.rglob("*.safetensors")) if root.exists() else []
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in found if path.name != BASE}

    def partials(self) -> list[Path]:
        """What transfers left."""
        return sorted(path for path in self.models.parent.rglob("*.part") if path.is_file())

    @property
    def used(self) -> dict[str, tuple[str, ...]]:
        """Stems of the files with which the last picture was made, as the server saw it, by kind."""
        sim = self.worker.sim
        if isinstance(sim, ComfyUI):
            checkpoint, *loras = sim.stats.samplings[-1].models
        elif isinstance(sim, Fooocus):
            checkpoint = sim.stats.generations[-1].model
            body = self.taken[-1].body
            loras = [one.model_name for one in body.loras if one.model_name != "None"] + tagged(body.prompt)
        else:
            checkpoint = sim.stats.generations[-1].model
            loras = tagged(sim.stats.generations[-1].prompt)
        return {"checkpoint": (_stem(checkpoint),), "lora": tuple(map(_stem, loras))}

    @property
    def pictures(self) -> int:
        """How many generations the server has begun."""
        stats = self.worker.sim.stats
        return len(stats.samplings if isinstance(self.worker.sim, ComfyUI) else stats.generations)

    async def made(self, job_id: str, **fields: Any) -> Result:
        """The result of a job that goes well at its first attempt; a portable one unless fields say otherwise."""
        if not {"params", "request", "workflow"} & fields.keys():
            fields["params"] = params(job_id)
        state = await self.worker.done(job_id, **fields)
        assert (state.status, state.code) == ("done", None), state
        assert [(one.code, one.charged) for one in state.attempts] == [("succeeded", False)]
        assert state.result is not None
        return state.result

    async def fetching(self, path: str) -> HostedFile:
        """Wait until the host is asked for a file."""
        file = self.host.files[path]
        await wait_until(lambda: bool(file.requests), 10)
        return file


def tagged(prompt: str) -> list[str]:
    """The names in a prompt's LoRA tags."""
    return [tag.split(":")[0] for tag in prompt.split("<lora:")[1:]]


def _stem(name: str) -> str:
    return stem_of(PurePosixPath(name).name)


@asynccontextmanager
async def stocked(
    kind: Kind, root: Path, host: ModelHost, *, knobs: Any = None, server: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Stocked]:
    """A worker that is READY over a folder below ``root``; ``options`` go to `running_worker`."""
    models = root / "server" / "models"
    changed = options.pop("changed", lambda patch: None)

    def patched(patch: pytest.MonkeyPatch) -> None:
        hurried(patch)
        changed(patch)

    variables = {
        "WORKER_ENGINE": kind,
        "WORKER_MODELS_DIR": str(models),
        "WORKER_OUTPUT_FLAT": "off",
        "WORKER_QUEUE_MAX_DELIVERIES": "10000",
        **OPEN,
    }
    given = {**bare_server(kind, models), **(server or {})}
    async with running_worker(root, kind, knobs, server=given, changed=patched, **variables | options) as worker:
        yield Stocked(kind, worker, host, models, _noted(worker.sim))


def _noted(sim: Any) -> list[Any]:
    """The jobs that a simulated Fooocus-API takes from now on."""
    taken: list[Any] = []
    if isinstance(sim, Fooocus):
        add = sim.machine.add

        def noting(job: Any) -> bool:
            taken.append(job)
            return add(job)

        sim.machine.add = noting  # type: ignore[method-assign]
    return taken
