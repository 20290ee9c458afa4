"""The `info` document of a result and the infotexts, in each server's words."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from worker.simulators.dialects import Dialect
from worker.simulators.models import ModelFile
from worker.simulators.state import stamp


@dataclass(frozen=True)
class Inputs:
    """The decoded images of an img2img request."""

    image: Image.Image
    mask: Image.Image | None = None


@dataclass
class Job:
    """A generation as it will really run."""

    request: dict[str, Any]
    endpoint: str
    model: ModelFile
    model_hash: str | None
    sampler: str
    scheduler: str
    width: int
    height: int
    seeds: list[int]
    subseeds: list[int]
    vae: str | None = None
    clip_skip: int = 1
    loras: list[str] = field(default_factory=list)
    inputs: Inputs | None = None
    first: int = 0
    """Index of the first picture: 1 after a grid."""

    @property
    def prompt(self) -> str:
        """The prompt as sent."""
        return self.request["prompt"] or ""

    @property
    def negative(self) -> str:
        """The negative prompt as sent."""
        return self.request["negative_prompt"] or ""

    @property
    def refiner(self) -> str | None:
        """The checkpoint that takes over at a step."""
        name = self.request.get("refiner_checkpoint")
        return str(name) if name and name != "None" else None

    @property
    def key(self) -> str:
        """All that the pictures are made from, but their seeds and input images."""
        request = self.request
        told = [request["steps"], request["cfg_scale"], self.sampler, self.scheduler, request.get("schedulers_sigma")]
        told += [self.clip_skip, self.vae, self.refiner, request.get("refiner_switch_at") if self.refiner else None]
        return "|".join(map(str, [self.prompt, self.negative, self.model.sha256, ",".join(self.loras), *told]))


def lora_names(prompt: str) -> list[str]:
    """The LoRAs that a prompt asks for."""
    return re.findall(r"<lora:([^:>]+)", prompt)


def info_document(dialect: Dialect, job: Job, count: int) -> str:
    """The JSON string; ``count`` is the number of pictures made."""
    request = job.request
    texts = [infotext(dialect, job, n) for n in range(max(count, 1))]
    document: dict[str, Any] = {
        "prompt": job.prompt,
        "all_prompts": [job.prompt] * len(job.seeds),
        "negative_prompt": job.negative,
        "all_negative_prompts": [job.negative] * len(job.seeds),
        "seed": job.seeds[0],
        "all_seeds": job.seeds,
        "subseed": job.subseeds[0],
        "all_subseeds": job.subseeds,
        "subseed_strength": request["subseed_strength"],
        "width": job.width,
        "height": job.height,
        "sampler_name": job.sampler,
        "cfg_scale": request["cfg_scale"],
    }
    if dialect.current:
        document |= {"cfg_end": None, "steps": request["steps"], "batch_size": request["batch_size"]}
        document |= {"detailer": False, "detailer_model": None, "sd_model_hash": job.model_hash}
    else:
        document |= {"steps": request["steps"], "batch_size": request["batch_size"]}
        document |= {"restore_faces": bool(request["restore_faces"]), "face_restoration_model": None}
        document |= {} if dialect.sdnext else {"sd_model_name": job.model.stem}
        document |= {"sd_model_hash": job.model_hash}
        document |= {} if dialect.sdnext else {"sd_vae_name": job.vae, "sd_vae_hash": None}
    document |= {
        "seed_resize_from_w": request["seed_resize_from_w"],
        "seed_resize_from_h": request["seed_resize_from_h"],
        "denoising_strength": request["denoising_strength"],
        "extra_generation_params": {},
        "index_of_first_image": job.first,
        "infotexts": texts[:1] * job.first + texts,
        "styles": request["styles"] or [],
        "job_timestamp": stamp(),
        "clip_skip": job.clip_skip,
    }
    if not dialect.current:
        document["is_using_inpainting_conditioning"] = False
    if not dialect.sdnext:
        document["version"] = dialect.version
    return json.dumps(document)


def infotext(dialect: Dialect, job: Job, n: int) -> str:
    """The text of the ``n``-th picture: prompt, negative prompt, and a line of `Key: value` pairs."""
    pairs = _sdnext_pairs(dialect, job, n) if dialect.sdnext else _a1111_pairs(dialect, job, n)
    line = ", ".join(f"{k}: {_quoted(dialect, v)}" for k, v in pairs.items() if v is not None)
    negative = f"\nNegative prompt: {job.negative}" if job.negative or dialect.sdnext else ""
    template = f"\nTemplate: {job.prompt}" if dialect.current else ""
    return f"{job.prompt}{negative}{template}\n{line}"


def _quoted(dialect: Dialect, value: Any) -> str:
    text = str(value)
    if dialect.sdnext or not set(text) & set(",\n:"):
        return text
    return json.dumps(text, ensure_ascii=False)


def _a1111_pairs(dialect: Dialect, job: Job, n: int) -> dict[str, Any]:
    request = job.request
    return {
        "Steps": request["steps"],
        "Sampler": job.sampler,
        "Schedule type": job.scheduler or None,
        "CFG scale": request["cfg_scale"],
        "Seed": job.seeds[n],
        "Size": f"{job.width}x{job.height}",
        "Model hash": job.model_hash,
        "Model": job.model.stem,
        "VAE": job.vae,
        "Denoising strength": request["denoising_strength"] if job.inputs or request.get("enable_hr") else None,
        "Clip skip": job.clip_skip if job.clip_skip > 1 else None,
        "Lora hashes": ", ".join(f"{name}: {len(name):012x}" for name in job.loras) or None,
        "Refiner": job.refiner,
        "Refiner switch at": request.get("refiner_switch_at") if job.refiner else None,
        "Version": dialect.version,
    }


def _sdnext_pairs(dialect: Dialect, job: Job, n: int) -> dict[str, Any]:
    request = job.request
    operation = "img2img" if job.inputs else "txt2img"
    name = re.sub("[,:]", "", job.model.stem)
    if not dialect.current:
        return {
            "Steps": request["steps"],
            "Seed": job.seeds[n],
            "Sampler": job.sampler,
            "CFG scale": request["cfg_scale"],
            "Size": f"{job.width}x{job.height}",
            "Parser": "Full parser",
            "Model": name,
            "Model hash": job.model_hash,
            "Backend": "Diffusers",
            "App": "SD.Next",
            "Version": "93f35cc",
            "Operations": operation,
            "Denoising strength": request["denoising_strength"] if job.inputs else None,
            "Lora hashes": ", ".join(job.loras) or None,
        }
    return {
        "Steps": request["steps"],
        "Size": f"{job.width}x{job.height}",
        "Sampler": job.sampler,
        "Scheduler": "EulerDiscreteScheduler",
        "Seed": job.seeds[n],
        "CFG scale": request["cfg_scale"],
        "CFG rescale": 0.0,
        "App": "SD.Next",
        "Version": "unknown",
        "Pipeline": "StableDiffusionImg2ImgPipeline" if job.inputs else "StableDiffusionPipeline",
        "Operations": operation,
        "Denoising strength": request["denoising_strength"] if job.inputs else None,
        "Model": name,
        "Model hash": job.model_hash,
        "LoRA networks": ", ".join(job.loras) or None,
    }
