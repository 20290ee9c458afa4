"""What a node is given beside its inputs: time, progress, models, memory, files, and the faults that strike it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from PIL import Image

from worker.simulators import pictures
from worker.simulators.comfyui.folders import Folders
from worker.simulators.comfyui.knobs import Fault, Knobs
from worker.simulators.comfyui.saving import jpeg
from worker.simulators.comfyui.state import Run, Stats
from worker.simulators.comfyui.telling import Telling
from worker.simulators.comfyui.values import Latent, NodeFailed, WorkerDied
from worker.simulators.comfyui.weights import BadWeights, header_of

_BIG = 4 * 1024 * 1024 + 4096
_OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 512.00 MiB is "
    "free. Including non-PyTorch memory, this process has 7.50 GiB memory in use."
)
_ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at "
    "some other API call, so the stacktrace below might be incorrect."
)


def out_of_memory(text: str = "") -> NodeFailed:
    """Torch's error."""
    return NodeFailed("torch.OutOfMemoryError", text or _OUT_OF_MEMORY)


def illegal_access(text: str = "") -> NodeFailed:
    """A CUDA fault."""
    return NodeFailed("torch.AcceleratorError", text or _ILLEGAL)


@dataclass
class NodeCall:
    """One node of one prompt."""

    node_id: str
    prompt_id: str
    prompt: dict[str, Any]
    extra_data: dict[str, Any]
    telling: Telling
    run: Run
    fault: Fault | None
    end_fault: Fault | None
    letters: str
    """Five letters in the names of temporary files."""

    @property
    def knobs(self) -> Knobs:
        """The server's knobs."""
        return self.telling.machine.knobs

    @property
    def folders(self) -> Folders:
        """The server's folders."""
        return self.telling.machine.folders

    @property
    def stats(self) -> Stats:
        """What is counted."""
        return self.telling.machine.stats

    @property
    def texts(self) -> dict[str, Any]:
        """The metadata of the files that a node writes."""
        if self.knobs.disable_metadata:
            return {}
        return {"prompt": self.prompt, **self.extra_data.get("extra_pnginfo", {})}

    async def pause(self, seconds: float) -> None:
        """Work for so long, deaf to interrupts."""
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def load(self, folder: str, name: str) -> dict[str, Any] | None:
        """Read a model file; the header of a real safetensors file. Raises `NodeFailed`."""
        if not self.folders.has(folder, name):
            text = f"Model in folder '{folder}' with filename '{name}' not found."
            raise NodeFailed("FileNotFoundError", text)
        self.telling.machine.leak(self.knobs.leak_bytes_per_load)
        await self.pause(self.knobs.load_seconds)
        path = self.folders.real(folder, name)
        header = None
        if path is not None and path.suffix in (".safetensors", ".sft"):
            try:
                header = await asyncio.to_thread(header_of, path)
            except BadWeights as error:
                raise NodeFailed("safetensors_rust.SafetensorError", str(error)) from error
            except OSError as error:
                raise NodeFailed("FileNotFoundError", str(error)) from error
        self.stats.loads.append(f"{folder}/{name}")
        return header

    def must_fit(self, pixels: int) -> None:
        """Raises `NodeFailed` when a batch of so many pixels is more than the graphics memory holds."""
        if pixels > self.knobs.memory_pixels:
            raise out_of_memory()

    async def progress(self, value: int, total: int, image: tuple[str, bytes] | None = None) -> None:
        """Move the progress bar; ``image`` is a preview with its format. Raises `Interrupted`."""
        self.telling.progress(self.node_id, value, total, image)
        await asyncio.sleep(0)

    async def sample(self, steps: int, latent: Latent) -> None:
        """All steps, with the faults that strike them. Raises `Interrupted`, `WorkerDied`."""
        if self.fault and self.fault.kind == "slow":
            await self.pause(self.fault.seconds)
        preview = self._preview(latent)
        for step in range(1, steps + 1):
            await self.pause(self.knobs.step_seconds)
            if step == max(steps // 2, 1):
                await self._strike()
            await self.progress(step, steps, preview)
            self.run.steps += 1

    async def _strike(self) -> None:
        machine = self.telling.machine
        match self.fault.kind if self.fault else None:
            case "drop_socket":
                machine.hub.cut(self.telling.client_id)
            case "hang":
                await machine.hang()
            case "interrupted_by_other":
                machine.interrupted = True
            case "exit" | "restart" if self.fault:
                machine.fall(self.fault)
                raise WorkerDied

    def _preview(self, latent: Latent) -> tuple[str, bytes] | None:
        big = self.fault is not None and self.fault.kind == "big_frame"
        if self.knobs.preview_method == "none" and not big:
            return None
        side = 512 / max(latent.width, latent.height, 512)
        size = (max(int(latent.width * side), 8), max(int(latent.height * side), 8))
        data = jpeg(_small(latent.key, size))
        return "JPEG", data.ljust(_BIG, b"\0") if big else data


def _small(key: str, size: tuple[int, int]) -> Image.Image:
    return pictures.blurred(pictures.draw(key, *size)).resize(size)
