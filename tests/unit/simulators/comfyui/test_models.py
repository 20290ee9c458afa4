"""Model files, their headers, and what the server lists."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.support.comfy import Graph, last_message, node, picture_graph, simulated, text_graph
from worker.simulators.comfyui import Architecture, Knobs, write_checkpoint
from worker.simulators.comfyui.weights import BadWeights, contents, header_of, tensors

BYTES = {"F16": 2, "F32": 4, "BF16": 2}


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_headers_agree_with_their_files(tmp_path: Path, architecture: Any) -> None:
    """Offsets follow one another, sizes are those of shape and type, and the file ends where they end."""
    path = write_checkpoint(tmp_path / "sub/x.safetensors", architecture, metadata={"title": "x"})
    header = header_of(path)
    end = 0
    for name, shape in tensors(architecture).items():
        start, stop = header[name]["data_offsets"]
        assert (start, stop - start) == (end, math.prod(shape) * BYTES[header[name]["dtype"]])
        end = stop
    length = struct.unpack("<Q", path.read_bytes()[:8] if path.stat().st_size < 1 << 20 else _first(path))[0]
    assert path.stat().st_size == 8 + length + end
    assert header["__metadata__"] == {"title": "x"}
    assert path.stat().st_blocks * 512 < 1 << 20


def _first(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def test_parts_and_types(tmp_path: Path) -> None:
    """A checkpoint may lack parts, and another type has other sizes."""
    whole = header_of(write_checkpoint(tmp_path / "a.safetensors", "sdxl"))
    bare = header_of(write_checkpoint(tmp_path / "b.safetensors", "sdxl", parts=["unet"], dtype="F32"))
    flux = header_of(write_checkpoint(tmp_path / "c.safetensors", "flux-unet"))
    name = "model.diffusion_model.label_emb.0.0.weight"
    assert contents(whole).clip
    assert (contents(bare).unet, contents(bare).clip, contents(bare).vae) == (True, False, False)
    assert contents(flux).unet
    assert bare[name]["shape"] == [1280, 2816]
    assert bare[name]["dtype"] == "F32"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "header too small"),
        (b"123", "header too small"),
        (struct.pack("<Q", 1 << 40) + b"{}", "invalid header length"),
        (struct.pack("<Q", 4) + b"nope", "invalid JSON in header"),
    ],
)
def test_files_that_are_not_whole(tmp_path: Path, data: bytes, words: str) -> None:
    """In the library's words."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadWeights, match=words):
        header_of(path)


async def test_models_come_and_go() -> None:
    """A file is listed and usable at once, with its subfolder, and not under another suffix; deleted, it is refused."""
    async with simulated() as c:
        folder = c.sim.base_dir / "models/checkpoints"
        before = await c.get("/models/checkpoints")
        write_checkpoint(folder / "sub/new.safetensors.part", "sd15")
        hidden = await c.get("/models/checkpoints")
        (folder / "sub/new.safetensors.part").rename(folder / "sub/new.safetensors")
        shown = await c.get("/api/models/checkpoints")
        entry = await c.run(text_graph(checkpoint="sub/new.safetensors"))
        c.sim.folders.remove("checkpoints", "sub/new.safetensors")
        refused = await c.post("/prompt", {"prompt": text_graph(checkpoint="sub/new.safetensors")})
    assert hidden == before
    assert shown == [*before, "sub/new.safetensors"]
    assert entry["status"]["completed"]
    assert refused.json()["node_errors"]["4"]["errors"][0]["type"] == "value_not_in_list"


async def test_a_model_that_goes_while_its_prompt_waits() -> None:
    """It fails when the loader runs."""
    async with simulated(Knobs(step_seconds=0.005)) as c:
        await c.submit(text_graph(steps=1000))
        await c.sampling()
        waiting = await c.submit(text_graph(checkpoint="sd_xl_base_1.0.safetensors"))
        c.sim.folders.remove("checkpoints", "sd_xl_base_1.0.safetensors")
        await c.post("/interrupt")
        data = last_message(await c.entry(waiting))[1]
    assert data["exception_type"] == "FileNotFoundError"
    assert data["exception_message"] == (
        "Model in folder 'checkpoints' with filename 'sd_xl_base_1.0.safetensors' not found.\n"
    )


async def test_half_a_file() -> None:
    """It is listed and validates, and fails to load."""
    async with simulated(checkpoints={"half.safetensors": "sd15"}) as c:
        path = c.sim.base_dir / "models/checkpoints/half.safetensors"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 10)
        data = last_message(await c.run(text_graph(checkpoint="half.safetensors")))[1]
    assert data["exception_type"] == "safetensors_rust.SafetensorError"
    assert "incomplete metadata, file not fully covered" in data["exception_message"]


