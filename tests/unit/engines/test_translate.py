"""What a native job becomes: everything that a server would drop or replace is settled or refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.described import IMAGE, LISTS, SHA, native, params, refused, server, worked
from tests.support.engines import job_of
from worker.engines.sdapi.dialects import A1111, FORGE, SDNEXT
from worker.engines.sdapi.inventory import all_fields, inventory, loaded_checkpoint
from worker.engines.sdapi.translate import translate
from worker.errors import ModelNotFound
from worker.job import Limits


def test_the_job_itself_is_not_touched() -> None:
    """The document is stored with the result: translation works on a copy, all the way down."""
    document = {
        "prompt": "x",
        "override_settings": {"sd_vae": "sharp"},
        "alwayson_scripts": {"ControlNet": {"args": []}},
    }
    job = job_of({"request": document, "checkpoint": "base"})
    before = job.model_dump_json()
    translate(job, server(), Limits())
    assert job.model_dump_json() == before


def test_a_checkpoint_becomes_a_lasting_override() -> None:
    """Always sent by title, never restored, and expected of the answer."""
    for document in (
        {"request": {"prompt": "x"}, "checkpoint": "base"},
        {"request": {"prompt": "x", "override_settings": {"sd_model_checkpoint": "0123456789"}}},
        {"request": {"prompt": "x", "sd_model_checkpoint": "base.safetensors"}, "checkpoint": "base"},
        {"params": {"prompt": "x"}, "checkpoint": SHA},
    ):
        work = worked(document)
        assert work.request["override_settings"] == {"sd_model_checkpoint": "base.safetensors [0123456789]"}
        assert work.request["override_settings_restore_afterwards"] is False
        assert "sd_model_checkpoint" not in work.request
        assert work.expect.checkpoint == "base.safetensors"
        assert [(m.kind, m.name) for m in work.models] == [("checkpoint", "base.safetensors")]


def test_no_checkpoint_means_the_one_that_is_loaded() -> None:
    """Nothing is overridden then."""
    work = native()
    assert work.request["override_settings"] == {}
    assert work.expect.checkpoint is None


def test_two_names_for_two_models_are_refused() -> None:
    """Which one is meant cannot be known."""
    document = {"request": {"override_settings": {"sd_model_checkpoint": "other"}}, "checkpoint": "base"}
    assert refused(document) == "request.override_settings.sd_model_checkpoint"
    assert refused({"request": {"override_settings": {"sd_model_checkpoint": 3}}}).endswith("sd_model_checkpoint")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"unknown_field": 1}, "request.unknown_field"),
        ({"extra": {"a": 1}}, "request.extra"),
        ({"infotext": "Steps: 1"}, "request.infotext"),
        ({"prompt": 3}, "request.prompt"),
        ({"override_settings": []}, "request.override_settings"),
        ({"override_settings": {"keep_incomplete": True}}, "request.override_settings.keep_incomplete"),
        ({"override_settings": {"ckpt_dir": "/"}}, "request.override_settings.ckpt_dir"),
        ({"override_settings": {"nosuch": 1}}, "request.override_settings.nosuch"),
        ({"sampler_name": "nosuch"}, "request.sampler_name"),
        ({"sampler_index": "nosuch"}, "request.sampler_index"),
        ({"hr_sampler_name": "nosuch"}, "request.hr_sampler_name"),
        ({"scheduler": "nosuch"}, "request.scheduler"),
        ({"hr_scheduler": "nosuch"}, "request.hr_scheduler"),
        ({"script_name": "nosuch"}, "request.script_name"),
        ({"alwayson_scripts": {"nosuch": {}}}, "request.alwayson_scripts.nosuch"),
        ({"alwayson_scripts": []}, "request.alwayson_scripts"),
        ({"styles": ["of a server that lists none"]}, "request.styles.0"),
        ({"refiner_checkpoint": 3}, "request.refiner_checkpoint"),
        ({"seed": "random"}, "request.seed"),
        ({"seed": 2**64}, "request.seed"),
    ],
)
def test_native_fields_that_would_be_dropped_or_replaced(request_: dict[str, Any], field: str) -> None:
    """Each is refused by name."""
    assert refused({"request": request_}) == field


@pytest.mark.parametrize(
    "request_",
    [
        {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"},
        {"hr_checkpoint_name": "Use same checkpoint", "refiner_checkpoint": "None"},
        {"sampler_name": "Euler", "sampler_index": "whatever, it is not used"},
        {"sampler_name": None, "sampler_index": None, "scheduler": None, "script_name": None, "styles": None},
        {"override_settings": {"sd_vae": "Automatic", "sd_model_refiner": "None"}},
        {"hr_upscaler": "Latent (nearest)"},
        {"prompt": "<lora:nosuch:1>", "disable_extra_networks": True},
        {"extra": {}, "infotext": None},
    ],
)
def test_what_servers_take_is_taken(request_: dict[str, Any]) -> None:
    """Nulls, empties and the servers' own words for "none" pass."""
    allowed = {k: v for k, v in request_.items() if k != "styles"}
    assert native(**allowed).request["prompt"]


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "a <lora:nosuch:0.5> cat"},
        {"hr_prompt": "<LORA:nosuch>"},
        {"hr_checkpoint_name": "nosuch"},
        {"refiner_checkpoint": "nosuch"},
        {"hr_upscaler": "nosuch"},
        {"override_settings": {"sd_vae": "nosuch"}},
        {"override_settings": {"sd_model_refiner": "nosuch"}},
        {"override_settings": {"forge_additional_modules": ["nosuch"]}},
        {"alwayson_scripts": {"controlnet": {"args": [{"model": "nosuch"}]}}},
    ],
)
def test_models_that_would_be_skipped_are_not_found(request_: dict[str, Any]) -> None:
    """Servers go on without them."""
    on = server(controlnets={"model_list": ["canny [0123abcd]"]})
    with pytest.raises(ModelNotFound):
        native(on, **request_)


