"""Where jobs for Automatic1111, Forge and SD.Next name model files, and what the options hold. No server runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.described import IMAGE, VAES, server
from tests.support.engines import job_of
from worker.engines.sdapi.dialects import FORGE, SDNEXT
from worker.engines.sdapi.holding import held, meant, without
from worker.engines.sdapi.inventory import Inventory, inventory
from worker.engines.sdapi.mentions import check_present, known, mentions, place
from worker.engines.sdapi.models import AT_START, check_models, kind_in, resolve_rest
from worker.engines.sdapi.models import Naming as Names
from worker.engines.sdapi.names import ModelFile
from worker.engines.sdapi.overrides import Overrides
from worker.engines.sdapi.presence import Presence
from worker.errors import InvalidJob, ModelNotFound
from worker.job import ModelRef
from worker.mentions import Place

UNITS = {"model_list": ["canny [0123abcd]"]}
UPSCALERS = [
    {"name": "None"},
    {"name": "R-ESRGAN 4x+", "model_path": "https://github.com/x/RealESRGAN_x4plus.pth"},
    {"name": "sharp", "model_path": "/m/ESRGAN/sharp.pth"},
]
MODULES = [*VAES, {"model_name": "t5.safetensors", "filename": "/m/text_encoder/flux/t5.safetensors"}]


def forge() -> Inventory:
    lists: dict[str, Any] = {"options": {"forge_additional_modules": ["/m/VAE/sharp.pt"]}}
    return inventory(FORGE, lists, vaes=MODULES, controlnets=None, fields={})


def told(request: dict[str, Any], on: Inventory | None = None, **job: Any) -> dict[str, tuple[str, str, str | None]]:
    found = mentions(job_of({"request": request, **job}), on or server(controlnets=UNITS, upscalers=UPSCALERS))
    return {m.field: (m.kind, m.name, m.known) for m in found}


def test_every_place_of_a_native_body_is_told() -> None:
    """The checkpoints, VAE and refiner of the options, the second pass, tags of each prompt, units, and upscalers."""
    unit = {"enabled": True, "model": "canny", "image": IMAGE}
    body = {
        "prompt": "<lora:my_style:1>, <LYCO: new :0.5>",
        "hr_prompt": "<lora:other:1>",
        "sd_model_checkpoint": "base",
        "refiner_checkpoint": "other",
        "hr_checkpoint_name": "nosuch",
        "hr_upscaler": "sharp",
        "upscaler_1": "4x-new.pth",
        "override_settings": {"sd_model_checkpoint": "other", "sd_vae": "sharp", "sd_model_refiner": "base"},
        "alwayson_scripts": {"ControlNet": {"args": [unit, {"model": "None"}, {"enabled": False, "model": "x"}]}},
    }
    assert told(body) == {
        "request.sd_model_checkpoint": ("checkpoint", "base", "base.safetensors"),
        "request.refiner_checkpoint": ("refiner", "other", "other.safetensors"),
        "request.hr_checkpoint_name": ("checkpoint", "nosuch", None),
        "request.hr_upscaler": ("upscaler", "sharp", "sharp.pth"),
        "request.upscaler_1": ("upscaler", "4x-new.pth", None),
        "request.override_settings.sd_model_checkpoint": ("checkpoint", "other", "other.safetensors"),
        "request.override_settings.sd_vae": ("vae", "sharp", "sharp.pt"),
        "request.override_settings.sd_model_refiner": ("refiner", "base", "base.safetensors"),
        "request.prompt": ("lora", "new", None),
        "request.hr_prompt": ("lora", "other", None),
        "request.alwayson_scripts.ControlNet.args.0.model": ("controlnet", "canny", "canny"),
    }
    tags = [m.name for m in mentions(job_of({"request": body}), server()) if m.tag]
    assert tags == ["my_style", "new", "other"]


def test_what_is_no_file_is_not_told() -> None:
    """Words of the server's own, its built-in upscalers, prompts that are not read for tags, and what is no text."""
    body = {
        "prompt": "<lora:my_style:1>",
        "disable_extra_networks": True,
        "hr_checkpoint_name": "Use same checkpoint",
        "refiner_checkpoint": "None",
        "hr_upscaler": "Latent (nearest)",
        "upscaler_1": "R-ESRGAN 4x+",
        "upscaler_2": "None",
        "override_settings": {"sd_vae": "Automatic", "sd_model_refiner": "None", "sd_model_checkpoint": None},
        "alwayson_scripts": {"ControlNet": 5, "other": {"args": [{"model": "x"}]}},
    }
    assert told(body) == {}
    odd = {"prompt": ["x"], "override_settings": 5, "alwayson_scripts": 5, "hr_upscaler": 5, "refiner_checkpoint": []}
    assert told(odd) == {}
    assert told({"hr_upscaler": "x"}, server(upscalers=None)) == {}


def test_a_checkpoint_may_be_named_by_its_url() -> None:
    """Then the name is that which the job's list or the URL gives."""
    url = "https://huggingface.co/o/r/resolve/main/base.safetensors"
    found = mentions(job_of({"request": {}, "checkpoint": url}), server())
    assert [(m.name, m.url, m.known) for m in found] == [("base.safetensors", url, "base.safetensors")]


