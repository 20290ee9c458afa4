"""Where jobs name model files, which of them the server has now, and which it holds: the same on all six servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.shelves import Shelf, shelf
from tests.support.six import SERVERS, bench
from worker.engines.base import Files
from worker.errors import InvalidJob, ModelNotFound
from worker.job import Job
from worker.mentions import Mention, Place, renamed

everywhere = pytest.mark.parametrize("name", SERVERS)
TAGGED = tuple(name for name in SERVERS if name != "comfyui")
WITH_VAES = tuple(name for name in SERVERS if name != "fooocus")


def told(found: tuple[Mention, ...]) -> dict[str, tuple[str, str | None]]:
    """By its place: the name that stands there, and the file that the server finds."""
    return {m.field: (m.name, m.known) for m in found}


async def mentioned(s: Shelf, document: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return told(await s.bench.engine.mentions(s.bench.job(document)))


async def generated(s: Shelf, job: Job, *, version: int = 1) -> None:
    await s.bench.run(await s.bench.engine.admit(job), Files(version=version))


@everywhere
async def test_every_place_of_a_portable_job_is_told(name: str, tmp_path: Path) -> None:
    """With the path of the file below its kind's folder, by whatever name the job calls it."""
    async with shelf(name, tmp_path) as s:
        s.put("checkpoint", "sub/mine.safetensors")
        s.put("lora", "styles/neon.v2.safetensors")
        b = s.bench
        document = b.document(
            checkpoint="mine", loras=[{"name": "neon.v2"}, {"name": "styles/neon.v2.safetensors"}, {"name": "later"}]
        )
        document["models"] = [{"kind": "lora", "name": "later.safetensors", "url": "https://huggingface.co/x"}]
        document["params"]["refiner"] = {"checkpoint": b.first}
        assert await mentioned(s, document) == {
            "models.0.name": ("later.safetensors", None),
            "checkpoint": ("mine", "sub/mine.safetensors"),
            "params.loras.0.name": ("neon.v2", "styles/neon.v2.safetensors"),
            "params.loras.1.name": ("styles/neon.v2.safetensors", "styles/neon.v2.safetensors"),
            "params.loras.2.name": ("later", None),
            "params.refiner.checkpoint": (b.first, b.first),
        }


@pytest.mark.parametrize("name", WITH_VAES)
async def test_a_vae_is_told_by_its_path(name: str, tmp_path: Path) -> None:
    """Of those that a server lists; the path goes on below the folder."""
    async with shelf(name, tmp_path) as s:
        s.put("vae", "sub/clear.safetensors")
        assert (await mentioned(s, s.bench.document(vae="clear.safetensors")))["params.vae"] == (
            "clear.safetensors",
            "sub/clear.safetensors",
        )


@pytest.mark.parametrize("name", TAGGED)
async def test_tags_of_a_prompt_are_told_where_the_server_reads_them(name: str, tmp_path: Path) -> None:
    """By the stem that they hold."""
    async with shelf(name, tmp_path) as s:
        s.put("lora", "styles/neon.safetensors")
        found = await s.bench.engine.mentions(s.bench.job(prompt="a cat <lora:neon:1> <lora:later:0.5>"))
        tags = [(m.name, m.known, m.tag) for m in found if m.field == "params.prompt"]
        assert tags == [("neon", "styles/neon.safetensors", True), ("later", None, True)]


async def test_comfyui_reads_no_tags() -> None:
    """There they are words like any other."""
    async with bench("comfyui") as b:
        found = await b.engine.mentions(b.job(prompt="a cat <lora:neon:1>"))
        assert [m.field for m in found] == ["checkpoint"]


@everywhere
async def test_an_ambiguous_name_is_refused(name: str, tmp_path: Path) -> None:
    """As at admission; one that is gone leaves the other alone."""
    async with shelf(name, tmp_path) as s:
        s.put("checkpoint", "a/twin.safetensors")
        s.put("checkpoint", "b/twin.safetensors")
        await mentioned(s, s.bench.document(checkpoint="none"))
        with pytest.raises(InvalidJob):
            await mentioned(s, s.bench.document(checkpoint="twin"))
        s.take("checkpoint", "a/twin.safetensors")
        assert (await mentioned(s, s.bench.document(checkpoint="twin")))["checkpoint"] == (
            "twin",
            "b/twin.safetensors",
        )