@pytest.mark.parametrize(
    ("architecture", "parts", "node_id", "words"),
    [
        ("vae", None, "4", "Could not detect model type of"),
        ("sd15", ["unet", "vae"], "7", "clip input is invalid: None"),
        ("sd15", ["unet", "clip"], "8", "VAE is invalid: None"),
    ],
)
async def test_checkpoints_that_lack_a_part(architecture: Any, parts: Any, node_id: str, words: str) -> None:
    """The node that wants the part fails."""
    async with simulated() as c:
        path = c.sim.base_dir / "models/checkpoints/odd.safetensors"
        write_checkpoint(path, architecture, parts=parts or ["unet"])
        data = last_message(await c.run(text_graph(checkpoint="odd.safetensors")))[1]
    assert data["exception_type"] == "RuntimeError"
    assert words in data["exception_message"]
    assert data["node_id"] == node_id


def flux_graph() -> Graph:
    """Separate files and the composed sampler."""
    return {
        "1": node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="l.safetensors", clip_name2="t5.safetensors", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("LoraLoaderModelOnly", model=["1", 0], lora_name="style.safetensors", strength_model=0.5),
        "5": node("ModelSamplingFlux", model=["4", 0], max_shift=1.15, base_shift=0.5, width=64, height=64),
        "6": node("CLIPTextEncodeFlux", clip=["2", 0], clip_l="a fox", t5xxl="a red fox", guidance=3.5),
        "7": node("FluxGuidance", conditioning=["6", 0], guidance=2.0),
        "8": node("BasicGuider", model=["5", 0], conditioning=["7", 0]),
        "9": node("RandomNoise", noise_seed=11),
        "10": node("KSamplerSelect", sampler_name="euler"),
        "11": node("BasicScheduler", model=["5", 0], scheduler="simple", steps=4, denoise=1.0),
        "12": node("EmptySD3LatentImage", width=64, height=64, batch_size=2),
        "13": node(
            "SamplerCustomAdvanced",
            noise=["9", 0],
            guider=["8", 0],
            sampler=["10", 0],
            sigmas=["11", 0],
            latent_image=["12", 0],
        ),
        "14": node("VAEDecode", samples=["13", 0], vae=["3", 0]),
        "15": node("SaveImage", images=["14", 0], filename_prefix="flux"),
    }


async def test_a_flux_graph() -> None:
    """The files of all loaders, and what the sampler was given, stand in the statistics."""
    files: dict[str, Any] = {
        "diffusion_models": {"flux.safetensors": "flux-unet"},
        "text_encoders": {"l.safetensors": "clip-l", "t5.safetensors": "t5"},
        "vaes": {"ae.safetensors": "vae-16"},
        "loras": {"style.safetensors": "lora"},
    }
    async with simulated(**files) as c:
        entry = await c.run(flux_graph())
        sampling = c.sim.stats.samplings[0]
        graph = flux_graph()
        graph["1"]["inputs"]["unet_name"] = "wrong.safetensors"
        c.sim.folders.add("diffusion_models", "wrong.safetensors", "vae")
        wrong = last_message(await c.run(graph))[1]
    assert len(entry["outputs"]["15"]["images"]) == 2
    assert sampling.models == ("flux.safetensors", "style.safetensors")
    assert (sampling.seed, sampling.steps, sampling.sampler, sampling.scheduler) == (11, 4, "euler", "simple")
    assert sampling.positive == "a fox a red fox"
    assert sorted(c.sim.stats.loads[:5]) == [
        *("diffusion_models/flux.safetensors", "loras/style.safetensors", "text_encoders/l.safetensors"),
        *("text_encoders/t5.safetensors", "vae/ae.safetensors"),
    ]
    assert "Could not detect model type" in wrong["exception_message"]


def rich_graph() -> dict[str, Any]:
    """A graph with most of what samples and conditions."""
    graph = text_graph()
    graph |= {
        "20": node(
            "LoraLoader",
            model=["4", 0],
            clip=["4", 1],
            lora_name="a.safetensors",
            strength_model=1,
            strength_clip=1,
        ),
        "21": node("CLIPSetLastLayer", clip=["20", 1], stop_at_clip_layer=-2),
        "22": node("ControlNetLoader", control_net_name="cn.safetensors"),
        "23": picture_graph()["1"],
        "24": node(
            "ControlNetApplyAdvanced",
            positive=["6", 0],
            negative=["7", 0],
            control_net=["22", 0],
            image=["23", 0],
            strength=0.7,
            start_percent=0,
            end_percent=1,
        ),
        "25": node("RepeatLatentBatch", samples=["5", 0], amount=2),
        "26": node("LatentUpscaleBy", samples=["3", 0], upscale_method="area", scale_by=2.0),
        "27": node(
            "KSamplerAdvanced",
            model=["20", 0],
            add_noise="enable",
            noise_seed=5,
            steps=10,
            cfg=4.0,
            sampler_name="ddim",
            scheduler="karras",
            positive=["24", 0],
            negative=["28", 0],
            latent_image=["26", 0],
            start_at_step=6,
            end_at_step=10000,
            return_with_leftover_noise="disable",
        ),
        "28": node("ConditioningZeroOut", conditioning=["7", 0]),
        "29": node("LatentUpscale", samples=["27", 0], upscale_method="area", width=0, height=192, crop="disabled"),
        "30": node("IPAdapterModelLoader", ipadapter_file="ip.bin"),
        "31": node("PreviewAny", source=["30", 0]),
    }
    graph["6"]["inputs"]["clip"] = ["21", 0]
    graph["3"]["inputs"] |= {"model": ["20", 0], "latent_image": ["25", 0], "positive": ["24", 0]}
    graph["8"]["inputs"]["samples"] = ["29", 0]
    return graph


