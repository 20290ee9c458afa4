"""The seam to ComfyUI: its state, what is learned of it, and the graphs that it is given."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.comfy_engine import CHECKPOINT, SECOND, bench, graph, plain, small, workflow
from tests.support.engines import job_of, settings_for
from tests.support.pictures import encoded, opened, picture
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Files, Reach
from worker.engines.comfyui.disk import Folders
from worker.errors import (
    ConfigError,
    EngineCrashed,
    EngineFault,
    GenerationRejected,
    InvalidJob,
    ModelNotFound,
    WrongModel,
)
from worker.job import Limits
from worker.simulators import Knobs as SdapiKnobs
from worker.simulators import running as sdapi_running
from worker.simulators.comfyui import Knobs, write_checkpoint

IMAGE = encoded(picture(96, 72))
every_version = pytest.mark.parametrize("version", ["0.3.64", "newest"])


async def test_each_wait_on_the_way_up_has_its_own_name() -> None:
    """Port closed and ready are told apart; no model is loaded before the first job."""
    knobs = Knobs(start_seconds=1e9)
    async with bench(knobs, prepare=False) as b:
        assert (await b.engine.look()).reach is Reach.PORT_CLOSED
        knobs.start_seconds = 0
        b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        state = await b.engine.look()
        assert (state.reach, state.name, state.version, state.model, state.busy) == (
            Reach.READY,
            "comfyui",
            "0.3.64",
            None,
            False,
        )


async def test_a_look_names_the_model_that_was_proven() -> None:
    """The checkpoint of the last job that made a picture; nothing more once the server was away."""
    async with bench() as b:
        await b.make()
        assert (await b.engine.look()).model == CHECKPOINT
        b.sim.restart(1e9)
        assert (await b.engine.look()).reach is Reach.PORT_CLOSED
        b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        assert (await b.engine.look()).model is None


async def test_a_look_tells_when_it_works() -> None:
    """A prompt that runs or waits is busy."""
    async with bench(Knobs(step_seconds=0.05)) as b:
        running = await b.started(small(steps=100))
        await wait_until(b.busy)
        running.cancel()
        await asyncio.wait([running])
        assert not await b.busy()


async def test_another_server_at_the_port_is_the_operators_error() -> None:
    """WORKER_ENGINE is named when what answers is no ComfyUI, and a look never takes it for one."""
    async with sdapi_running("a1111", SdapiKnobs()) as other, bench(prepare=False, settings={"url": other.url}) as b:
        assert (await b.engine.look()).reach is Reach.ROUTES_MISSING
        with pytest.raises(ConfigError, match="WORKER_ENGINE") as caught:
            await b.engine.prepare()
        assert caught.value.mistakes[0].field == "WORKER_ENGINE"


async def test_a_port_that_does_not_speak_is_not_ready() -> None:
    """Something listens, but gives no answer."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "::1", 0)
    async with server:
        url = f"http://[::1]:{server.sockets[0].getsockname()[1]}"
        engine = open_engine(settings_for(url, kind="comfyui"), Limits())
        assert (await engine.look()).reach is Reach.ROUTES_MISSING
        with pytest.raises(EngineCrashed):
            await engine.prepare()
        await engine.aclose()


async def test_the_driver_is_found_by_what_answers() -> None:
    """``auto`` recognises the server and drives it."""
    async with bench(prepare=False) as b:
        engine = open_engine(settings_for(b.sim.url), Limits())
        assert (await engine.look()).reach is Reach.READY
        await engine.prepare()
        work = await engine.admit(job_of(small()))
        assert len((await engine.generate(work, Files(), lambda _: None)).images) == 1
        await engine.aclose()


@every_version
async def test_a_job_becomes_its_pictures(version: str) -> None:
    """Portable parameters: the images of a batch, of the size asked for, with seed, model and proof."""
    async with bench(Knobs(version=version)) as b:
        output = await b.make(small(batch_size=2))
        assert [opened(image.data).size for image in output.images] == [(64, 64)] * 2
        assert [image.seed for image in output.images] == [7, 7]
        assert output.engine.name == "comfyui"
        assert (output.engine.model, output.engine.proof) == (CHECKPOINT, "name")
        assert output.engine.info["seeds"] == [7]
        assert output.engine.info["cached"] is False
        assert output.load_s > 0
        assert output.generate_s > 0
        assert b.left == []
        assert b.sim.stats.history_deletes == b.sim.stats.prompts


@every_version
async def test_a_workflow_becomes_its_pictures(version: str) -> None:
    """A graph runs as it is, but for its way out, and reports the seed that stands in it."""
    async with bench(Knobs(version=version)) as b:
        output = await b.make(workflow(seed=11, batch=3))
        assert [image.seed for image in output.images] == [11] * 3
        assert [s.seed for s in b.sim.stats.samplings] == [11]
        assert b.left == []


async def test_a_driver_that_nobody_prepared_works_too() -> None:
    """What `prepare` learns is learned at the first job otherwise."""
    async with bench(prepare=False) as b:
        assert len((await b.make()).images) == 1