@everywhere
async def test_a_file_that_landed_a_moment_ago_is_admitted_and_used(name: str, tmp_path: Path) -> None:
    """Under the name that the cache gave it, one that is told apart from another of its name included."""
    async with shelf(name, tmp_path) as s:
        document = s.bench.document(checkpoint="new", loras=[{"name": "neon"}])
        found = {m.field: m for m in await s.bench.engine.mentions(s.bench.job(document))}
        model, lora = s.put("checkpoint", "new~1a2b3c4d.safetensors"), s.put("lora", "neon.safetensors")
        pairs = [(found["checkpoint"], model.name), (found["params.loras.0.name"], lora.name)]
        await generated(s, renamed(s.bench.job(document), pairs))
        assert s.bench.told["checkpoint"] == "new~1a2b3c4d"
        assert list(s.bench.told["loras"]) in (["neon"], [])
        assert {model} <= await s.bench.engine.loaded()


@everywhere
async def test_a_file_that_is_gone_is_not_known(name: str, tmp_path: Path) -> None:
    """At once, and while something is generated too, when no server is asked to look again."""
    async with shelf(name, tmp_path) as s:
        s.put("checkpoint", "old.safetensors")
        s.put("lora", "ink2.safetensors")
        document = s.bench.document(checkpoint="old", loras=[{"name": "ink2"}])
        await generated(s, s.bench.job(document))
        s.take("checkpoint", "old.safetensors")
        s.take("lora", "ink2.safetensors")
        found = await mentioned(s, document)
        assert found["checkpoint"] == ("old", None)
        assert found["params.loras.0.name"] == ("ink2", None)
        with pytest.raises(ModelNotFound):
            await s.bench.admit(document)


@everywhere
@pytest.mark.parametrize("kind", ["checkpoint", "lora"])
async def test_a_file_that_goes_after_admission_is_missed(name: str, kind: Any, tmp_path: Path) -> None:
    """The servers would use another, or do without."""
    async with shelf(name, tmp_path) as s:
        s.put("checkpoint", "old.safetensors")
        s.put("lora", "ink2.safetensors")
        work = await s.bench.admit(s.bench.document(checkpoint="old", loras=[{"name": "ink2"}]))
        s.take(kind, "old.safetensors" if kind == "checkpoint" else "ink2.safetensors")
        with pytest.raises(ModelNotFound):
            await s.bench.run(work)
        assert s.bench.sampled == 0


@everywhere
async def test_what_was_unloaded_is_held_no_more_and_the_server_goes_on(name: str, tmp_path: Path) -> None:
    """Nothing of it is loaded, configured or fallen back to; the next job loads what it names."""
    async with shelf(name, tmp_path) as s:
        engine, b = s.bench.engine, s.bench
        model = s.put("checkpoint", "sub/mine.safetensors")
        await generated(s, b.job(b.document(checkpoint="mine")))
        assert model in await engine.loaded()
        await engine.unload([model])
        assert model not in await engine.loaded()
        s.take("checkpoint", model.name)
        assert model not in await engine.loaded()
        await generated(s, b.job(b.document()), version=2)
        assert b.told["checkpoint"] == b.first.removesuffix(".safetensors")
        assert Place("checkpoint", b.first) in await engine.loaded()


@everywhere
async def test_a_server_that_is_away_holds_what_it_held(name: str, tmp_path: Path) -> None:
    """Asking what is loaded never fails."""
    async with shelf(name, tmp_path) as s:
        model = s.put("checkpoint", "mine.safetensors")
        await generated(s, s.bench.job(s.bench.document(checkpoint="mine")))
        before = await s.bench.engine.loaded()
        assert model in before
        await s.bench.sim.aclose()
        assert await s.bench.engine.loaded() == before


@everywhere
async def test_a_job_that_no_such_server_can_do_is_refused_before_its_models_are_fetched(name: str) -> None:
    """A template, a graph for a server without graphs, and a kind without a folder."""
    async with bench(name) as b:
        graph = {"1": {"class_type": "X", "inputs": {}}}
        other: dict[str, Any] = {"request": {}} if name == "comfyui" else {"workflow": graph}
        for document in (other, {"template": {"name": "x"}}):
            with pytest.raises(InvalidJob):
                await b.engine.mentions(b.job(document))
        with pytest.raises(InvalidJob) as caught:
            await b.engine.mentions(b.job({**b.document(), "models": [{"kind": "llm", "name": "x"}]}))
        assert caught.value.errors[0].field == "models.0.kind"
