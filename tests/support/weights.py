"""Model files small enough for a test to fetch: a true safetensors header, and bytes that differ by seed."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

from worker.simulators.comfyui.weights import Architecture, tensors


def weights(seed: str, size: int = 4096, architecture: Architecture = "sd15") -> bytes:
    """A whole file with ``size`` bytes of tensors, by whose names and shapes every server knows what it is.

    The first tensor has all the bytes: to have the true size of each would make gigabytes.
    """
    header: dict[str, Any] = {"__metadata__": {"seed": seed}}
    begin = 0
    for name, shape in tensors(architecture).items():
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, size]}
        begin = size
    text = json.dumps(header).encode()
    block = hashlib.sha256(seed.encode()).digest()
    return struct.pack("<Q", len(text)) + text + (block * (size // len(block) + 1))[:size]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
