"""The files that a server has, and what it makes of unknown names: its defaults, and a line in its log."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.simulators.fooocus.jobs import Journal
from worker.simulators.fooocus.schema import DEFAULT_MODEL, CommonRequest
from worker.simulators.whole import is_whole

STYLES = (
    *("Fooocus V2", "Random Style", "Fooocus Enhance", "Fooocus Semi Realistic", "Fooocus Sharp"),
    *("Fooocus Masterpiece", "Fooocus Photograph", "Fooocus Negative", "Fooocus Cinematic"),
    *("SAI 3D Model", "SAI Anime", "SAI Photographic", "MRE Cinematic Dynamic", "Ads Luxury"),
)
SAMPLERS = (
    *("euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive"),
    *("dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "tcd", "ddim", "uni_pc", "uni_pc_bh2"),
)
SCHEDULERS = (
    *("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "lcm", "turbo"),
    *("align_your_steps", "tcd", "edm_playground_v2.5"),
)
_SUFFIXES = {".safetensors", ".ckpt", ".pth", ".bin", ".fooocus.patch"}


@dataclass
class Catalogue:
    """Names below the model folders; ``directory`` is a real folder that is looked into too."""

    models: list[str] = field(default_factory=list)
    loras: list[str] = field(default_factory=list)
    directory: Path | None = None

    def listed(self, kind: str) -> list[str]:
        """All names of a kind; the folders are read anew each time."""
        names = list(self.models if kind == "checkpoints" else self.loras)
        if self.directory is not None:
            root = self.directory / kind
            found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix in _SUFFIXES)
            names += [name for name in found if name not in names]
        return names

    @property
    def default_model(self) -> str:
        """The model that the configuration names, or the first where the test has not that one."""
        models = self.listed("checkpoints")
        return DEFAULT_MODEL if DEFAULT_MODEL in models or not models else models[0]

    def fault(self, kind: str, name: str) -> str | None:
        """Why a listed file cannot be loaded now; a real one that is cut off is moved away, so that it is unlisted."""
        path = self.directory / kind / name if self.directory is not None else None
        if path is None or name in (self.models if kind == "checkpoints" else self.loras):
            return None
        if not path.is_file():
            return f"No such file or directory: {path}"
        if is_whole(path):
            return None
        moved = path.rename(f"{path}.corrupted")
        said = "You may try again now and Fooocus will download models again."
        return (
            f"Error while deserializing header: File corrupted: {path} Fooocus has tried to move it to {moved} {said}"
        )

    def sha256(self, name: str) -> str:
        """What a checkpoint's file hashes to; of a name without a file that of the name."""
        path = self.directory / "checkpoints" / name if self.directory is not None else None
        if path is None or name in self.models or not path.is_file():
            return hashlib.sha256(name.encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def replace(self, body: CommonRequest, journal: Journal, series: str) -> None:
        """Put defaults for what is unknown, without telling the client."""
        models, loras = self.listed("checkpoints"), self.listed("loras")
        if body.base_model_name not in models:
            journal.warn(f"[Warning] Wrong base_model_name input: {body.base_model_name}, using default")
            body.base_model_name = self.default_model
        if body.refiner_model_name not in ("None", *models):
            journal.warn(f"[Warning] Wrong refiner_model_name input: {body.refiner_model_name}, using default")
            body.refiner_model_name = "None"
        for lora in body.loras:
            if lora.model_name not in ("None", *loras):
                journal.warn(f"[Warning] Wrong lora model_name input: {lora.model_name}, using 'None'")
                lora.model_name = "None"
        if series == "0.5":
            body.loras = [lora for lora in body.loras[:5] if lora.enabled]
        body.style_selections = [s for s in body.style_selections if s in STYLES]
        self._advanced(body.advanced_params, journal, series)

    def _advanced(self, adp: Any, journal: Journal, series: str) -> None:
        samplers = SAMPLERS if series == "0.4" else (*SAMPLERS, "restart")
        lists = {
            "sampler_name": (samplers, "dpmpp_2m_sde_gpu"),
            "scheduler_name": (SCHEDULERS, "karras"),
            "inpaint_engine": (("None", "v1", "v2.5", "v2.6"), "v2.6"),
            "refiner_swap_method": (("joint", "separate", "vae"), "joint"),
        }
        for name, (known, default) in lists.items():
            if getattr(adp, name) not in known:
                journal.raw(f"[Warning] Wrong {name} input: {getattr(adp, name)}, using default")
                setattr(adp, name, default)
        if series == "0.4":
            adp.vae_name = "Default (model)"
