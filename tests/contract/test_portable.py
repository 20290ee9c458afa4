"""Every cell of the tables of portable fields in ``docs/engines.md``, proven on the simulated servers.

``yes``: a job with the field is admitted and made, and server and picture show that it had its effect. ``no``: it is
refused by its own name and nothing is generated. Each footnote has a test too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.support.pictures import encoded
from tests.support.six import LORA, OTHER_LORA, OTHER_VAE, SERVERS, VAE, Bench, bench, pixels, shown, stem
from worker.engines.base import Output
from worker.errors import InvalidJob
from worker.job import Params

PAGE = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
COLUMNS = dict(zip(("a1111", "forge", "sdnext 2023", "sdnext", "comfyui", "fooocus"), SERVERS, strict=True))
SDAPI = ("a1111", "forge", "sdnext-2023", "sdnext")
RED, BLUE = (255, 40, 40), (40, 40, 255)


def table(heading: str) -> dict[tuple[str, str], str]:
    """The first table below a heading of the page: each cell by its row and column."""
    section = re.split(r"\n##+ ", PAGE.partition(f"# {heading}\n")[2])[0]
    rows = [[c.strip(" `") for c in line.strip("| ").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {(row[0], column): cell for row in rows[2:] for column, cell in zip(rows[0][1:], row[1:], strict=True)}


CELLS = table("Portable parameters")
BY_MODEL = table("On ComfyUI it depends on the model")


def tinted(color: tuple[int, int, int], size: tuple[int, int]) -> Image.Image:
    """A gradient of one colour."""
    grey = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", [ImageChops.multiply(grey, Image.new("L", size, top)) for top in color])


def text_of(image: Image.Image) -> str:
    """An image as jobs hold it."""
    return base64.b64encode(encoded(image)).decode()


def sized(b: Bench) -> tuple[int, int]:
    """The size of images to start from; Fooocus varies none of a smaller area."""
    return (1024, 1024) if b.name == "fooocus" else (64, 64)


def size_alone(b: Bench) -> dict[str, Any]:
    return dict(zip(("width", "height"), sized(b), strict=True))


def image_given(b: Bench) -> dict[str, Any]:
    """A job that starts from a red image."""
    return {"image": text_of(tinted(RED, sized(b))), **size_alone(b)}


def masked(box: tuple[float, float]) -> Callable[[Bench], str]:
    """A mask that selects what lies between two parts of the width."""

    def made(b: Bench) -> str:
        width, height = sized(b)
        mask = Image.new("L", (width, height), 0)
        mask.paste(255, (int(box[0] * width), 0, int(box[1] * width), height))
        return text_of(mask)

    return made


def distance(output: Output, color: tuple[int, int, int]) -> float:
    """How far a picture is from the image of a colour, 0 for the image itself."""
    made = shown(output)
    return sum(ImageStat.Stat(ImageChops.difference(made, tinted(color, made.size))).mean)


def nearer_than_without(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert distance(one, RED) < distance(plain, RED)
    assert distance(two, BLUE) < distance(plain, BLUE)


def nearer_the_less(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert distance(one, RED) < distance(two, RED)


def kept_outside(b: Bench, plain: Output, one: Output, two: Output) -> None:
    """The left half was selected first, then the right one; the other comes back as it was."""
    width, height = sized(b)
    left, right = (0, 0, width // 2, height), (width // 2, 0, width, height)
    for output, kept, changed in ((one, right, left), (two, left, right)):
        differs = ImageChops.difference(shown(output), tinted(RED, (width, height)))
        assert differs.crop(kept).getbbox() is None
        assert differs.crop(changed).getbbox() is not None


def counted(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert [len(o.images) for o in (plain, one, two)] == [1, 2, 3]
    assert len({pixels(two, n) for n in range(3)}) == 3


def reported(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert [o.images[0].seed for o in (plain, one, two)] == [7, 11, 4_000_000_000]


def wide(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert [shown(o).size for o in (plain, one, two)] == [(64, 64), (80, 64), (128, 64)]


def high(b: Bench, plain: Output, one: Output, two: Output) -> None:
    assert [shown(o).size for o in (plain, one, two)] == [(64, 64), (64, 80), (64, 128)]


def untold(b: Bench, plain: Output, one: Output, two: Output) -> None:
    """The pictures, and what the server says, are enough."""


@dataclass(frozen=True)
class Case:
    """Two values of a field, what the server must say of each by its name ("": all others), and what else holds."""

    values: tuple[Any, Any]
    told: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    base: Callable[[Bench], dict[str, Any]] = lambda b: {}
    holds: Callable[[Bench, Output, Output, Output], None] = untold


def same(*values: Any, **options: Any) -> Case:
    """The server says what the job says."""
    return Case((values[0], values[1]), {"": (values[0], values[1])}, **options)


def with_refiner(b: Bench) -> dict[str, Any]:
    return {"steps": 10, "checkpoint": b.second if b.name == "comfyui" else b.first}


CASES: Mapping[str, Case] = {
    "prompt": same("a dog", "a fox"),
    "negative_prompt": same("rain", "snow"),
    "width": same(80, 128, holds=wide),
    "height": same(80, 128, holds=high),
    "steps": same(5, 9),
    "cfg": same(3.5, 9.0),
    "seed": same(11, 4_000_000_000, holds=reported),
    "sampler": Case(
        ("euler_ancestral", "heun"),
        {"": ("euler_ancestral", "heun"), **dict.fromkeys(SDAPI, ("Euler a", "Heun"))},
    ),
    "scheduler": Case(
        ("exponential", lambda b: "karras" if b.name == "sdnext-2023" else "normal"),
        {"": ("exponential", "normal"), **dict.fromkeys(SDAPI, ("Exponential", "Normal")), "sdnext": (None, None)},
        lambda b: {"sampler": "euler"},
    ),
    "batch_size": same(2, 3, holds=counted),
    "clip_skip": Case((3, 4), {"": (3, 4), "comfyui": (None, None)}),
    "loras": Case(
        ([{"name": LORA, "weight": 0.5}], [{"name": OTHER_LORA, "weight": 0.75}]),
        {
            "": ({LORA: "0.5"}, {OTHER_LORA: "0.75"}),
            "fooocus": ({LORA: 0.5}, {OTHER_LORA: 0.75}),
            "comfyui": ({LORA: None}, {OTHER_LORA: None}),
        },
    ),
    "vae": Case((VAE, OTHER_VAE), {"": (stem(VAE), stem(OTHER_VAE))}),
    "refiner": Case(
        (
            lambda b: {"checkpoint": b.refiner, "switch_at": 0.4},
            lambda b: {"checkpoint": b.refiner, "switch_at": 0.8},
        ),
        {
            "": (("sd_xl_base_1.0", "0.4"), ("sd_xl_base_1.0", "0.8")),
            "fooocus": (("sd_xl_base_1.0", 0.4), ("sd_xl_base_1.0", 0.8)),
            "comfyui": (("refiner", None), ("refiner", None)),
        },
        with_refiner,
    ),
    "image": Case(
        (lambda b: text_of(tinted(RED, sized(b))), lambda b: text_of(tinted(BLUE, sized(b)))),
        base=size_alone,
        holds=nearer_than_without,
    ),
    "denoise": same(0.25, 0.9, base=image_given, holds=nearer_the_less),
    "mask": Case(
        (masked((0, 0.5)), masked((0.5, 1))),
        {"": (True, True), **dict.fromkeys(SDAPI, (None, None))},
        image_given,
        kept_outside,
    ),
    "checkpoint": Case(
        (lambda b: b.second, lambda b: b.first),
        {"": ("sd_xl_base_1.0", "dreamshaper_8"), "fooocus": ("sd_xl_base_1.0", "juggernautXL_v8Rundiffusion")},
    ),
}


def document(b: Bench, name: str, value: Any) -> dict[str, Any]:
    """The job with the field; without it where the value is None."""
    given = {**CASES[name].base(b)}
    if value is not None:
        given[name] = value(b) if callable(value) else value
    made = b.document(**given)
    if name == "checkpoint" and value is None:
        del made["checkpoint"]
    return made


def test_the_table_names_every_field_on_every_server() -> None:
    """All portable parameters and the checkpoint; each cell says yes or no."""
    fields = {*Params.model_fields, "checkpoint"}
    assert {row for row, _ in CELLS} == fields == set(CASES)
    assert CELLS.keys() == {(row, column) for row in fields for column in COLUMNS}
    assert all(re.fullmatch(r"(yes|no)(\[\^[a-z]+\])*", cell) for cell in [*CELLS.values(), *BY_MODEL.values()])


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", CASES)
async def test_a_cell_says_what_the_server_does(name: str, column: str) -> None:
    """Honoured or refused by its name: never ignored."""
    async with bench(COLUMNS[column]) as b:
        if CELLS[name, column].startswith("yes"):
            await honoured(b, name)
        else:
            await refused(b, name)


async def honoured(b: Bench, name: str) -> None:
    """Without the field, and with two values of it: three pictures, and the server says what it was told."""
    case = CASES[name]
    plain = await b.make(document(b, name, None), fresh=True)
    outputs = []
    expected = case.told.get(b.name, case.told.get("", (None, None)))
    for value, said in zip(case.values, expected, strict=True):
        outputs.append(await b.make(document(b, name, value), fresh=True))
        if said is not None:
            assert b.told[name] == said
    case.holds(b, plain, *outputs)
    if name == "checkpoint":
        assert pixels(outputs[1]) == pixels(plain) != pixels(outputs[0])
    elif name != "batch_size":
        assert len({pixels(output) for output in (plain, *outputs)}) == 3
    assert b.sampled == 3


async def refused(b: Bench, name: str) -> None:
    for value in CASES[name].values:
        with pytest.raises(InvalidJob) as caught:
            await b.admit(document(b, name, value))
        assert caught.value.errors[0].field == f"params.{name}"
    assert b.sampled == 0
