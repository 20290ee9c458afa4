"""Which models a document needs, wherever it names them, and how long it may take."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.needs import Catalogue, needs_of, work_of
from dispatcher.words import NO_MODEL, Key, Source, Waiting, key_of

DIGEST, OTHER = "a" * 64, "b" * 64
NOTHING = Catalogue()


def keys(document: dict[str, Any], catalogue: Catalogue = NOTHING) -> list[Key]:
    return [need.key for need in needs_of(document, catalogue)]


def test_portable_parameters_name_their_models() -> None:
    """Checkpoint first, then refiner, VAE and LoRAs, those in the prompt too; names without extensions are one."""
    document = {
        "checkpoint": "dreamshaper_8.safetensors",
        "params": {
            "prompt": "a cat <lora:add_detail:0.7> <lyco:style>",
            "loras": [{"name": "add_detail.safetensors"}, {"name": "sub/other"}],
            "vae": "vae-ft.pt",
            "refiner": {"checkpoint": "sd_xl_refiner"},
        },
    }
    assert keys(document) == [
        "checkpoint/dreamshaper_8",
        "checkpoint/sd_xl_refiner",
        "vae/vae-ft",
        "lora/add_detail",
        "lora/sub/other",
        "lora/style",
    ]


def test_a_native_body_of_the_web_ui_names_its_models() -> None:
    """Overrides, hires and refiner, tags, ControlNet units and modules; words that stand for none are no names."""
    body = {
        "prompt": "x <lora:one:1>",
        "hr_prompt": "y <lora:two:1>",
        "override_settings": {
            "sd_model_checkpoint": "sub\\model.safetensors [1234567890]",
            "sd_vae": "Automatic",
            "forge_additional_modules": ["ae.safetensors"],
        },
        "refiner_checkpoint": "None",
        "hr_checkpoint_name": "Use same checkpoint",
        "alwayson_scripts": {
            "ControlNet": {
                "args": [
                    {"model": "control_canny [abcdef12]"},
                    {"model": "None"},
                    {"model": "off", "enabled": False},
                    "no unit",
                ]
            },
            "other": {"args": [{"model": "not one"}]},
        },
    }
    assert keys({"request": body}) == [
        "checkpoint/sub/model",
        "vae/ae",
        "lora/one",
        "lora/two",
        "controlnet/control_canny",
    ]
    assert keys({"request": {"prompt": "<lora:one:1>", "disable_extra_networks": True}}) == []


def test_a_native_body_of_fooocus_names_its_models() -> None:
    """Base model, refiner, VAE and the LoRAs that are switched on."""
    body = {
        "base_model_name": "juggernaut.safetensors",
        "refiner_model_name": "refiner.safetensors",
        "advanced_params": {"vae_name": "Default (model)"},
        "loras": [{"model_name": "on"}, {"model_name": "off", "enabled": False}, {"model_name": "None"}],
    }
    assert keys({"request": body}) == ["checkpoint/juggernaut", "checkpoint/refiner", "lora/on"]


def test_a_graph_names_its_models_by_its_loaders() -> None:
    """By the loaders' inputs, wherever the main one stands; links, other texts and what is built in name none."""
    graph = {
        "1": {"class_type": "CLIPLoader", "inputs": {"clip_name": "t5xxl_fp8.safetensors", "type": "flux"}},
        "2": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.safetensors"}},
        "3": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}},
        "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "detail.safetensors", "model": ["2", 0]}},
        "5": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "4x.pth"}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat, embedding:easynegative", "clip": ["1", 0]}},
        "7": {"class_type": "Power Lora", "inputs": {"lora_1": "more.safetensors", "lora_2": "words"}},
        "8": {"class_type": "SaveImage", "inputs": {"filename_prefix": "out.safetensors"}},
        "9": "no node",
    }
    assert keys({"workflow": graph}) == [
        "unet/flux1-dev",
        "clip/t5xxl_fp8",
        "lora/detail",
        "upscaler/4x",
        "embedding/easynegative",
        "lora/more",
    ]


