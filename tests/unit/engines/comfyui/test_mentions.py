"""Where jobs for ComfyUI name model files, and what a server may hold of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import job_of
from tests.unit.engines.comfyui.graphs import FOLDERS, SERVER, classic, server, with_nodes
from worker.engines.comfyui.disk import Folders
from worker.engines.comfyui.engine import vanished
from worker.engines.comfyui.holding import KEPT, Holding
from worker.engines.comfyui.inventory import Inventory
from worker.engines.comfyui.mentions import known, mentions
from worker.errors import InvalidJob
from worker.job import ModelRef
from worker.mentions import Mention, Place

URL = "https://huggingface.co/a/b/resolve/main/{}?download=true"


def told(document: dict[str, Any], on: Inventory = SERVER) -> dict[str, tuple[str, str, str | None]]:
    found = mentions(job_of(document), on)
    return {m.field: (m.kind, m.name, m.known) for m in found}


def graph(**nodes: Any) -> dict[str, Any]:
    return with_nodes(classic(_3_model=["12", 0]), **nodes)


def test_every_loader_of_a_graph_is_told() -> None:
    """By the folder that the server says it draws from, and by the file's path; a list may be said for any kind."""
    made = graph(_12=("LoraLoader", {"lora_name": "detail", "model": ["13", 0], "clip": ["4", 1], "strength_model": 1}))
    made = with_nodes(made, _13=("UNETLoader", {"unet_name": "new.safetensors"}), _14=("VAELoader", {"vae_name": "kl"}))
    made["8"]["inputs"]["vae"] = ["14", 0]
    listed = [
        {"kind": "llm_models", "name": "llama"},
        {"kind": "loras", "name": "x.pt"},
        {"kind": "refiner", "name": "other"},
    ]
    assert told({"workflow": made, "models": listed}) == {
        "models.0.name": ("llm_models", "llama", "llama.safetensors"),
        "models.1.name": ("lora", "x.pt", None),
        "models.2.name": ("checkpoint", "other", "sub/other.safetensors"),
        "workflow.4.inputs.ckpt_name": ("checkpoint", "base.safetensors", "base.safetensors"),
        "workflow.12.inputs.lora_name": ("lora", "detail", "detail.safetensors"),
        "workflow.13.inputs.unet_name": ("unet", "new.safetensors", None),
        "workflow.14.inputs.vae_name": ("vae", "kl", "kl.safetensors"),
    }


def test_what_is_no_file_or_does_not_run_is_not_told() -> None:
    """Words of the loader's own, numbers, links, and nodes that feed nothing."""
    made = with_nodes(classic(_8_vae=["12", 0]), _12=("VAELoader", {"vae_name": "pixel_space"}))
    made["13"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "flux.safetensors"}}
    assert list(told({"workflow": made})) == ["workflow.4.inputs.ckpt_name"]
    made["12"]["inputs"]["vae_name"] = 5
    made["4"]["inputs"]["ckpt_name"] = ["14", 0]
    made["14"] = {"class_type": "PrimitiveString", "inputs": {"value": "base.safetensors"}}
    assert told({"workflow": made}) == {}


def test_urls_in_a_graph_are_told_with_the_file_s_name() -> None:
    """By the job's list, else by the URL; empty where neither tells, for the source to say."""
    hub, bare = URL.format("ink.safetensors"), "https://civitai.com/api/download/models/5"
    made = graph(_12=("LoraLoader", {"lora_name": hub, "model": ["4", 0], "clip": ["4", 1], "strength_model": 1}))
    made["4"]["inputs"]["ckpt_name"] = bare
    found = {m.field: (m.name, m.url, m.known) for m in mentions(job_of({"workflow": made}), SERVER)}
    assert found["workflow.12.inputs.lora_name"] == ("ink.safetensors", hub, None)
    assert found["workflow.4.inputs.ckpt_name"] == ("", bare, None)
    listed = [{"kind": "checkpoint", "name": "base.safetensors", "url": bare}]
    again = mentions(job_of({"workflow": made, "models": listed}), SERVER)
    assert {m.field: m.known for m in again if m.url == bare} == {"workflow.4.inputs.ckpt_name": "base.safetensors"}
    chosen = with_nodes(_12=("Chooser", {"style": "dark", "model": hub}), _13=("PreviewImage", {"images": ["12", 0]}))
    with pytest.raises(InvalidJob, match="which folder"):
        told({"workflow": chosen})


