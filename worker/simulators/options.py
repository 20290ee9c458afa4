"""The settings of each server: names and defaults of those that a client may care for."""

from __future__ import annotations

from typing import Any

from worker.simulators.dialects import Dialect

_COMMON: dict[str, Any] = {
    "sd_model_checkpoint": None,
    "sd_checkpoint_hash": None,
    "sd_vae": "Automatic",
    "samples_save": True,
    "samples_format": "png",
    "grid_save": True,
    "grid_format": "png",
    "return_grid": True,
    "jpeg_quality": 80,
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "face_restoration_model": "CodeFormer",
    "img2img_fix_steps": False,
    "img2img_color_correction": False,
    "live_previews_enable": True,
    "show_progress_every_n_steps": 10,
    "sd_checkpoint_cache": 0,
    "token_merging_ratio": 0.0,
    "upscaler_for_img2img": None,
}
_A1111: dict[str, Any] = {
    "enable_pnginfo": True,
    "api_enable_requests": True,
    "api_forbid_local_requests": True,
    "auto_vae_precision": True,
    "sd_checkpoints_limit": 1,
    "sd_lora": "None",
    "upcast_attn": False,
    "randn_source": "GPU",
    "webp_lossless": False,
}
_FORGE: dict[str, Any] = {"forge_additional_modules": [], "forge_preset": "sd", "forge_inference_memory": 1024}
_SDNEXT: dict[str, Any] = {
    "samples_format": "jpg",
    "jpeg_quality": 90,
    "keep_incomplete": True,
    "sd_model_refiner": "None",
    "sd_checkpoint_autoload": True,
    "image_metadata": True,
    "show_progress_every_n_steps": 1,
}
_SDNEXT_CURRENT: dict[str, Any] = {"server_rate_limit": 300, "sd_checkpoint_autodownload": True, "sd_unet": "Default"}
_SDNEXT_2023: dict[str, Any] = {"sd_backend": "diffusers", "sd_disable_ckpt": False}


def default_options(dialect: Dialect) -> dict[str, Any]:
    """Every option that the server knows, with its default."""
    if dialect.sdnext:
        return _COMMON | _SDNEXT | (_SDNEXT_CURRENT if dialect.current else _SDNEXT_2023)
    late = {"sdxl_clip_l_skip": False} if dialect.name == "a1111" else {}
    return _COMMON | _A1111 | late | (_FORGE if dialect.errors == "forge" else {})
