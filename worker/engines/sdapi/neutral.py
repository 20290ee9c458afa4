"""Fields of the family that some of its servers lack, with the values by which they ask for nothing. No I/O.

A server drops a field that it does not know without a word. A typo, or a wish that it cannot fulfil, is refused
therefore; but the family's clients send every field they know with its default, whichever server they talk to, and
null for what they do not care about, which not every server takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OFF = (None, False, 0, "")
_SAME = (None, "", "Use same checkpoint", "Use same sampler", "Use same scheduler", "Same as primary")
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "refiner_checkpoint"), _SAME),
    **dict.fromkeys(("hr_prompt", "hr_negative_prompt", "comments", "infotext", "force_task_id"), _OFF),
    **dict.fromkeys(("restore_faces", "tiling", "disable_extra_networks", "hr_force"), _OFF),
    **dict.fromkeys(("s_churn", "s_tmin", "s_tmax", "s_min_uncond", "firstphase_width", "firstphase_height"), _OFF),
    **dict.fromkeys(("gfpgan_visibility", "codeformer_visibility", "upscale_first"), _OFF),
    "codeformer_weight": (None, 0, 0.5),
    "scheduler": (None, "", "automatic", "Automatic"),
    "s_noise": (None, 1),
    "eta": (None,),
    "image_cfg_scale": (None, 1.5),
    "initial_noise_multiplier": (None, 1),
    "mask_round": (None, True),
    "include_init_images": (None, False),
    "refiner_switch_at": (None, 0, 0.8, 1),
    "distilled_cfg_scale": (None, 3.5),
    "hr_cfg": (None, 1),
    "hr_distilled_cfg": (None, 3.5),
    "hr_additional_modules": (None, [], ["Use same choices"]),
    "do_not_save_samples": (None, False, True),
    "do_not_save_grid": (None, False, True),
    "clip_skip": (None, 1),
}
"""Automatic1111's and Forge's own defaults, and those of the client ``webuiapi``."""


def is_neutral(field: str, value: Any) -> bool:
    """Whether the picture is the same where the server does not know this field."""
    return value in NEUTRAL.get(field, ())
