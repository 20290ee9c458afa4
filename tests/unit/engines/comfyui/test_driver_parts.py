"""Small decisions of the driver: ways out, prompts, inputs, addresses, what files say of themselves."""

from __future__ import annotations

import base64
from typing import Any, Literal

import pytest
from pydantic import SecretStr

from tests.support.comfy_engine import graph
from worker.engines.answer import Answer
from worker.engines.base import InputRef
from worker.engines.comfyui.api import allowed, is_comfy, multipart, usable, version_of
from worker.engines.comfyui.architecture import Architecture
from worker.engines.comfyui.engine import reserved
from worker.engines.comfyui.inventory import Input, Inventory, NodeClass
from worker.engines.comfyui.listing import relisted
from worker.engines.comfyui.modelspec import contents_said
from worker.engines.comfyui.run import began_of, cached_of, graph_of
from worker.engines.comfyui.socket import credentials, socket_url
from worker.engines.comfyui.ways import prompt, shows, way_of
from worker.engines.given import provided
from worker.errors import AuthFailed, EngineCrashed, InternalError, InvalidJob
from worker.settings.groups import EngineSettings

PREFIX = "sd-worker/1"


def inventory() -> Inventory:
    def node(name: str, *inputs: Input, output: bool = False) -> NodeClass:
        return NodeClass(name, {i.name: i for i in inputs}, output)

    images, text = Input("images", "IMAGE", True), Input("filename_prefix", "STRING", True, default="ComfyUI")
    nodes = [
        node("KSampler", Input("latent_image", "LATENT", True), Input("seed", "INT", True, seed=True)),
        node("CheckpointLoaderSimple", Input("ckpt_name", "COMBO", True, options=("a", "b"), folder="checkpoints")),
        node("EmptyLatentImage"),
        node("CLIPTextEncode"),
        node("VAEDecode"),
        node("SaveImage", images, text, output=True),
        node("PreviewImage", images, output=True),
        node("SaveImageWebsocket", images, output=True),
    ]
    return Inventory(nodes={n.name: n for n in nodes}, folders={"checkpoints": ("a", "b"), "loras": ()})


@pytest.mark.parametrize(
    ("wanted", "shared", "way"),
    [
        ("auto", {"input", "output", "temp"}, "preview"),
        ("auto", {"output"}, "files"),
        ("auto", {"input"}, "preview"),
        ("files", {"temp"}, "files"),
        ("preview", {"output"}, "preview"),
        ("websocket", set(), "websocket"),
    ],
)
def test_the_way_out_is_chosen(
    wanted: Literal["auto", "files", "preview", "websocket"], shared: set[str], way: str
) -> None:
    """Previews cost least, and the server removes them where nobody else can; what is set is taken."""
    assert way_of(wanted, shared) == way


@pytest.mark.parametrize(
    ("way", "kind", "own", "senders"),
    [
        ("files", "SaveImage", frozenset(), frozenset()),
        ("preview", "PreviewImage", frozenset({"9"}), frozenset()),
        ("websocket", "SaveImageWebsocket", frozenset(), frozenset({"9"})),
    ],
)
def test_a_prompt_knows_its_nodes(way: Any, kind: str, own: frozenset[str], senders: frozenset[str]) -> None:
    """Who samples, reads models, and hands pictures out; the graph that was given stays as it was."""
    given = graph()
    made = prompt(given, inventory(), {}, prefix=PREFIX, way=way, fresh=False, steps=3)
    assert made.graph["9"]["class_type"] == kind
    assert (made.own, made.plan.senders) == (own, senders)
    assert (made.plan.samplers, made.plan.loaders, made.plan.steps) == (frozenset("3"), frozenset("4"), 3)
    assert given == graph()


def test_output_nodes_never_come_from_the_cache() -> None:
    """A prefix of ours where they have one, else an input that nobody is given."""
    for way in ("files", "preview"):
        graphs = [
            prompt(graph(), inventory(), {}, prefix=p, way=way, fresh=False, steps=None).graph
            for p in ("sd-worker/1", "sd-worker/2")
        ]
        assert graphs[0]["9"] != graphs[1]["9"]
        assert {n: v for n, v in graphs[0].items() if n != "9"} == {n: v for n, v in graphs[1].items() if n != "9"}


def test_a_fresh_prompt_loads_its_model_anew() -> None:
    """The nodes that nothing feeds are made new too."""
    made = [
        prompt(graph(), inventory(), {}, prefix=p, way="files", fresh=True, steps=None).graph for p in ("x/1", "x/2")
    ]
    assert made[0]["4"] != made[1]["4"]


def test_a_graph_shows_what_it_loads() -> None:
    """By any input; a broken one shows nothing."""
    assert shows(graph(checkpoint="m.safetensors"), "m.safetensors")
    assert not shows(graph(checkpoint="m.safetensors"), "n.safetensors")
    assert not shows(None, "m.safetensors")
    assert not shows({"1": {"inputs": 3}, "2": 4}, "m.safetensors")


def test_files_that_are_gone_are_no_choices() -> None:
    """Nor do they pass for a word of the node's own; new ones are listed."""
    known = inventory()
    now = relisted(known, {"checkpoints": ("b", "c"), "loras": ("l",)})
    assert now.nodes["CheckpointLoaderSimple"].inputs["ckpt_name"].options == ("b",)
    assert now.folders == {"checkpoints": ("b", "c"), "loras": ("l",)}
    assert known.nodes["CheckpointLoaderSimple"].inputs["ckpt_name"].options == ("a", "b")
    assert now.nodes["KSampler"] is known.nodes["KSampler"]