def test_embeddings_that_the_job_lists_are_told_where_prompts_name_them() -> None:
    """Any other word is only a word."""
    listed = [{"kind": "embedding", "name": "e/easynegative.safetensors", "url": "https://x"}]
    body = {"prompt": "a cat, easynegative2", "negative_prompt": "(EasyNegative:1.2), easynegative"}
    assert told(body, models=listed) == {
        "models.0.name": ("embedding", "e/easynegative.safetensors", "e/easynegative.safetensors"),
        "request.negative_prompt": ("embedding", "easynegative", "easynegative"),
    }
    assert told(body) == {}
    params = {"params": {"prompt": "easynegative"}, "models": listed}
    assert [m.field for m in mentions(job_of(params), server())] == ["models.0.name", "params.prompt"]


def test_forge_s_modules_are_vaes_and_text_encoders() -> None:
    """Told apart by the folder in which they lie."""
    body = {"override_settings": {"forge_additional_modules": ["sharp.pt", "/m/text_encoder/flux/t5.safetensors", "x"]}}
    assert list(told(body, forge()).values()) == [
        ("vae", "sharp.pt", "sharp.pt"),
        ("clip", "/m/text_encoder/flux/t5.safetensors", "flux/t5.safetensors"),
        ("vae", "x", None),
    ]
    assert kind_in(forge(), "text_encoders", field="models.0") == "clip"
    with pytest.raises(InvalidJob):
        kind_in(server(), "clip", field="models.0")
    with pytest.raises(InvalidJob):
        kind_in(server(SDNEXT), "unet", field="models.0")
    job = job_of({"request": {}, "models": [{"kind": "clip", "name": "t5"}, {"kind": "vae", "name": "sharp"}]})
    naming = Names(forge())
    check_models(job, naming)
    assert [ref.name for ref in naming.refs] == ["t5.safetensors", "sharp.pt"]


@pytest.mark.parametrize(
    ("kind", "title", "filename", "name"),
    [
        ("checkpoint", "sub/x.safetensors [0123456789]", "/a/Stable-diffusion/sub/x.safetensors", "sub/x.safetensors"),
        ("checkpoint", "sub/x", "/a/Stable-diffusion/sub/x.safetensors", "sub/x.safetensors"),
        ("checkpoint", "x", "C:\\webui\\models\\x.ckpt", "x.ckpt"),
        ("checkpoint", "Diffusers/o/r", "/a/Diffusers/models--o--r/snapshots/1", "Diffusers/o/r"),
        ("checkpoint", "x", "", "x"),
        ("lora", "x", "/a/Lora/lora/sub/x.pt", "sub/x.pt"),
        ("lora", "x", "/a/LyCORIS/sub/x.pt", "sub/x.pt"),
        ("lora", "x", "/mnt/fast/sub/x.pt", "x.pt"),
        ("vae", "x.pt", "/a/Stable-diffusion/x.vae.pt", "x.vae.pt"),
        ("vae", "x.pt", "/vaes-of-mine/sub/x.pt", "sub/x.pt"),
    ],
)
def test_where_a_listed_file_lies(kind: str, title: str, filename: str, name: str) -> None:
    """Below the folder of its kind, as titles, options or usual names of folders tell."""
    on = replace(server(), options={"vae_dir": "/vaes-of-mine", "lora_dir": ""})
    assert place(on, kind, ModelFile(title, title, filename)) == Place(kind, name)


def test_nothing_is_known_of_other_kinds() -> None:
    """Nor of lists that a server has not."""
    assert known(server(), "llm", "x", field="") is None
    assert known(server(embeddings=None, upscalers=None), "embedding", "x", field="") is None
    assert known(server(upscalers=None), "upscaler", "x", field="") is None
    assert known(server(), "controlnet", "canny", field="") is None
    assert known(server(), "upscaler", "R-ESRGAN 4x+.pth", field="") == Place("upscaler", "R-ESRGAN 4x+.pth")


def test_units_are_sent_by_the_listed_name() -> None:
    """In a copy: the document of the job stays as it is."""
    unit = {"model": "canny.safetensors", "weight": 1}
    body: dict[str, Any] = {
        "alwayson_scripts": {"ControlNet": {"args": [{"model": "None"}, unit]}},
        "override_settings": {},
    }
    given = body["alwayson_scripts"]
    resolve_rest(body, "txt2img", Names(server(controlnets=UNITS)), root="request")
    assert body["alwayson_scripts"]["ControlNet"]["args"][1] == {"model": "canny [0123abcd]", "weight": 1}
    assert given["ControlNet"]["args"][1] is unit
    unit["model"] = "nosuch"
    with pytest.raises(ModelNotFound, match=r"args\.1\.model") as caught:
        resolve_rest(
            {"alwayson_scripts": given, "override_settings": {}},
            "txt2img",
            Names(server(controlnets=UNITS)),
            root="request",
        )
    assert AT_START not in str(caught.value)


