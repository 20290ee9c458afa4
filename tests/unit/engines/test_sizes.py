from __future__ import annotations

from typing import Any

import pytest

from worker.engines.sdapi.dialects import A1111, FORGE, SDNEXT, SDNEXT_2023, Dialect
from worker.engines.sdapi.header import Header
from worker.engines.sdapi.sizes import Sizes, from_input, settle, settle_single
from worker.errors import InvalidJob
from worker.job import Limits

LIMITS = Limits(max_pixels=1024 * 1024, max_steps=50, max_images=4)


def settled(body: dict[str, Any], endpoint: str = "txt2img", dialect: Dialect = A1111, root: str = "request") -> Sizes:
    return settle(body, endpoint, dialect, LIMITS, root=root)


@pytest.mark.parametrize(
    ("body", "dialect", "size"),
    [
        ({}, A1111, (512, 512)),
        ({"steps": 1, "width": None}, SDNEXT, (1024, 1024)),
        ({"width": 512.0, "height": 640}, A1111, (512, 640)),
        ({"width": 515, "height": 519}, A1111, (512, 512)),
        ({"enable_hr": True, "width": 256, "height": 256}, A1111, (512, 512)),
        ({"enable_hr": True, "width": 256, "height": 256, "hr_scale": 1.3}, A1111, (328, 328)),
        ({"enable_hr": True, "width": 256, "height": 128, "hr_resize_x": 512}, A1111, (512, 256)),
        ({"enable_hr": True, "width": 256, "height": 128, "hr_resize_y": 256}, A1111, (512, 256)),
        ({"enable_hr": True, "width": 256, "height": 128, "hr_resize_x": 300, "hr_resize_y": 300}, A1111, (296, 296)),
        ({"enable_hr": True, "width": 512, "height": 256, "firstphase_width": 128}, A1111, (512, 256)),
    ],
)
def test_what_comes_back(body: dict[str, Any], dialect: Dialect, size: tuple[int, int]) -> None:
    """Defaults of the dialect, sides rounded down, the second pass as Automatic1111 reckons it."""
    found = settled(dict(body), dialect=dialect)
    assert (found.width, found.height) == size


@pytest.mark.parametrize(
    ("body", "mode", "size"),
    [
        ({}, 1, (512, 512)),
        ({"hr_resize_mode": 2}, 2, (512, 512)),
        ({"hr_resize_mode": 0}, 0, (256, 256)),
        ({"hr_scale": 1.3}, 1, (None, None)),
    ],
)
def test_sdnext_enlarges_only_when_told_how(body: dict[str, Any], mode: int, size: tuple[int | None, ...]) -> None:
    """Its second pass leaves the size as it is without ``hr_resize_mode``, and knows no grid."""
    body = {"enable_hr": True, "width": 256, "height": 256, "hr_upscaler": "Latent Nearest", **body}
    found = settled(body, dialect=SDNEXT)
    assert body["hr_resize_mode"] == mode
    assert (found.width, found.height) == size


def test_forge_is_told_which_modules_the_second_pass_uses() -> None:
    """It answers 500 to a second pass without the list, which Automatic1111 does not know."""
    told: dict[str, Any] = {"enable_hr": True, "width": 256, "height": 256}
    plain = dict(told)
    settled(told, dialect=FORGE)
    settled(plain, dialect=A1111)
    assert told["hr_additional_modules"] == ["Use same choices"]
    assert "hr_additional_modules" not in plain


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"width": 8}, "width"),
        ({"height": -512}, "height"),
        ({"width": True}, "width"),
        ({"width": 512.5}, "width"),
        ({"width": float("nan")}, "width"),
        ({"width": float("inf")}, "width"),
        ({"width": [512]}, "width"),
        ({"width": 2048, "height": 1024}, "width"),
        ({"steps": 51}, "steps"),
        ({"hr_second_pass_steps": 51}, "hr_second_pass_steps"),
        ({"hr_second_pass_steps": -1}, "hr_second_pass_steps"),
        ({"batch_size": 5}, "batch_size"),
        ({"batch_size": 2, "n_iter": 3}, "n_iter"),
        ({"enable_hr": True, "hr_scale": 3}, "hr_scale"),
        ({"enable_hr": True, "hr_scale": 0.5}, "hr_scale"),
        ({"enable_hr": True, "hr_scale": "2"}, "hr_scale"),
        ({"enable_hr": True, "hr_resize_x": 4096}, "hr_resize_x"),
    ],
)
def test_what_is_refused(body: dict[str, Any], field: str) -> None:
    """Too much or senseless, with the field's name."""
    with pytest.raises(InvalidJob) as caught:
        settled(body)
    assert caught.value.errors[0].field == f"request.{field}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"enable_hr": True}, "hr_upscaler"),
        ({"resize_mode_after": 1, "scale_by_after": 4}, "scale_by_after"),
        ({"resize_mode_before": 1, "width_before": 4096, "height_before": 4096}, "width_before"),
    ],
)
def test_what_sdnext_would_do_besides(body: dict[str, Any], field: str) -> None:
    """SD.Next skips the second pass without an upscaler, and resizes before and after by fields of its own."""
    with pytest.raises(InvalidJob) as caught:
        settled({"width": 512, "height": 512, **body}, dialect=SDNEXT)
    assert caught.value.errors[0].field == f"request.{field}"


