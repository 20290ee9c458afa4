"""Uploads, inputs, outputs of all kinds, and `GET /view`."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from tests.support.comfy import (
    image_graph,
    images_of,
    last_message,
    node,
    picture_graph,
    png,
    simulated,
    text_graph,
    upload,
)
from tests.support.waiting import wait_until


async def test_an_upload_is_a_file_of_the_input_folder() -> None:
    """Name, subfolder and type come back; the bytes are those that were sent."""
    async with simulated() as c:
        answer = await upload(c, png(), subfolder="job/1")
        stored = (c.sim.base_dir / "input/job/1/in.png").read_bytes()
        other = (await upload(c, png(), type="temp")).json()
    assert answer.json() == {"name": "in.png", "subfolder": "job/1", "type": "input"}
    assert stored == png()
    assert other["type"] == "temp"
    assert c.sim.stats.uploads == ["input/job/1/in.png", "temp/in.png"]


async def test_names_that_are_taken() -> None:
    """The same contents keep the name, others get a number, and `overwrite` replaces."""
    async with simulated() as c:
        names = [(await upload(c, data)).json()["name"] for data in (png(), png(), png((1, 2, 3)), png((4, 5, 6)))]
        replaced = (await upload(c, png((9, 9, 9)), overwrite="true")).json()["name"]
        stored = (c.sim.base_dir / "input/in.png").read_bytes()
    assert names == ["in.png", "in.png", "in (1).png", "in (2).png"]
    assert (replaced, stored) == ("in.png", png((9, 9, 9)))


async def test_uploads_that_are_refused() -> None:
    """400 without a file or out of the folder; an unknown type is an unhandled error."""
    async with simulated() as c:
        answers = [
            await upload(c, png(), name="../../x.png"),
            await upload(c, png(), subfolder="../.."),
            await c.client.post("/upload/image", files={"other": b"x"}),
            await c.client.post("/upload/mask", files={"other": b"x"}),
            await upload(c, png(), type="nowhere"),
            await c.client.post("/upload/image", content=b"x"),
        ]
        left = c.sim.files("input")
    assert [a.status_code for a in answers] == [400, 400, 400, 400, 500, 500]
    assert left == []


async def test_a_mask_upload_puts_its_alpha_into_the_original() -> None:
    """The result is a new picture of the original's colours."""
    async with simulated() as c:
        await upload(c, png())
        reference = json.dumps({"filename": "in.png", "type": "input"})
        answer = await upload(c, png((0, 0, 0, 77)), "masked.png", "/upload/mask", original_ref=reference)
        image = await c.view({"filename": "masked.png", "type": "input"})
        outside = json.dumps({"filename": "../x.png"})
        bad = await upload(c, png((0, 0, 0, 77)), "m.png", "/upload/mask", original_ref=outside)
    assert answer.json()["name"] == "masked.png"
    assert image.getpixel((0, 0)) == (200, 30, 30, 77)
    assert bad.status_code == 500


async def test_pictures_go_through_the_graph() -> None:
    """Without noise the input comes out, with some it shines through, and other inputs give other pictures."""
    async with simulated() as c:
        await upload(c, png(size=(64, 64)))
        await upload(c, png((10, 200, 30), (64, 64)), "b.png", subfolder="sub")
        kept = await c.picture(image_graph("in.png", denoise=0.0))
        near = await c.picture(image_graph("in.png", denoise=0.3))
        other = await c.picture(image_graph("sub/b.png [input]", denoise=0.3))
        sampling = c.sim.stats.samplings[1]
    assert kept.getpixel((5, 5)) == (200, 30, 30)
    assert near.tobytes() not in (kept.tobytes(), other.tobytes())
    assert near.getpixel((5, 5))[0] > near.getpixel((5, 5))[1]  # type: ignore[index]
    assert (sampling.denoise, sampling.masked, bool(sampling.inputs)) == (0.3, False, True)


async def test_a_mask_keeps_what_it_does_not_cover() -> None:
    """Black parts of the mask are the input's pixels still."""
    mask = Image.new("RGB", (64, 64))
    mask.paste((255, 255, 255), (0, 0, 32, 64))
    out = io.BytesIO()
    mask.save(out, "PNG")
    async with simulated() as c:
        await upload(c, png(size=(64, 64)))
        await upload(c, out.getvalue(), "mask.png")
        picture = await c.picture(image_graph("in.png", denoise=1.0, mask="mask.png"))
    assert picture.getpixel((60, 10)) == (200, 30, 30)
    assert picture.getpixel((5, 10)) != (200, 30, 30)
    assert c.sim.stats.samplings[0].masked


