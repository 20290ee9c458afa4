"""Any of the six servers with real folders of models, into which tests put files and from which they take them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.made import safetensors
from tests.support.six import Bench, bench
from worker.mentions import Place
from worker.simulators.comfyui.weights import Architecture, write_checkpoint

_SDAPI = {"checkpoint": "Stable-diffusion", "lora": "Lora", "vae": "VAE", "upscaler": "ESRGAN"}
_COMFY = {"checkpoint": "checkpoints", "lora": "loras", "vae": "vae", "unet": "diffusion_models"}
_COMFY |= {"embedding": "embeddings", "controlnet": "controlnet"}
_FOOOCUS = {"checkpoint": "checkpoints", "lora": "loras"}
_SHAPES: Mapping[str, Architecture] = {"checkpoint": "sd15", "lora": "lora", "vae": "vae", "unet": "flux-unet"}

Kind = Literal["checkpoint", "lora", "vae", "unet", "upscaler", "embedding", "controlnet"]


@dataclass(frozen=True)
class Shelf:
    """A server, and the folder that holds its folders of models by kind."""

    bench: Bench
    root: Path

    def path(self, kind: Kind, name: str) -> Path:
        """Where the server has a file."""
        if kind == "embedding" and self.bench.name != "comfyui":
            beside = "embeddings" if self.bench.kind == "sdnext" else "../embeddings"
            return self.root / beside / name
        folders = {"comfyui": _COMFY, "fooocus": _FOOOCUS}.get(self.bench.name, _SDAPI)
        return self.root / folders[kind] / name

    def put(self, kind: Kind, name: str) -> Place:
        """Have a whole file there, as a download leaves it."""
        path = self.path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.bench.name == "comfyui" and kind in _SHAPES:
            write_checkpoint(path, _SHAPES[kind])
        else:
            path.write_bytes(safetensors())
        return Place(kind, name)

    def take(self, kind: Kind, name: str) -> None:
        """Take it away, as an eviction does."""
        self.path(kind, name).unlink()


@asynccontextmanager
async def shelf(name: str, folder: Path, **options: Any) -> AsyncIterator[Shelf]:
    """A running server whose models lie below a folder, beside the few that every test's server lists."""
    if name == "comfyui":
        async with bench(name, base_dir=folder, **options) as b:
            yield Shelf(b, folder / "models")
    else:
        async with bench(name, models_dir=folder / "models", **options) as b:
            yield Shelf(b, folder / "models")
