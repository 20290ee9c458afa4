"""The variables by which the dynamic images name models."""

from __future__ import annotations

import pytest

from worker.errors import ConfigError, Owner
from worker.models.base import Wanted
from worker.models.dynamic import KINDS, SWITCHES, VERSIONS, listed
from worker.models.manifest import When
from worker.settings import inherited


def test_each_list_has_its_kind() -> None:
    """All of it before the server starts, as those images do it."""
    found = listed(
        {
            "CKPT_URLS": "https://cdn.example/a.safetensors, https://cdn.example/b.safetensors,",
            "VAE_URLS": "s3://models/v.safetensors",
            "LORA_URLS": "https://cdn.example/download?id=7",
            "CONTROLNET_URLS": "https://huggingface.co/o/r/resolve/main/c.safetensors",
        }
    )
    assert [(item.wanted.field, item.wanted.kind, item.wanted.name) for item in found.items] == [
        ("CKPT_URLS[0]", "checkpoint", "a.safetensors"),
        ("CKPT_URLS[1]", "checkpoint", "b.safetensors"),
        ("VAE_URLS[0]", "vae", "v.safetensors"),
        ("LORA_URLS[0]", "lora", ""),
        ("CONTROLNET_URLS[0]", "controlnet", "c.safetensors"),
    ]
    assert {(item.when, item.wanted.owner) for item in found.items} == {(When.BEFORE_ENGINE, Owner.OPERATOR)}


def test_versions_at_civitai_have_the_kind_that_civitai_says() -> None:
    """The list itself does not tell it."""
    (first, second) = listed({"CIVITAI_MODEL_VERSION_IDS": "128713,7"}).items
    assert first.wanted == Wanted(
        "", "", "civitai://128713", field="CIVITAI_MODEL_VERSION_IDS[0]", owner=Owner.OPERATOR
    )
    assert second.wanted.url == "civitai://7"


def test_the_switches_mean_sdxl() -> None:
    """Base and refiner are checkpoints at Hugging Face."""
    found = listed({"LOAD_SDXL_BASE": "1", "LOAD_REFINER": "1"}).items
    names = ["sd_xl_base_1.0.safetensors", "sd_xl_refiner_1.0.safetensors"]
    assert [(item.wanted.kind, item.wanted.name) for item in found] == [("checkpoint", name) for name in names]
    assert listed({"LOAD_SDXL_BASE": "0"}).items == ()


def test_every_mistake_is_told_by_variable_and_place() -> None:
    """And no URL is repeated."""
    with pytest.raises(ConfigError) as caught:
        listed({"CKPT_URLS": "https://cdn.example/a.safetensors,sesame", "CIVITAI_MODEL_VERSION_IDS": "sesame"})
    assert [mistake.field for mistake in caught.value.mistakes] == ["CKPT_URLS[1]", "CIVITAI_MODEL_VERSION_IDS[0]"]
    assert "sesame" not in caught.value.message


def test_the_settings_and_the_list_know_the_same_variables() -> None:
    """What is listed as honoured at the start is honoured."""
    assert {*KINDS, VERSIONS} == set(inherited.LISTS)
    assert set(SWITCHES) == set(inherited.SWITCHES)


def test_other_variables_name_no_models() -> None:
    """Nothing is made of what these images use otherwise."""
    assert listed({"LRU_CACHE_SIZE_GB": "20", "CLI_ARGS": "--medvram"}).items == ()