def test_inputs_come_from_who_fetched_them_or_from_the_job() -> None:
    """Base64 with or without what stands before it; a URL must have been fetched."""
    text = base64.b64encode(b"data").decode()
    assert provided([InputRef("f", "http://x/y")], {"f": b"given"})["f"] == b"given"
    assert provided([InputRef("f", text)], {})["f"] == b"data"
    assert provided([InputRef("f", f"data:image/png;base64,{text[:4]}\n{text[4:]}")], {})["f"] == b"data"
    with pytest.raises(InternalError):
        provided([InputRef("f", "HTTPS://x/y")], {})["f"]
    for broken in ("no base64!", "data:image/png;base64,"):
        with pytest.raises(InvalidJob):
            provided([InputRef("f", broken)], {})["f"]


@pytest.mark.parametrize(
    ("said", "architecture", "complete"),
    [
        ("stable-diffusion-v1", Architecture.SD15, True),
        ("stable-diffusion-xl-v1-base", Architecture.SDXL, True),
        ("stable-diffusion-xl-v1-refiner", Architecture.SDXL_REFINER, True),
        ("stable-diffusion-v2-768-v", Architecture.SD2, True),
        ("stable-diffusion-v3.5-large", Architecture.SD35, False),
        ("Flux.1-dev", Architecture.FLUX, False),
        ("flux-1-schnell", Architecture.FLUX, False),
    ],
)
def test_a_file_may_say_what_it_is(said: str, architecture: Architecture, complete: bool) -> None:
    """Its family; that it is complete only where all of the family are."""
    held = contents_said({"modelspec.architecture": said})
    assert held is not None
    assert (held.architecture, held.unet, held.vae, held.clip) == (architecture, True, complete, complete)
    assert held.guidance == (said == "Flux.1-dev")


def test_what_a_file_says_may_be_nothing_or_a_lora() -> None:
    """Unknown families tell nothing."""
    assert contents_said(None) is None
    assert contents_said({}) is None
    assert contents_said({"modelspec.architecture": "pixart"}) is None
    held = contents_said({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"})
    assert held is not None
    assert (held.lora, held.unet) == (True, False)
    held = contents_said({"modelspec.architecture": "stable-diffusion-v1/inpainting"})
    assert held is not None
    assert held.inpainting


def test_the_socket_is_beside_the_routes() -> None:
    """With the same credentials, encrypted where they are."""
    assert socket_url("http://[::1]:8188") == "ws://[::1]:8188/ws"
    assert socket_url("https://host/comfy") == "wss://host/comfy/ws"
    assert credentials(EngineSettings()) == {}
    settings = EngineSettings(username="u", password=SecretStr("p"), api_key=SecretStr("k"))
    encoded = base64.b64encode(b"u:p").decode()
    assert credentials(settings) == {"authorization": f"Basic {encoded}", "x-api-key": "k"}
    assert credentials(EngineSettings(username="u"))["authorization"].startswith("Basic ")


def test_a_form_holds_its_fields_and_the_file() -> None:
    """As a browser would send it."""
    body, media_type = multipart({"type": "input"}, "image", "a.png", b"data")
    boundary = media_type.partition("boundary=")[2].encode()
    parts = body.split(b"--" + boundary)
    assert parts[0] == b""
    assert parts[1].endswith(b'name="type"\r\n\r\ninput\r\n')
    assert b'name="image"; filename="a.png"' in parts[2]
    assert parts[2].endswith(b"\r\n\r\ndata\r\n")
    assert parts[3] == b"--\r\n"


def test_answers_of_others_are_told_apart() -> None:
    """A proxy's refusal is the operator's; anything else that is no success is no answer."""
    with pytest.raises(AuthFailed):
        allowed(Answer(401, {}, b""))
    with pytest.raises(EngineCrashed):
        usable(Answer(502, {}, b""), "/prompt")
    assert not is_comfy({"system": {}})
    assert version_of({"system": {"comfyui_version": 3}, "devices": []}) is None
    assert version_of(None) is None


def test_reserved_memory_is_that_of_graphics_cards() -> None:
    """On a CPU the number says nothing."""
    assert reserved({"devices": [{"type": "cuda", "torch_vram_total": 5}, {"type": "cpu", "torch_vram_total": 7}]}) == 5
    for odd in (None, {}, {"devices": [3, {"torch_vram_total": "x"}]}):
        assert reserved(odd) == 0


def test_entries_without_their_parts_tell_nothing() -> None:
    """Whatever a version leaves out."""
    for odd in ({}, {"status": None, "prompt": None}, {"status": {"messages": [3, ["execution_start", None]]}}):
        assert (graph_of(odd), cached_of(odd), began_of(odd)) == (None, frozenset(), None)
    entry = {
        "prompt": [1, "p", {"1": {}}],
        "status": {"messages": [["execution_start", {"timestamp": 2000}], ["execution_cached", {"nodes": [1]}]]},
    }
    assert (graph_of(entry), cached_of(entry), began_of(entry)) == ({"1": {}}, frozenset({"1"}), 2.0)
