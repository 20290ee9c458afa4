"""What ``docs/engines.md`` says of portable fields beyond yes and no: by model on ComfyUI, and each footnote."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.contract.test_portable import BY_MODEL, CELLS, PAGE, RED, masked, text_of, tinted
from tests.support.six import LORA, OTHER_LORA, VAE, Bench, bench, pixels, shown
from worker.errors import InvalidJob

MODELS = {"SD 1.5": "sd15", "SDXL": "sdxl", "SD 3.5": "sd35", "Flux dev": "flux", "Flux schnell": "flux-schnell"}
MAIN = "model.safetensors"
REFINER = "refiner.safetensors"


def options_for(model: str) -> dict[str, Any]:
    """A ComfyUI with one checkpoint of this architecture, a refiner and a VAE that fits."""
    vae = "vae-16" if model in ("SD 3.5", "Flux dev", "Flux schnell") else "vae"
    return {"checkpoints": {MAIN: MODELS[model], REFINER: "sdxl-refiner"}, "vaes": {VAE: vae}}


def given(b: Bench, name: str) -> tuple[dict[str, Any], Any]:
    """What a job has beside a field, and a value of the field."""
    image = {"image": text_of(tinted(RED, (64, 64)))}
    values: dict[str, tuple[dict[str, Any], Any]] = {
        "negative_prompt": ({}, "rain"),
        "cfg": ({}, 5.0),
        "clip_skip": ({}, 3),
        "refiner": ({"steps": 10}, {"checkpoint": REFINER, "switch_at": 0.5}),
        "loras": ({}, [{"name": LORA}]),
        "vae": ({}, VAE),
        "image": ({}, image["image"]),
        "mask": (image, masked((0, 0.5))(b)),
    }
    return values[name]


@pytest.mark.parametrize("model", MODELS)
async def test_comfyui_honours_or_refuses_by_the_model(model: str) -> None:
    """Each cell of the table of models: another picture, or the field's name."""
    async with bench("comfyui", **options_for(model)) as b:
        for (name, column), cell in BY_MODEL.items():
            if column != model:
                continue
            base, value = given(b, name)
            if cell.startswith("yes"):
                plain = await b.make(b.document(checkpoint=MAIN, **base))
                assert pixels(await b.make(b.document(checkpoint=MAIN, **base, **{name: value}))) != pixels(plain), name
                continue
            before = b.sampled
            with pytest.raises(InvalidJob) as caught:
                await b.admit(b.document(checkpoint=MAIN, **base, **{name: value}))
            assert caught.value.errors[0].field == f"params.{name}"
            assert b.sampled == before


async def refuses(b: Bench, field: str, **params: Any) -> None:
    """The job is refused with this field."""
    with pytest.raises(InvalidJob) as caught:
        await b.admit(**params)
    assert caught.value.errors[0].field == field


def test_every_footnote_is_proven() -> None:
    """Each that a cell has is explained below the tables, and has a test here."""
    cells = " ".join([*CELLS.values(), *BY_MODEL.values()])
    explained = set(re.findall(r"^\[\^([a-z]+)\]:", PAGE, re.MULTILINE))
    proven = {name.removeprefix("test_note_") for name in globals() if name.startswith("test_note_")}
    assert set(re.findall(r"\[\^([a-z]+)\]", cells)) == explained == proven


def test_note_model() -> None:
    """ComfyUI's cells that depend on the model are those with a no in the table of models."""
    depends = {name for (name, column), cell in CELLS.items() if column == "comfyui" and "[^model]" in cell}
    assert depends == {name for (name, _), cell in BY_MODEL.items() if cell.startswith("no")}


async def test_note_guidance() -> None:
    """Flux's own guidance takes the place of cfg."""
    async with bench("comfyui", **options_for("Flux dev")) as b:
        work = await b.admit(b.document(checkpoint=MAIN, cfg=5.0))
        values = [node["inputs"]["guidance"] for node in work.request.values() if "guidance" in node["inputs"]]
        assert values == [5.0]
        await b.run(work)
        assert b.told["cfg"] == 1.0


@pytest.mark.parametrize("name", ["a1111", "forge", "sdnext-2023", "sdnext", "fooocus"])
async def test_note_down(name: str) -> None:
    """Sides that no latent fits are cut, with a warning."""
    async with bench(name) as b:
        output = await b.make(width=77, height=95)
        assert shown(output).size == (72, 88)
        assert "size_rounded" in output.warnings


@pytest.mark.parametrize(("model", "size"), [("SD 1.5", (80, 96)), ("Flux dev", (80, 96)), ("SD 3.5", (80, 96))])
async def test_note_up(model: str, size: tuple[int, int]) -> None:
    """ComfyUI's are raised, to multiples of 8 or 16, with the same warning."""
    async with bench("comfyui", **options_for(model)) as b:
        output = await b.make(b.document(checkpoint=MAIN, width=73 if model == "SD 1.5" else 65, height=89))
        assert shown(output).size == size
        assert "size_rounded" in output.warnings


