"""What is kept of a server's descriptions, and what is learned from them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import FOLDERS, SERVER, node, server
from worker.engines.comfyui.inventory import inventory, is_model_file, texts


def test_the_server_is_described() -> None:
    """Version, command line, samplers and schedulers, model files."""
    assert SERVER.version == "0.3.64"
    assert SERVER.argv == ("main.py", "--cpu")
    assert SERVER.samplers == ("euler", "dpmpp_2m")
    assert SERVER.schedulers == ("normal", "karras")
    assert SERVER.folders["loras"] == tuple(FOLDERS["loras"])


def test_inputs_are_kept_as_they_are_declared() -> None:
    """Kind, bounds as whole numbers, whether they are required, choices of either notation."""
    sampler = SERVER.nodes["KSampler"]
    assert sampler.outputs == ("LATENT",)
    assert not sampler.output_node
    seed = sampler.inputs["seed"]
    assert (seed.kind, seed.low, seed.high, seed.default, seed.required) == ("INT", 0, 0xFFFFFFFFFFFFFFFF, 0, True)
    assert str(seed.high) == "18446744073709551615"
    assert sampler.inputs["sampler_name"].kind == "COMBO"
    assert SERVER.nodes["UpscaleModelLoader"].inputs["model_name"].options == ("4x.pth",)
    assert not SERVER.nodes["SaveVideo"].inputs["filename_prefix"].required
    assert SERVER.nodes["SaveImage"].output_node


@pytest.mark.parametrize(
    ("kind", "name", "folder"),
    [
        ("CheckpointLoaderSimple", "ckpt_name", "checkpoints"),
        ("UNETLoader", "unet_name", "diffusion_models"),
        ("LoraLoader", "lora_name", "loras"),
        ("VAELoader", "vae_name", "vae"),
        ("UpscaleModelLoader", "model_name", "upscale_models"),
        ("CLIPVisionLoader", "clip_name", "clip_vision"),
        ("CLIPVisionEncode", "crop", None),
        ("Chooser", "style", None),
        ("Chooser", "model", None),
        ("LoadImage", "image", None),
        ("KSampler", "sampler_name", None),
    ],
)
def test_an_input_s_folder_is_learned_from_its_choices(kind: str, name: str, folder: str | None) -> None:
    """Also where the node adds words of its own, and by convention where the folder is empty."""
    found = SERVER.input(kind, name)
    assert found is not None
    assert found.folder == folder


def learned(choices: list[str], folders: dict[str, list[str]], *, kind: str = "Odd", name: str = "thing") -> str | None:
    found = inventory({kind: node({name: [choices]})}, folders, {}).input(kind, name)
    assert found is not None
    return found.folder


def test_a_custom_loader_needs_no_conventional_name() -> None:
    """The list alone tells."""
    folders = {"loras": ["a.safetensors"], "ipadapter": ["b.bin", "c.bin"]}
    assert learned(["c.bin", "b.bin"], folders) == "ipadapter"
    assert learned(["None", "b.bin", "c.bin"], folders) == "ipadapter"


def test_equal_lists_are_told_apart_by_convention_only() -> None:
    """And not at all where the name says nothing."""
    folders = {"loras": ["a.safetensors"], "checkpoints": ["a.safetensors"]}
    assert learned(["a.safetensors"], folders, name="lora_name") == "loras"
    assert learned(["a.safetensors"], folders, name="ckpt_name") == "checkpoints"
    assert learned(["a.safetensors"], folders) is None


def test_a_longer_list_of_files_is_not_a_shorter_folder() -> None:
    """The files that are left over belong to another folder; the exact one wins."""
    folders = {"loras": ["a.safetensors"], "more": ["a.safetensors", "b.safetensors"]}
    assert learned(["a.safetensors", "b.safetensors", "none"], folders) == "more"
    assert learned(["a.safetensors", "b.safetensors", "c.gguf"], folders) is None


def test_joined_folders_are_known_by_convention() -> None:
    """As where a loader offers the files of two folders."""
    folders = {"text_encoders": ["a.safetensors"], "clip_gguf": ["b.gguf"]}
    assert learned(["a.safetensors", "b.gguf"], folders, name="clip_name1") == "text_encoders"
    assert learned(["a.safetensors", "b.gguf"], folders) is None


def test_an_empty_folder_needs_an_empty_list_or_a_loader_s_own_words() -> None:
    """A list of other things is none of a folder's, whatever the input is called."""
    assert learned([], {"vae": []}, name="vae_name") == "vae"
    assert learned(["pixel_space", "taesdxl"], {"vae": []}, name="vae_name") == "vae"
    assert learned(["nearest", "bilinear"], {"upscale_models": []}, name="upscale_model") is None
    assert learned([], {"loras": []}, name="vae_name") is None
    assert learned([], {"vae": ["x.pt"]}, name="vae_name") is None


