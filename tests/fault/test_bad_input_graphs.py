"""Graphs and native bodies that are wrong: each ends as the contract says, names its field, and uses no GPU."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fault.test_bad_input import png_base64
from tests.support import comfy_engine
from tests.support import fooocus as fooocus_engine
from tests.support.bench import RunningWorker, ends, params, running_worker
from worker.errors import Fault
from worker.simulators.comfyui import ComfyUI
from worker.simulators.fooocus import Fooocus

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECKPOINT = "dreamshaper_8.safetensors"
Case = tuple[bytes, str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def comfy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningWorker[ComfyUI]]:
    root: Path = tmp_path_factory.mktemp("bad-graphs")
    async with running_worker(root, "comfyui") as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fooocus(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningWorker[Fooocus]]:
    async with running_worker(tmp_path_factory.mktemp("bad-bodies"), request.param) as worker:
        yield worker


def job(**fields: Any) -> bytes:
    """A document that leaves its id to the queue."""
    return json.dumps(fields).encode()


def graph(
    *changes: tuple[str, str, Any], without: tuple[str, ...] = (), also: Mapping[str, Any] | None = None
) -> bytes:
    """The text-to-image graph with inputs changed, an input left out where the new value is ``...``."""
    made = comfy_engine.graph(checkpoint=CHECKPOINT)
    for node, name, value in changes:
        made[node]["inputs"][name] = value
        if value is ...:
            del made[node]["inputs"][name]
    kept = {node_id: node for node_id, node in made.items() if node_id not in without}
    return job(workflow={**kept, **(also or {})})


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def loading(image: str) -> bytes:
    """A graph that only saves what it loads."""
    return job(
        workflow={"10": node("LoadImage", image=image), "11": node("SaveImage", images=["10", 0], filename_prefix="x")}
    )


def chain(length: int) -> dict[str, Any]:
    """Pictures scaled again and again, each by a node of its own, and the last one saved."""
    scale = {"upscale_method": "area", "width": 64, "height": 64, "crop": "disabled"}
    first = {"0": node("EmptyImage", width=64, height=64, batch_size=1, color=255)}
    rest = {str(n): node("ImageScale", image=[str(n - 1), 0], **scale) for n in range(1, length)}
    return {**first, **rest, "save": node("SaveImage", images=[str(length - 1), 0], filename_prefix="x")}


def nested(depth: int) -> Any:
    value: Any = "a cat"
    for _ in range(depth):
        value = [value]
    return value


LORA = {"strength_model": 1.0, "strength_clip": 1.0, "model": ["4", 0], "clip": ["4", 1]}
EDITORS = {"nodes": [{"id": 3, "type": "KSampler"}], "links": [], "version": 0.4}

GRAPHS: dict[str, Case] = {
    "editors-format": (job(workflow=EDITORS), "invalid_job", "workflow: is in the editor's own format"),
    "wrapped": (job(workflow={"prompt": comfy_engine.graph()}), "invalid_job", "workflow: holds the graph under"),
    "empty": (job(workflow={}), "invalid_job", "workflow: has no nodes"),
    "null-node": (graph(also={"20": None}), "invalid_job", "workflow.20: is no node"),
    "inputs-in-a-list": (
        graph(also={"20": {"class_type": "KSampler", "inputs": []}}),
        "invalid_job",
        "workflow.20.inputs",
    ),
    "class-by-number": (graph(also={"20": {"class_type": 5, "inputs": {}}}), "invalid_job", "workflow.20.class_type"),
    "keys-that-are-numbers": (b'{"workflow": {1: {}}}', "invalid_job", "not JSON: key must be a string"),
    "unknown-class": (
        graph(also={"20": node("FancySampler")}),
        "invalid_job",
        "workflow.20.class_type: the server has no such node class: node 20 (FancySampler)",
    ),
    "link-to-nowhere": (
        graph(("9", "images", ["99", 0])),
        "invalid_job",
        "workflow.9.inputs.images: links to node '99'",
    ),
    "link-by-number": (graph(("9", "images", [8, 0])), "invalid_job", "workflow.9.inputs.images: links name a node by"),
    "link-of-another-type": (graph(("9", "images", ["4", 0])), "generation_rejected", "node 9 ("),
    "link-to-no-slot": (graph(("9", "images", ["8", 5])), "generation_rejected", "node 9 ("),
    "circle": (graph(("5", "width", ["8", 0])), "invalid_job", "workflow: its links run in a circle: 3 -> 5 -> 8 -> 3"),
    "no-output-node": (graph(without=("9",)), "invalid_job", "workflow: has no output node"),
    "missing-number": (graph(("3", "cfg", ...)), "invalid_job", "workflow.3.inputs.cfg: is missing"),
    "missing-link": (graph(("3", "model", ...)), "invalid_job", "workflow.3.inputs.model: is missing"),
    "unknown-checkpoint": (
        graph(("4", "ckpt_name", "dreamshaper_9.safetensors")),
        "model_not_found",
        "workflow.4.inputs.ckpt_name: no 'dreamshaper_9.safetensors'",
    ),
    "unknown-lora": (
        graph(("3", "model", ["20", 0]), also={"20": node("LoraLoader", lora_name="nope.safetensors", **LORA)}),
        "model_not_found",
        "workflow.20.inputs.lora_name: no 'nope.safetensors'",
    ),
    "unknown-embedding": (
        graph(("6", "text", "a cat, embedding:nope")),
        "model_not_found",
        "workflow.6.inputs.text: no embedding 'nope'",
    ),
    "unknown-sampler": (graph(("3", "sampler_name", "Euler a")), "invalid_job", "workflow.3.inputs.sampler_name"),
    "unknown-scheduler": (graph(("3", "scheduler", "warp")), "invalid_job", "workflow.3.inputs.scheduler"),
    "another-checkpoint": (
        json.dumps({**json.loads(graph()), "checkpoint": "sd_xl_base_1.0"}).encode(),
        "invalid_job",
        "checkpoint: the workflow loads another",
    ),
    "model-by-url": (
        graph(("4", "ckpt_name", "https://example.com/some.safetensors")),
        "model_not_found",
        "workflow.4.inputs.ckpt_name: the image server has no checkpoint 'some.safetensors', and there is no models",
    ),
    "text-for-a-number": (graph(("3", "cfg", "seven")), "generation_rejected", "node 3 (KSampler), cfg: "),
    "steps-as-text": (graph(("3", "steps", "10000")), "invalid_job", "workflow.3.inputs.steps: 10000"),
    "too-many-steps": (graph(("3", "steps", 10_000)), "invalid_job", "workflow.3.inputs.steps: 10000 is more than 150"),
    "too-large": (
        graph(("5", "width", 16_384), ("5", "height", 16_384)),
        "invalid_job",
        "workflow.5.inputs.width: 16384x16384 is more than",
    ),
    "too-many-images": (graph(("5", "batch_size", 17)), "invalid_job", "workflow.5.inputs.batch_size: 17 images"),
    "negative-size": (graph(("5", "width", -64)), "generation_rejected", "node 5 (EmptyLatentImage), width: "),
    "enormous-size": (graph(("5", "width", 10**30)), "generation_rejected", "node 5 (EmptyLatentImage), width: "),
    "enormous-seed": (graph(("3", "seed", 2**70)), "generation_rejected", "node 3 (KSampler), seed: "),
    "not-a-number": (graph(("3", "cfg", float("nan"))), "invalid_job", "not JSON"),
    "enormous-guidance": (graph(("3", "cfg", 1e308)), "generation_rejected", "node 3 (KSampler), cfg: "),
    "too-deep": (graph(("6", "text", nested(300))), "invalid_job", "not JSON: recursion limit exceeded"),
    "chain-too-long": (job(workflow=chain(5000)), "generation_rejected", "maximum recursion depth"),
    "no-image": (loading("data:image/png;base64,aGVsbG8="), "invalid_job", "workflow.10.inputs.image: is no image"),
    "bad-base64": (
        loading("data:image/png;base64,%%%"),
        "invalid_job",
        "workflow.10.inputs.image: is not valid base64",
    ),
    "bomb": (loading(png_base64(9000, 9000)), "invalid_job", "workflow.10.inputs.image: has 9000x9000 pixels"),
    "image-at-a-private-address": (
        loading("http://127.0.0.1:1/a.png"),
        "url_forbidden",
        "workflow.10.inputs.image: host",
    ),
    "image-at-the-metadata-service": (
        loading("http://169.254.169.254/latest"),
        "url_forbidden",
        "workflow.10.inputs.image: host",
    ),
    "image-in-a-file": (loading("file:///etc/passwd"), "invalid_job", "workflow.10.inputs.image: is neither"),
    "image-outside": (loading("../../etc/passwd"), "invalid_job", "workflow.10.inputs.image: leads out of"),
    "image-that-is-not-there": (loading("absent.png"), "generation_rejected", "Invalid image file: absent.png"),
    "native-body": (job(request={"prompt": "a cat"}), "invalid_job", "request: ComfyUI takes params, or a graph"),
    "template": (
        job(template={"name": "poster", "input": {}}),
        "invalid_job",
        "template.name: no workflow of this name is here",
    ),
    "refiner-on-sd15": (
        job(params=params(refiner={"checkpoint": "sd_xl_refiner_1.0"}), checkpoint="dreamshaper_8"),
        "invalid_job",
        "params.refiner: dreamshaper_8.safetensors (sd15) has no refiner",
    ),
    "refiner-that-is-none": (
        job(params=params(refiner={"checkpoint": "dreamshaper_8"}), checkpoint="sd_xl_base_1.0"),
        "invalid_job",
        "params.refiner.checkpoint: dreamshaper_8.safetensors is neither",
    ),
    "refiner-alone": (job(params=params(), checkpoint="sd_xl_refiner_1.0"), "invalid_job", "checkpoint: "),
    "negative-prompt-on-flux": (
        job(params=params(negative_prompt="ugly"), checkpoint="flux1-dev"),
        "invalid_job",
        "params.negative_prompt: flux1-dev.safetensors (flux)",
    ),
    "clip-skip-on-sd35": (
        job(params=params(clip_skip=2), checkpoint="sd3.5_medium"),
        "invalid_job",
        "params.clip_skip: sd3.5_medium.safetensors (sd35)",
    ),
    "portable-sampler": (job(params=params(sampler="Euler a")), "invalid_job", "params.sampler: "),
    "portable-scheduler": (job(params=params(scheduler="warp")), "invalid_job", "params.scheduler: "),
    "portable-checkpoint": (job(params=params(), checkpoint="nope"), "model_not_found", "checkpoint: "),
    "portable-vae": (job(params=params(vae="nope")), "model_not_found", "params.vae: "),
    "portable-lora": (job(params=params(loras=[{"name": "nope"}])), "model_not_found", "params.loras.0.name: "),
}


async def rejected(worker: RunningWorker[Any], case: str, wrong: Case) -> None:
    """It ends at once as a dead letter with its code and the field, and one failed webhook."""
    body, code, said = wrong
    state = await worker.done(case, body)
    assert (state.status, state.code, ends(state)) == ("dead", code, [(code, True)])
    assert state.result is not None
    assert state.result.error is not None
    assert said in state.result.error.message
    assert (state.result.error.code, state.result.error.fault) == (code, Fault.JOB)
    assert not state.result.error.retryable
    assert worker.told(case) == ["job.failed"]


@pytest.mark.parametrize("case", GRAPHS)
async def test_a_wrong_graph_is_rejected_and_its_owner_told(comfy: RunningWorker[ComfyUI], case: str) -> None:
    """The GPU is not used for it, the server's queue never sees it, and the next job is done."""
    queued, sampled = len(comfy.sim.stats.prompts), len(comfy.sim.stats.samplings)
    await rejected(comfy, case, GRAPHS[case])
    assert (len(comfy.sim.stats.prompts), len(comfy.sim.stats.samplings)) == (queued, sampled)
    assert [name for kind in ("input", "output", "temp") for name in comfy.sim.files(kind)] == []
    await comfy.goes_on(case)


