from __future__ import annotations

import base64
from typing import Any

import pytest

from worker.engines.given import decoded
from worker.engines.sdapi.inputs import filled, first_image, taken
from worker.errors import InternalError, InvalidJob

ONE, TWO = base64.b64encode(b"one").decode(), base64.b64encode(b"two").decode()
URL = "https://cdn.example/a.png"


def test_images_are_taken_out_and_put_back() -> None:
    """Each place that may hold an image: by URL or base64, filled with the bytes that were provided."""
    body: dict[str, Any] = {
        "prompt": ONE,
        "init_images": [ONE, URL],
        "mask": f"data:image/png;base64,{TWO}",
        "alwayson_scripts": {
            "ControlNet": {"args": [{"image": URL, "model": "x"}, {"input_image": ONE}, True]},
            "ADetailer": {"args": [True, {"ad_model": "face"}]},
            "odd": 3,
        },
        "control_units": [{"image": TWO}],
        "ip_adapter": [{"images": [ONE], "masks": []}],
        "face": {"source_images": [URL]},
    }
    hollow, refs = taken(body)
    fields = [ref.field for ref in refs]
    assert fields == [
        "request.mask",
        "request.init_images.0",
        "request.init_images.1",
        "request.alwayson_scripts.ControlNet.args.0.image",
        "request.alwayson_scripts.ControlNet.args.1.input_image",
        "request.control_units.0.image",
        "request.ip_adapter.0.images.0",
        "request.face.source_images.0",
    ]
    assert ONE not in str({k: v for k, v in hollow.items() if k != "prompt"})
    assert "https" not in str(hollow)
    full = filled(hollow, dict.fromkeys(fields, b"new"), refs)
    new = base64.b64encode(b"new").decode()
    assert full["prompt"] == ONE
    assert full["init_images"] == [new, new]
    assert full["mask"] == new
    assert full["alwayson_scripts"]["ControlNet"]["args"] == [{"image": new, "model": "x"}, {"input_image": new}, True]
    assert full["alwayson_scripts"]["ADetailer"] == body["alwayson_scripts"]["ADetailer"]
    assert full["ip_adapter"] == [{"images": [new], "masks": []}]
    assert first_image(full) == new
    assert body["init_images"] == [ONE, URL]


def test_base64_needs_nobody_to_provide_it() -> None:
    """An image that stands in the job is used as it is; one behind a URL must have been fetched."""
    hollow, refs = taken({"init_images": [f"data:image/png;base64,{ONE}"]})
    assert filled(hollow, {}, refs)["init_images"] == [ONE]
    hollow, refs = taken({"init_images": [URL]})
    with pytest.raises(InternalError):
        filled(hollow, {}, refs)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mask": "%%%"}, "request.mask"),
        ({"mask": ""}, "request.mask"),
        ({"mask": 3}, "request.mask"),
        ({"init_images": ONE}, "request.init_images"),
        ({"init_images": [None]}, "request.init_images.0"),
        ({"init_images": ["upload:abc"]}, "request.init_images.0"),
        ({"init_images": ["ftp://x/y.png"]}, "request.init_images.0"),
        ({"init_images": ["input:request.init_images.0"]}, "request.init_images.0"),
        ({"mask": "data:image/png,abc"}, "request.mask"),
        ({"mask": "data:image/png;base64"}, "request.mask"),
    ],
)
def test_broken_images_are_refused(body: dict[str, Any], field: str) -> None:
    """Before the GPU, and with their field; references into one server's memory are no images."""
    with pytest.raises(InvalidJob) as caught:
        taken(body)
    assert caught.value.errors[0].field == field


def test_lines_in_base64_are_allowed() -> None:
    """As mail writes it."""
    assert decoded("b25l\nb25l\n", field="x") == b"oneone"


def test_without_images_there_is_none() -> None:
    """txt2img has no input."""
    assert first_image({"prompt": "x", "init_images": []}) is None
    assert taken({"prompt": "x", "mask": None, "face": None})[1] == ()
