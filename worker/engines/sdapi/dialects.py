"""What sets the servers of this family apart, and how one is recognised by its routes. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

EngineName = Literal["a1111", "sdnext"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server's ways.

    ``width`` to ``sampler`` are the defaults of its request schema, ``settings`` what must hold before the first
    job (as far as the server knows them). ``reports_status``: ``GET /status`` and ``/checkpoint`` exist.
    ``swallows``: it answers 200 without an image, or with a preview, where others answer 500.
    ``inpaints_full``: a masked image comes back at the size of the input unless told otherwise.
    ``hires``: fields that a second pass cannot do without: Forge fails over a missing list of modules, SD.Next
    enlarges nothing without a mode, and to the very pixel with it.
    ``lists_embeddings``: its list shows all that are there once it was told to look again; elsewhere it shows those
    that the loaded model took at its last job, and the next job takes what lies in the folder by then.
    ``rescans_controlnets``: its list of ControlNet models is made anew when it is asked for.
    """

    label: str
    engine: EngineName
    title: str
    width: int
    height: int
    steps: int
    sampler: str
    settings: Mapping[str, object]
    loads_lazily: bool = True
    reports_status: bool = False
    swallows: bool = False
    inpaints_full: bool = True
    hires: Mapping[str, object] = field(default_factory=dict)
    refresh_vae: str = "refresh-vae"
    vaes: str = "sd-vae"
    reloads: bool = True
    lists_embeddings: bool = True
    rescans_controlnets: bool = True


_EVERYWHERE = {"samples_format": "png", "live_previews_enable": False, "return_grid": False}
_SDNEXT = {
    **_EVERYWHERE,
    "server_rate_limit": 0,
    "keep_incomplete": False,
    "sd_checkpoint_autodownload": False,
}

A1111 = Dialect("a1111", "a1111", "Automatic1111", 512, 512, 50, "Euler", _EVERYWHERE)
A1111_17 = Dialect(
    "a1111-1.7", "a1111", "Automatic1111 1.7", 512, 512, 50, "Euler", _EVERYWHERE, lists_embeddings=False
)
FORGE = Dialect(
    "forge",
    "a1111",
    "Forge",
    512,
    512,
    50,
    "Euler",
    _EVERYWHERE,
    vaes="sd-modules",
    hires={"hr_additional_modules": ["Use same choices"]},
    reloads=False,
    rescans_controlnets=False,
)
SDNEXT_2023 = Dialect(
    "sdnext-2023",
    "sdnext",
    "SD.Next 2023-12",
    512,
    512,
    50,
    "Euler",
    _SDNEXT,
    swallows=True,
    inpaints_full=True,
    refresh_vae="refresh-vaes",
    lists_embeddings=False,
)
SDNEXT = Dialect(
    "sdnext",
    "sdnext",
    "SD.Next",
    1024,
    1024,
    20,
    "Default",
    _SDNEXT,
    loads_lazily=False,
    reports_status=True,
    swallows=True,
    inpaints_full=False,
    hires={"hr_resize_mode": 1},
    lists_embeddings=False,
)

PROBES = {
    "checkpoint": SDNEXT,
    "sd-modules": FORGE,
    "refresh-vaes": SDNEXT_2023,
    "schedulers": A1111,
    "refresh-embeddings": A1111,
}
"""Routes under ``/sdapi/v1``, the first of which that is there tells the dialect; a GET of them changes nothing."""

OTHERWISE = A1111_17