def test_what_a_server_finds_only_when_it_starts_says_so() -> None:
    """Upscalers everywhere, ControlNet models on Forge."""
    with pytest.raises(ModelNotFound, match="only when it starts"):
        Names(server()).upscaler("4x-new.pth", field="request.hr_upscaler")
    on = replace(forge(), controlnets=frozenset({"canny"}))
    with pytest.raises(ModelNotFound, match="only when it starts"):
        check_models(job_of({"request": {}, "models": [{"kind": "controlnet", "name": "depth"}]}), Names(on))


def test_embeddings_need_not_be_listed_where_the_list_lags() -> None:
    """SD.Next shows those of the loaded model; those that were skipped are there too."""
    listed = {"request": {}, "models": [{"kind": "embedding", "name": "new.safetensors"}]}
    check_models(job_of(listed), Names(server(SDNEXT)))
    with pytest.raises(ModelNotFound):
        check_models(job_of(listed), Names(server()))
    skipped = server(embeddings={"loaded": {}, "skipped": {"new": {}}})
    check_models(job_of(listed), Names(skipped))


def test_what_the_options_hold() -> None:
    """All files that a name in them may mean."""
    options = {
        "sd_model_checkpoint": "base.safetensors [0123456789]",
        "sd_model_refiner": "other",
        "sd_vae": "sharp.pt",
    }
    assert held(server(), None, options) == {
        Place("checkpoint", "base.safetensors"),
        Place("checkpoint", "other.safetensors"),
        Place("vae", "sharp.pt"),
    }
    assert held(server(), None, {"sd_model_checkpoint": "nosuch", "sd_vae": "Automatic"}) == frozenset()
    modules = {"forge_additional_modules": ["/m/VAE/sharp.pt", "/m/text_encoder/flux/t5.safetensors"]}
    assert held(forge(), None, modules) == {Place("vae", "sharp.pt"), Place("clip", "flux/t5.safetensors")}
    twins = [ModelFile("x", "x", f"/a/VAE/{folder}/x.pt") for folder in "ab"]
    assert meant(twins, "x") == tuple(twins)


def test_options_that_name_what_goes_are_changed() -> None:
    """Each to what stands for none; those that name other files stay."""
    options = {"sd_vae": "sharp.pt", "sd_model_refiner": "other", "forge_additional_modules": 5}
    doomed = frozenset({Place("vae", "sharp.pt"), Place("checkpoint", "other.safetensors")})
    assert without(server(), options, doomed) == {"sd_vae": "Automatic", "sd_model_refiner": "None"}
    assert without(server(), options, frozenset()) == {}
    modules = {"forge_additional_modules": ["/m/VAE/sharp.pt", "/m/text_encoder/flux/t5.safetensors"]}
    assert without(forge(), modules, doomed) == {"forge_additional_modules": ["/m/text_encoder/flux/t5.safetensors"]}


def test_an_option_that_was_set_is_the_node_s_own_from_then_on() -> None:
    """The value before it, of a file that is gone, is never given back."""
    overrides, body = Overrides(), {"override_settings": {"sd_vae": "sharp.pt"}}
    on = replace(server(), options={"sd_vae": "old.pt"})
    overrides.completed(body, on, fresh=False)
    overrides.sent(body, ok=True)
    assert overrides.completed({}, on, fresh=False) == {"sd_vae": "old.pt"}
    overrides.settled({"sd_vae": "Automatic"})
    assert overrides.completed({}, on, fresh=False) == {}
    overrides.sent(body, ok=True)
    assert overrides.completed({}, on, fresh=False) == {"sd_vae": "Automatic"}


def test_only_what_was_seen_can_be_seen_to_be_gone(tmp_path: Path) -> None:
    """A folder of that name here may be another's; one that was seen and is gone has taken its files with it."""
    folder = tmp_path / "Lora" / "sub"
    folder.mkdir(parents=True)
    (folder / "a.pt").touch()
    files = tuple(ModelFile(n, n, f"{folder}/{n}.pt") for n in "ab")
    remote = (ModelFile("c", "c", f"{tmp_path}/elsewhere/c.pt"), ModelFile("d", "d", "relative/d.pt"))
    on = replace(server(), loras=files + remote, vaes=None, checkpoints=())
    presence = Presence()
    assert presence.present(on).loras == (files[0], *remote)
    (folder / "a.pt").unlink()
    folder.rmdir()
    assert presence.present(on).loras == remote
    assert presence.present(on).vaes is None
    whole = replace(on, loras=remote)
    assert presence.present(whole) is whole


def test_what_is_needed_must_still_be_listed() -> None:
    """A name that fits several files is there; of kinds without proof nobody can tell."""
    twins = tuple(ModelFile("x", "x", f"/a/Lora/{folder}/x.pt") for folder in "ab")
    on = replace(server(), loras=twins)
    check_present([ModelRef(kind=k, name="x.pt") for k in ("lora", "embedding", "controlnet")], on)
    with pytest.raises(ModelNotFound, match="vae"):
        check_present([ModelRef(kind="vae", name="gone.pt")], on)