def test_models_are_named_as_the_server_wants_them() -> None:
    """Titles for checkpoints, list names for VAEs, paths for Forge's modules; each is needed once."""
    on = server(
        FORGE,
        controlnets={"model_list": ["canny [0123abcd]"]},
        options={**LISTS["options"], "forge_additional_modules": []},
    )
    work = native(
        on,
        prompt="<lora:my_style:1> <lora:my_style:0.2>",
        refiner_checkpoint="other",
        hr_checkpoint_name="base",
        override_settings={"sd_vae": "sharp", "forge_additional_modules": ["sharp.pt"], "sd_model_refiner": "other"},
        alwayson_scripts={
            "ControlNet": {"args": [{"model": "canny"}, {"model": "None"}, {"enabled": False, "model": "z"}]}
        },
    )
    request = work.request
    assert request["refiner_checkpoint"] == "other.safetensors"
    assert request["hr_checkpoint_name"] == "base.safetensors [0123456789]"
    assert request["override_settings"] == {
        "sd_vae": "sharp.pt",
        "forge_additional_modules": ["/m/VAE/sharp.pt"],
        "sd_model_refiner": "other.safetensors",
    }
    assert sorted((m.kind, m.name) for m in work.models) == [
        ("checkpoint", "base.safetensors"),
        ("lora", "my.style.safetensors"),
        ("refiner", "other.safetensors"),
        ("vae", "sharp.pt"),
    ]


def test_seeds_are_settled_here() -> None:
    """Left open they follow from the job's id; variations share one; a script has its own."""
    seed = job_of({"params": {"prompt": "x"}}).seed
    assert native(seed=-1, n_iter=2).expect.seeds == (seed, seed + 1)
    assert native(seed=None).request["seed"] == seed
    assert params().expect.seeds == (seed,)
    varied = native(seed=5, subseed_strength=0.3, batch_size=2)
    assert (varied.expect.seeds, varied.request["subseed"]) == ((5, 5), seed)
    assert native(seed=5, subseed=6, subseed_strength=0.3).request["subseed"] == 6
    scripted = native(script_name="X/Y/Z plot", seed=5)
    assert (scripted.expect.seeds, scripted.expect.width) == ((), None)


def test_a_body_is_made_honest() -> None:
    """Images are sent, nothing is saved or leaks; only fields that the server has are added."""
    request = native(send_images=False, save_images=True).request
    wanted = {
        "send_images": True,
        "save_images": False,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        "return_grid": False,
        "keep_incomplete": False,
        "alwayson_scripts": {"ControlNet": {"args": []}},
    }
    assert request.items() >= wanted.items()
    used = {"ControlNet": {"args": [{"model": "canny"}]}}
    assert native(alwayson_scripts=used).request["alwayson_scripts"] == used
    unknown = inventory(A1111, {}, vaes=None, controlnets=None, fields={})
    bare = worked({"request": {"anything": 1}}, unknown).request
    assert bare["anything"] == 1
    assert "keep_incomplete" not in bare


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "checkpoint", "name": "base.safetensors", "sha256": SHA},
        {"kind": "refiner", "name": "other"},
        {"kind": "lora", "name": "my.style.safetensors"},
        {"kind": "vae", "name": "sharp.pt"},
        {"kind": "upscaler", "name": "R-ESRGAN 4x+.pth"},
        {"kind": "embedding", "name": "easynegative.safetensors"},
        {"kind": "controlnet", "name": "canny.safetensors"},
    ],
)
def test_listed_models_must_be_there(model: dict[str, Any]) -> None:
    """What a job lists is looked up, whatever its kind; another name is not found."""
    on = server(controlnets={"model_list": ["canny [0123abcd]"]})
    work = worked({"request": {"prompt": "x"}, "models": [model]}, on)
    assert work.models[0].kind == model["kind"]
    with pytest.raises(ModelNotFound):
        worked({"request": {"prompt": "x"}, "models": [{**model, "name": "nosuch"}]}, on)