def test_folders_of_no_models_are_never_a_source() -> None:
    """The list of custom nodes holds every file there is."""
    assert learned(["anything.safetensors"], {"custom_nodes": ["anything.safetensors"]}) is None


def test_uploads_are_told_by_their_flags() -> None:
    """A loader that gives nothing but a mask takes one."""
    found = {
        k: SERVER.input(k, n) for k, n in (("LoadImage", "image"), ("LoadImageMask", "image"), ("LoadVideo", "file"))
    }
    assert {k: i.upload for k, i in found.items() if i is not None} == {
        "LoadImage": "image",
        "LoadImageMask": "mask",
        "LoadVideo": "video",
    }


def test_seeds_are_told_by_name_or_by_the_control_that_changes_them() -> None:
    """A plain number that may be -1 of its own is none."""
    on = server(
        also={
            "Noise": node({"noise_seed": ["INT", {}]}, "NOISE"),
            "Marked": node({"dice": ["INT", {"control_after_generate": True, "min": 0}]}),
            "Float": node({"seed": ["FLOAT", {}]}),
        }
    )
    told = {(k, i.name) for k, c in on.nodes.items() for i in c.inputs.values() if i.seed}
    assert told == {("KSampler", "seed"), ("Noise", "noise_seed"), ("Marked", "dice")}


def test_equal_lists_are_kept_once_and_long_defaults_not_at_all() -> None:
    """The worker must stay small beside megabytes of descriptions."""
    files = [f"{i}.safetensors" for i in range(50)]
    info = {f"L{i}": node({"lora_name": [list(files), {"default": "x" * 500}]}) for i in range(3)}
    found = inventory(info, {"loras": files}, {})
    inputs = [found.nodes[f"L{i}"].inputs["lora_name"] for i in range(3)]
    assert len({id(i.options) for i in inputs}) == 1
    assert {i.default for i in inputs} == {None}


@pytest.mark.parametrize(
    "garbage", [None, [], 3, "x", {"A": None}, {"A": {"input": 3}}, {"A": {"input": {"required": []}}}]
)
def test_what_is_not_as_documented_is_left_out(garbage: Any) -> None:
    """A broken custom node must not take the server from us."""
    found = inventory(garbage, {"loras": [None, "a.pt", {}]}, garbage)
    assert found.samplers == ()
    assert found.input("A", "x") is None
    assert found.folders == {"loras": ("a.pt",)}
    assert found.version is None


def test_odd_declarations_have_no_effect() -> None:
    """Types that are no text, extras that are no object, bounds that are no numbers."""
    spec: dict[str, Any] = {"a": [], "b": [3, 4], "c": "STRING", "d": ["INT", {"min": "x", "max": True}]}
    spec["e"] = ["INT", {"min": float("-inf"), "max": float("nan"), "control_after_generate": True}]
    found = inventory({"Odd": {"input": {"required": spec}, "output": [["x"], 3]}}, {}, {}).nodes["Odd"]
    assert {n: i.kind for n, i in found.inputs.items()} == {"a": "*", "b": "*", "c": "*", "d": "INT", "e": "INT"}
    assert (found.inputs["e"].low, found.inputs["e"].high, found.inputs["e"].seed) == (None, None, True)
    assert (found.inputs["d"].low, found.inputs["d"].high) == (None, None)
    assert found.outputs == ("COMBO", "COMBO")


def test_model_files_and_lists() -> None:
    """Extensions in any case; numbers among choices become texts."""
    assert is_model_file("X.SafeTensors")
    assert not is_model_file("picture.png")
    assert texts([1, "a", None, 2.5]) == ("1", "a", "2.5")
    assert texts("abc") == ()
    assert SERVER.input(["unhashable"], "x") is None
