"""A worker without a folder of models."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from worker.errors import ModelNotFound
from worker.mentions import Place
from worker.models.base import Models, Wanted
from worker.models.none import NoCache

LISTED = Wanted("refiner", "sub/xl.safetensors", known=True)
UNKNOWN = Wanted("lora", "cat", field="params.loras.0.name")


async def test_what_the_server_lists_is_used_as_it_is() -> None:
    """Jobs work with the server's own models, by the names that they have there."""
    models: Models = NoCache()
    async with models.provided([LISTED]) as provided:
        assert provided.places == (Place("checkpoint", "sub/xl.safetensors"),)
        assert provided.version == models.version == 0
    assert (await models.fetch(LISTED)).place == LISTED.place
    assert (models.entries(), models.transfers()) == ((), ())


async def test_nothing_can_be_fetched() -> None:
    """What the server does not list is not found, in words that name the variable that is missing."""
    models = NoCache()
    needed = Wanted("lora", "cat", url="https://models.example/cat", field="params.loras.0.name")
    with pytest.raises(ModelNotFound, match=r"params\.loras\.0\.name: .*no lora 'cat'.*WORKER_MODELS_DIR"):
        async with models.provided([LISTED, needed]):
            pass
    with pytest.raises(ModelNotFound, match="WORKER_MODELS_DIR"):
        await models.fetch(Wanted("lora", "", url="https://models.example/a"))
    with pytest.raises(ModelNotFound, match="WORKER_MODELS_DIR"):
        await models.remove(LISTED.place)


async def test_what_has_only_a_name_is_left_to_the_server() -> None:
    """Fooocus tells neither of its VAEs nor of its embeddings: admission refuses what it can tell to be missing."""
    async with NoCache().provided([UNKNOWN]) as provided:
        assert provided.places == (Place("lora", "cat"),)
    with pytest.raises(ModelNotFound, match="WORKER_MODELS_DIR"):
        await NoCache().fetch(UNKNOWN)


async def test_hints_are_logged() -> None:
    """An order to fetch something leaves a trace; one for what is there does not."""
    with capture_logs() as logs:
        NoCache().hint(LISTED)
        NoCache().hint(UNKNOWN)
    assert [(line["event"], line["model"]) for line in logs] == [("model_hint_ignored", "lora/cat")]


async def test_there_is_always_space() -> None:
    """Nothing is written, so nothing pauses, tidies or closes."""
    models = NoCache()
    await models.space()
    await models.tidy()
    await models.keep()
    models.drain()
    await models.aclose()
    assert (models.bytes, models.cap) == (0, 0)
