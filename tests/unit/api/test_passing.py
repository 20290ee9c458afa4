"""What may be passed on to the image server, and what its refusals say."""

from __future__ import annotations

from typing import Any

import pytest

from worker.api.passing import checked_work, error_text
from worker.errors import InvalidJob
from worker.job import Limits

LIMITS = Limits(max_pixels=1_000_000, max_steps=50, max_images=4)


def refused(document: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidJob) as caught:
        checked_work(document, LIMITS)
    return [error.field for error in caught.value.errors]


@pytest.mark.parametrize("field", ["extra", "infotext", "override_settings", "sd_model_checkpoint"])
def test_what_changes_the_server_is_refused(field: str) -> None:
    """Empty it asks for nothing, and is left out."""
    assert refused({field: {"sd_model_checkpoint": "x"}, "image": "aaaa"}) == [field]
    assert checked_work({field: None, "image": "aaaa"}, LIMITS) == {"image": "aaaa"}


def test_a_place_is_no_image() -> None:
    """The server would fetch it from inside the node; a prompt may hold what it likes."""
    places = ["http://169.254.169.254/", "HTTPS://x.example/a.png", "file:///etc/passwd", "upload:7"]
    document = {"image": places[0], "control": [{"image": places[1], "override": "aaaa"}], "inputs": places[2:]}
    assert refused(document) == ["image", "control.0.image", "inputs.0", "inputs.1"]
    asked = {"prompt": places[0], "negative_prompt": places[1], "image": "data:image/png;base64,aaaa"}
    assert checked_work(asked, LIMITS) == asked


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"width": 2000, "height": 1000}, "width"),
        ({"width_after": 2000, "height_after": 1000}, "width_after"),
        ({"upscaling_resize_w": 4096, "upscaling_resize_h": 4096}, "upscaling_resize_w"),
        ({"hr_resize_x": 4096, "hr_resize_y": 4096}, "hr_resize_x"),
        ({"steps": 51}, "steps"),
        ({"hr_second_pass_steps": 51}, "hr_second_pass_steps"),
        ({"upscaling_resize": 9}, "upscaling_resize"),
        ({"scale_by_after": 8.5}, "scale_by_after"),
        ({"batch_size": 3, "batch_count": 2}, "batch_size"),
        ({"imageList": [{"data": "a"}] * 5}, "imageList"),
        ({"inputs": ["a"] * 5}, "inputs"),
    ],
)
def test_the_limits_of_jobs_hold(document: dict[str, Any], field: str) -> None:
    """Whatever way the server is asked in."""
    assert refused(document) == [field]


def test_what_is_within_the_limits_is_passed_as_it_is() -> None:
    """Wrong types are for the server to refuse; nothing is written to its disk."""
    document = {"width": 1000, "height": 1000, "steps": True, "batch_size": "4", "imageList": "x", "hr_scale": 8}
    assert checked_work(document, LIMITS) == document
    assert checked_work({"save_images": True}, LIMITS) == {"save_images": False}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"detail": "Sampler not found"}, "Sampler not found"),
        ({"error": "HTTPException", "detail": "", "errors": "No module named 'triton'"}, "No module named 'triton'"),
        ({"error": "RuntimeError", "detail": "", "message": "no memory"}, "no memory"),
        ({"error": "Init image is none"}, "Init image is none"),
        ({"detail": [{"loc": ["body", "a", 0], "msg": "bad", "input": "mine"}, "x"]}, "a.0: bad"),
        ({"detail": [{"msg": "bad"}]}, "bad"),
        ({"detail": "x" * 900}, "x" * 500),
        ({"detail": None}, ""),
        (["no object"], ""),
    ],
)
def test_a_server_says_what_went_wrong(answer: Any, text: str) -> None:
    """Each dialect in its own words, without the caller's values."""
    assert error_text(answer) == text
