"""Models on every server of the family: by exact identity, never replaced, loaded anew when told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.engines import A1111, ALL, SDNEXT, SECOND, bench, small
from worker.engines.base import Files, Reach, Work
from worker.errors import (
    InvalidJob,
    ModelNotFound,
    OutputEmpty,
    WrongModel,
)
from worker.simulators import Knobs, ModelFile
from worker.simulators.models import Kind

every = pytest.mark.parametrize("dialect", ALL)


@every
@pytest.mark.parametrize("name", [SECOND, "sd_xl_base_1.0", "/models/Stable-diffusion/sd_xl_base_1.0.safetensors"])
async def test_a_checkpoint_is_selected_by_identity(dialect: str, name: str) -> None:
    """File name, stem and path find the same file, whatever the server itself would make of the name."""
    async with bench(dialect) as b:
        output = await b.make(small(), checkpoint=name)
        assert output.engine.model == "sd_xl_base_1.0"
        again = await b.make(small())
        assert again.engine.model == "sd_xl_base_1.0"
        assert len(b.sim.stats.loads) <= 2


@every
async def test_a_checkpoint_in_a_folder_and_by_override(dialect: str) -> None:
    """The native way of naming a model works, with or without extension and folder."""
    async with bench(dialect) as b:
        for name in ("realistic/vision_v6.safetensors", "vision_v6"):
            output = await b.make(small(override_settings={"sd_model_checkpoint": name}))
            assert output.engine.model in ("vision_v6", "realistic_vision_v6")


@every
async def test_an_unknown_model_is_never_replaced(dialect: str) -> None:
    """Never the closest, never the first, never the one that is loaded, and nothing is downloaded."""
    async with bench(dialect) as b:
        for name in ("nosuch", "dreamshaper", "dreamshaper_8 [0123456789]", "sd_xl"):
            for document in (
                small(override_settings={"sd_model_checkpoint": name}),
                {**small(), "checkpoint": name},
                {"params": {"prompt": "x"}, "checkpoint": name},
            ):
                with pytest.raises(ModelNotFound):
                    await b.admit(document)
        assert b.sim.stats.generations == []
        assert b.sim.stats.downloads == []


@every
async def test_a_new_file_is_found_after_one_refresh(dialect: str) -> None:
    """A model that was put there after the start is found, because the server is told to look again."""
    async with bench(dialect) as b:
        b.sim.disk.add("fresh_one.safetensors")
        output = await b.make(small(), checkpoint="fresh_one.safetensors")
        assert output.engine.model == "fresh_one"


@every
async def test_a_refresh_that_began_too_early_counts_for_nothing(dialect: str) -> None:
    """A file that lands while the server looks for another's is found too: its own job has the server look again."""
    async with bench(dialect) as b:
        look, second = b.sim.disk.refresh, list[asyncio.Task[Work]]()

        def looking(*kinds: Kind) -> None:
            look(*kinds)
            if not second:
                b.sim.disk.add("two.safetensors")
                second.append(asyncio.create_task(b.admit(small(), checkpoint="two.safetensors"), name="second"))

        b.sim.disk.add("one.safetensors")
        b.sim.disk.refresh = looking  # type: ignore[method-assign]
        first = await b.admit(small(), checkpoint="one.safetensors")
        found = [work.expect.checkpoint or "" for work in (first, await second[0])]
        assert [name.removesuffix(".safetensors") for name in found] == ["one", "two"]


@every
async def test_changed_files_refresh_the_lists(dialect: str) -> None:
    """A growing version of the files has the server look again before the generation."""
    async with bench(dialect) as b:
        work = await b.admit(small())
        b.sim.disk.add("late.safetensors")
        await b.run(work, Files(version=1))
        assert "late.safetensors" in {f.name for f in b.sim.disk.listed}


@every
async def test_a_model_that_vanished_since_admission_is_not_replaced(dialect: str) -> None:
    """Between admission and turn the file was evicted and the lists were refreshed."""
    async with bench(dialect) as b:
        work = await b.admit(small(), checkpoint=SECOND)
        b.sim.disk.remove(SECOND)
        with pytest.raises(ModelNotFound):
            await b.run(work, Files(version=1))


@every
async def test_proof_by_hash_once_the_server_has_hashed(dialect: str) -> None:
    """A title gains its hash at the first load; the next job knows it."""
    async with bench(dialect, Knobs(hashing=True)) as b:
        await b.make(small(), checkpoint=SECOND)
        assert (await b.make(small(), checkpoint=SECOND)).engine.proof == "hash"


@every
async def test_a_wrong_hash_is_another_file(dialect: str) -> None:
    """A model of that name with another hash is never used."""
    async with bench(dialect, Knobs(hashing=True)) as b:
        await b.make(small(), checkpoint=SECOND)
        models = [{"kind": "checkpoint", "name": SECOND, "sha256": "0" * 64}]
        with pytest.raises(ModelNotFound, match="another file"):
            await b.admit(small(), checkpoint=SECOND, models=models)


