"""Whatever a graph makes comes out of ComfyUI: every kind of output, by every way, in order and once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.comfy_engine import Bench, bench, graph, plain, workflow
from tests.support.pictures import opened
from tests.support.waiting import wait_until
from worker.engines.base import Output
from worker.errors import OutputEmpty
from worker.simulators.comfyui import Knobs

WAYS = ("files", "preview", "websocket")
every_way = pytest.mark.parametrize("way", WAYS)

IMAGES: dict[str, Any] = {
    "class_type": "EmptyImage",
    "inputs": {"width": 64, "height": 64, "batch_size": 3, "color": 255},
}


def video(fmt: str, **more: Any) -> dict[str, Any]:
    inputs = {"images": ["8", 0], "frame_rate": 8, "loop_count": 0, "filename_prefix": "v", "format": fmt}
    return {"class_type": "VHS_VideoCombine", "inputs": {**inputs, "pingpong": False, "save_output": True, **more}}


def saved(prefix: str = "x", source: str = "1", **more: Any) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"filename_prefix": prefix, "images": [source, 0], **more}}


async def made(b: Bench, nodes: dict[str, Any]) -> Output:
    return await b.make(workflow({"1": IMAGES, **nodes}))


@every_way
async def test_every_way_gives_the_same_pictures(way: str) -> None:
    """Read from disk, as previews, or by the socket: the same pixels, and nothing is left."""
    pixels = []
    for chosen in ("files", way):
        async with bench(settings={"comfyui_output": chosen}) as b:
            output = await b.make(workflow(batch=3))
            pixels.append([opened(image.data).tobytes() for image in output.images])
            assert b.left == []
    assert pixels[0] == pixels[1]
    assert len(pixels[0]) == 3


async def test_where_the_socket_node_is_missing_files_are_saved() -> None:
    """SaveImageWebsocket is an example node, absent where custom nodes are disabled."""
    knobs = Knobs(missing_nodes=["SaveImageWebsocket"])
    async with bench(knobs, settings={"comfyui_output": "websocket"}) as b:
        assert len((await b.make(workflow())).images) == 1
        assert b.left == []


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (video("video/h264-mp4"), ".mp4"),
        (video("image/gif"), ".gif"),
        (video("image/webp"), ".webp"),
        (video("video/h264-mp4", save_output=False), ".mp4"),
        (
            {
                "class_type": "SaveAnimatedWEBP",
                "inputs": {
                    "images": ["8", 0],
                    "filename_prefix": "a",
                    "fps": 6.0,
                    "lossless": True,
                    "quality": 80,
                    "method": "default",
                },
            },
            ".webp",
        ),
        ({"class_type": "SaveAudio", "inputs": {"audio": ["2", 0], "filename_prefix": "s"}}, ".flac"),
        ({"class_type": "PreviewAny", "inputs": {"source": "words"}}, "9-0.txt"),
    ],
)
async def test_what_is_no_picture_comes_as_a_file(node: dict[str, Any], name: str) -> None:
    """Videos, animations, sounds and texts, whatever kind they are listed under, by the node that made them."""
    audio = {"class_type": "EmptyAudio", "inputs": {"duration": 0.1, "sample_rate": 8000, "channels": 1}}
    async with bench() as b:
        output = await b.make(workflow({**graph(batch=3), "2": audio, "9": node}))
        assert output.images == ()
        (file,) = output.files
        assert file.name.endswith(name)
        assert file.node == "9"
        assert file.data
        assert b.left == []


async def test_a_latent_comes_as_a_file() -> None:
    """Kind `latents`, in a folder of its own."""
    nodes = graph()
    del nodes["9"], nodes["8"]
    nodes["9"] = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "latents/ComfyUI"}}
    async with bench() as b:
        output = await b.make(workflow(nodes))
        assert [file.name.endswith(".latent") for file in output.files] == [True]
        assert b.left == []


async def test_pictures_and_files_come_together() -> None:
    """A text beside a picture is no reason to drop either."""
    async with bench() as b:
        output = await made(b, {"8": saved(), "9": {"class_type": "PreviewAny", "inputs": {"source": "words"}}})
        assert len(output.images) == 3
        assert [file.data for file in output.files] == [b"words"]


@pytest.mark.parametrize("way", ["files", "websocket"])
async def test_the_order_is_that_of_the_nodes(way: str) -> None:
    """Node 9 comes before node 10, whichever ran first; images of a batch stay in order."""
    nodes: dict[str, Any] = {}
    for at, color in (("10", 0x00FF00), ("9", 0xFF0000)):
        nodes[f"{at}1"] = {"class_type": "EmptyImage", "inputs": {**IMAGES["inputs"], "color": color, "batch_size": 1}}
        nodes[at] = saved(source=f"{at}1")
    async with bench(settings={"comfyui_output": way}) as b:
        output = await made(b, nodes)
        assert [opened(image.data).getpixel((0, 0)) for image in output.images] == [(255, 0, 0), (0, 255, 0)]


async def test_previews_are_left_out_beside_results() -> None:
    """A preview of the graph's author is no result; our own way by previews changes nothing about that."""
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    for way in ("files", "preview"):
        async with bench(settings={"comfyui_output": way}) as b:
            assert len((await made(b, {"8": preview, "9": saved()})).images) == 3
            assert b.left == []


