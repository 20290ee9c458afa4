"""Every fault does what its name says, so often and for such prompts as it was armed for."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from typing import Any

import httpx
import pytest
from PIL import Image, UnidentifiedImageError

from tests.support.sims import A1111, ALL, SDNEXT, base64_png, in_background, info, model_of, picture, simulated
from tests.support.waiting import wait_until
from worker.simulators import Fault, Knobs, ModelFile
from worker.simulators.pictures import decode_base64_image, metadata

CUT = (httpx.NetworkError, httpx.RemoteProtocolError)


@pytest.mark.parametrize("dialect", ALL)
async def test_out_of_memory(dialect: str) -> None:
    """An honest 500, or 200 with no image; the counter of /memory rises in any case."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("oom")
        response = await s.generate()
        events = (await s.get("memory")).json()["cuda"]["events"]
        following = await s.generate()
    assert events["oom"] == 1
    assert len(following.json()["images"]) == 1
    if dialect in SDNEXT:
        assert (response.status_code, response.json()["images"]) == (200, [])
        assert info(response)["seed"] == 1
    else:
        assert (response.status_code, response.json()["error"]) == (500, "OutOfMemoryError")
        assert "CUDA out of memory" in response.json()["message" if dialect == "forge" else "errors"]


async def test_out_of_memory_after_a_poll_returns_the_preview() -> None:
    """SD.Next of today: 200 with a picture that is only the preview; the counter alone gives it away."""
    async with simulated("sdnext", Knobs(step_seconds=0.01)) as s:
        s.sim.knobs.arm("oom")
        async with in_background(s.generate(steps=150)) as request:
            await s.began()
            await s.get("progress")
            response = await request
        status = (await s.get("status")).json()["status"]
        s.sim.knobs.step_seconds = 0
        sound = picture(await s.generate(steps=150))
    assert picture(response).size == (64, 64)
    assert picture(response).tobytes() != sound.tobytes()
    assert status == "interrupted"
    assert s.sim.machine.out_of_memory == 1
    assert not s.sim.stats.generations[0].interrupted


@pytest.mark.parametrize("dialect", ALL)
async def test_nan(dialect: str) -> None:
    """Automatic1111 raises, the others return black."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("nan")
        response = await s.generate()
    if dialect in ("a1111", "a1111-1.7"):
        assert (response.status_code, response.json()["error"]) == (500, "NansException")
    else:
        assert picture(response).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
@pytest.mark.parametrize("kind", ["black", "flat"])
async def test_pictures_of_one_colour(dialect: str, kind: Any) -> None:
    """A valid file in which all pixels are the same."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm(kind)
        colours = picture(await s.generate()).getcolors(10)
    assert colours is not None
    assert len(colours) == 1


async def test_spoilt_answers() -> None:
    """A preview, nothing, one too few, half the size, half the bytes, no image at all: each 200."""
    async with simulated("a1111") as s:
        for kind in ("preview", "empty", "short_count", "wrong_size", "truncated_image", "not_an_image"):
            s.sim.knobs.arm(kind)
        preview, empty = await s.generate(), await s.generate()
        short, wrong = await s.generate(batch_size=3), await s.generate()
        truncated, alien = await s.generate(), await s.generate()
        sound = await s.generate()
    assert picture(preview).size == (8, 8)
    assert empty.json()["images"] == []
    assert len(short.json()["images"]) == 2
    assert picture(wrong).size == (32, 32)
    assert info(wrong)["width"] == 64
    with pytest.raises(OSError, match=r"truncated|broken"):
        picture(truncated)
    with pytest.raises(UnidentifiedImageError):
        picture(alien)
    assert picture(sound).size == (64, 64)


