"""Example bodies for the OpenAPI document: the two published ones word for word, and a submission."""

from __future__ import annotations

from typing import Any

ASKED: dict[str, Any] = {
    "node": {"id": "random-uuid", "gpu": "rtx4090", "vram_gb": 24},
    "vram_models": {"checkpoints": ["dreamshaper_8.safetensors"], "loras": ["add_detail.safetensors"]},
    "disk_models": {
        "checkpoints": ["Juggernaut_X_RunDiffusion_Hyper.safetensors"],
        "upscalers": ["nomos8khatLOtf_v20.safetensors"],
    },
}
"""As the platform's guide has it."""

GIVEN: dict[str, Any] = {
    "generation": {
        "checkpoint": "dreamshaper_8.safetensors",
        "params": {
            "prompt": "mechanical cat flying a spaceship",
            "negative_prompt": "text, watermark",
            "cfg": 5.6,
            "steps": 20,
        },
    },
    "download": {
        "checkpoints": [
            "https://civitai.com/api/download/models/132760?type=Model&format=SafeTensor&size=pruned&fp=fp16"
        ]
    },
}
"""As the platform's guide has it."""

SUBMITTED: dict[str, Any] = {
    "id": "cat-1",
    "checkpoint": "dreamshaper_8.safetensors",
    "params": {"prompt": "mechanical cat flying a spaceship", "steps": 20},
    "webhook": "https://example.com/hooks/images",
}

CATALOGUE: list[dict[str, Any]] = [
    {
        "kind": "checkpoint",
        "name": "our-model.safetensors",
        "url": "https://cdn.example/checkpoint/our-model.safetensors",
        "sha256": "0123456789abcdef" * 4,
        "size": 2_132_625_894,
        "base": "sd15",
    }
]