async def test_progress_comes_while_it_samples() -> None:
    """Steps, a fraction that never falls, what is left, and whether the first step is over."""
    async with bench(Knobs(step_seconds=0.03, load_seconds=0.05)) as b:
        await b.make(small(steps=10))
        fractions = [report.fraction for report in b.reports]
        assert fractions == sorted(fractions)
        assert fractions[0] < 0.5 <= fractions[-1] <= 1
        assert {report.steps for report in b.reports if report.sampling} == {10}
        assert not b.reports[0].sampling
        assert any(report.eta_s for report in b.reports)


async def test_ids_of_prompts_come_from_the_attempt() -> None:
    """Canonical lower-case UUIDs, the same for an attempt on every node, another at each submit within it."""
    ids: list[list[str]] = []
    for _ in range(2):
        async with bench() as b:
            work = replace(await b.admit(), key="job-1/abc/1")
            await b.run(work)
            await b.run(work, fresh=True)
            await b.run(replace(work, key="job-1/abc/2"))
            ids.append(b.sim.stats.prompts)
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 3
    assert all(str(UUID(prompt_id)) == prompt_id for prompt_id in ids[0])


async def test_work_without_a_key_gets_an_id_of_its_own() -> None:
    """The canary has no attempt: two runs never share an id."""
    async with bench() as b:
        work = await b.admit()
        await b.run(work)
        await b.run(work)
        assert len(set(b.sim.stats.prompts)) == 2


async def test_a_model_that_was_placed_since_is_found() -> None:
    """Model files appear in the lists at once: they are read again before a job is refused."""
    async with bench() as b:
        with pytest.raises(ModelNotFound):
            await b.admit(workflow(checkpoint="late.safetensors"))
        b.sim.folders.add("checkpoints", "late.safetensors", "sd15")
        output = await b.make(workflow(checkpoint="late.safetensors"))
        assert output.engine.model == "late.safetensors"


async def test_lists_are_read_again_once_files_have_changed() -> None:
    """After a change on disk a model that is gone is missed before the GPU is used."""
    async with bench() as b:
        work = await b.admit()
        b.sim.folders.remove("checkpoints", SECOND)
        await b.run(work, Files(version=1))
        with pytest.raises(ModelNotFound):
            await b.admit(workflow(checkpoint=SECOND))


async def test_a_model_that_vanished_is_the_servers_refusal() -> None:
    """Gone between admission and submit: the server's validation names it."""
    async with bench() as b:
        work = await b.admit(workflow(checkpoint=SECOND))
        b.sim.folders.remove("checkpoints", SECOND)
        with pytest.raises(ModelNotFound, match=SECOND):
            await b.run(work)
        assert (await b.make()).images


async def test_unknown_classes_are_named_before_the_gpu_is_used() -> None:
    """A custom node that the server lacks; nothing is submitted."""
    made = graph()
    made["8"]["class_type"] = "NoSuchNode"
    async with bench() as b:
        with pytest.raises(InvalidJob, match="NoSuchNode"):
            await b.admit(workflow(made))
        assert b.sim.stats.prompts == []


async def test_a_graph_of_the_page_gets_a_clear_message() -> None:
    """UI format is not API format."""
    async with bench() as b:
        with pytest.raises(InvalidJob, match="API"):
            await b.admit({"workflow": {"nodes": [], "links": []}})


async def test_what_a_node_refuses_is_named() -> None:
    """400 with an empty reason: the mistakes of the nodes tell it."""
    async with bench() as b:
        work = await b.admit(workflow(plain()))
        broken = plain()
        broken["1"]["inputs"]["width"] = 0
        with pytest.raises(GenerationRejected, match=r"node 1 .*width.*0"):
            await b.run(replace(work, request=broken))
        assert b.left == []


async def test_a_checkpoint_that_no_job_names_is_chosen_by_its_header() -> None:
    """The first that is complete; one that is broken, or no model at all, is passed over."""
    async with bench(checkpoints={"z.safetensors": "sd15", SECOND: "sdxl-refiner"}) as b:
        (b.sim.base_dir / "models" / "checkpoints" / "a.safetensors").write_bytes(b"cut off")
        work = await b.admit({"params": {"prompt": "x"}})
        assert work.expect.checkpoint == "z.safetensors"


async def test_a_broken_model_file_is_this_nodes_fault() -> None:
    """Another node may have it whole."""
    async with bench() as b:
        (b.sim.base_dir / "models" / "checkpoints" / "a.safetensors").write_bytes(b"cut off")
        with pytest.raises(EngineFault, match=r"a\.safetensors"):
            await b.admit({**small(), "checkpoint": "a.safetensors"})


@pytest.mark.parametrize("said", ["stable-diffusion-v1", None])
async def test_where_folders_are_out_of_reach_the_file_says_what_it_is(said: str | None) -> None:
    """By its metadata over HTTP; where it says nothing the job is refused, and told why."""
    header = json.dumps({"__metadata__": {"modelspec.architecture": said} if said else {"a": "b"}}).encode()
    async with bench() as b:
        path = b.sim.base_dir / "models" / "checkpoints" / "told.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        b.engine._folders = Folders()
        job = {**small(), "checkpoint": "told.safetensors"}
        if said is None:
            with pytest.raises(InvalidJob, match=r"architecture of told\.safetensors could not be read"):
                await b.admit(job)
        else:
            assert (await b.admit(job)).expect.checkpoint == "told.safetensors"