@pytest.mark.parametrize("dialect", ALL)
async def test_wrong_model_and_wrong_seed_are_told_truthfully(dialect: str) -> None:
    """The info says what really ran: that is what a client can verify."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("wrong_model")
        s.sim.knobs.arm("wrong_seed")
        assert model_of(await s.generate()) == "sd_xl_base_1.0"
        assert info(await s.generate())["seed"] == 2
        assert model_of(await s.generate()) == "dreamshaper_8"
    async with simulated(dialect, models=["only.safetensors"]) as s:
        s.sim.knobs.arm("wrong_model")
        assert model_of(await s.generate()) == "some_other_model"


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_a_hang_ignores_interrupts_until_released(dialect: str) -> None:
    """Nothing moves; in this process or over HTTP it is let go."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("hang", times=2)
        for release in (True, False):
            async with in_background(s.generate()) as request:
                await s.began()
                await wait_until(lambda: s.sim.machine.state.sampling_step == 1)
                await s.post("interrupt")
                progress = (await s.get("progress")).json()
                assert progress["state"]["sampling_step"] == 1
                assert not request.done()
                if release:
                    s.sim.release()
                else:
                    await s.client.post("/simulator/release")
                assert (await request).status_code == 200


async def test_slow_adds_its_seconds() -> None:
    """Time is added before the first step."""
    async with simulated("sdnext", Knobs(step_seconds=0)) as s:
        s.sim.knobs.arm("slow", seconds=0.2)
        await s.generate()
        assert s.sim.stats.busy_seconds > 0.15


async def test_an_answer_cut_in_the_middle() -> None:
    """The connection ends before the promised bytes came."""
    async with simulated("sdnext") as s:
        s.sim.knobs.arm("crash_mid_body")
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            await s.generate()
        assert (await s.generate()).status_code == 200