def test_the_jobs_own_list_tells_more_of_what_it_names() -> None:
    """URL, digest and size of the list belong to the name elsewhere; a checkpoint may be a diffusion model there."""
    listed = {
        "kind": "unet",
        "name": "flux1-dev.safetensors",
        "url": "https://cdn.example/f",
        "sha256": DIGEST,
        "size": 9,
    }
    document = {"checkpoint": "flux1-dev", "params": {"prompt": ""}, "models": [listed, {"kind": "vae", "name": "ae"}]}
    (main, vae) = needs_of(document, NOTHING)
    assert (main.key, main.kind, main.name) == (f"unet@{DIGEST}", "unet", "flux1-dev.safetensors")
    assert (main.url, main.sha256, main.size) == ("https://cdn.example/f", DIGEST, 9)
    assert vae.key == "vae/ae"


def test_a_url_in_the_place_of_a_name_is_where_it_is_to_be_had() -> None:
    """Its file's name is the model's; where it tells none, the URL itself is."""
    (need,) = needs_of({"checkpoint": "https://cdn.example/m/model.safetensors?x=1", "params": {}}, NOTHING)
    assert (need.key, need.url) == ("checkpoint/model", "https://cdn.example/m/model.safetensors?x=1")
    assert keys({"checkpoint": "https://cdn.example/api/132760"}) == ["checkpoint/https://cdn.example/api/132760"]


def test_the_catalogue_tells_what_the_document_does_not() -> None:
    """Its digest gives the key, its size and URL fill what is missing, and what the document says itself stays."""
    source = Source("checkpoint", "sdxl/model.safetensors", "https://cdn.example/m", DIGEST, 6_900_000_000)
    catalogue = Catalogue([source])
    (need,) = needs_of({"checkpoint": "model"}, catalogue)
    assert (need.key, need.name, need.size, need.url) == (source.key, source.name, source.size, source.url)
    own = {"kind": "checkpoint", "name": "model.safetensors", "size": 7, "url": "https://own.example/m"}
    (need,) = needs_of({"checkpoint": "model", "models": [own]}, catalogue)
    assert (need.key, need.size, need.url) == (source.key, 7, "https://own.example/m")


def test_a_checkpoint_that_the_catalogue_has_as_a_diffusion_model_is_one() -> None:
    """The portable field is called checkpoint whatever the file is."""
    catalogue = Catalogue([Source("diffusion_models", "flux1-dev.safetensors")])
    assert keys({"checkpoint": "flux1-dev"}, catalogue) == ["unet/flux1-dev"]


def test_another_digest_is_another_model() -> None:
    """The catalogue's entry of the same name is not what a document with another digest means."""
    catalogue = Catalogue([Source("checkpoint", "model", sha256=OTHER, url="https://cdn.example/other")])
    listed = {"kind": "checkpoint", "name": "model.safetensors", "sha256": DIGEST}
    (need,) = needs_of({"checkpoint": "model", "models": [listed]}, catalogue)
    assert (need.key, need.url) == (f"checkpoint@{DIGEST}", None)


def test_a_nodes_file_goes_by_all_that_jobs_may_call_it() -> None:
    """A node that tells names alone is found by jobs that have a digest from the catalogue, and the other way round."""
    catalogue = Catalogue([Source("checkpoint", "sdxl/model.safetensors", sha256=DIGEST)])
    by_name = catalogue.keys_of("checkpoint", "model.safetensors")
    assert by_name[0] == f"checkpoint@{DIGEST}"
    assert {"checkpoint/model", "checkpoint/sdxl/model"} <= set(by_name)
    by_digest = NOTHING.keys_of("checkpoint", "sdxl/model.safetensors", DIGEST)
    assert by_digest == (f"checkpoint@{DIGEST}", "checkpoint/sdxl/model", "checkpoint/model")


def test_a_name_that_two_entries_share_means_neither() -> None:
    """Files of one name in two folders are told apart by their paths; of two entries of a path the later counts."""
    catalogue = Catalogue([Source("lora", "a/x", size=1), Source("lora", "b/x", size=2), Source("lora", "b/x", size=3)])
    assert catalogue.find("lora", "x") is None
    found = catalogue.find("loras", "b/x.safetensors")
    assert found is not None
    assert found.size == 3
    assert set(catalogue.by_key) == {"lora/a/x", "lora/b/x"}