MANY = {str(n): node("EmptyImage", width=64, height=64, batch_size=1, color=0) for n in range(100, 10_100)}
ODD: dict[str, bytes] = {
    "ten-thousand-nodes": graph(also=MANY),
    "number-as-text": graph(("3", "cfg", "7.5")),
    "prefix-with-a-path": graph(("9", "filename_prefix", "../../evil")),
    "absolute-prefix": graph(("9", "filename_prefix", "/evil/place")),
    "unknown-input": graph(("3", "colour", "red")),
    "long-chain": job(workflow=chain(150)),
    "node-title-that-is-none": graph(also={"20": {**node("EmptyImage"), "_meta": {"title": 5}}}),
}


@pytest.mark.parametrize("case", ODD)
async def test_an_odd_graph_that_the_server_can_run_is_run(comfy: RunningWorker[ComfyUI], case: str) -> None:
    """What is only unusual is no mistake, and nothing leaves the server's folders."""
    state = await comfy.done(case, ODD[case])
    assert (state.status, ends(state), comfy.told(case)) == ("done", [("succeeded", False)], ["job.succeeded"])
    assert [*comfy.sim.base_dir.rglob("*evil*"), *comfy.sim.base_dir.parent.glob("evil*")] == []
    await comfy.goes_on(case)