@pytest.mark.parametrize(
    ("body", "dialect", "open_"),
    [
        ({}, A1111, False),
        ({"mask": "x"}, A1111, True),
        ({"mask": "x", "inpaint_full_res": False}, A1111, False),
        ({}, SDNEXT, True),
        ({"resize_mode": 1}, SDNEXT, False),
        ({"resize_mode": 1, "mask": "x"}, SDNEXT, False),
        ({"resize_mode": 1, "mask": "x", "inpaint_full_res": True}, SDNEXT, True),
        ({"resize_mode": 1}, SDNEXT_2023, False),
        ({"resize_mode": 1, "resize_mode_after": 1}, SDNEXT, True),
    ],
)
def test_when_the_input_settles_the_size(body: dict[str, Any], dialect: Dialect, open_: bool) -> None:
    """A masked image is pasted back whole, and SD.Next keeps the input's size unless told otherwise."""
    found = settled({"width": 512, "height": 512, **body}, "img2img", dialect)
    assert (found.width is None) is open_


def test_portable_sides_left_open_come_from_the_image() -> None:
    """On every server alike, rounded down; the limit holds."""
    body: dict[str, Any] = {"prompt": "x"}
    assert settled(body, "img2img", root="params").width is None
    filled, right = from_input(body, "img2img", Header("png", 517, 300), LIMITS)
    assert (filled["width"], filled["height"], right) == (512, 296, frozenset({(512, 296)}))
    with pytest.raises(InvalidJob, match="1048576 pixels"):
        from_input(body, "img2img", Header("png", 5000, 5000), LIMITS)
    with pytest.raises(InvalidJob, match="name a size"):
        from_input(body, "img2img", Header("png", 32, 500), LIMITS)
    with pytest.raises(InvalidJob):
        settled({"width": 10**6}, "img2img", root="params")


def test_an_unreadable_image_is_left_to_the_server() -> None:
    """A format whose header we do not know: the open sides are not sent, any size is right."""
    filled, right = from_input({"width": None, "height": None, "steps": None}, "img2img", None, LIMITS)
    assert (filled, right) == ({"steps": None}, frozenset())


def test_native_inputs_allow_their_own_size() -> None:
    """Where the request does not settle it, the asked-for size and the image's are right; with a resize any."""
    body = {"width": 64, "height": 64}
    _, right = from_input(body, "img2img", Header("png", 100, 90), LIMITS)
    assert right == {(64, 64), (96, 88), (100, 90)}
    assert from_input({**body, "enable_hr": True}, "img2img", Header("png", 100, 90), LIMITS)[1] == frozenset()


def test_enlarging() -> None:
    """By factor it follows from the image, give or take a pixel; by size it is settled, and the limit holds."""
    assert settle_single({}, LIMITS, root="request") is None
    assert settle_single({"resize_mode": 1, "upscaling_resize_w": 300}, LIMITS, root="request") == (300, 512)
    assert settle_single({"resize_mode": 1, "upscaling_crop": False}, LIMITS, root="request") is None
    for wrong in ({"upscaling_resize": 17}, {"resize_mode": 1, "upscaling_resize_w": 4096, "upscaling_resize_h": 4096}):
        with pytest.raises(InvalidJob):
            settle_single(wrong, LIMITS, root="request")
    single = "extra-single-image"
    assert (200, 150) in from_input({}, single, Header("png", 100, 75), LIMITS)[1]
    assert from_input({"resize_mode": 1}, single, Header("png", 100, 75), LIMITS)[1] == frozenset()
    with pytest.raises(InvalidJob):
        from_input({"upscaling_resize": 4}, single, Header("png", 1000, 1000), LIMITS)
