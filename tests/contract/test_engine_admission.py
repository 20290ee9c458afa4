"""What every server of the family would drop, replace or stumble over is settled before the GPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import ALL, bench, small
from tests.support.pictures import opened
from worker.errors import (
    InvalidJob,
)
from worker.simulators import Knobs

every = pytest.mark.parametrize("dialect", ALL)


@every
async def test_what_the_server_does_not_know_is_refused(dialect: str) -> None:
    """Unknown fields, samplers, schedulers and scripts would be dropped or replaced."""
    unknown: dict[str, Any] = {
        "sampler_name": "Eulr",
        "scheduler": "karas",
        "no_such_field": 1,
        "script_name": "nosuch",
    }
    async with bench(dialect) as b:
        for field, value in unknown.items():
            with pytest.raises(InvalidJob, match=rf"request\.{field}"):
                await b.admit(small(**{field: value}))


@every
async def test_styles_must_be_listed(dialect: str) -> None:
    """Servers drop a style that they do not know, and answer 200."""
    async with bench(dialect) as b:
        assert (await b.admit(small(styles=["Cinematic"]))).request["styles"] == ["Cinematic"]
        for styles, field in ((["Cinematic", "nosuch"], r"styles\.1"), ("Cinematic", "styles"), ([7], r"styles\.0")):
            with pytest.raises(InvalidJob, match=field):
                await b.admit(small(styles=styles))


@every
async def test_unknown_options_and_scripts_are_refused(dialect: str) -> None:
    """SD.Next ignores an unknown option, the others answer 500; the operator's own options are not for jobs."""
    async with bench(dialect) as b:
        for key in ("no_such_option", "samples_format", "outdir_samples"):
            with pytest.raises(InvalidJob, match=rf"override_settings\.{key}"):
                await b.admit(small(override_settings={key: "x"}))
        with pytest.raises(InvalidJob, match=r"alwayson_scripts\.nope"):
            await b.admit(small(alwayson_scripts={"nope": {"args": []}}))


@every
async def test_a_sampler_in_another_spelling_is_the_same(dialect: str) -> None:
    """Case does not matter: the server is sent its own spelling."""
    async with bench(dialect) as b:
        work = await b.admit(small(sampler_name="euler A"))
        assert work.request["sampler_name"] == "Euler a"
        assert (await b.run(work)).engine.info["sampler_name"] == "Euler a"


KARRAS = {
    "sdnext": {"sampler_name": "DPM++ 2M", "schedulers_sigma": "karras"},
    "a1111": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
    "a1111-1.7": {"sampler_name": "DPM++ 2M Karras"},
    "forge": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"},
}
"""Each server has its own way: a field, or a part of the sampler's name."""


@pytest.mark.parametrize("dialect", KARRAS)
async def test_portable_schedulers_are_honoured(dialect: str) -> None:
    """One of ComfyUI's schedulers is asked for as this server understands it."""
    params = {"prompt": "x", "width": 64, "height": 64, "sampler": "dpmpp_2m", "scheduler": "karras"}
    async with bench(dialect) as b:
        work = await b.admit({"params": params})
        assert work.request.items() >= KARRAS[dialect].items()
        assert (await b.run(work)).images
        with pytest.raises(InvalidJob, match=r"params\.scheduler"):
            await b.admit({"params": {**params, "scheduler": "no_such"}})


async def test_a_scheduler_that_cannot_be_honoured_is_refused() -> None:
    """This SD.Next of 2023 has no option for it: the field is refused, not ignored."""
    async with bench("sdnext-2023") as b:
        with pytest.raises(InvalidJob, match=r"params\.scheduler"):
            await b.admit({"params": {"prompt": "x", "scheduler": "karras"}})
        assert (await b.admit({"params": {"prompt": "x", "scheduler": "normal"}})).request


@every
async def test_the_back_door_is_closed(dialect: str) -> None:
    """SD.Next's ``extra`` sets any attribute of its job; others do not know it."""
    async with bench(dialect) as b:
        with pytest.raises(InvalidJob, match=r"request\.extra"):
            await b.admit(small(extra={"outpath_samples": "/etc"}))


@every
async def test_an_unused_controlnet_is_sent_empty(dialect: str) -> None:
    """Without arguments the extension would go on with those of the job before."""
    async with bench(dialect) as b:
        assert (await b.admit(small())).request["alwayson_scripts"] == {"ControlNet": {"args": []}}
        b.sim.knobs.scripts = []
    async with bench(dialect, Knobs(scripts=[])) as b:
        assert "alwayson_scripts" not in (await b.admit(small())).request


@every
async def test_images_are_sent_and_nothing_is_saved(dialect: str) -> None:
    """``send_images: false`` would answer 200 without images, ``save_images`` would fill the disk."""
    async with bench(dialect) as b:
        work = await b.admit(small(send_images=False, save_images=True, override_settings_restore_afterwards=True))
        request = work.request
        assert (request["send_images"], request["save_images"]) == (True, False)
        assert request["override_settings_restore_afterwards"] is False
        assert (await b.run(work)).images


TOO_MUCH: list[tuple[str, dict[str, Any]]] = [
    ("request.width", {"width": 100_000, "height": 100_000}),
    ("request.width", {"width": -64}),
    ("request.height", {"height": 0}),
    ("request.width", {"width": "wide"}),
    ("request.steps", {"steps": 10_000}),
    ("request.steps", {"steps": 0}),
    ("request.batch_size", {"batch_size": 17}),
    ("request.n_iter", {"n_iter": 9, "batch_size": 2}),
    ("request.n_iter", {"n_iter": 0}),
    ("request.hr_scale", {"enable_hr": True, "hr_scale": 16, "width": 1024, "hr_upscaler": "Lanczos"}),
]


@every
async def test_limits_hold_before_the_gpu(dialect: str) -> None:
    """What is too much, or senseless, is refused with its field."""
    async with bench(dialect) as b:
        for field, changes in TOO_MUCH:
            with pytest.raises(InvalidJob) as caught:
                await b.admit(small(**changes))
            assert caught.value.errors[0].field == field, changes


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"workflow": {"1": {}}}, "workflow"),
    ({"template": {"name": "x"}}, "template"),
    ({"request": {"prompt": "x"}, "endpoint": "png-info"}, "endpoint"),
    ({"request": {"prompt": "x"}, "endpoint": "img2img"}, "request.init_images"),
    ({"request": {"init_images": ["%%%"]}, "endpoint": "img2img"}, "request.init_images.0"),
    ({"request": {"init_images": ["file:///etc/passwd"]}, "endpoint": "img2img"}, "request.init_images.0"),
    ({"params": {"prompt": "x", "image": "%%%"}}, "params.image"),
    ({"params": {"prompt": "x", "sampler": "eulr"}}, "params.sampler"),
]


@every
async def test_what_it_cannot_do_is_refused_by_name(dialect: str) -> None:
    """Documents of other engines, unknown endpoints and broken inputs name the field."""
    async with bench(dialect) as b:
        for document, field in IMPOSSIBLE:
            with pytest.raises(InvalidJob) as caught:
                await b.admit(document)
            assert caught.value.errors[0].field == field


@every
async def test_a_side_that_is_no_multiple_of_8_is_rounded_knowingly(dialect: str) -> None:
    """Servers round down without a word: so do we, with a warning, and hold them to it."""
    async with bench(dialect) as b:
        output = await b.make(small(width=77, height=64))
        assert opened(output.images[0].data).size == (72, 64)
        assert "size_rounded" in output.warnings
