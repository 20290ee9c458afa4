"""Six servers behind one small interface: what each can be asked for, broken in, and looked at, by common names."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from PIL import Image

from tests.support import comfy_engine, fooocus
from tests.support import engines as sdapi
from tests.support.engines import job_of
from tests.support.pictures import opened
from worker import http
from worker.engines.base import Engine, Files, Output, ProgressReport, Work
from worker.job import Job
from worker.settings.groups import EngineKind
from worker.simulators import Knobs as SdapiKnobs
from worker.simulators.comfyui import Knobs as ComfyKnobs
from worker.simulators.fooocus import Knobs as FooocusKnobs

Name = Literal["a1111", "forge", "sdnext-2023", "sdnext", "comfyui", "fooocus"]
SERVERS: tuple[Name, ...] = ("a1111", "forge", "sdnext-2023", "sdnext", "comfyui", "fooocus")
KINDS: Mapping[str, EngineKind] = {
    "a1111": "a1111",
    "forge": "a1111",
    "sdnext-2023": "sdnext",
    "sdnext": "sdnext",
    "comfyui": "comfyui",
    "fooocus": "fooocus",
}

Fault = Literal[
    "oom",
    "gpu",
    "exit",
    "restart",
    "hang",
    "slow",
    "black",
    "empty",
    "short_count",
    "wrong_size",
    "not_an_image",
    "truncated_image",
]
"""What every one of the simulators can do wrong: the graphics memory, the GPU, the process, the time, the pictures."""

LORA, OTHER_LORA = "add_detail", "ink"
VAE, OTHER_VAE = "sharp.safetensors", "soft.safetensors"


@dataclass
class Bench(ABC):
    """A server and the engine that drives it."""

    name: str
    sim: Any
    engine: Engine
    reports: list[ProgressReport] = field(default_factory=list)
    last: Output | None = None

    first: ClassVar[str]
    """The checkpoint of jobs that say nothing else."""
    second: ClassVar[str] = "sd_xl_base_1.0.safetensors"
    refiner: ClassVar[str] = second

    @property
    def kind(self) -> EngineKind:
        """What WORKER_ENGINE calls it."""
        return KINDS[self.name]

    def document(self, prompt: str = "a cat", *, checkpoint: str | None = None, **params: Any) -> dict[str, Any]:
        """A small portable job."""
        given = {"prompt": prompt, "width": 64, "height": 64, "steps": 3, "seed": 7, **params}
        return {"params": given, "checkpoint": checkpoint or self.first}

    def job(self, document: Mapping[str, Any] | None = None, *, id: str = "job-1", **params: Any) -> Job:
        return job_of(dict(document) if document is not None else self.document(**params), id=id)

    async def admit(self, document: Mapping[str, Any] | None = None, *, id: str = "job-1", **params: Any) -> Work:
        """A document, or the small job with these parameters."""
        return await self.engine.admit(self.job(document, id=id, **params))

    async def make(
        self, document: Mapping[str, Any] | None = None, *, id: str = "job-1", fresh: bool = False, **params: Any
    ) -> Output:
        """Admit and generate."""
        return await self.run(await self.admit(document, id=id, **params), fresh=fresh)

    async def run(self, work: Work, files: Files | None = None, *, fresh: bool = False) -> Output:
        self.last = await self.engine.generate(work, files or Files(), self.reports.append, fresh=fresh)
        return self.last

    def begin(self, work: Work) -> asyncio.Task[Output]:
        """A generation under way; whoever asks for it ends it."""
        self.reports.clear()
        return asyncio.create_task(self.run(work), name="test-generate")

    def samples(self) -> bool:
        """Whether the last report says that sampling began."""
        return bool(self.reports) and self.reports[-1].sampling

    async def busy(self) -> bool:
        return (await self.engine.look()).busy

    async def send(self, path: str, body: Mapping[str, Any]) -> None:
        """A request of somebody else; its answer is thrown away, as when its client dies."""
        async with http.client(loopback=True) as client:
            await client.post(f"{self.sim.url}{path}", json=dict(body), timeout=30)

    def arm(self, fault: Fault, *, seconds: float = 0.0, times: int | None = 1) -> None:
        """Have the next generation go wrong."""
        self.sim.knobs.arm(self.faults.get(fault, fault), seconds=seconds, times=times)

    faults: ClassVar[Mapping[str, str]] = {}
    """Common names of faults that the simulator calls otherwise."""

    @property
    @abstractmethod
    def spans(self) -> Sequence[tuple[float, float | None]]:
        """Start and end of each generation that really ran on the server, the latter None while it runs."""

    @property
    def sampled(self) -> int:
        """How often the server has sampled."""
        return len(self.spans)

    @property
    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What the server itself says of the last generation, by the names of the portable fields."""

    @abstractmethod
    async def foreign(self) -> None:
        """Somebody else's long generation."""

    @abstractmethod
    async def interrupt(self) -> None:
        """Somebody else's interrupt."""

    @abstractmethod
    async def deceived(self) -> Output:
        """A job whose picture another model makes than the one that it names."""


