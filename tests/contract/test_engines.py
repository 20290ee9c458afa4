"""One job document, six servers: the seam `worker.engines.base.Engine`, each rule on every server.

Where a server cannot do something by its nature, the expectation is a line of a table here.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.engines import settings_for
from tests.support.pictures import encoded, opened
from tests.support.six import KINDS, SERVERS, bench, pixels, shown, wake
from tests.support.waiting import wait_until
from worker.engines import open_engine
from worker.engines.base import Files, Reach
from worker.errors import (
    ConfigError,
    EngineCrashed,
    InvalidJob,
    ModelNotFound,
    WorkerError,
)
from worker.job import Limits
from worker.settings.groups import EngineKind

every = pytest.mark.parametrize("name", SERVERS)

SAME_SEED = ("comfyui",)
"""All images of a batch come of one seed; elsewhere each has the next."""

CACHES = ("comfyui",)
"""The same job again costs it no step, unless the work is to be fresh."""

LISTS_NO_MODELS = ("comfyui",)
"""It is up, models or not: they are listed with its nodes, and read at a job."""

LISTS_NO_VAES = ("fooocus",)
"""The name goes to the server unchecked."""

PICTURES: Mapping[str, tuple[int, int]] = {"fooocus": (1152, 896)}
"""Sizes of image-to-image: Fooocus varies images of the area of 1024x1024 to 2048x2048 alone."""


@every
async def test_each_state_has_its_name(name: str) -> None:
    """A closed port, an open one, and whose it is."""
    async with bench(name, asleep=True) as b:
        asleep = await b.engine.look()
        assert (asleep.reach, asleep.name, asleep.busy) == (Reach.PORT_CLOSED, None, False)
        wake(b)
        await wait_until(lambda: b.sim.listening)
        state = await b.engine.look()
        assert (state.reach, state.name, state.busy) == (Reach.READY, KINDS[name], False)
        assert b.engine.name == KINDS[name]


@every
async def test_a_server_without_models(name: str) -> None:
    """It is not ready where it says what it has."""
    async with bench(name, empty=True) as b:
        expected = Reach.READY if name in LISTS_NO_MODELS else Reach.MODEL_NOT_LOADED
        assert (await b.engine.look()).reach is expected


@every
async def test_a_look_tells_model_version_and_work(name: str) -> None:
    """After a job: the version and the model; while one runs: that it works."""
    async with bench(name, step_seconds=0.03) as b:
        await b.make()
        state = await b.engine.look()
        assert state.version
        assert state.model is not None
        assert state.model.startswith(b.first.removesuffix(".safetensors"))
        running = b.begin(await b.admit(steps=100, prompt="a dog"))
        await wait_until(b.busy)
        running.cancel()
        await asyncio.wait([running])
        assert not await b.busy()


@every
@pytest.mark.parametrize("kind", ["a1111", "sdnext", "comfyui", "fooocus"])
async def test_another_server_than_configured_is_the_operators_error(name: str, kind: EngineKind) -> None:
    """What answers must be what WORKER_ENGINE says; the server is left alone."""
    async with bench(name, prepare=False) as b:
        engine = open_engine(settings_for(b.sim.url, kind=kind), Limits())
        if kind == KINDS[name]:
            await engine.prepare()
            assert engine.name == kind
        else:
            with pytest.raises(ConfigError, match="WORKER_ENGINE"):
                await engine.prepare()
        await engine.aclose()
        assert b.sampled == 0


@every
async def test_auto_recognises_and_drives_it(name: str) -> None:
    """Without a kind the server is asked, and its own driver takes over."""
    async with bench(name, prepare=False) as b:
        engine = open_engine(settings_for(b.sim.url), Limits())
        assert engine.name == "auto"
        with pytest.raises(EngineCrashed):
            await engine.admit(b.job())
        assert (await engine.look()).reach is Reach.READY
        await engine.prepare()
        output = await engine.generate(await engine.admit(b.job()), Files(), b.reports.append)
        assert (engine.name, len(output.images)) == (KINDS[name], 1)
        await engine.free(True)
        await engine.aclose()


@every
@pytest.mark.parametrize("kind", ["auto", "configured"])
async def test_where_ipv6_refuses_ipv4_is_tried(name: str, kind: str) -> None:
    """A server that listens on 127.0.0.1 alone is found by the usual address on ``[::1]``."""
    async with bench(name, prepare=False, host="127.0.0.1") as b:
        url = b.sim.url.replace("127.0.0.1", "[::1]")
        engine = open_engine(settings_for(url, kind="auto" if kind == "auto" else b.kind), Limits())
        assert (await engine.look()).reach is Reach.READY
        await engine.prepare()
        assert (await engine.generate(await engine.admit(b.job()), Files(), b.reports.append)).images
        await engine.aclose()


@every
async def test_the_environments_proxy_is_ignored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even ``[::1]`` would go to a proxy otherwise."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "WS_PROXY", "ws_proxy"):
        monkeypatch.setenv(variable, "http://[::1]:9")
    async with bench(name) as b:
        assert (await b.make()).images


@every
async def test_a_closed_engine_leaves_nothing(name: str) -> None:
    """Neither tasks nor sockets of ours."""
    async with bench(name) as b:
        await b.engine.look()

        def tasks() -> set[str]:
            ours = ("engine", "comfy", "fooocus", "sdapi", "http")
            return {t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith(ours)}

        await wait_until(lambda: not tasks())
        before = len(list(sockets()))
        engine = open_engine(settings_for(b.sim.url, kind=b.kind), Limits())
        await engine.prepare()
        assert (await engine.generate(await engine.admit(b.job()), Files(), b.reports.append)).images
        await engine.aclose()
        await wait_until(lambda: not tasks())
        await wait_until(lambda: len(list(sockets())) <= before)


def sockets() -> Iterator[str]:
    """The sockets that this process has open."""
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(fd)  # noqa: PTH115
        except OSError:
            continue
        if target.startswith("socket:"):
            yield target


@every
async def test_a_portable_job_is_made_as_asked(name: str) -> None:
    """Count, size, seed, format, model and its proof."""
    async with bench(name) as b:
        output = await b.make(width=72, height=64)
        (image,) = output.images
        assert (opened(image.data).format, opened(image.data).size, image.seed) == ("PNG", (72, 64), 7)
        assert output.engine.name == KINDS[name]
        assert (output.engine.model or "").startswith("juggernaut" if name == "fooocus" else "dreamshaper")
        assert output.engine.proof in ("hash", "name")
        assert output.generate_s > 0
        assert b.sampled == 1


@every
async def test_a_seed_left_open_follows_from_the_jobs_id(name: str) -> None:
    """The same id gives the same picture on every run, another id another one; a given seed is kept."""
    async with bench(name) as b:
        first = await b.make(id="job-a", seed=-1)
        again = await b.make(id="job-a", seed=-1, fresh=True)
        other = await b.make(id="job-b", seed=-1)
        assert first.images[0].seed == again.images[0].seed == b.job(id="job-a").seed
        assert pixels(first) == pixels(again)
        assert other.images[0].seed == b.job(id="job-b").seed
        assert pixels(other) != pixels(first)
        given = await b.make(id="job-a", seed=4_000_000_000)
        assert given.images[0].seed == b.told["seed"] == 4_000_000_000


@every
async def test_a_job_gives_the_same_picture_on_another_node(name: str) -> None:
    """What a run depends on is in the job alone."""
    found = []
    for _ in range(2):
        async with bench(name) as b:
            found.append(pixels(await b.make(seed=-1)))
    assert found[0] == found[1]


@every
async def test_a_batch_has_as_many_pictures_as_asked(name: str) -> None:
    """All different, of the seeds that the result says."""
    async with bench(name) as b:
        output = await b.make(batch_size=3)
        assert [i.seed for i in output.images] == ([7, 7, 7] if name in SAME_SEED else [7, 8, 9])
        assert len({pixels(output, i) for i in range(3)}) == 3


@every
async def test_the_checkpoint_decides(name: str) -> None:
    """By file name, with extension or without; the result says which one it was."""
    async with bench(name) as b:
        first = await b.make()
        second = await b.make(b.document(checkpoint="sd_xl_base_1.0", width=128, height=128))
        same = await b.make(b.document(checkpoint=b.second, width=128, height=128), fresh=True)
        back = await b.make(fresh=True)
        assert (second.engine.model or "").startswith("sd_xl_base_1.0")
        assert (await b.engine.look()).model != second.engine.model
        assert pixels(second) == pixels(same)
        assert pixels(back) == pixels(first)


REFUSED: tuple[tuple[str, dict[str, Any], type[WorkerError], dict[str, str]], ...] = (
    ("unknown checkpoint", {"params": {"prompt": "x"}, "checkpoint": "nosuch"}, ModelNotFound, {}),
    ("unknown lora", {"params": {"prompt": "x", "loras": [{"name": "nosuch"}]}}, ModelNotFound, {}),
    ("unknown sampler", {"params": {"prompt": "x", "sampler": "eulr"}}, InvalidJob, {"": "params.sampler"}),
    ("unknown scheduler", {"params": {"prompt": "x", "scheduler": "karas"}}, InvalidJob, {"": "params.scheduler"}),
    (
        "too many pixels",
        {"params": {"prompt": "x", "width": 256, "height": 256}},
        InvalidJob,
        {"": "params.width"},
    ),
    ("too many steps", {"params": {"prompt": "x", "steps": 60}}, InvalidJob, {"": "params.steps"}),
    ("too many images", {"params": {"prompt": "x", "batch_size": 5}}, InvalidJob, {"": "params.batch_size"}),
    (
        "unknown native endpoint",
        {"request": {"prompt": "x"}, "endpoint": "no-such"},
        InvalidJob,
        {"": "endpoint", "comfyui": "request"},
    ),
    (
        "a body of another server",
        {"request": {"prompt": "x", "no_such_field": 1}},
        InvalidJob,
        {"": "request.no_such_field", "comfyui": "request"},
    ),
    ("a template", {"template": {"name": "x"}}, InvalidJob, {"": "template"}),
    ("an image that is none", {"params": {"prompt": "x", "image": "%%%"}}, InvalidJob, {"": "params.image"}),
    (
        "models of a kind that it has no place for",
        {"params": {"prompt": "x"}, "models": [{"kind": "no_such_kind", "name": "x"}]},
        InvalidJob,
        {"": "models.0.kind"},
    ),
)
TIGHT = Limits(max_pixels=128 * 128, max_steps=50, max_images=4)


@every
async def test_what_cannot_be_done_is_refused_before_the_gpu(name: str) -> None:
    """With the field that is wrong, and nothing is generated."""
    async with bench(name, limits=TIGHT) as b:
        for what, wanted, error, fields in REFUSED:
            document = dict(wanted)
            if "params" in wanted:
                small = {"width": 64, "height": 64, **wanted["params"]}
                document = {"checkpoint": b.first, **wanted, "params": small}
            with pytest.raises(error) as caught:
                await b.admit(document)
            assert type(caught.value) is error, what
            if isinstance(caught.value, InvalidJob):
                assert caught.value.errors[0].field == fields.get(name, fields[""]), what
        assert b.sampled == 0


@every
async def test_a_vae_that_is_not_there_is_refused(name: str) -> None:
    """Where the server tells which it has; Fooocus-API does not, and fails over it."""
    async with bench(name) as b:
        if name in LISTS_NO_VAES:
            await b.make(vae="nosuch.safetensors")
            assert b.told["vae"] == "nosuch"
        else:
            with pytest.raises(ModelNotFound, match="VAE"):
                await b.admit(vae="nosuch.safetensors")


@every
async def test_a_graph_is_for_comfyui_alone(name: str) -> None:
    """Elsewhere the workflow is refused by name; there a broken one is refused by node."""
    async with bench(name) as b:
        with pytest.raises(InvalidJob) as caught:
            await b.admit({"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})
        field = "workflow.1.class_type" if name == "comfyui" else "workflow"
        assert caught.value.errors[0].field == field
        assert b.sampled == 0


@every
async def test_an_image_is_changed(name: str) -> None:
    """From base64 in the job, or from the bytes of a URL that was fetched."""
    width, height = PICTURES.get(name, (96, 72))
    image = encoded(Image.linear_gradient("L").convert("RGB").resize((width, height)))
    text = base64.b64encode(image).decode()
    async with bench(name) as b:
        for value in (text, f"data:image/png;base64,{text}", "https://cdn.example/a.png"):
            work = await b.admit(image=value, denoise=0.3, width=width, height=height)
            (ref,) = work.inputs
            assert (ref.field, ref.value) == ("params.image", value)
            output = await b.run(work, Files({ref.field: image} if value.startswith("https") else {}), fresh=True)
            assert shown(output).size == (width, height)
            assert b.told["denoise"] == 0.3
        assert b.sampled == 3


@every
async def test_an_image_keeps_its_own_size(name: str) -> None:
    """Where the job names none; the default of text to image does not count."""
    size = PICTURES.get(name, (96, 72))
    text = base64.b64encode(encoded(Image.linear_gradient("L").convert("RGB").resize(size))).decode()
    async with bench(name) as b:
        document = b.document(image=text)
        del document["params"]["width"], document["params"]["height"]
        assert shown(await b.make(document)).size == size


@every
async def test_a_restarted_server_is_prepared_and_used(name: str) -> None:
    """Whatever was known of the process before is forgotten."""
    async with bench(name) as b:
        first = await b.make()
        b.sim.restart()
        await wait_until(lambda: b.sim.listening)
        await b.engine.prepare()
        assert pixels(await b.make()) == pixels(first)


@every
@pytest.mark.parametrize("everything", [True, False])
async def test_freed_memory_is_taken_again(name: str, everything: bool) -> None:
    """A server that gave memory back is ready, and makes the next job with the right model."""
    async with bench(name) as b:
        first = await b.make()
        await b.engine.free(everything)
        assert (await b.engine.look()).reach is Reach.READY
        again = await b.make(fresh=True)
        assert (again.engine.model, pixels(again)) == (first.engine.model, pixels(first))


@every
async def test_fresh_work_is_really_done(name: str) -> None:
    """The server samples again, and the picture is the same; without it a cache may answer, and says so."""
    async with bench(name) as b:
        first = await b.make()
        again = await b.make()
        assert b.sampled == (1 if name in CACHES else 2)
        assert (name in CACHES) is (again.engine.info.get("cached") is True)
        before = b.sampled
        fresh = await b.make(fresh=True)
        assert b.sampled == before + 1
        assert pixels(first) == pixels(again) == pixels(fresh)
