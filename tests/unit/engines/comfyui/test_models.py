"""Model files of a graph: found, fetched by URL in time to come, or named as missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import FOLDERS, classic, fields_of, node, refused, server, with_nodes, worked
from worker.engines.comfyui.models import kind_of
from worker.errors import ModelNotFound

URL = "https://huggingface.co/a/b/resolve/main/{}?download=true"


def with_lora(name: Any) -> dict[str, Any]:
    loader = {"model": ["4", 0], "clip": ["4", 1], "lora_name": name, "strength_model": 1.0}
    return with_nodes(classic(_3_model=["12", 0]), _12=("LoraLoader", loader))


def test_what_a_graph_loads_is_known() -> None:
    """Each file once, by the portable kind; the checkpoint is expected of the answer."""
    work = worked(with_lora("detail.safetensors"))
    assert [(m.kind, m.name) for m in work.models] == [
        ("checkpoint", "base.safetensors"),
        ("lora", "detail.safetensors"),
    ]
    assert work.expect.checkpoint == "base.safetensors"


def test_a_base_name_finds_the_one_file_in_a_subfolder() -> None:
    """And the server is told its own name."""
    work = worked(classic(_4_ckpt_name="other.safetensors"))
    assert work.request["4"]["inputs"]["ckpt_name"] == "sub/other.safetensors"
    assert work.expect.checkpoint == "sub/other.safetensors"
    assert work.models[0].name == "sub/other.safetensors"


def test_a_base_name_of_several_files_is_refused() -> None:
    """Which one is meant cannot be known."""
    assert fields_of(lambda: worked(with_lora("twin.safetensors"))) == ["workflow.12.inputs.lora_name"]
    assert worked(with_lora("b/twin.safetensors")).models[1].name == "b/twin.safetensors"


def test_windows_names_are_the_servers_own() -> None:
    """It lists backslashes there; in documents they are slashes."""
    folders = {**FOLDERS, "loras": ["sub\\x.safetensors"]}
    on = server(also={"LoraLoader": node({"lora_name": [folders["loras"]]}, "MODEL", "CLIP")}, folders=folders)
    work = worked(with_lora("sub/x.safetensors"), on=on)
    assert work.request["12"]["inputs"]["lora_name"] == "sub\\x.safetensors"
    assert work.models[1].name == "sub/x.safetensors"


def test_every_missing_file_is_named() -> None:
    """With its folder, its node, and what is close."""
    graph = with_lora("detial.safetensors")
    graph["4"]["inputs"]["ckpt_name"] = "nope.ckpt"
    with pytest.raises(ModelNotFound) as caught:
        worked(graph)
    said = str(caught.value)
    assert "workflow.4.inputs.ckpt_name: no 'nope.ckpt' in the folder checkpoints" in said
    assert "node 12 (LoraLoader); close: detail.safetensors" in said


def test_very_many_missing_files_are_cut_short() -> None:
    """The message stays readable."""
    graph = classic()
    for i in range(20, 40):
        graph[str(i)] = {"class_type": "VAELoader", "inputs": {"vae_name": f"{i}.pt"}}
        graph[f"{i}s"] = {"class_type": "PreviewImage", "inputs": {"images": [str(i), 0]}}
    assert refused(graph).endswith("; and 10 more")


def test_a_loader_s_own_words_are_no_files() -> None:
    """Nothing has to be there for them."""
    graph = with_nodes(classic(_8_vae=["12", 0]), _12=("VAELoader", {"vae_name": "pixel_space"}))
    assert [m.kind for m in worked(graph).models] == ["checkpoint"]
    graph["12"]["inputs"]["vae_name"] = 5
    assert worked(graph).request["12"]["inputs"]["vae_name"] == 5


def test_a_model_by_url_is_taken_where_its_file_is_there() -> None:
    """The graph gets the file's name; the reference keeps the URL."""
    work = worked(with_lora(URL.format("detail.safetensors")))
    assert work.request["12"]["inputs"]["lora_name"] == "detail.safetensors"
    assert (work.models[1].name, work.models[1].url) == ("detail.safetensors", URL.format("detail.safetensors"))


def test_a_model_by_url_that_is_not_there_says_why() -> None:
    """Only the cache downloads: what is still a URL here has none."""
    assert "WORKER_MODELS_DIR" in refused(with_lora(URL.format("new.safetensors")))
    listed = [{"kind": "lora", "name": "new.safetensors", "url": URL.format("new.safetensors")}]
    assert "models.0: no 'new.safetensors' in the folder loras" in refused(classic(), models=listed)


def test_the_job_s_list_names_a_url_s_file() -> None:
    """As Civitai's downloads have no name."""
    url = "https://civitai.com/api/download/models/12345?type=Model"
    listed = [{"kind": "lora", "name": "detail.safetensors", "url": url}]
    work = worked(with_lora(url), models=listed)
    assert work.request["12"]["inputs"]["lora_name"] == "detail.safetensors"
    assert [(m.kind, m.url) for m in work.models] == [("lora", url), ("checkpoint", None)]
    assert "no file of this URL in the folder loras" in refused(with_lora(url))


