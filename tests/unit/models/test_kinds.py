"""Which kind of model a folder, a URL or a hub's own word means."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from tests.support.receiver import Answer, ScriptedServer
from worker.clock import SystemClock
from worker.errors import InvalidJob, ModelNotFound
from worker.models.base import Wanted
from worker.models.find import Sources
from worker.models.kinds import FOLDERS, KINDS, kind_of_folder, kind_of_type, kind_of_url
from worker.retry import Policy
from worker.settings.models import ModelsSettings
from worker.urls import Guard


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("checkpoints", "checkpoint"),
        ("Stable-diffusion", "checkpoint"),
        ("Lora", "lora"),
        ("upscale_models", "upscaler"),
        ("clip_vision", "clip_vision"),
        ("animatediff_models", "animatediff_models"),
        ("LLM", None),
        ("..", None),
        ("", None),
    ],
)
def test_a_folder_names_a_kind(folder: str, kind: str | None) -> None:
    """Known ones of any server in any case; others by their own name, as far as that can be a kind."""
    assert kind_of_folder(folder) == kind


def test_every_kind_is_its_own_folder() -> None:
    """A list by kind needs no other words than the job document has."""
    assert all(kind_of_folder(kind) == kind for kind in KINDS)
    assert set(FOLDERS.values()) == set(KINDS)


@pytest.mark.parametrize("word", ["LORA", "LoCon", "DoRA"])
def test_civitais_words_for_loras_mean_one_kind(word: str) -> None:
    """The servers keep them in one folder."""
    assert kind_of_type(word) == "lora"


def test_a_url_tells_its_kind_by_the_innermost_folder_that_is_known() -> None:
    """The file's own name, the host and the query tell nothing."""
    assert kind_of_url("https://vae.example/checkpoints/sdxl/loras/v1/checkpoint?lora=1") == "lora"
    assert kind_of_url("https://vae.example/lora") is None
    assert kind_of_url("https://cdn.example/text%5Fencoders/x") == "clip"
    with pytest.raises(ValueError, match="names no file at Hugging Face"):
        kind_of_url("https://huggingface.co/loras/x")


async def test_civitai_is_asked_for_the_kind_of_what_was_named_without() -> None:
    """Once for what it says of a version; its word must mean a kind, and a version that is not there is not found."""
    async with ScriptedServer() as civitai:
        sources = Sources(
            ModelsSettings(),
            guard=Guard.from_setting("false"),
            clock=SystemClock(),
            rng=random.Random(1),
            civitai_url=civitai.url(""),
            policy=Policy(attempts=1, first=timedelta(0)),
        )
        try:
            for type_name in ("LoCon", "Workflows"):
                civitai.script.append(Answer(200, {}, b'{"id": 7, "model": {"type": "%s"}}' % type_name.encode()))
            wanted = Wanted("", "", "civitai://7", field="LIST[0]")
            assert (await sources.typed(wanted)).kind == "lora"
            assert (await sources.typed(Wanted("", "", "urn:air:sdxl:lora:civitai:1@7"))).kind == "lora"
            with pytest.raises(InvalidJob, match=r"LIST\[1\]: civitai.com version 8 has the type 'Workflows'"):
                await sources.typed(Wanted("", "", "civitai://8", field="LIST[1]"))
            given = Wanted("vae", "", "civitai://9")
            assert await sources.typed(given) is given
            assert await sources.typed(other := Wanted("", "x", "https://cdn.example/x")) is other
            assert len(civitai.requests) == 2
            civitai.script.append(Answer(404, {}, b"{}"))
            with pytest.raises(ModelNotFound):
                await sources.typed(Wanted("", "", "civitai://9"))
        finally:
            await sources.aclose()