def test_the_job_s_checkpoint_may_be_a_diffusion_model_alone() -> None:
    """Where it is now, else where the job lists it; of a graph, in a folder that it loads from."""
    params = {"params": {"prompt": "x"}}
    assert told({**params, "checkpoint": "flux"})["checkpoint"] == ("unet", "flux", "flux.safetensors")
    assert told({**params, "checkpoint": "base"})["checkpoint"] == ("checkpoint", "base", "base.safetensors")
    assert told({**params, "checkpoint": "new"})["checkpoint"] == ("checkpoint", "new", None)
    listed = [{"kind": "unet", "name": "new.safetensors"}]
    assert told({**params, "checkpoint": "new", "models": listed})["checkpoint"] == ("unet", "new", None)
    loader = with_nodes(classic(_3_model=["12", 0], _4_ckpt_name=...), _12=("UNETLoader", {}))
    only = {i: n for i, n in loader.items() if i != "4"} | {
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "kl"}}
    }
    for encoder in ("6", "7"):
        only[encoder]["inputs"]["clip"] = ["12", 0]
    assert told({"workflow": classic(_4_ckpt_name=...), "checkpoint": "new"})["checkpoint"][0] == "checkpoint"
    assert told({"workflow": only, "checkpoint": "new"})["checkpoint"][0] == "unet"
    with pytest.raises(InvalidJob, match="no checkpoint"):
        told({"workflow": {"9": {"class_type": "PreviewImage", "inputs": {}}}, "checkpoint": "base"})


def test_portable_parameters_are_told() -> None:
    """LoRAs, VAE and refiner; a prompt's tags are words."""
    params = {"prompt": "<lora:x:1>", "loras": [{"name": "detail"}], "vae": "kl", "refiner": {"checkpoint": "other"}}
    assert told({"params": params}) == {
        "params.loras.0.name": ("lora", "detail", "detail.safetensors"),
        "params.vae": ("vae", "kl", "kl.safetensors"),
        "params.refiner.checkpoint": ("refiner", "other", "sub/other.safetensors"),
    }


def test_embeddings_are_told_that_are_there_or_listed() -> None:
    """By the path in the prompt; what is neither is for admission to refuse."""
    text = "embedding:bad, embedding:sub/good.safetensors (embedding:new~1a2b3c4d:1.1) embedding:nosuch"
    listed = [{"kind": "embedding", "name": "new~1a2b3c4d.pt", "url": "https://x"}]
    document = {"workflow": classic(_6_text=text), "models": listed}
    found = [(m.field, m.name, m.known, m.tag) for m in mentions(job_of(document), SERVER) if m.tag]
    where = "workflow.6.inputs.text"
    assert found == [
        (where, "bad", "bad.pt", True),
        (where, "sub/good.safetensors", "sub/good.safetensors", True),
        (where, "new~1a2b3c4d", None, True),
    ]
    assert (
        told({"params": {"prompt": "x", "negative_prompt": "embedding:bad"}})["params.negative_prompt"][2] == "bad.pt"
    )
    bare = server(folders={k: v for k, v in FOLDERS.items() if k != "embeddings"})
    assert told({"params": {"prompt": "embedding:bad"}}, bare) == {}


def test_what_cannot_run_is_refused_before_anything_is_fetched() -> None:
    """Shapes, classes, links, kinds without a folder, ambiguous names."""
    wrongs: tuple[dict[str, Any], ...] = (
        {"workflow": {"nodes": []}},
        {"workflow": {"1": {"class_type": "NoSuch", "inputs": {}}}},
        {"workflow": classic(_3_model=["77", 0])},
        {"workflow": classic(), "models": [{"kind": "ipadapter", "name": "x"}]},
        {"params": {"prompt": "x", "loras": [{"name": "twin"}]}},
        {"request": {}},
        {"template": {"name": "x"}},
    )
    for wrong in wrongs:
        with pytest.raises(InvalidJob):
            told(wrong)
    assert known(SERVER, (), "x", field="") is None


def test_a_file_is_gone_when_its_folder_is_seen_without_it(tmp_path: Path) -> None:
    """A folder that is not here tells nothing."""
    found = [Mention("lora", "detail", (), known="detail.safetensors"), Mention("lora", "x", ())]
    assert not vanished(found, SERVER, Folders(models={"loras": (f"{tmp_path}/elsewhere",)}))
    here = Folders(models={"loras": (f"{tmp_path}/elsewhere", str(tmp_path))})
    assert vanished(found, SERVER, here)
    (tmp_path / "detail.safetensors").touch()
    assert not vanished(found, SERVER, here)


def test_as_many_graphs_are_held_as_the_server_keeps() -> None:
    """The last ones, each once; a server that keeps results of one prompt holds one graph's models."""
    holding = Holding()
    for n in (*range(KEPT), 0, KEPT):
        holding.ran([ModelRef(kind="refiner", name=f"{n}.pt"), ModelRef(kind="loras", name="l.pt")], ["main.py"])
    kept = {Place("checkpoint", f"{n}.pt") for n in (*range(2, KEPT + 1), 0)}
    assert holding.places == kept | {Place("lora", "l.pt")}
    holding.ran([ModelRef(kind="vae", name="v.pt")], ["main.py", "--cache-classic"])
    assert holding.places == {Place("vae", "v.pt")}
    holding.forget()
    assert holding.places == frozenset()
