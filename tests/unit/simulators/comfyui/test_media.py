"""Outputs that are no plain pictures, and nodes that change pictures."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from tests.support.comfy import (
    Graph,
    image_graph,
    images_of,
    node,
    png,
    simulated,
    upload,
)
from worker.simulators.comfyui import Knobs


def video(fmt: str, *, save: bool = True) -> Graph:
    """Two frames combined."""
    return {
        "1": node("EmptyImage", width=16, height=16, batch_size=2, color=255),
        "9": node(
            "VHS_VideoCombine",
            images=["1", 0],
            frame_rate=8,
            loop_count=0,
            filename_prefix="clip",
            format=fmt,
            pingpong=False,
            save_output=save,
        ),
    }


@pytest.mark.parametrize(
    ("graph", "kind", "magic"),
    [
        (video("image/gif"), "gifs", b"GIF89a"),
        (video("video/h264-mp4"), "gifs", b"\0\0\0\x1cftypisom"),
        (
            {
                "1": node("EmptyAudio", duration=1.5, sample_rate=8000, channels=2),
                "9": node("SaveAudio", audio=["1", 0], filename_prefix="audio/a"),
            },
            "audio",
            b"fLaC",
        ),
        (
            {
                "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
                "9": node("SaveLatent", samples=["1", 0], filename_prefix="latents/a"),
            },
            "latents",
            b"",
        ),
        (
            {
                "1": node("EmptyImage", width=16, height=16, batch_size=3, color=255),
                "9": node(
                    "SaveAnimatedWEBP",
                    images=["1", 0],
                    filename_prefix="w",
                    fps=6,
                    lossless=True,
                    quality=80,
                    method="default",
                ),
            },
            "images",
            b"RIFF",
        ),
    ],
)
async def test_other_kinds_of_output(graph: Graph, kind: str, magic: bytes) -> None:
    """Each names a real file of its kind."""
    async with simulated() as c:
        shown = (await c.run(graph))["outputs"]["9"]
        data = (await c.client.get("/view", params=shown[kind][0])).content
    assert data.startswith(magic)
    assert data
    if kind == "images":
        assert shown["animated"] == [True]
    if kind == "gifs":
        assert set(shown[kind][0]) == {
            *("filename", "subfolder", "type", "format", "frame_rate", "workflow", "fullpath")
        }


async def test_a_video_that_is_not_kept_is_temporary() -> None:
    """And a text output names no file at all."""
    graph = video("image/webp", save=False) | {"8": node("PreviewAny", source="hello")}
    async with simulated() as c:
        outputs = (await c.run(graph))["outputs"]
    assert outputs["9"]["gifs"][0]["type"] == "temp"
    assert outputs["8"] == {"text": ["hello"]}


async def test_scaling_and_masks() -> None:
    """Sizes follow the nodes."""
    graph: dict[str, Any] = {
        "0": node("LoadImage", image="in.png"),
        "1": node("ImageScale", image=["0", 0], upscale_method="lanczos", width=32, height=0, crop="disabled"),
        "2": node("ImageScale", image=["0", 0], upscale_method="area", width=10, height=10, crop="center"),
        "3": node("ImageScale", image=["0", 0], upscale_method="area", width=0, height=0, crop="center"),
        "4": node("UpscaleModelLoader", model_name="4x.pth"),
        "5": node("ImageUpscaleWithModel", upscale_model=["4", 0], image=["1", 0]),
    }
    for n in "1235":
        graph[f"9{n}"] = node("SaveImage", images=[n, 0], filename_prefix=f"s{n}")
    async with simulated(models={"upscale_models": ["4x.pth"]}) as c:
        await upload(c, png())
        outputs = (await c.run(graph))["outputs"]
        sizes = {n: (await c.view(outputs[f"9{n}"]["images"][0])).size for n in "1235"}
    assert sizes == {"1": (32, 24), "2": (10, 10), "3": (64, 48), "5": (128, 96)}


async def test_sharing_the_folder(tmp_path: Any) -> None:
    """A base directory holds real files on both sides."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input/mine.png").write_bytes(png(size=(64, 64)))
    async with simulated(Knobs(), base_dir=tmp_path) as c:
        entry = await c.run(image_graph("mine.png", denoise=0.0))
        paths = await c.get("/internal/folder_paths")
    item = images_of(entry)[0]
    with Image.open(tmp_path / "output" / item["filename"]) as picture:
        assert picture.getpixel((3, 3)) == (200, 30, 30)
    assert paths["checkpoints"][0] == str(tmp_path / "models/checkpoints")
    assert not list((tmp_path / "models/checkpoints").iterdir())
