"""Where jobs for Fooocus-API name model files, and what it falls back to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.engines import job_of
from tests.support.fooocus import DEFAULT, NEW, OLD, offered
from worker.engines.fooocus.holding import configured, is_listed, used
from worker.engines.fooocus.inventory import relisted
from worker.engines.fooocus.mentions import mentions
from worker.errors import InvalidJob
from worker.mentions import Place

LORA = "sd_xl_offset_example-lora_1.0.safetensors"


def told(document: dict[str, Any], version: str = NEW) -> dict[str, tuple[str, str, str | None]]:
    found = mentions(job_of(document), offered(version))
    return {m.field: (m.kind, m.name, m.known) for m in found}


def test_every_place_of_a_native_body_is_told() -> None:
    """The base model, the refiner, LoRAs that are used, the VAE, and tags of the prompt."""
    body = {
        "prompt": "<lora:ink:0.5> <lora:new:1>",
        "negative_prompt": "<lora:detail:1>",
        "base_model_name": "vision_xl",
        "refiner_model_name": "new.safetensors",
        "loras": [{"model_name": "detail"}, {"model_name": "x", "enabled": False}, {"model_name": "None"}, 5],
        "advanced_params": {"vae_name": "v.safetensors"},
    }
    assert told({"request": body}) == {
        "request.base_model_name": ("checkpoint", "vision_xl", "realistic/vision_xl.safetensors"),
        "request.refiner_model_name": ("refiner", "new.safetensors", None),
        "request.advanced_params.vae_name": ("vae", "v.safetensors", None),
        "request.loras.0.model_name": ("lora", "detail", "detail.safetensors"),
        "request.prompt": ("lora", "new", None),
    }
    tags = [(m.name, m.known) for m in mentions(job_of({"request": body}), offered(NEW)) if m.tag]
    assert tags == [("ink", "styles/ink.safetensors"), ("new", None)]


def test_what_is_no_file_is_not_told() -> None:
    """Words of the server's own, a VAE that 0.4 would forget, and what is no text."""
    words = {"refiner_model_name": "None", "advanced_params": {"vae_name": "Default (model)"}, "loras": 5, "prompt": 5}
    assert told({"request": words}) == {}
    assert told({"request": {"advanced_params": {"vae_name": "v.pt"}}}, OLD) == {}
    assert told({"request": {"advanced_params": None}}) == {}
    assert told({"params": {"prompt": "x", "vae": "v.pt"}}, OLD) == {}


def test_portable_parameters_and_the_job_s_list_are_told() -> None:
    """Embeddings where a prompt names one that is listed, by their path."""
    params = {
        "prompt": "(embedding:e/easy:1.1) embedding:other",
        "negative_prompt": "embedding:e/easy",
        "vae": "v.pt",
        "refiner": {"checkpoint": "vision_xl"},
    }
    listed = [{"kind": "embeddings", "name": "e/easy.pt"}, {"kind": "loras", "name": "detail"}]
    assert told({"params": params, "models": listed}) == {
        "models.0.name": ("embedding", "e/easy.pt", None),
        "models.1.name": ("lora", "detail", "detail.safetensors"),
        "params.prompt": ("embedding", "e/easy", None),
        "params.negative_prompt": ("embedding", "e/easy", None),
        "params.vae": ("vae", "v.pt", None),
        "params.refiner.checkpoint": ("refiner", "vision_xl", "realistic/vision_xl.safetensors"),
    }
    with pytest.raises(InvalidJob):
        told({"params": params, "models": [{"kind": "vae", "name": "v.pt"}]}, OLD)


def test_what_a_request_uses_and_a_server_falls_back_to() -> None:
    """Its default model and LoRAs, as far as it has them."""
    body = {"base_model_name": "a\\b.pt", "refiner_model_name": "None", "loras": [{"model_name": "l.pt"}, 5, {}]}
    assert used(body) == {Place("checkpoint", "a/b.pt"), Place("lora", "l.pt")}
    assert configured(offered(NEW)) == {Place("checkpoint", DEFAULT), Place("lora", LORA)}
    assert configured(offered(NEW, models=("x.pt",), loras=())) == frozenset()


def test_files_are_listed_anew() -> None:
    """What else the server offers stays; a body without lists lists nothing."""
    before = offered(NEW)
    after = relisted(before, {"model_filenames": ["sub\\x.pt"], "lora_filenames": []})
    assert is_listed(after, Place("checkpoint", "sub/x.pt"))
    assert not is_listed(after, Place("lora", LORA))
    assert after.styles == before.styles
    assert relisted(before, None).models == ()