async def test_previews_are_the_result_where_there_is_nothing_else() -> None:
    """And they are made anew each time, since the old files are gone."""
    preview = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    async with bench() as b:
        for _ in range(2):
            assert len((await made(b, {"9": preview})).images) == 3
        assert b.sim.stats.frees == []
        assert b.left == []


async def test_subfolders_are_honoured() -> None:
    """Whatever prefix the graph has, the file is found, and the folder is ours."""
    async with bench(settings={"comfyui_output": "files"}) as b:
        output = await made(b, {"9": saved("deep/er/%date%name")})
        assert len(output.images) == 3
        assert b.left == []


async def test_a_file_that_is_no_picture_is_told_by_the_pipeline() -> None:
    """What is cut off by the server comes out as it is: the image check refuses it."""
    async with bench(settings={"comfyui_output": "files"}) as b:
        b.sim.knobs.arm("truncated_image")
        output = await b.make(workflow())
        assert len(output.images) == 1
        with pytest.raises(OSError, match="trunc"):
            opened(output.images[0].data).load()


async def test_outputs_are_read_while_later_nodes_run() -> None:
    """The first node's files are fetched before the prompt has ended."""
    nodes = {**graph(steps=100), "1": IMAGES, "2": saved("first")}
    async with bench(Knobs(step_seconds=0.02), settings={"comfyui_output": "files"}) as b:
        read: list[str] = []
        folders = b.engine._folders
        assert folders is not None
        view = type(folders).read

        def noted(self: Any, item: Any) -> bytes | None:
            read.append(item.filename)
            return view(self, item)

        type(folders).read = noted  # type: ignore[method-assign]
        try:
            running = await b.started(workflow(nodes))
            await wait_until(lambda: len(read) == 3)
            assert b.sim.stats.runs[-1].ended is None
            running.cancel()
            await asyncio.wait([running])
        finally:
            type(folders).read = view  # type: ignore[method-assign]
        assert b.left == []


async def test_a_graph_that_makes_nothing_is_told() -> None:
    """Success without any output is no success."""
    async with bench() as b:
        b.sim.knobs.arm("success_without_outputs")
        with pytest.raises(OutputEmpty):
            await b.make(workflow(plain()))


@every_way
async def test_without_a_shared_disk_http_does(way: str, tmp_path: Path) -> None:
    """Nothing is read from disk, and what cannot be removed there stays."""
    async with bench(settings={"comfyui_output": way}, base_dir=tmp_path) as b:
        b.engine._folders = type(b.engine._folders)() if b.engine._folders is not None else None
        output = await b.make(workflow(batch=2))
        assert len(output.images) == 2
        assert len(b.left) == (0 if way == "websocket" else 2)
        assert b.sim.stats.requests["GET /view"] == (0 if way == "websocket" else 2)


async def test_the_seed_of_a_batch_is_every_images() -> None:
    """One seed makes all images of a batch; where a graph has several, none is claimed."""
    nodes = graph(seed=5, batch=2)
    nodes["13"] = {**nodes["3"], "inputs": {**nodes["3"]["inputs"], "seed": 6, "latent_image": ["3", 0]}}
    async with bench() as b:
        assert [image.seed for image in (await b.make(workflow(seed=5, batch=2))).images] == [5, 5]
        nodes["8"]["inputs"]["samples"] = ["13", 0]
        assert [image.seed for image in (await b.make(workflow(nodes))).images] == [None, None]