async def test_a_rich_graph() -> None:
    """LoRA, clip skip, ControlNet, refiner, upscaling and batches leave their marks on the picture."""
    graph = rich_graph()
    models = {"controlnet": ["cn.safetensors"], "ipadapter": ["ip.bin"]}
    async with simulated(loras=["a.safetensors"], models=models) as c:
        first = await c.run(graph)
        picture = await c.view(first["outputs"]["9"]["images"][0])
        seen = {(await c.picture(graph)).tobytes()}
        changes: list[tuple[str, str, Any]] = [
            ("20", "strength_model", 0.5),
            ("21", "stop_at_clip_layer", -1),
            ("23", "color", 5),
            ("24", "strength", 0),
            ("27", "start_at_step", 5),
        ]
        for where, name, value in changes:
            graph[where]["inputs"][name] = value
            seen.add((await c.picture(graph)).tobytes())
        samplings = c.sim.stats.samplings
    assert len(first["outputs"]["9"]["images"]) == 2
    assert picture.size == (192, 192)
    assert len(seen) == len(changes) + 1
    assert (samplings[1].steps, samplings[1].denoise, samplings[1].width) == (4, 0.4, 128)
    assert samplings[0].models == ("dreamshaper_8.safetensors", "a.safetensors")


async def test_loaders_without_an_effect_and_other_text_nodes() -> None:
    """A LoRA of strength 0 is not even read; SDXL's and SD 3's text nodes and loaders run."""
    graph = text_graph(checkpoint="x.safetensors")
    size: dict[str, Any] = dict.fromkeys(("width", "height", "target_width", "target_height"), 64)
    graph |= {
        "20": node(
            "LoraLoader",
            model=["4", 0],
            clip=["4", 1],
            lora_name="a.safetensors",
            strength_model=0,
            strength_clip=0,
        ),
        "21": node("TripleCLIPLoader", clip_name1="l", clip_name2="l", clip_name3="l"),
        "22": node("CLIPLoader", clip_name="l.safetensors", type="sd3"),
        "23": node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2),
        "24": node("VAELoader", vae_name="pixel_space"),
        "25": node("ModelSamplingSD3", model=["20", 0], shift=3.0),
        "26": node("CFGGuider", model=["25", 0], positive=["6", 0], negative=["7", 0], cfg=4.0),
        "27": node("PreviewAny", source=["26", 0]),
        "28": node("LatentUpscale", samples=["5", 0], upscale_method="area", width=0, height=0, crop="disabled"),
    }
    graph["6"] = node("CLIPTextEncodeSDXL", clip=["22", 0], text_g="g", text_l="l", crop_w=0, crop_h=0, **size)
    graph["7"] = node("CLIPTextEncodeSDXLRefiner", clip=["4", 1], ascore=2.5, width=64, height=64, text="bad")
    graph["3"]["inputs"]["latent_image"] = ["28", 0]
    graph["8"]["inputs"]["vae"] = ["24", 0]
    files: dict[str, Any] = {
        "checkpoints": {"x.safetensors": "sdxl-refiner", "no-clip.safetensors": "sd35-unet"},
        "text_encoders": ["l.safetensors"],
        "loras": ["a.safetensors"],
    }
    async with simulated(**files) as c:
        entry = await c.run(graph)
        skip = {
            "4": node("CheckpointLoaderSimple", ckpt_name="no-clip.safetensors"),
            "5": node("CLIPSetLastLayer", clip=["4", 1], stop_at_clip_layer=-2),
            "6": node("PreviewAny", source=["5", 0]),
        }
        failed = last_message(await c.run(skip))[1]
    assert entry["status"]["completed"]
    assert sorted(c.sim.stats.loads) == [
        *("checkpoints/no-clip.safetensors", "checkpoints/x.safetensors", "text_encoders/l.safetensors"),
    ]
    assert c.sim.stats.samplings[0].positive == "g l"
    assert failed["exception_type"] == "AttributeError"
