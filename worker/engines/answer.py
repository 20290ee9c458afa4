"""What an image server answered, and what its words mean whatever its kind. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic_core

from worker.errors import EngineOutOfMemory, GpuFault

_OOM = re.compile(
    r"out of memory|OutOfMemoryError|can't allocate memory|not enough memory|DefaultCPUAllocator|MemoryError",
    re.IGNORECASE,
)
_GPU = re.compile(
    r"CUDA error|CUDA driver|HIP error|cuDNN error|CUDNN_STATUS|cuBLAS|CUBLAS_STATUS|device-side assert|"
    r"illegal memory access|no CUDA-capable device|No CUDA GPUs|GPU is lost|unspecified launch failure|NVML",
    re.IGNORECASE,
)


def parsed(body: bytes) -> Any:
    """The JSON value of a body; None where it is no JSON."""
    try:
        return pydantic_core.from_json(body)
    except ValueError:
        return None


def cause(text: str) -> type[EngineOutOfMemory | GpuFault] | None:
    """What a server's message of an exception, or a line of its log, tells of memory or the GPU; None: neither."""
    if _OOM.search(text):
        return EngineOutOfMemory
    return GpuFault if _GPU.search(text) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def json(self) -> Any:
        """The body's value; None where it holds none, as many answers do."""
        return parsed(self.body)