def test_the_digest_finds_an_entry_under_any_name() -> None:
    """A model is its digest before it is its name."""
    source = Source("checkpoint", "renamed", sha256=DIGEST)
    assert Catalogue([source]).find("checkpoint", "whatever", DIGEST) is source


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"params": {"prompt": 3, "loras": "x", "refiner": "y"}},
        {"request": {"override_settings": [], "alwayson_scripts": {"controlnet": []}, "loras": {}}},
        {"workflow": {"1": {"class_type": "X", "inputs": []}}},
        {"models": [{"kind": "", "name": "x"}, {"kind": 1}, "x"]},
        {"template": {"name": "x", "input": {}}},
    ],
)
def test_a_document_that_names_none_needs_none(document: dict[str, Any]) -> None:
    """Whatever else it holds, such a job queues with those of no model."""
    assert needs_of(document, NOTHING) == ()
    assert Waiting("job", needs_of(document, NOTHING)).key == NO_MODEL


def test_keys_ignore_extensions_folders_and_slashes() -> None:
    """What one side writes with an extension, a backslash or a folder's name is the same model."""
    assert key_of("loras", "a\\b.safetensors") == key_of("lora", "a/b.ckpt") == "lora/a/b"
    assert key_of("refiner", "m", DIGEST) == f"checkpoint@{DIGEST}"


def test_work_grows_with_steps_pixels_and_images() -> None:
    """Seconds follow from what is asked for, in each form of job alike."""
    small = work_of({"params": {"prompt": "", "steps": 20, "width": 512, "height": 512}})
    assert work_of({"params": {"prompt": "", "steps": 40, "width": 512, "height": 512}}) > small
    assert work_of({"params": {"prompt": "", "steps": 20, "width": 1024, "height": 512}}) > small
    assert work_of({"params": {"prompt": "", "steps": 20, "width": 512, "height": 512, "batch_size": 2}}) > small
    assert work_of({"request": {"steps": 20, "width": 512, "height": 512}}) == small
    hires = {"steps": 20, "width": 512, "height": 512, "enable_hr": True, "hr_scale": 2}
    assert work_of({"request": hires}) == pytest.approx(1 + (small - 1) * 5)
    graph = {
        "1": {"inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "2": {"inputs": {"steps": 20, "denoise": 1.0, "latent_image": ["1", 0]}},
        "3": {"inputs": 7},
    }
    assert work_of({"workflow": graph}) == small


def test_the_work_of_fooocus_follows_its_words() -> None:
    """Performance stands for steps, the aspect ratio for pixels; what is overwritten counts."""
    body = {"performance_selection": "Speed", "aspect_ratios_selection": "1000*1000", "image_number": 2}
    assert work_of({"request": body}) == pytest.approx(1 + 0.2 * 30 * 2)
    assert work_of({"request": {**body, "performance_selection": "Lightning"}}) == pytest.approx(1 + 0.2 * 4 * 2)
    assert work_of({"request": {**body, "advanced_params": {"overwrite_step": 10}}}) == pytest.approx(1 + 0.2 * 10 * 2)
    assert work_of({"request": {"image_number": 1}}) == pytest.approx(1 + 0.2 * 30)


def test_an_image_that_is_only_changed_takes_part_of_its_steps() -> None:
    """Denoising by half does half of the steps."""
    whole = work_of({"params": {"prompt": "", "steps": 20}})
    half = work_of({"params": {"prompt": "", "steps": 20, "denoise": 0.5, "image": "x"}})
    assert half - 1 == pytest.approx((whole - 1) / 2)
    body = {"steps": 20, "init_images": ["x"], "denoising_strength": 0.5, "width": 1024, "height": 1024}
    assert work_of({"request": body}) == pytest.approx(half)


@pytest.mark.parametrize(
    "document", [{}, {"template": {"name": "x"}}, {"params": {"steps": True}}, {"params": {"steps": -1, "width": "x"}}]
)
def test_a_document_that_does_not_say_takes_the_usual_time(document: dict[str, Any]) -> None:
    """An image of a megapixel in the usual steps; never nothing, never more than an hour."""
    assert 5 < work_of(document) < 8
    assert work_of({"params": {"steps": 10**9}}) == 3600