@every
@pytest.mark.parametrize("how", ["params", "prompt", "models"])
async def test_a_missing_lora_is_not_skipped(dialect: str, how: str) -> None:
    """All servers generate without it; here it is refused, unless a refresh brings it."""
    document: dict[str, Any] = {
        "params": {"params": {"prompt": "x", "width": 64, "height": 64, "loras": [{"name": "my.style"}]}},
        "prompt": small("x <lora:my.style:0.7>"),
        "models": {**small(), "models": [{"kind": "lora", "name": "my.style.safetensors"}]},
    }[how]
    async with bench(dialect) as b:
        with pytest.raises(ModelNotFound, match="LoRA"):
            await b.admit(document)
        b.sim.disk.add("my.style.safetensors", "lora")
        assert (await b.make(document)).images


@every
async def test_a_vae_is_found_or_refused(dialect: str) -> None:
    """An unknown VAE would be ignored with a warning in the server's log."""
    async with bench(dialect, vaes=["sharp.safetensors"]) as b:
        params = {"prompt": "x", "width": 64, "height": 64, "steps": 1}
        assert (await b.make({"params": {**params, "vae": "sharp"}})).images
        with pytest.raises(ModelNotFound, match="VAE"):
            await b.admit({"params": {**params, "vae": "blurry"}})


@pytest.mark.parametrize("dialect", A1111)
async def test_refiner_and_hires_checkpoint_are_resolved(dialect: str) -> None:
    """Automatic1111 would answer 500 for one that it does not find."""
    async with bench(dialect) as b:
        params = {"prompt": "x", "width": 64, "height": 64, "steps": 2}
        refined = {**params, "refiner": {"checkpoint": "sd_xl_base_1.0", "switch_at": 0.7}}
        assert (await b.make({"params": refined})).images
        for field in ("refiner_checkpoint", "hr_checkpoint_name"):
            assert (await b.make(small(enable_hr=True, **{field: "vision_v6"}))).images
            with pytest.raises(ModelNotFound):
                await b.admit(small("x", **{field: "nosuch"}))


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_refiner_that_cannot_be_honoured_is_refused(dialect: str) -> None:
    """SD.Next has no switch at a step: the field is refused, not ignored."""
    async with bench(dialect) as b:
        with pytest.raises(InvalidJob, match=r"params\.refiner"):
            await b.admit({"params": {"prompt": "x", "refiner": {"checkpoint": SECOND}}})


async def test_sdnext_loads_a_named_model_when_it_has_none() -> None:
    """The current SD.Next does not even look at an override while no model is loaded: 200 and nothing."""
    async with bench("sdnext") as b:
        b.sim.machine.loaded = None
        b.sim.options["sd_model_checkpoint"] = "gone"
        output = await b.make(small(), checkpoint=SECOND)
        assert output.engine.model == "sd_xl_base_1.0"


@every
async def test_overrides_do_not_leak_into_the_next_job(dialect: str) -> None:
    """Overrides are not restored by the server, since it would swap models: the next job puts them back."""
    async with bench(dialect) as b:
        before = b.sim.options["eta_noise_seed_delta"]
        await b.make(small(override_settings={"eta_noise_seed_delta": 31337}))
        assert b.sim.options["eta_noise_seed_delta"] == 31337
        await b.make(small())
        assert b.sim.options["eta_noise_seed_delta"] == before
        loads = len(b.sim.stats.loads)
        await b.make(small())
        assert len(b.sim.stats.loads) == loads


@every
async def test_a_fresh_run_loads_the_model_anew(dialect: str) -> None:
    """After a wrong or empty answer the model is loaded again before the second try."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        loads = len(b.sim.stats.loads)
        output = await b.make(small(), checkpoint=SECOND, fresh=True)
        assert output.engine.model == "sd_xl_base_1.0"
        assert len(b.sim.stats.loads) > loads
        assert (await b.make(small(), fresh=True)).engine.model == "sd_xl_base_1.0"


@every
@pytest.mark.parametrize("everything", [True, False])
async def test_freed_memory_is_taken_again_by_the_next_job(dialect: str, everything: bool) -> None:
    """Unloading leaves a server that is ready, and the next job has the same model."""
    async with bench(dialect) as b:
        await b.make(small(), checkpoint=SECOND)
        await b.engine.free(everything)
        assert (b.sim.machine.loaded is None) is (everything or dialect == "forge")
        assert (await b.engine.look()).reach is Reach.READY
        output = await b.make(small())
        assert (output.engine.model, output.engine.proof != "none") == ("sd_xl_base_1.0", True)


@every
async def test_an_unreadable_model_is_not_the_end(dialect: str) -> None:
    """A broken file is no picture; another model works afterwards."""
    broken = ModelFile("broken.safetensors", unreadable=True)
    async with bench(dialect, models=["dreamshaper_8.safetensors", SECOND, broken]) as b:
        with pytest.raises((OutputEmpty, WrongModel)):
            await b.make(small(), checkpoint="broken")
        assert (await b.make(small(), checkpoint=SECOND)).images
