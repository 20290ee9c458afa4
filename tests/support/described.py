"""A server of the family as its lists describe it, and what jobs become for it. No server runs."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.engines import job_of
from worker.engines.base import Work
from worker.engines.sdapi.dialects import A1111, Dialect
from worker.engines.sdapi.inventory import Inventory, inventory
from worker.engines.sdapi.translate import translate
from worker.errors import InvalidJob
from worker.job import Limits

SHA = "0123456789" + "a" * 54
IMAGE = base64.b64encode(b"picture").decode()
LISTS: dict[str, Any] = {
    "sd-models": [
        {
            "title": "base.safetensors [0123456789]",
            "model_name": "base",
            "hash": "0123456789",
            "sha256": SHA,
            "filename": "/m/base.safetensors",
        },
        {"title": "other.safetensors", "model_name": "other", "filename": "/m/other.safetensors"},
    ],
    "samplers": [{"name": "Euler", "aliases": []}, {"name": "Euler a", "aliases": ["k_euler_a"]}],
    "schedulers": [{"name": "karras", "label": "Karras"}],
    "loras": [{"name": "my_style", "alias": "my_style", "path": "/m/Lora/my.style.safetensors"}],
    "upscalers": [{"name": "None"}, {"name": "R-ESRGAN 4x+"}],
    "latent-upscale-modes": [{"name": "Latent (nearest)"}],
    "scripts": {"txt2img": ["controlnet", "x/y/z plot"], "img2img": ["controlnet"]},
    "embeddings": {"loaded": {"easynegative": {}}, "skipped": {}},
    "options": {
        "sd_model_checkpoint": "base.safetensors [0123456789]",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "sd_model_refiner": "None",
    },
}
_NAMES = (
    "prompt negative_prompt width height steps cfg_scale seed subseed subseed_strength batch_size n_iter sampler_name "
    "sampler_index scheduler enable_hr hr_scale hr_upscaler hr_checkpoint_name hr_sampler_name hr_scheduler hr_prompt "
    "refiner_checkpoint refiner_switch_at override_settings override_settings_restore_afterwards script_name "
    "script_args alwayson_scripts send_images save_images do_not_save_samples do_not_save_grid disable_extra_networks "
    "init_images mask denoising_strength resize_mode inpaint_full_res inpainting_fill infotext sd_model_checkpoint "
    "return_grid keep_incomplete extra clip_skip xyz"
)
FIELDS = frozenset(_NAMES.split()) | {"styles"}
VAES = [{"model_name": "sharp.pt", "filename": "/m/VAE/sharp.pt"}]


def server(dialect: Dialect = A1111, *, controlnets: Any = None, **changes: Any) -> Inventory:
    fields = {"txt2img": FIELDS, "img2img": FIELDS}
    return inventory(dialect, {**LISTS, **changes}, vaes=VAES, controlnets=controlnets, fields=fields)


def worked(document: dict[str, Any], on: Inventory | None = None) -> Work:
    return translate(job_of(document), on or server(), Limits())


def native(on: Inventory | None = None, **fields: Any) -> Work:
    return worked({"request": {"prompt": "x", "width": 64, "height": 64, **fields}}, on)


def params(on: Inventory | None = None, **fields: Any) -> Work:
    return worked({"params": {"prompt": "x", "width": 64, "height": 64, **fields}}, on)


def refused(document: dict[str, Any], on: Inventory | None = None) -> str:
    with pytest.raises(InvalidJob) as caught:
        worked(document, on)
    return caught.value.errors[0].field