def native(endpoint: str | None = None, **fields: Any) -> bytes:
    """A small body of Fooocus-API."""
    return job(**fooocus_engine.small(**fields), **({"endpoint": endpoint} if endpoint else {}))


def advanced(**fields: Any) -> bytes:
    return native(advanced_params=fields)


def lora(name: str, *, enabled: bool = True) -> dict[str, Any]:
    return {"enabled": enabled, "model_name": name, "weight": 1.0}


BODIES: dict[str, Case] = {
    "style": (native(style_selections=["Fooocus V3"]), "invalid_job", "request.style_selections.0: is no style"),
    "sampler": (advanced(sampler_name="warp"), "invalid_job", "request.advanced_params.sampler_name: "),
    "scheduler": (advanced(scheduler_name="warp"), "invalid_job", "request.advanced_params.scheduler_name: "),
    "model": (native(base_model_name="nope.safetensors"), "model_not_found", "request.base_model_name: "),
    "refiner": (native(refiner_model_name="nope.safetensors"), "model_not_found", "request.refiner_model_name: "),
    "lora": (native(loras=[lora("nope.safetensors")]), "model_not_found", "request.loras.0.model_name: "),
    "lora-in-the-prompt": (job(params=params("x <lora:nope:1>")), "model_not_found", "params.prompt: "),
    "performance": (native(performance_selection="Ludicrous"), "generation_rejected", "performance_selection: "),
    "too-many-images": (native(image_number=33), "invalid_job", "request.image_number: 33 images are more than 16"),
    "no-images": (native(image_number=0), "invalid_job", "request.image_number: "),
    "guidance": (native(guidance_scale=99), "generation_rejected", "guidance_scale: Input should be less"),
    "guidance-as-text": (native(guidance_scale="much"), "generation_rejected", "guidance_scale: "),
    "portable-guidance": (job(params=params(cfg=99.0)), "invalid_job", "params.cfg: "),
    "webhook": (native(webhook_url="https://example.com/hook"), "invalid_job", "request.webhook_url: "),
    "sdapi-endpoint": (native("txt2img"), "invalid_job", "endpoint: unknown; known: text-to-image"),
    "endpoint-that-is-none": (native("stop"), "invalid_job", "endpoint: unknown"),
    "path-as-endpoint": (native("../v1/engines"), "invalid_job", "endpoint: "),
    "aspect-in-words": (native(aspect_ratios_selection="wide"), "invalid_job", "aspect_ratios_selection: must be"),
    "aspect-of-nothing": (native(aspect_ratios_selection="0*0"), "invalid_job", "aspect_ratios_selection: must be"),
    "aspect-of-three": (native(aspect_ratios_selection="64*64*64"), "invalid_job", "aspect_ratios_selection: must be"),
    "aspect-too-large": (native(aspect_ratios_selection="9000*9000"), "invalid_job", "9000x9000 is more than"),
    "steps": (native(steps=10_000), "invalid_job", "request.advanced_params.overwrite_step: 10000"),
    "prompt-that-is-none": (
        job(request={"prompt": 5}),
        "generation_rejected",
        "prompt: Input should be a valid string",
    ),
    "unknown-field": (native(colour="red"), "invalid_job", "request.colour: "),
    "unknown-advanced-field": (advanced(clip_skp=1), "invalid_job", "close to it: clip_skip"),
    "advanced-that-is-none": (job(request={"advanced_params": []}), "invalid_job", "request.advanced_params: "),
    "seed": (native(image_seed=2**63), "invalid_job", "request.image_seed: "),
    "wildcard": (job(params=params("a __animal__")), "invalid_job", "params.prompt: "),
    "workflow": (job(workflow={"1": {}}), "invalid_job", "workflow: "),
    "no-image": (native("image-upscale-vary"), "invalid_job", "request.input_image: is missing"),
    "bad-image": (
        native("image-upscale-vary", input_image="aGVsbG8="),
        "invalid_job",
        "request.input_image: is no image",
    ),
    "image-at-a-private-address": (
        native("image-upscale-vary", input_image="http://127.0.0.1:1/a.png"),
        "url_forbidden",
        "request.input_image: host '127.0.0.1' is not public",
    ),
}


