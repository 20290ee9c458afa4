"""The servers' folders by kind."""

from __future__ import annotations

import pytest

from worker.errors import ConfigError, InvalidJob
from worker.models.layout import FAMILIES, LAYOUTS, Family, family_of, is_model_name


@pytest.mark.parametrize(
    ("family", "kind", "target"),
    [
        ("a1111", "checkpoint", "Stable-diffusion"),
        ("a1111", "refiner", "Stable-diffusion"),
        ("a1111", "lora", "Lora"),
        ("a1111", "vae", "VAE"),
        ("a1111", "controlnet", "ControlNet"),
        ("a1111", "upscaler", "ESRGAN"),
        ("a1111", "embedding", "../embeddings"),
        ("a1111", "unet", "Stable-diffusion"),
        ("a1111", "text_encoders", "text_encoder"),
        ("sdnext", "checkpoints", "Stable-diffusion"),
        ("sdnext", "embedding", "embeddings"),
        ("sdnext", "controlnet", "control/controlnet"),
        ("sdnext", "diffusion_models", "UNET"),
        ("sdnext", "clip", "Text-encoder"),
        ("comfyui", "checkpoint", "checkpoints"),
        ("comfyui", "loras", "loras"),
        ("comfyui", "unet", "diffusion_models"),
        ("comfyui", "clip", "text_encoders"),
        ("comfyui", "upscalers", "upscale_models"),
        ("comfyui", "t2i_adapter", "controlnet"),
        ("comfyui", "ultralytics", "ultralytics"),
        ("fooocus", "checkpoint", "checkpoints"),
        ("fooocus", "upscaler", "upscale_models"),
        ("fooocus", "inpaint", "inpaint"),
    ],
)
def test_each_kind_has_the_folder_that_the_server_reads(family: Family, kind: str, target: str) -> None:
    """Under the names of a job document, of the scheduling API, and of ComfyUI's folders."""
    assert LAYOUTS[family].shelving(kind).target == target


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("a1111", "clip_vision"),
        ("sdnext", "ultralytics"),
        ("fooocus", "unet"),
        ("fooocus", "text_encoders"),
        ("comfyui", "diffusers"),
        ("comfyui", "custom_nodes"),
        ("comfyui", "../input"),
        ("comfyui", ".sd-worker"),
        ("comfyui", ""),
    ],
)
def test_a_kind_without_a_folder_is_refused(family: Family, kind: str) -> None:
    """The job is at fault, and hears which kind it was; no kind leads out of the models."""
    with pytest.raises(InvalidJob, match="has no folder for models of the kind"):
        LAYOUTS[family].shelving(kind)


def test_a_kind_has_one_name() -> None:
    """So that one file is never two entries."""
    names = {LAYOUTS["comfyui"].kind(kind) for kind in ("unet", "diffusion_models")}
    assert names == {"unet"}
    assert LAYOUTS["a1111"].kind("unet") == LAYOUTS["a1111"].kind("refiner") == "checkpoint"


def test_comfyui_looks_into_the_old_folder_first() -> None:
    """ComfyUI's list of folders for diffusion models begins with models/unet."""
    assert LAYOUTS["comfyui"].shelving("unet").folders == ("unet", "diffusion_models")


@pytest.mark.parametrize(
    ("family", "kind", "name", "listed"),
    [
        ("a1111", "checkpoint", "X.SAFETENSORS", True),
        ("a1111", "checkpoint", "x.vae.safetensors", False),
        ("a1111", "vae", "x.vae.safetensors", True),
        ("a1111", "lora", "x.bin", False),
        ("sdnext", "controlnet", "x.pth", False),
        ("comfyui", "unet", "x.gguf", True),
        ("comfyui", "lora", "x.gguf", False),
        ("comfyui", "ultralytics", "x.onnx", True),
        ("fooocus", "inpaint", "inpaint_v26.fooocus.patch", True),
        ("fooocus", "checkpoint", "x.sft", False),
    ],
)
def test_a_server_lists_by_extension(family: Family, kind: str, name: str, listed: bool) -> None:
    """By those that its program names for the kind."""
    assert LAYOUTS[family].lists(kind, name) is listed


@pytest.mark.parametrize("family", FAMILIES)
def test_no_server_lists_a_partial_file(family: Family) -> None:
    """Nor what lies beside it: neither ends with a model's extension."""
    layout = LAYOUTS[family]
    endings = tuple(ending for kind in layout.kinds for ending in layout.shelving(kind).extensions)
    assert not ".x.safetensors.0123abcd.part".endswith(endings)
    assert not ".x.safetensors.0123abcd.part.json".endswith(endings)
    assert all(ending.startswith(".") for ending in endings)


@pytest.mark.parametrize(
    ("holds", "family"),
    [
        (["Stable-diffusion", "Lora", "ControlNet", "VAE"], "a1111"),
        (["Stable-diffusion", "VAE-approx", "hypernetworks"], "a1111"),
        (["Stable-diffusion", "Diffusers", "UNET"], "sdnext"),
        (["checkpoints", "loras", "diffusion_models"], "comfyui"),
        (["checkpoints", "loras", "unet", "prompt_expansion"], "fooocus"),
    ],
)
def test_a_folder_tells_whose_it_is(holds: list[str], family: Family) -> None:
    """By the folders that only one server makes."""
    assert family_of("/models", holds) == family


@pytest.mark.parametrize(
    "holds", [[], ["Stable-diffusion", "Lora"], ["checkpoints"], ["Stable-diffusion", "control", "ControlNet"]]
)
def test_a_folder_that_does_not_tell_needs_the_engine(holds: list[str]) -> None:
    """The message names the variable."""
    with pytest.raises(ConfigError, match="WORKER_ENGINE"):
        family_of("/models", holds)


@pytest.mark.parametrize(
    ("name", "is_model"),
    [("a.safetensors", True), ("a.PT", True), ("a.png", False), ("a.safetensors.part", False), ("a", False)],
)
def test_a_model_is_told_by_its_extension(name: str, is_model: bool) -> None:
    """Previews, descriptions and partial files are none."""
    assert is_model_name(name) is is_model
