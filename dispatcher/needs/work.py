"""How long a generation may take on an average node, as far as its document tells."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple

STEP_S = 0.2
"""Seconds of a sampling step of one megapixel on an average node."""

FIXED_S = 1.0
"""Seconds of a job besides its steps: the text's encoding, the image's decoding and its way out."""

UNKNOWN_S = 6.0
"""Seconds of a job whose document does not say: a usual image of one megapixel."""

_STEPS = 25
_MEGAPIXELS = 1.0
_MOST_S = 3600.0
_PERFORMANCE: Mapping[str, int] = {"Speed": 30, "Quality": 60, "Extreme Speed": 8, "Lightning": 4, "Hyper-SD": 4}
_ASPECT = re.compile(r"\s*(\d{2,5})\s*[*x×]\s*(\d{2,5})")


class _Size(NamedTuple):
    steps: float = _STEPS
    megapixels: float = _MEGAPIXELS
    images: float = 1.0

    @property
    def seconds(self) -> float:
        return min(_MOST_S, FIXED_S + STEP_S * self.steps * self.megapixels * self.images)


def work_of(document: Mapping[str, Any]) -> float:
    """Seconds on an average node, models in memory: steps by megapixels by images. At least a second, at most an hour.

    Of Stable Diffusion web UI's bodies the second pass counts; of a graph all its samplers, each with the largest
    picture that it begins with.
    """
    params, request, workflow = (document.get(key) for key in ("params", "request", "workflow"))
    if isinstance(params, Mapping):
        return _portable(params).seconds
    if isinstance(request, Mapping):
        return _native(request).seconds
    if isinstance(workflow, Mapping):
        return _graph(workflow).seconds
    return UNKNOWN_S


def _portable(params: Mapping[str, Any]) -> _Size:
    steps = _number(params, "steps", _STEPS) * _share(params, "denoise")
    return _Size(steps, _area(params), _number(params, "batch_size", 1))


def _native(body: Mapping[str, Any]) -> _Size:
    if "performance_selection" in body or "aspect_ratios_selection" in body or "image_number" in body:
        return _fooocus(body)
    area = _area(body)
    steps = _number(body, "steps", 20) * _share(body, "denoising_strength" if "init_images" in body else "")
    images = _number(body, "batch_size", 1) * _number(body, "n_iter", 1)
    if body.get("enable_hr") is True:
        scale = _number(body, "hr_scale", 2)
        second = _number(body, "hr_second_pass_steps", 0) or steps
        steps += second * _share(body, "denoising_strength") * scale * scale
    return _Size(steps, area, images)


def _fooocus(body: Mapping[str, Any]) -> _Size:
    advanced = body.get("advanced_params")
    own = _number(advanced, "overwrite_step", 0) if isinstance(advanced, Mapping) else 0.0
    steps = own or float(_PERFORMANCE.get(str(body.get("performance_selection")), 30))
    written = _ASPECT.match(str(body.get("aspect_ratios_selection")))
    area = int(written[1]) * int(written[2]) / 1e6 if written else _MEGAPIXELS
    return _Size(steps, area, _number(body, "image_number", 1))


def _graph(workflow: Mapping[str, Any]) -> _Size:
    inputs = list(_inputs(workflow))
    steps = sum(_number(i, "steps", 0) * _share(i, "denoise") for i in inputs)
    areas = [_area(i) for i in inputs if "width" in i and "height" in i]
    images = [_number(i, "batch_size", 1) for i in inputs]
    return _Size(steps or _STEPS, max(areas, default=_MEGAPIXELS), max(images, default=1.0))


def _inputs(workflow: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for node in workflow.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if isinstance(inputs, Mapping):
            yield inputs


def _area(sizes: Mapping[str, Any]) -> float:
    """In megapixels; a side that is not told is 1024."""
    return _number(sizes, "width", 1024) * _number(sizes, "height", 1024) / 1e6


def _share(values: Mapping[str, Any], key: str) -> float:
    """What part of the steps is done, where only some of the noise is added."""
    return min(1.0, _number(values, key, 1.0))


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value > 0
    return float(value) if usable else default  # type: ignore[arg-type]
