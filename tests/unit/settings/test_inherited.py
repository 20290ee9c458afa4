"""Variables of other images: which of them count, and what becomes of them."""

from __future__ import annotations

import pytest

from worker.errors import ConfigError
from worker.settings import Settings, load_settings


def notes_of(**environ: str) -> dict[str, str]:
    """What is said of each of them, marked where it has no effect."""
    return {one.variable: ("" if one.honoured else "- ") + one.note for one in load_settings(environ).inherited}


def test_none_is_set_by_default() -> None:
    """Blank counts as unset here too."""
    assert load_settings({"MANIFEST": " ", "CKPT_URLS": ""}) == Settings()


def test_each_is_honoured_under_its_twin() -> None:
    """The list says which variable of ours does the same."""
    said = notes_of(MANIFEST_JSON="{}", CKPT_URLS="https://a.example/x", LOAD_REFINER="1", LRU_CACHE_SIZE_GB="20")
    assert said == {
        "MANIFEST_JSON": "is honoured; WORKER_MODELS_MANIFEST is its name here",
        "CKPT_URLS": "is honoured; WORKER_MODELS_MANIFEST is its name here",
        "LOAD_REFINER": "is honoured; WORKER_MODELS_MANIFEST is its name here",
        "LRU_CACHE_SIZE_GB": "is honoured; WORKER_MODELS_MAX_SIZE is its name here",
    }


def test_our_own_variable_wins() -> None:
    """And what it beats is listed as without effect, by name."""
    said = notes_of(WORKER_MODELS_MANIFEST="[]", MANIFEST="/no/such/file", LORA_URLS="https://a.example/x")
    assert said == dict.fromkeys(("MANIFEST", "LORA_URLS"), "- has no effect beside WORKER_MODELS_MANIFEST")
    settings = load_settings({"WORKER_MODELS_MAX_SIZE": "10GB", "LRU_CACHE_SIZE_GB": "nonsense"})
    assert settings.models.max_size == 10**10


def test_what_has_no_effect_is_listed_too() -> None:
    """Nobody is left to believe that it has one."""
    assert notes_of(MANIFEST_JSON="{}", MANIFEST="/m.yaml")["MANIFEST"] == "- has no effect beside MANIFEST_JSON"
    assert notes_of(LOAD_SDXL_BASE="0")["LOAD_SDXL_BASE"] == "- has no effect unless it is 1"
    assert notes_of(EXTENSION_URLS="https://a.example/x")["EXTENSION_URLS"].startswith("- has no effect: the worker")
    off = load_settings({"LRU_CACHE_SIZE_GB": "0"})
    assert (off.models, [one.honoured for one in off.inherited]) == (Settings().models, [False])


@pytest.mark.parametrize(("value", "size"), [("20", 20_000_000_000), ("0.5", 500_000_000)])
def test_the_size_of_the_cache_counts_in_gigabytes(value: str, size: int) -> None:
    """As comfyui-api writes it."""
    assert load_settings({"LRU_CACHE_SIZE_GB": value}).models.max_size == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LRU_CACHE_SIZE_GB", "twenty"),
        ("LRU_CACHE_SIZE_GB", "-1"),
        ("LRU_CACHE_SIZE_GB", "NaN"),
        ("CIVITAI_MODEL_VERSION_IDS", "128713, sdxl"),
    ],
)
def test_a_wrong_value_is_a_mistake_of_the_variable_that_is_set(name: str, value: str) -> None:
    """Not of its twin, which nobody wrote."""
    with pytest.raises(ConfigError) as caught:
        load_settings({name: value})
    assert [mistake.field for mistake in caught.value.mistakes] == [name]


def test_no_value_is_shown() -> None:
    """A URL may hold a token."""
    (one,) = load_settings({"CKPT_URLS": "https://a.example/x?token=sesame"}).inherited
    assert "sesame" not in f"{one!r} {one}"