def test_a_url_in_a_choice_of_an_unknown_folder_is_refused() -> None:
    """Else the server would say that it is not in a list."""
    graph = with_nodes(
        _12=("Chooser", {"style": "dark", "model": URL.format("x.pt")}), _13=("PreviewImage", {"images": ["12", 0]})
    )
    assert fields_of(lambda: worked(graph)) == ["workflow.12.inputs.model"]


def test_the_job_s_own_models_must_be_there() -> None:
    """Used by a node or not; kinds without a folder are no kinds of this server."""
    listed = [{"kind": "embedding", "name": "bad.pt"}, {"kind": "llm_models", "name": "llama.safetensors"}]
    assert [m.kind for m in worked(classic(), models=listed).models] == ["embedding", "llm_models", "checkpoint"]
    assert "models.0: no 'good.pt'" in refused(classic(), models=[{"kind": "embedding", "name": "good.pt"}])
    assert fields_of(lambda: worked(classic(), models=[{"kind": "gligen", "name": "x"}])) == ["models.0.kind"]
    own = [{"kind": "checkpoint", "name": "base.safetensors", "sha256": "a" * 64}]
    assert [m.sha256 for m in worked(classic(), models=own).models] == ["a" * 64]


def test_folders_of_any_name_have_a_kind() -> None:
    """Custom folders may be written as no kind may."""
    assert [kind_of(f) for f in ("loras", "checkpoints", "LLM-models", "3d")] == [
        "lora",
        "checkpoint",
        "llm_models",
        "x3d",
    ]
    on = server(also={"Llama": node({"which": [FOLDERS["LLM-models"]]}, "IMAGE")})
    graph = with_nodes(_12=("Llama", {"which": "llama.safetensors"}), _13=("PreviewImage", {"images": ["12", 0]}))
    assert worked(graph, on=on).models[1].kind == "llm_models"


def test_a_file_that_no_document_can_name_is_refused() -> None:
    """A reference is a relative name without dots for parts."""
    folders = {**FOLDERS, "checkpoints": ["a//b.safetensors"]}
    on = server(
        also={"CheckpointLoaderSimple": node({"ckpt_name": [folders["checkpoints"]]}, "M", "C", "V")}, folders=folders
    )
    assert "cannot be the name" in refused(classic(_4_ckpt_name="a//b.safetensors"), on=on)


def test_the_job_s_checkpoint_fills_the_one_loader() -> None:
    """Where the graph leaves it open; where it names one, it must be the same."""
    for open_ in (..., None, ""):
        work = worked(classic(_4_ckpt_name=open_), checkpoint="other")
        assert work.request["4"]["inputs"]["ckpt_name"] == "sub/other.safetensors"
    assert worked(classic(), checkpoint="base").expect.checkpoint == "base.safetensors"
    assert fields_of(lambda: worked(classic(), checkpoint="other")) == ["checkpoint"]


def test_a_checkpoint_that_cannot_be_honoured_is_refused() -> None:
    """The graph loads none, or computes which."""
    bare = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    assert "loads no checkpoint" in refused(bare, checkpoint="base")
    assert worked(bare).expect.checkpoint is None
    computed = with_nodes(classic(_4_ckpt_name=["12", 0]), _12=("PrimitiveString", {"value": "base.safetensors"}))
    assert "computes which model" in refused(computed, checkpoint="base")
    assert worked(computed).models == ()


def test_several_loaders_expect_no_checkpoint() -> None:
    """One of them must be the job's, if it names any; the same file twice is one."""
    second = {"ckpt_name": "sub/other.safetensors"}
    graph = with_nodes(classic(_8_vae=["12", 2]), _12=("CheckpointLoaderSimple", second))
    assert worked(graph).expect.checkpoint is None
    assert worked(graph, checkpoint="other").expect.checkpoint is None
    graph["12"]["inputs"]["ckpt_name"] = "base.safetensors"
    assert worked(graph).expect.checkpoint == "base.safetensors"


def test_a_diffusion_model_stands_for_the_checkpoint() -> None:
    """Where no checkpoint is loaded."""
    graph = with_nodes(
        classic(_3_model=["12", 0], _6_clip=["13", 0], _7_clip=["13", 0], _8_vae=["14", 0]),
        _12=("UNETLoader", {"unet_name": "flux.safetensors"}),
        _13=("PrimitiveString", {"value": "x"}),
        _14=("VAELoader", {"vae_name": "taesd"}),
    )
    assert worked(graph).expect.checkpoint == "flux.safetensors"
    assert worked(graph, checkpoint="flux").models[0].kind == "unet"