async def test_note_text() -> None:
    """Fooocus gets one line, and none of what it would fill in itself."""
    async with bench("fooocus") as b:
        await b.make(prompt="a dog,\n in the rain")
        assert b.told["prompt"] == "a dog, in the rain"
        await refuses(b, "params.prompt", prompt="a __colour__ dog")
        await refuses(b, "params.negative_prompt", negative_prompt="[[red, blue]] rain")


async def test_note_range() -> None:
    """Fooocus would replace a larger seed, and refuses other guidance."""
    async with bench("fooocus") as b:
        await refuses(b, "params.cfg", cfg=0.5)
        await refuses(b, "params.cfg", cfg=31)
        await refuses(b, "params.seed", seed=2**63)
        assert (await b.make(seed=2**63 - 1)).images[0].seed == 2**63 - 1


async def test_note_karras() -> None:
    """Where SD.Next of 2023 lists the option, Karras can be had; normal always."""
    async with bench("sdnext-2023") as b:
        assert (await b.make(scheduler="normal")).images
        await refuses(b, "params.scheduler", scheduler="karras")
        b.sim.options["schedulers_use_karras"] = False
        await b.engine.prepare()
        assert (await b.make(scheduler="karras")).images
        assert b.sim.options["schedulers_use_karras"] is True
        await refuses(b, "params.scheduler", scheduler="exponential")


async def test_note_sigma() -> None:
    """The current SD.Next has four ways to choose sigmas."""
    async with bench("sdnext") as b:
        for scheduler in ("normal", "karras", "exponential", "beta"):
            assert (await b.make(scheduler=scheduler)).images
        await refuses(b, "params.scheduler", scheduler="sgm_uniform")


async def test_note_batch() -> None:
    """One seed for the whole batch, of which it stays a part: not to be had one by one."""
    async with bench("comfyui") as b:
        output = await b.make(batch_size=3)
        assert [image.seed for image in output.images] == [7, 7, 7]
        alone = await b.make(seed=8)
        assert pixels(alone) != pixels(output, 1)


async def test_note_skip() -> None:
    """Automatic1111 1.10 skips layers of SDXL only with an option of its own, which is set for the job alone."""
    async with bench("a1111") as b:
        await b.make(b.document(checkpoint=b.second, clip_skip=3))
        assert b.sim.options["sdxl_clip_l_skip"] is True
        await b.make()
        assert b.sim.options["sdxl_clip_l_skip"] is False


async def test_note_loras() -> None:
    """Fooocus has limits on weight and number."""
    async with bench("fooocus") as b:
        await refuses(b, "params.loras.0.weight", loras=[{"name": LORA, "weight": 2.5}])
        await refuses(b, "params.loras", loras=[{"name": n} for n in (LORA, OTHER_LORA) * 3])
        assert (await b.make(loras=[{"name": LORA, "weight": -2.0}])).images


async def test_note_vae() -> None:
    """0.4 takes a VAE's name and does not load it."""
    async with bench("fooocus", version="0.4.1.1") as b:
        await refuses(b, "params.vae", vae=VAE)
    async with bench("fooocus", version="0.5") as b:
        await b.make(vae="unlisted.safetensors")
        assert b.told["vae"] == "unlisted"


async def test_note_switch() -> None:
    """Fooocus refines from a tenth on, and never with the model itself."""
    async with bench("fooocus") as b:
        await refuses(b, "params.refiner.switch_at", refiner={"checkpoint": b.second, "switch_at": 0.05})
        await refuses(b, "params.refiner.checkpoint", refiner={"checkpoint": b.first, "switch_at": 0.5})


async def test_note_vary() -> None:
    """Fooocus enlarges small images before it varies them: sizes that it cannot give are refused."""
    image = text_of(tinted(RED, (64, 64)))
    async with bench("fooocus") as b:
        await refuses(b, "params.width", image=image, width=512, height=512)
        await refuses(b, "params.height", image=image, width=1024, height=None)
        document = b.document(image=image)
        del document["params"]["width"], document["params"]["height"]
        assert shown(await b.make(document)).size == (1024, 1024)
        output = await b.make(image=image, mask=masked((0, 0.5))(b), width=128, height=96)
        assert shown(output).size == (128, 96)


async def test_note_denoise() -> None:
    """0 means the default to Fooocus; the others give the image back."""
    image = text_of(tinted(RED, (64, 64)))
    async with bench("fooocus") as b:
        await refuses(b, "params.denoise", image=image, denoise=0, width=1024, height=1024)