@pytest.mark.parametrize("dialect", A1111)
async def test_any_exception_can_be_raised(dialect: str) -> None:
    """Type and text as armed; by default a dead CUDA context."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("error_500")
        s.sim.knobs.arm("error_500", error="ValueError", text="nope")
        cuda, other = (await s.generate()).json(), (await s.generate()).json()
    field = "message" if dialect == "forge" else "errors"
    assert (cuda["error"], cuda[field].split(":")[0]) == ("RuntimeError", "CUDA error")
    assert (other["error"], other[field]) == ("ValueError", "nope")


async def test_the_limiter_and_the_progress_can_be_made_to_fail() -> None:
    """429 after the work for one prompt; the poll fails while generations go on."""
    async with simulated("sdnext") as s:
        s.sim.knobs.arm("rate_limited", prompt="MARK")
        s.sim.knobs.arm("progress_500", times=None)
        assert (await s.generate("plain")).status_code == 200
        assert (await s.generate("with MARK")).status_code == 429
        assert [(await s.get("progress")).status_code for _ in range(2)] == [500, 500]
        assert (await s.generate("with MARK")).status_code == 200


async def test_faults_count_down_and_can_be_disarmed() -> None:
    """Once, several times, always; by kind or all."""
    knobs = Knobs()
    knobs.arm("empty", times=2, prompt="x")
    knobs.arm("black", times=None)
    kinds = [getattr(knobs.take(prompt), "kind", None) for prompt in ("x", "y", "x", "x")]
    assert kinds == ["empty", "black", "empty", "black"]
    knobs.disarm("black")
    assert [f.kind for f in knobs.faults] == ["empty"]
    knobs.disarm()
    assert knobs.faults == []


async def test_knobs_can_be_turned_over_http() -> None:
    """Fields by name, faults by `arm`; a mistake changes nothing."""
    async with simulated("sdnext") as s:
        turned = await s.client.post("/simulator/knobs", json={"step_seconds": 0, "arm": {"kind": "empty"}})
        several = await s.client.post("/simulator/knobs", json={"arm": [{"kind": "black", "times": None}]})
        bad: list[Any] = [{"no_such": 1}, {"step_seconds": "x"}, {"arm": {"kind": "no"}}, []]
        codes = [(await s.client.post("/simulator/knobs", json=document)).status_code for document in bad]
        read = (await s.client.get("/simulator/knobs")).json()
        assert (await s.generate()).json()["images"] == []
    assert turned.json()["faults"] == [s.sim.knobs.document()["faults"][0] | {"times": 1}]
    assert [f["kind"] for f in several.json()["faults"]] == ["empty", "black"]
    assert codes == [400, 400, 400, 400]
    assert read["step_seconds"] == 0
    assert isinstance(s.sim.knobs.faults[0], Fault)


async def test_files_can_be_changed_over_http() -> None:
    """POST /simulator/models adds and removes; the server needs a refresh as ever."""
    async with simulated("sdnext") as s:
        added = ["a.safetensors", {"name": "b.safetensors", "load_seconds": 1}]
        change = {"add": added, "remove": ["dreamshaper_8.safetensors"]}
        answer = await s.client.post("/simulator/models", json=change)
        loras = await s.client.post("/simulator/models", json={"add": ["l.safetensors"], "kind": "lora"})
        wrong = [await s.client.post("/simulator/models", json=d) for d in ({"x": 1}, {"add": [{"no": 1}]})]
        await s.post("refresh-checkpoints")
        names = [i["model_name"] for i in (await s.get("sd-models")).json()]
    assert answer.status_code == 200
    assert loras.json()["files"][-1] == "/models/Lora/l.safetensors"
    assert [r.status_code for r in wrong] == [400, 400]
    assert names == ["sd_xl_base_1.0", "realistic/vision_v6", "a", "b"]
    assert ModelFile("b.safetensors", load_seconds=1) in s.sim.disk.files


async def test_the_upscaler_resizes() -> None:
    """extra-single-image by factor or to a size; rubbish is an error."""
    async with simulated("a1111") as s:
        by_factor = await s.post("extra-single-image", {"image": base64_png(size=(20, 10)), "upscaling_resize": 3})
        sized = {"image": base64_png(), "resize_mode": 1, "upscaling_resize_w": 32, "upscaling_resize_h": 16}
        to_size = await s.post("extra-single-image", sized)
        rubbish = await s.post("extra-single-image", {"image": "bm8="})
    sizes = [decode_base64_image(r.json()["image"]).size for r in (by_factor, to_size)]
    assert sizes == [(60, 30), (32, 16)]
    assert rubbish.status_code == 500


def test_metadata_of_a_plain_file_is_empty(tmp_path: Any) -> None:
    """Reading it back is part of the simulator's tools."""
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    assert metadata(path.read_bytes()) == ""


async def spoken(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """A simulator as a process, and the URL that it printed."""
    command = [sys.executable, "-m", "worker.simulators", *arguments, "--port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        line = (await process.stdout.readline()).decode()
    found = re.search(r"listening on (\S+)", line)
    assert found is not None, line
    return process, found[1]


async def test_by_hand_it_prints_one_line_and_ends_at_sigterm() -> None:
    """`python -m worker.simulators a1111 --port 0` names the real port; SIGTERM ends it even in a generation."""
    process, url = await spoken("a1111", "--models", "x.safetensors", "--step-seconds", "5")
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
        title = f"x.safetensors [{ModelFile('x.safetensors').short_hash}]"
        assert [m["title"] for m in (await client.get("/sdapi/v1/sd-models")).json()] == [title]
        async with in_background(client.post("/sdapi/v1/txt2img", json={"prompt": "p"})):

            async def busy() -> bool:
                return bool((await client.get("/simulator/stats")).json()["generations"])

            await wait_until(busy)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                assert await process.wait() == 0


async def test_the_fault_exit_ends_the_process() -> None:
    """In a process of its own the fault is a real death, seen by who started it."""
    process, url = await spoken("sdnext", "--knobs", '{"arm": {"kind": "exit"}}')
    async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:
        body = {"prompt": "p", "steps": 1, "width": 64, "height": 64}
        with pytest.raises(CUT):
            await client.post("/sdapi/v1/txt2img", json=body)
    async with asyncio.timeout(5):
        assert await process.wait() == 1