CHECKED = [("fooocus", case) for case in BODIES] + [
    ("fooocus-0.4.1.1", case) for case in ("style", "scheduler", "model", "lora", "performance", "aspect-in-words")
]


@pytest.mark.parametrize(("fooocus", "case"), CHECKED, indirect=["fooocus"])
async def test_a_wrong_body_is_rejected_and_its_owner_told(fooocus: RunningWorker[Fooocus], case: str) -> None:
    """No job of the server is made of it, where it would have put its own defaults instead; the next job is done."""
    made = len(fooocus.sim.stats.generations)
    await rejected(fooocus, case, BODIES[case])
    assert len(fooocus.sim.stats.generations) == made
    await fooocus.goes_on(case)


@pytest.mark.parametrize("fooocus", ["fooocus", "fooocus-0.4.1.1"], indirect=True)
async def test_a_lora_that_is_switched_off_is_left_out(fooocus: RunningWorker[Fooocus]) -> None:
    """Even one that is not there: the older version would use it all the same, or replace it."""
    state = await fooocus.done("switched-off", native(loras=[lora("nope.safetensors", enabled=False)]))
    assert (state.status, ends(state)) == ("done", [("succeeded", False)])
    assert not any("nope" in line for line in fooocus.sim.journal.lines)
    await fooocus.goes_on("switched-off")