async def test_inpainting_with_the_alpha_of_the_input() -> None:
    """The transparent part is made new by VAEEncodeForInpaint."""
    graph = text_graph()
    graph["10"] = node("LoadImage", image="in.png")
    graph["5"] = node("VAEEncodeForInpaint", pixels=["10", 0], vae=["4", 2], mask=["10", 1], grow_mask_by=6)
    async with simulated() as c:
        await upload(c, png((200, 30, 30, 0), (64, 64)))
        clear = await c.picture(graph)
        await upload(c, png((200, 30, 30, 255), (64, 64)), overwrite="1")
        solid = await c.picture(graph)
    assert clear.tobytes() != solid.tobytes()
    assert solid.getpixel((9, 9)) == (200, 30, 30)


async def test_a_changed_input_file_is_noticed() -> None:
    """Its contents are part of what the cache compares; the counter goes on."""
    async with simulated() as c:
        await upload(c, png())
        await c.run(image_graph("in.png"))
        await c.run(image_graph("in.png"))
        await upload(c, png((1, 2, 3)), overwrite="1")
        await c.run(image_graph("in.png"))
        files = c.sim.files("output")
    assert files == ["ComfyUI_00001_.png", "ComfyUI_00002_.png"]


async def test_an_input_that_is_no_picture_fails_when_it_is_read() -> None:
    """The validation only looks whether it is there."""
    async with simulated() as c:
        await upload(c, b"not a picture")
        broken = last_message(await c.run(image_graph("in.png")))[1]
        await upload(c, png()[:60], "cut.png")
        cut = last_message(await c.run(image_graph("cut.png")))[1]
    assert (broken["node_id"], broken["exception_type"]) == ("10", "PIL.UnidentifiedImageError")
    assert cut["exception_type"]


async def test_symlinked_inputs() -> None:
    """0.3.64 follows a link out of the input folder, the newest takes the file as missing."""
    async with simulated() as c:
        target = c.sim.base_dir / "elsewhere.png"
        target.write_bytes(png())
        (c.sim.base_dir / "input/link.png").symlink_to(target)
        entry = await c.run(image_graph("link.png"))
        c.sim.knobs.version = "newest"
        answer = await c.post("/prompt", {"prompt": image_graph("link.png")})
    assert entry["status"]["completed"]
    assert answer.json()["node_errors"]["10"]["errors"][0]["type"] == "custom_validation_failed"


async def test_uploads_appear_in_the_lists() -> None:
    """Pictures of the top folder, for the nodes that read them."""
    async with simulated() as c:
        await upload(c, png())
        await upload(c, b"text", "notes.txt")
        await upload(c, png(), subfolder="sub")
        info = await c.get("/object_info")
        files = await c.get("/internal/files/input")
        odd = await c.client.get("/internal/files/odd")
    assert info["LoadImage"]["input"]["required"]["image"] == [["in.png"], {"image_upload": True}]
    assert info["LoadImageMask"]["input"]["required"]["image"][0] == ["in.png", "notes.txt"]
    assert sorted(files) == ["in.png", "notes.txt"]
    assert odd.status_code == 400


async def test_names_of_outputs() -> None:
    """Counters per prefix and folder, batches, subfolders, tokens, and the number of a deleted file again."""
    async with simulated() as c:
        first = images_of(await c.run(picture_graph(1, prefix="sub/dir/x", batch=2)))
        second = images_of(await c.run(picture_graph(2, prefix="sub/dir/x")))
        tokens = images_of(await c.run(picture_graph(3, prefix="%width%x%height%_%batch_num%_%odd%", batch=2)))
        (c.sim.base_dir / "output/sub/dir/x_00003_.png").unlink()
        again = images_of(await c.run(picture_graph(4, prefix="sub/dir/x")))
        dated = images_of(await c.run(picture_graph(5, prefix="%year%-%month%-%day%")))
    assert first == [{"filename": f"x_0000{n}_.png", "subfolder": "sub/dir", "type": "output"} for n in (1, 2)]
    assert second[0]["filename"] == again[0]["filename"] == "x_00003_.png"
    assert [t["filename"] for t in tokens] == ["64x64_0_%odd%_00001_.png", "64x64_1_%odd%_00002_.png"]
    assert "%" not in dated[0]["filename"]