def test_models_of_another_identity_or_kind() -> None:
    """Another hash is another file; a kind that the server does not list cannot be promised."""
    wrong = {"kind": "checkpoint", "name": "base", "sha256": "f" * 64}
    with pytest.raises(ModelNotFound, match="another file"):
        worked({"request": {"prompt": "x"}, "models": [wrong]})
    document = {"request": {"prompt": "x"}, "models": [{"kind": "clip_vision", "name": "x"}]}
    assert refused(document) == "models.0.kind"
    assert refused({"request": {"prompt": "x"}, "models": [{"kind": "clip", "name": "x"}]}) == "models.0.kind"
    worked({"request": {"prompt": "x"}, "models": [{"kind": "unet", "name": "base"}]})
    unlisted = {"request": {"prompt": "x"}, "models": [{"kind": "embedding", "name": "x"}]}
    with pytest.raises(ModelNotFound):
        worked(unlisted, server(embeddings=None))


@pytest.mark.parametrize(
    ("loaded", "known"), [({"a": 1}, {"a"}), (["a", {"name": "b"}], {"a", "b"}), (3, None), ([], set())]
)
def test_embeddings_are_listed_in_three_ways(loaded: Any, known: Any) -> None:
    """An object, names, or objects with names."""
    assert server(embeddings={"loaded": loaded}).embeddings == known


def test_enlarging_one_image() -> None:
    """No checkpoint, no seed; an unknown upscaler is not found."""
    request = {"image": IMAGE, "upscaler_1": "R-ESRGAN 4x+"}
    single = {"request": request, "endpoint": "extra-single-image"}
    work = worked(single)
    assert (work.expect.count, work.expect.seeds, work.inputs[0].field) == (1, (), "request.image")
    assert refused({**single, "checkpoint": "base"}) == "checkpoint"
    assert refused({"request": {}, "endpoint": "extra-single-image"}) == "request.image"
    with pytest.raises(ModelNotFound):
        worked({**single, "request": {**request, "upscaler_2": "nosuch"}})


def test_other_engines_documents() -> None:
    """Graphs and workflows belong to other engines."""
    assert refused({"workflow": {}}) == "workflow"
    assert refused({"template": {"name": "x"}}) == "template"
    assert refused({"request": {}, "endpoint": "interrogate"}) == "endpoint"
    assert refused({"request": {}, "endpoint": "img2img"}) == "request.init_images"


def test_fields_come_from_the_servers_own_schema() -> None:
    """By reference or inline; what cannot be read is unknown, not empty."""

    def route(schema: Any) -> Any:
        return {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}

    openapi = {
        "paths": {
            "/sdapi/v1/txt2img": route({"$ref": "#/components/schemas/T"}),
            "/sdapi/v1/img2img": route({"properties": {"mask": {}}}),
            "/sdapi/v1/extra-single-image": {"post": {}},
        },
        "components": {"schemas": {"T": {"properties": {"prompt": {}, "steps": {}}}}},
    }
    assert all_fields(openapi) == {"txt2img": {"prompt", "steps"}, "img2img": {"mask"}}
    assert all_fields(None) == all_fields({"paths": []}) == {}


@pytest.mark.parametrize(
    ("current", "title"),
    [
        ({"class": "X", "filename": "/m/other.safetensors", "title": "other.safetensors"}, "other.safetensors"),
        ({"class": "X", "title": "unlisted"}, "unlisted"),
        ({"class": None, "filename": "/m/other.safetensors"}, None),
        (None, None),
    ],
)
def test_the_loaded_model_of_sdnext(current: Any, title: str | None) -> None:
    """By its own word, also when the list does not have it."""
    found = loaded_checkpoint(server(SDNEXT), current, {})
    assert (found.title if found else None) == title


@pytest.mark.parametrize(
    ("option", "name"), [("base", "base"), ("base.safetensors [0123456789]", "base"), ("", None), (3, None)]
)
def test_the_loaded_model_of_the_others(option: Any, name: str | None) -> None:
    """By the option."""
    found = loaded_checkpoint(server(), None, {"sd_model_checkpoint": option})
    assert (found.name if found else None) == name
    assert loaded_checkpoint(server(), None, None) is None
