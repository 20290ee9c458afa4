"""Images that a graph brings along become inputs; names of files on the server stay."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.pictures import encoded, picture
from tests.unit.engines.comfyui.graphs import fields_of, refused, with_nodes, worked
from worker.engines.comfyui.images import brings_data
from worker.engines.given import is_url

PNG = base64.b64encode(encoded(picture(8, 8))).decode()
WHERE = "workflow.10.inputs.image"


def loading(value: Any, kind: str = "LoadImage", name: str = "image") -> dict[str, Any]:
    """A graph in which node 10 takes part."""
    return with_nodes(
        _10=(kind, {name: value, "channel": "red"}),
        _11=("SaveVideo", {"video": ["10", 0], "filename_prefix": "x"}),
    )


@pytest.mark.parametrize("kind", ["LoadImage", "LoadImageMask"])
@pytest.mark.parametrize(
    "value",
    [
        "http://host/a.png",
        "HTTPS://host/a",
        f"data:image/png;base64,{PNG}",
        PNG,
        "\n".join([PNG[:76], PNG[76:]]),
        "/9j/4AAQSkZJRgABAQAAAQABAAD",
        "A" * 300,
    ],
)
def test_images_become_inputs(value: str, kind: str) -> None:
    """By URL, data URI or base64, in any input that the server takes uploads for."""
    work = worked(loading(value, kind))
    assert work.request["10"]["inputs"]["image"] == f"input:{WHERE}"
    assert [(ref.field, ref.value) for ref in work.inputs] == [(WHERE, value)]


@pytest.mark.parametrize(
    "value", ["there.png", "not-there.png", "sub/x.webp", "x.png [output]", "noextension", "clip.mp4"]
)
def test_names_of_files_stay(value: str) -> None:
    """Whether the file is there is known to the server, whose list may lag."""
    work = worked(loading(value))
    assert work.request["10"]["inputs"]["image"] == value
    assert work.inputs == ()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("s3://bucket/key.png", "neither"),
        ("input:workflow.9.inputs.image", "neither"),
        ("data:image/png,notbase64", "neither"),
        ("file:///etc/passwd", "neither"),
        ("a cat\nand a dog", "neither"),
        ("?!" * 600, "neither"),
        ("../secret.png", "leads out"),
        ("/etc/secret.png", "leads out"),
        ("sub\\..\\..\\x.png", "leads out"),
        ("../x.png [input]", "leads out"),
    ],
)
def test_what_is_neither_is_refused(value: str, said: str) -> None:
    """A name may not leave the input folder: the server would follow it."""
    assert fields_of(lambda: worked(loading(value))) == [WHERE]
    assert said in refused(loading(value))


def test_videos_and_sounds_come_by_name_only() -> None:
    """Inputs are validated as images, so others cannot be fetched yet."""
    assert "a video cannot be given by URL" in refused(loading("http://host/a.mp4", "LoadVideo", "file"))
    assert worked(loading("a.mp4", "LoadVideo", "file")).inputs == ()


def test_other_inputs_and_nodes_that_do_not_run_are_left_alone() -> None:
    """A URL in a prompt is a prompt; a number is the server's to refuse."""
    graph = with_nodes(_10=("LoadImage", {"image": "http://host/a.png"}))
    assert worked(graph).inputs == ()
    assert worked(loading(5)).request["10"]["inputs"]["image"] == 5
    graph = with_nodes(_6=("CLIPTextEncode", {"text": "http://host/a.png", "clip": ["4", 1]}))
    assert worked(graph).inputs == ()


def test_large_values_are_judged_by_their_start() -> None:
    """Twenty megabytes of base64 must not hold up the loop."""
    assert brings_data("A" * 5000 + "!", field="x")
    assert not brings_data("A" * 24, field="x")
    assert not brings_data(f"AAAAA{' ' * 18}A", field="x")
    assert is_url("http://x")
    assert not is_url(5)
