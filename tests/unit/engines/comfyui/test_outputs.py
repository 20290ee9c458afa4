"""What nodes made, found and told apart whatever its kind."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.support.pictures import encoded, picture
from worker.engines.comfyui.outputs import (
    Item,
    Made,
    chosen,
    ending_of,
    in_order,
    kind_of,
    listed,
    named,
    shared,
    sorted_out,
)

PNG = encoded(picture(8, 8))


def file(name: str, place: str = "output", subfolder: str = "") -> dict[str, Any]:
    return {"filename": name, "subfolder": subfolder, "type": place}


def animation(fmt: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = io.BytesIO()
    frames[0].save(data, fmt, save_all=True, append_images=frames[1:])
    return data.getvalue()


def test_every_kind_is_walked() -> None:
    """Dictionaries with a file name under any key, texts under theirs; flags, paths and parameters are neither."""
    outputs = {
        "10": {"images": [file("b.png")], "animated": [True]},
        "9": {"gifs": [{**file("v.mp4"), "frame_rate": 8, "fullpath": "/x"}], "text": ["words"]},
        "2": {"result": ["path.glb", None], "3d": file("m.glb"), "odd": [{"filename": 3}, {"filename": ""}, 7]},
        "1": "nothing",
    }
    found = [(m.node, m.item.filename if m.item else m.text) for m in listed(outputs)]
    assert found == [("2", "m.glb"), ("9", "v.mp4"), ("9", "words"), ("10", "b.png")]


def test_a_file_that_is_named_twice_is_taken_once() -> None:
    """By two kinds, or by two nodes; the same name in another folder is another file."""
    outputs = {
        "1": {"images": [file("a.png")], "files": [file("a.png"), file("a.png", subfolder="x")]},
        "2": {"images": [file("a.png")]},
    }
    assert [m.item for m in listed(outputs)] == [Item("a.png"), Item("a.png", "x")]


def test_pictures_of_the_socket_take_their_nodes_place() -> None:
    """Between the nodes before and after."""
    outputs = {"3": {"images": [file("c.png")]}, "1": {"images": [file("a.png")]}}
    made = listed(outputs, {"2": [Made("2", data=b"one"), Made("2", data=b"two")]})
    assert [m.node for m in made] == ["1", "2", "2", "3"]


def test_previews_and_inputs_are_no_results() -> None:
    """Unless the preview is ours, or there is nothing else; an input never is."""
    result, preview = Made("1", Item("a.png")), Made("2", Item("b.png", type="temp"))
    given = Made("3", Item("c.png", type="input"))
    assert chosen([result, preview, given], ()) == (result,)
    assert chosen([result, preview, given], ["2"]) == (result, preview)
    assert chosen([preview, given], ()) == (preview,)


def test_ids_are_ordered_as_people_count() -> None:
    """Numbers as numbers, nodes within groups after their group, names last."""
    ids = ["10", "save", "9", "10:2", "10:10", "1"]
    assert sorted(ids, key=in_order) == ["1", "9", "10", "10:2", "10:10", "save"]


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (PNG, "a.png", "image"),
        (PNG, "a.bin", "image"),
        (encoded(picture(8, 8), "jpeg"), "a.jpg", "image"),
        (encoded(picture(8, 8), "webp"), "a.webp", "image"),
        (b"", "a.png", "image"),
        (b"no picture", "a.JPG", "image"),
        (animation("WEBP"), "a.webp", "file"),
        (animation("PNG"), "a.png", "file"),
        (animation("GIF"), "a.gif", "file"),
        (b"\0\0\0\x18ftypmp42", "a.mp4", "file"),
        (b"words", "a.txt", "file"),
    ],
)
def test_still_pictures_are_told_by_their_bytes(data: bytes, name: str, kind: str) -> None:
    """What only claims to be one goes as one, to be refused by the image check."""
    assert kind_of(data, name) == kind


def test_pictures_and_files_are_sorted_out() -> None:
    """Images with their seed, in order; files by a name of their own."""
    parts = [
        (Made("1", Item("v.mp4")), b"\0\0\0\x18ftypmp42"),
        (Made("2", Item("a.png")), PNG),
        (Made("3", Item("x/../v.mp4")), b"other"),
        (Made("4", text="one"), b"one"),
        (Made("4", text="two"), b"two"),
        (Made("5", data=PNG), PNG),
    ]
    images, files = sorted_out(parts, (7, 7), None)
    assert [image.seed for image in images] == [7, 7]
    assert [(f.name, f.node) for f in files] == [("v.mp4", "1"), ("v-1.mp4", "3"), ("4-0.txt", "4"), ("4-1.txt", "4")]


def test_seeds_are_those_of_the_images_or_of_all() -> None:
    """One each, one for all, or none that could be claimed."""
    assert shared((1, 2), 2, 2) == [1, 2]
    assert shared((1, 1), 3, None) == [1, 1, 1]
    assert shared((1, 2), 3, None) == [None] * 3
    assert shared((), 1, None) == [None]


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (Made("1", Item("a b/..\\c?.png")), "c_.png"),
        (Made("1", Item("..")), "file"),
        (Made("1:2", data=b""), "1_2.png"),
        (Made("1", text="t"), "1.txt"),
    ],
)
def test_names_are_safe(made: Made, name: str) -> None:
    """Whatever a node says, a name is one part and no hidden file."""
    assert named(made) == name


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (PNG, "png"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"RIFF\0\0\0\0WEBP", "webp"),
        (b"RIFF\0\0\0\0WAVE", "wav"),
        (b"RIFF\0\0\0\0AVI ", "avi"),
        (b"GIF89a", "gif"),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"\0\0\0\x18ftypavif", "avif"),
        (b"unknown", "png"),
    ],
)
def test_an_input_is_called_what_it_is(data: bytes, ending: str) -> None:
    """Some nodes tell files apart by their name."""
    assert ending_of(data) == ending


def test_an_item_says_where_it_is() -> None:
    """In messages."""
    assert str(Item("a.png", "sub", "temp")) == "temp file sub/a.png"
