"""The cache beside each of the six servers: its folders are theirs, and what they hold stays."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cache import FakeTally
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer
from tests.support.shelves import Shelf, shelf
from tests.support.six import SERVERS
from tests.support.stocked import hurried
from tests.support.weights import weights
from worker.clock import CorrectedClock, SystemClock
from worker.engines.base import Engine, Files
from worker.errors import InvalidJob, ModelInUse, Owner
from worker.mentions import Place
from worker.models.base import Wanted
from worker.models.cache import Cache
from worker.models.folders import Folders
from worker.models.layout import LAYOUTS
from worker.models.open import open_cache
from worker.settings import load_settings
from worker.simulators.comfyui.weights import Architecture
from worker.urls import Guard

everywhere = pytest.mark.parametrize("name", SERVERS)

TOLD: dict[str, tuple[str, ...]] = {
    "comfyui": ("checkpoint", "lora", "vae", "unet", "embedding", "controlnet"),
    "fooocus": ("checkpoint", "lora"),
}
"""Kinds that a server tells us of; the others tell of five."""

SHAPES: dict[str, Architecture] = {"lora": "lora", "vae": "vae", "unet": "flux-unet"}


class Held:
    """What the cache asks of the server, straight from its engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def loaded(self) -> frozenset[Place]:
        return await self._engine.loaded()

    async def unload(self, places: Collection[Place]) -> None:
        await self._engine.unload(places)


@dataclass
class Stock:
    """A server with its engine, its folder, and the cache of it."""

    shelf: Shelf
    cache: Cache
    host: ModelHost

    async def fetch(self, kind: str, name: str) -> Path:
        """Have the operator's source bring it; where it lies."""
        body = weights(name, 9000, SHAPES.get(kind, "sd15"))
        self.host.host(f"/{kind}/{name}", body)
        entry = await self.cache.fetch(Wanted(kind, name, owner=Owner.OPERATOR))
        assert (entry.place, entry.baked) == (Place(kind, name), False)
        path = self.shelf.path(kind, name)  # type: ignore[arg-type]
        assert path.read_bytes() == body
        return path

    async def known(self, checkpoint: str, lora: str) -> tuple[str | None, ...]:
        """The files that the server finds under these names."""
        b = self.shelf.bench
        document = b.document(checkpoint=checkpoint, loras=[{"name": lora}])
        found = {m.field: m.known for m in await b.engine.mentions(b.job(document))}
        return found["checkpoint"], found["params.loras.0.name"]

    async def generate(self, checkpoint: str) -> None:
        b = self.shelf.bench
        work = await b.engine.admit(b.job(checkpoint=checkpoint))
        await b.run(work, Files(version=self.cache.version))


@asynccontextmanager
async def stock(name: str, folder: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Stock]:
    hurried(patch)
    async with shelf(name, folder) as s, ModelHost() as host:
        host.otherwise = Answer(404)
        s.root.mkdir(parents=True, exist_ok=True)
        settings = load_settings(
            {
                "WORKER_ENGINE": s.bench.kind,
                "WORKER_MODELS_DIR": str(s.root),
                "WORKER_MODELS_SOURCE": host.url("/{kind}/{name}"),
            }
        )
        cache = await open_cache(
            settings,
            Held(s.bench.engine),
            FakeTally(),
            guard=Guard(),
            clock=CorrectedClock(SystemClock()),
            rng=random.Random(1),
        )
        assert isinstance(cache, Cache)
        try:
            yield Stock(s, cache, host)
        finally:
            await cache.aclose()


@everywhere
async def test_each_kind_comes_to_the_folder_where_the_server_looks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In folders of their own too; a server that has no folder for a kind is never given one."""
    async with stock(name, tmp_path, monkeypatch) as one:
        for kind in TOLD.get(name, ("checkpoint", "lora", "vae", "upscaler", "embedding")):
            await one.fetch(kind, f"below/{kind}-file.safetensors")
        if name != "comfyui":
            with pytest.raises(InvalidJob, match="no folder"):
                await one.cache.fetch(Wanted("audio_encoders", "x.safetensors", owner=Owner.OPERATOR))
        assert await one.known("checkpoint-file", "lora-file") == (
            "below/checkpoint-file.safetensors",
            "below/lora-file.safetensors",
        )


@everywhere
async def test_no_server_lists_a_file_that_is_not_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial file lies among the others and is no model to it, also when it looks again."""
    async with shelf(name, tmp_path) as s:
        folders = Folders(s.root, LAYOUTS[s.bench.kind])  # type: ignore[index]
        whole, half = (Place("checkpoint", f"{stem}.safetensors") for stem in ("whole", "half"))
        s.put(*whole)  # type: ignore[arg-type]
        partial = folders.partial(half, "key")
        partial.write_bytes(weights("half")[:900])
        assert partial.parent == folders.path(whole).parent
        b = s.bench
        await b.run(await b.engine.admit(b.job(checkpoint="whole")), Files(version=1))
        for word in ("half", "half.safetensors", partial.name):
            (mention,) = await b.engine.mentions(b.job(checkpoint=word))
            assert mention.known is None


@everywhere
async def test_what_the_server_holds_is_not_removed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it was made to use another; then the file is gone, and the server's list forgets it."""
    async with stock(name, tmp_path, monkeypatch) as one:
        paths = [await one.fetch("checkpoint", f"{stem}.safetensors") for stem in ("held", "other")]
        await one.generate("held")
        place = Place("checkpoint", "held.safetensors")
        assert place in await one.cache.loaded()
        with pytest.raises(ModelInUse):
            await one.cache.remove(place)
        assert paths[0].exists()
        await one.shelf.bench.engine.unload([place])
        await one.generate("other")
        await one.shelf.bench.engine.unload([place])
        await one.cache.remove(place)
        assert [path.exists() for path in paths] == [False, True]
        assert await one.known("held", "none") == (None, None)