def pixels(output: Output, index: int = 0) -> bytes:
    """What a picture shows, whatever stands beside it in the file."""
    return opened(output.images[index].data).convert("RGB").tobytes()


def shown(output: Output, index: int = 0) -> Image.Image:
    """A picture of the output."""
    return opened(output.images[index].data).convert("RGB")


def stem(name: str) -> str:
    """A model file's name without folder, hash and extension."""
    return PurePosixPath(name.partition(" [")[0].removesuffix(".safetensors")).name


class Sdapi(Bench):
    """Automatic1111, Forge, SD.Next."""

    first = "dreamshaper_8.safetensors"
    faults: ClassVar = {"gpu": "error_500"}

    @property
    def spans(self) -> Sequence[tuple[float, float | None]]:
        return [(g.started, g.finished) for g in self.sim.stats.generations]

    @property
    def told(self) -> dict[str, Any]:
        generation = self.sim.stats.generations[-1]
        info: Any = self.last.engine.info if self.last is not None else {}
        text = str(info["infotexts"][0])
        options = self.sim.options
        return {
            "prompt": re.sub(r"\s*<lora:[^>]*>", "", generation.prompt),
            "negative_prompt": info["negative_prompt"],
            "width": generation.width,
            "height": generation.height,
            "steps": generation.steps,
            "cfg": info["cfg_scale"],
            "seed": generation.seed,
            "sampler": info["sampler_name"],
            "scheduler": _pair(text, "Schedule type"),
            "batch_size": info["batch_size"],
            "clip_skip": info["clip_skip"],
            "loras": dict(re.findall(r"<lora:([^:>]+):([^>]*)>", generation.prompt)),
            "vae": stem(str((options.get("forge_additional_modules") or [options["sd_vae"]])[0])),
            "refiner": (stem(_pair(text, "Refiner") or ""), _pair(text, "Refiner switch at")),
            "denoise": info["denoising_strength"],
            "mask": None,
            "checkpoint": stem(generation.model),
        }

    async def foreign(self) -> None:
        await self.send("/sdapi/v1/txt2img", {"prompt": "another's", "steps": 4000, "width": 64, "height": 64})

    async def interrupt(self) -> None:
        await self.send("/sdapi/v1/interrupt", {})

    async def deceived(self) -> Output:
        self.sim.knobs.arm("wrong_model")
        return await self.make(self.document(checkpoint=self.second))


def _pair(text: str, name: str) -> str | None:
    """A value of an infotext's last line."""
    found = re.search(rf"(?:^|, ){name}: ([^,]*)", text.rpartition("\n")[2])
    return found[1] if found else None


class Comfy(Bench):
    """ComfyUI."""

    first = "dreamshaper_8.safetensors"
    refiner = "refiner.safetensors"
    faults: ClassVar = {"gpu": "cuda", "empty": "success_without_outputs"}

    @property
    def spans(self) -> Sequence[tuple[float, float | None]]:
        sampled = {s.prompt_id for s in self.sim.stats.samplings}
        return [(r.started, r.finished) for r in self.sim.stats.runs if r.prompt_id in sampled]

    @property
    def told(self) -> dict[str, Any]:
        own = self.sim.stats.runs[-1].prompt_id
        made = [s for s in self.sim.stats.samplings if s.prompt_id == own]
        sampling = made[0]
        names = sampling.models
        loads = self.sim.stats.loads
        return {
            "prompt": sampling.positive,
            "negative_prompt": sampling.negative,
            "width": sampling.width,
            "height": sampling.height,
            "steps": sampling.steps,
            "cfg": sampling.cfg,
            "seed": sampling.seed,
            "sampler": sampling.sampler,
            "scheduler": sampling.scheduler,
            "batch_size": sampling.batch,
            "loras": {stem(name): None for name in names if stem(name) in (LORA, OTHER_LORA)},
            "vae": next((stem(name) for name in reversed(loads) if name.startswith("vae/")), None),
            "refiner": (stem(made[-1].models[0]), None),
            "denoise": sampling.denoise,
            "mask": sampling.masked,
            "checkpoint": stem(names[0]),
        }

    async def foreign(self) -> None:
        await self.send("/prompt", {"prompt": comfy_engine.graph(steps=4000, checkpoint=self.first, text="another's")})

    async def interrupt(self) -> None:
        await self.send("/interrupt", {})

    async def deceived(self) -> Output:
        work = await self.admit(self.document(checkpoint=self.first))
        lying = {
            node: {**said, "inputs": {k: self.second if v == self.first else v for k, v in said["inputs"].items()}}
            for node, said in work.request.items()
        }
        return await self.run(replace(work, request=lying))


