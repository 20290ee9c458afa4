"""What portable parameters become for each server: honoured or refused, never ignored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.described import IMAGE, LISTS, params, refused, server
from worker.engines.sdapi.dialects import FORGE, SDNEXT


def test_portable_parameters_become_native_ones() -> None:
    """Field by field."""
    work = params(
        server(FORGE, options={**LISTS["options"], "forge_additional_modules": []}),
        negative_prompt="dog",
        steps=7,
        cfg=3.5,
        sampler="euler_ancestral",
        scheduler="karras",
        clip_skip=2,
        vae="sharp",
        refiner={"checkpoint": "other", "switch_at": 0.6},
        loras=[{"name": "my.style.safetensors", "weight": -0.25}],
    )
    wanted = {
        "prompt": "x <lora:my_style:-0.25>",
        "negative_prompt": "dog",
        "steps": 7,
        "cfg_scale": 3.5,
        "sampler_name": "Euler a",
        "scheduler": "Karras",
        "refiner_checkpoint": "other.safetensors",
        "refiner_switch_at": 0.6,
    }
    assert work.request.items() >= wanted.items()
    assert work.request["override_settings"] == {
        "CLIP_stop_at_last_layers": 2,
        "forge_additional_modules": ["/m/VAE/sharp.pt"],
    }
    assert (work.endpoint, work.steps, work.expect.width, work.expect.height) == ("txt2img", 7, 64, 64)


def test_portable_images() -> None:
    """An image makes it img2img; masked it comes back whole; SD.Next is told to resize."""
    work = params(image=IMAGE, mask="https://cdn.example/m.png", denoise=0.4)
    assert work.endpoint == "img2img"
    assert [i.field for i in work.inputs] == ["params.image", "params.mask"]
    assert (work.request["denoising_strength"], work.request["inpaint_full_res"]) == (0.4, False)
    assert (work.expect.width, work.request["resize_mode"]) == (64, 0)
    assert params(server(SDNEXT), image=IMAGE).request["resize_mode"] == 1
    assert refused({"params": {"prompt": "x", "image": "%"}}) == "params.image"


@pytest.mark.parametrize(
    ("field", "value", "options"),
    [("clip_skip", 2, {}), ("vae", "sharp", {}), ("sampler", "nosuch", {}), ("scheduler", "nosuch", {})],
)
def test_portable_fields_that_cannot_be_honoured(field: str, value: Any, options: dict[str, Any]) -> None:
    """Refused, never ignored."""
    on = server(options={"sd_model_checkpoint": "x", **options})
    assert refused({"params": {"prompt": "x", field: value}}, on) == f"params.{field}"


def test_clip_skip_and_refiner_on_sdnext() -> None:
    """The one is a field there, the other does not exist."""
    assert params(server(SDNEXT), clip_skip=2).request["clip_skip"] == 2
    assert params(server(), vae="sharp").request["override_settings"]["sd_vae"] == "sharp.pt"
    document = {"params": {"prompt": "x", "refiner": {"checkpoint": "other"}}}
    assert refused(document, server(SDNEXT)) == "params.refiner"