async def test_a_prefix_that_leaves_the_folder_fails_at_run_time() -> None:
    """The submit is a 200."""
    async with simulated() as c:
        entry = await c.run(picture_graph(prefix="../../out"))
    kind, data = last_message(entry)
    assert (kind, data["exception_type"]) == ("execution_error", "Exception")
    assert data["exception_message"].startswith("**** ERROR: Saving image outside the output folder")
    assert entry["outputs"] == {}


async def test_metadata_of_pictures() -> None:
    """The graph in a text chunk, and what the caller adds; none when it is turned off."""
    extra = {"extra_pnginfo": {"workflow": {"a": 1}}}
    async with simulated() as c:
        told = await c.view(images_of(await c.run(picture_graph(), extra_data=extra))[0])
        c.sim.knobs.disable_metadata = True
        silent = await c.view(images_of(await c.run(picture_graph(2)))[0])
        argv = (await c.get("/system_stats"))["system"]["argv"]
    assert json.loads(told.info["prompt"])["1"]["class_type"] == "EmptyImage"
    assert json.loads(told.info["workflow"]) == {"a": 1}
    assert "prompt" not in silent.info
    assert "--disable-metadata" in argv


async def test_previews_are_temporary() -> None:
    """Five letters in the name, type temp, and gone after a restart, while outputs stay."""
    graph = picture_graph() | {"8": node("PreviewImage", images=["1", 0])}
    async with simulated() as c:
        entry = await c.run(graph)
        shown = entry["outputs"]["8"]["images"][0]
        await c.view(shown)
        c.sim.restart()
        await wait_until(lambda: c.sim.stats.starts == 2 and c.sim.listening)
        gone = await c.client.get("/view", params=shown)
        kept = await c.client.get("/view", params=entry["outputs"]["9"]["images"][0])
    assert shown["type"] == "temp"
    assert shown["filename"].startswith("ComfyUI_temp_")
    assert shown["filename"].endswith("_00001_.png")
    assert (gone.status_code, kept.status_code) == (404, 200)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({}, 404),
        ({"filename": "nope.png"}, 404),
        ({"filename": ""}, 400),
        ({"filename": "../x.png"}, 400),
        ({"filename": "/x.png"}, 400),
        ({"filename": "x.png", "type": "odd"}, 400),
        ({"filename": "x.png", "subfolder": "../.."}, 403),
    ],
)
async def test_views_that_are_refused(query: dict[str, str], status: int) -> None:
    """All with an empty body."""
    async with simulated() as c:
        answer = await c.client.get("/api/view", params=query)
    assert (answer.status_code, answer.content) == (status, b"")


async def test_views() -> None:
    """The file itself with ranges and an etag; re-encoded with preview or channel; a suffix beats the type."""
    async with simulated() as c:
        item = images_of(await c.run(picture_graph()))[0]
        plain = await c.client.get("/view", params=item)
        part = await c.client.get("/view", params=item, headers={"range": "bytes=0-3"})
        annotated = await c.client.get("/view", params={"filename": "lab_00001_.png [output]", "type": "temp"})
        kinds = {}
        for name, more in {
            "webp": {"preview": "webp;50"},
            "jpeg": {"preview": "jpeg"},
            "odd": {"preview": "gif;x"},
            "rgb": {"channel": "rgb"},
            "a": {"channel": "a"},
        }.items():
            answer = await c.client.get("/view", params=item | more)
            kinds[name] = (answer.headers["content-type"], Image.open(io.BytesIO(answer.content)).format)
        (c.sim.base_dir / "output/page.html").write_text("<p>")
        page = await c.client.get("/view", params={"filename": "page.html"})
    assert plain.headers["content-type"] == "image/png"
    assert plain.headers["content-disposition"] == 'filename="lab_00001_.png"'
    assert plain.headers["accept-ranges"] == "bytes"
    assert {"etag", "last-modified", "content-length"} <= set(plain.headers)
    assert (part.status_code, part.content) == (206, plain.content[:4])
    assert annotated.content == plain.content
    assert kinds == {
        "webp": ("image/webp", "WEBP"),
        "jpeg": ("image/jpeg", "JPEG"),
        "odd": ("image/webp", "WEBP"),
        "rgb": ("image/png", "PNG"),
        "a": ("image/png", "PNG"),
    }
    assert page.headers["content-type"] == "application/octet-stream"


async def test_the_alpha_channel_of_a_view() -> None:
    """It is taken from the picture where there is one."""
    async with simulated() as c:
        await upload(c, png((1, 2, 3, 99)))
        image = await c.view({"filename": "in.png", "type": "input", "channel": "a"})
    assert image.getpixel((0, 0)) == (0, 0, 0, 99)