async def test_a_header_is_read_again_when_its_file_has_changed() -> None:
    """And only then."""
    async with bench() as b:
        path = b.sim.base_dir / "models" / "checkpoints" / CHECKPOINT
        before = (await b.admit()).request
        known = dict(b.engine._shelf._known)
        assert (await b.admit()).request == before
        assert b.engine._shelf._known == known
        write_checkpoint(path, "sdxl")
        assert (await b.admit({**small(), "params": {"prompt": "x"}})).expect.width == 1024


async def test_a_graph_that_loads_another_model_is_noticed() -> None:
    """What ran, by the history's own word, must hold the checkpoint that was asked for."""
    async with bench() as b:
        work = await b.admit()
        lying = replace(work, expect=replace(work.expect, checkpoint="other.safetensors"))
        with pytest.raises(WrongModel, match=r"other\.safetensors"):
            await b.run(lying)


@pytest.mark.parametrize("kind", ["provided", "base64"])
async def test_an_input_image_is_a_real_file_of_the_job_alone(kind: str) -> None:
    """It is stored below the input folder, not linked, and gone afterwards."""
    made = {
        "1": {"class_type": "LoadImage", "inputs": {"image": base64.b64encode(IMAGE).decode()}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["1", 0]}},
    }
    async with bench() as b:
        work = await b.admit(workflow(made))
        given = {work.inputs[0].field: IMAGE} if kind == "provided" else {}
        output = await b.run(work, Files(inputs=given))
        assert opened(output.images[0].data).size == (96, 72)
        (stored,) = [upload for upload in b.sim.stats.uploads if "probe" not in upload]
        assert stored.startswith("input/sd-worker/")
        assert b.left == []


async def test_an_image_to_image_job_takes_its_size_from_the_input() -> None:
    """The size that the job leaves open is its image's own."""
    job = small(image=base64.b64encode(IMAGE).decode(), denoise=0.5)
    del job["params"]["width"], job["params"]["height"]
    async with bench() as b:
        output = await b.make(job)
        assert opened(output.images[0].data).size == (96, 72)
        assert b.left == []


async def test_fresh_runs_everything_again() -> None:
    """The caches are defeated and the model is read anew, for the same picture."""
    async with bench() as b:
        first = await b.make()
        again = await b.make()
        assert again.engine.info["cached"] is True
        loads = len(b.sim.stats.loads)
        fresh = await b.make(fresh=True)
        assert len(b.sim.stats.loads) == loads + 1
        assert fresh.engine.info["cached"] is False
        assert b.sim.stats.frees[-1] == {"unload_models": True, "free_memory": True}
        pictures = [opened(output.images[0].data).tobytes() for output in (first, again, fresh)]
        assert len(set(pictures)) == 1


@pytest.mark.parametrize("everything", [True, False])
async def test_free_gives_memory_back(everything: bool) -> None:
    """The results of nodes go, and with everything the models."""
    async with bench() as b:
        await b.make()
        await b.engine.free(everything)
        assert b.sim.stats.frees == [{"unload_models": everything, "free_memory": True}]


async def test_files_that_are_not_shared_go_over_http(tmp_path: Path) -> None:
    """Where the server's folders are not ours to see, uploads and downloads do; nothing is removed from there."""
    knobs = Knobs(argv=["--output-directory", str(tmp_path / "elsewhere")])
    async with bench(knobs) as b:
        output = await b.make(workflow())
        assert len(output.images) == 1
        assert any(f.startswith("sd-worker/") for f in b.sim.files("output")) or b.sim.files("temp") == []


async def test_what_an_earlier_life_left_is_removed() -> None:
    """Our own folders are cleared at the start, and nobody else's file is touched."""
    async with bench() as b:
        for kind in ("input", "output"):
            for name in ("sd-worker/old/a.png", "theirs.png"):
                path = b.sim.base_dir / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
        await b.engine.prepare()
        assert b.left == ["theirs.png", "theirs.png"]


async def test_an_answer_is_bounded_by_what_was_asked() -> None:
    """Fewer or more images than the job wants are told apart from none at all."""
    async with bench() as b:
        work = await b.admit(small(batch_size=2))
        for count, message in ((3, "2 images instead of 3"), (1, "2 images instead of 1")):
            with pytest.raises(Exception, match=message):
                await b.run(replace(work, expect=replace(work.expect, count=count)))


async def test_the_servers_lists_are_kept_small() -> None:
    """What is kept of /object_info is a digest, by which every class of the server is known."""
    async with bench() as b:
        work = await b.admit()
        assert json.loads(json.dumps(dict(work.request)))["checkpoint"]["class_type"] == "CheckpointLoaderSimple"
