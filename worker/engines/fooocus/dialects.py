"""What tells the versions of Fooocus-API apart, and what each of them does without saying so. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT = "/v1/generation/text-to-image"
CLEAN = "/v1/engines/clean_vram"
HISTORY = "/v1/generation/job-history"

_SAMPLERS = (
    *("euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive"),
    *("dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "tcd", "ddim", "uni_pc", "uni_pc_bh2"),
)
SCHEDULERS = (
    *("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "lcm", "turbo"),
    *("align_your_steps", "tcd", "edm_playground_v2.5"),
)
INPAINT_ENGINES = ("None", "v1", "v2.5", "v2.6")
SWAP_METHODS = ("joint", "separate", "vae")
DEFAULT_VAE = "Default (model)"
LORAS_MOST = 5
"""LoRAs of one job that the servers keep with their usual settings; further ones are dropped without a word."""

SEED_MOST = 2**63 - 1
"""A larger seed is replaced by one that the server draws."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One series of versions.

    ``uses_vae``: a VAE that the request names is loaded (0.4 takes the name and forgets it). ``cuts_loras``: also
    those that stand in the request's own list are cut to `LORAS_MOST`. ``cleans``: it can unload its models.
    ``deletes``: a finished job's files can be deleted through its API. ``custom_only``: ``upscale_value`` counts
    for the method "Upscale (Custom)" alone. ``schemes``: what ``meta_scheme`` may be; 0.5 dies of any other.
    """

    label: str
    samplers: tuple[str, ...]
    schemes: tuple[str, ...]
    uses_vae: bool
    cuts_loras: bool
    custom_only: bool
    cleans: bool
    deletes: bool

    @property
    def title(self) -> str:
        return f"Fooocus-API {self.label}"


def dialect_of(paths: Mapping[str, Any]) -> Dialect | None:
    """The version that these routes show; None where they are not Fooocus-API's.

    No version says which it is: the description that FastAPI makes of the routes is the evidence.
    """
    if TEXT not in paths:
        return None
    parameters = paths.get(HISTORY, {}).get("get", {}).get("parameters", [])
    deletes = any(p.get("name") == "delete" for p in parameters)
    if "/v2/generation/image-enhance" not in paths:
        return Dialect("0.4", _SAMPLERS, ("fooocus", "a111"), False, False, False, CLEAN in paths, deletes)
    samplers, schemes = (*_SAMPLERS, "restart"), ("fooocus", "a1111")
    return Dialect("0.5", samplers, schemes, True, True, True, CLEAN in paths, deletes)