@dataclass
class Fooocus(Bench):
    """Fooocus-API. ``taken`` are the jobs as the server understood them: it forgets them with their files."""

    taken: list[Any] = field(default_factory=list)

    first = fooocus.DEFAULT
    faults: ClassVar = {"gpu": "cuda"}

    @property
    def spans(self) -> Sequence[tuple[float, float | None]]:
        return [(g.started, g.finished) for g in self.sim.stats.generations]

    @property
    def told(self) -> dict[str, Any]:
        job, generation = self.taken[-1], self.sim.stats.generations[-1]
        body, advanced = job.body, job.body.advanced_params
        return {
            "prompt": body.prompt,
            "negative_prompt": body.negative_prompt,
            "width": generation.width,
            "height": generation.height,
            "steps": generation.steps,
            "cfg": body.guidance_scale,
            "seed": job.seed,
            "sampler": advanced.sampler_name,
            "scheduler": advanced.scheduler_name,
            "batch_size": body.image_number,
            "clip_skip": advanced.clip_skip,
            "loras": {stem(lora.model_name): lora.weight for lora in body.loras},
            "vae": stem(advanced.vae_name),
            "refiner": (stem(body.refiner_model_name), body.refiner_switch),
            "denoise": advanced.inpaint_strength if "input_mask" in job.images else advanced.overwrite_vary_strength,
            "mask": "input_mask" in job.images,
            "checkpoint": stem(body.base_model_name),
        }

    async def foreign(self) -> None:
        body = fooocus.small("another's", steps=199)["request"]
        await self.send("/v1/generation/text-to-image", {**body, "image_number": 20, "async_process": True})

    async def interrupt(self) -> None:
        await self.send("/v1/generation/stop", {})

    async def deceived(self) -> Output:
        self.sim.knobs.arm("wrong_model")
        return await self.make(self.document(checkpoint=self.second))


@asynccontextmanager
async def bench(
    name: str,
    *,
    step_seconds: float = 0.001,
    asleep: bool = False,
    empty: bool = False,
    **options: Any,
) -> AsyncIterator[Bench]:
    """A running simulator and an engine on it.

    ``asleep``: its port stays closed until `wake`. ``empty``: it has no checkpoint. ``options`` are those that the
    benches of all families take: ``prepare``, ``settings``, ``limits``, ``pace``, ``host``; of Fooocus ``deaf`` and
    ``version``, of ComfyUI ``checkpoints`` and ``vaes`` by architecture.
    """
    never = 1e9 if asleep else 0.0
    options["prepare"] = options.get("prepare", True) and not asleep and not empty
    if name == "comfyui":
        made = {Comfy.first: "sd15", Comfy.second: "sdxl", Comfy.refiner: "sdxl-refiner"}
        loras, vaes = {f"{n}.safetensors": "lora" for n in (LORA, OTHER_LORA)}, dict.fromkeys((VAE, OTHER_VAE), "vae")
        options = {"checkpoints": {} if empty else made, "loras": loras, "vaes": vaes, **options}
        knobs = ComfyKnobs(step_seconds=step_seconds, start_seconds=never)
        async with comfy_engine.bench(knobs, **options) as c:
            yield Comfy(name, c.sim, c.engine)
    elif name == "fooocus":
        listed = () if empty else (Fooocus.first, Fooocus.second)
        options |= {"models": listed, "loras": [f"{n}.safetensors" for n in (LORA, OTHER_LORA)]}
        given = FooocusKnobs(step_seconds=step_seconds, start_port_seconds=never)
        async with fooocus.bench(options.pop("version", "0.5"), given, **options) as f:
            yield Fooocus(name, f.sim, f.engine, taken=_noted(f.sim))
    else:
        files = [f"{n}.safetensors" for n in (LORA, OTHER_LORA)]
        options |= {"models": () if empty else (Sdapi.first, Sdapi.second), "loras": files, "vaes": [VAE, OTHER_VAE]}
        turned = SdapiKnobs(step_seconds=step_seconds, start_port_seconds=never)
        async with sdapi.bench(name, turned, **options) as s:
            yield Sdapi(name, s.sim, s.engine)


def _noted(sim: Any) -> list[Any]:
    """The jobs that a simulated Fooocus-API takes from now on."""
    taken: list[Any] = []
    add = sim.machine.add

    def noting(job: Any) -> bool:
        taken.append(job)
        return bool(add(job))

    sim.machine.add = noting
    return taken


def wake(b: Bench) -> None:
    """Open the port of a server that sleeps."""
    knobs = b.sim.knobs
    if isinstance(knobs, ComfyKnobs):
        knobs.start_seconds = 0.0
        b.sim.restart()
    else:
        knobs.start_port_seconds = 0.0
