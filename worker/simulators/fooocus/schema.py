"""The requests' models, as the two versions have them: they refuse with 422, and give the API's description."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import models_json_schema

DEFAULT_MODEL = "juggernautXL_v8Rundiffusion.safetensors"
DEFAULT_LORA = "sd_xl_offset_example-lora_1.0.safetensors"
DEFAULT_STYLES = ["Fooocus V2", "Fooocus Enhance", "Fooocus Sharp"]


class _Model(BaseModel):
    model_config = ConfigDict(protected_namespaces=())


class PerformanceSelection(StrEnum):
    """Each with its number of steps in `STEPS`."""

    speed = "Speed"
    quality = "Quality"
    extreme_speed = "Extreme Speed"
    lightning = "Lightning"
    hyper_sd = "Hyper-SD"


STEPS = {"Speed": 30, "Quality": 60, "Extreme Speed": 8, "Lightning": 4, "Hyper-SD": 4}
STEPS_UPSCALING = {"Speed": 18, "Quality": 36, "Extreme Speed": 8, "Lightning": 4, "Hyper-SD": 4}


class UpscaleOrVaryMethod(StrEnum):
    subtle_variation = "Vary (Subtle)"
    strong_variation = "Vary (Strong)"
    upscale_15 = "Upscale (1.5x)"
    upscale_2 = "Upscale (2x)"
    upscale_fast = "Upscale (Fast 2x)"
    upscale_custom = "Upscale (Custom)"


class OutpaintExpansion(StrEnum):
    left = "Left"
    right = "Right"
    top = "Top"
    bottom = "Bottom"


class ControlNetType(StrEnum):
    cn_ip = "ImagePrompt"
    cn_ip_face = "FaceSwap"
    cn_canny = "PyraCanny"
    cn_cpds = "CPDS"


class Lora(_Model):
    enabled: bool
    model_name: str
    weight: float = Field(0.5, ge=-2, le=2)


class AdvancedParams(_Model):
    disable_preview: bool = False
    disable_intermediate_results: bool = False
    disable_seed_increment: bool = False
    adm_scaler_positive: float = Field(1.5, ge=0.1, le=3.0)
    adm_scaler_negative: float = Field(0.8, ge=0.1, le=3.0)
    adm_scaler_end: float = Field(0.3, ge=0.0, le=1.0)
    adaptive_cfg: float = Field(7.0, ge=1.0, le=30.0)
    clip_skip: int = Field(2, ge=1, le=12)
    sampler_name: str = "dpmpp_2m_sde_gpu"
    scheduler_name: str = "karras"
    overwrite_step: int = Field(-1, ge=-1, le=200)
    overwrite_switch: float = Field(-1, ge=-1, le=1)
    overwrite_width: int = Field(-1, ge=-1, le=2048)
    overwrite_height: int = Field(-1, ge=-1, le=2048)
    overwrite_vary_strength: float = Field(-1, ge=-1, le=1.0)
    overwrite_upscale_strength: float = Field(-1, ge=-1, le=1.0)
    mixing_image_prompt_and_vary_upscale: bool = False
    mixing_image_prompt_and_inpaint: bool = False
    debugging_cn_preprocessor: bool = False
    skipping_cn_preprocessor: bool = False
    canny_low_threshold: int = Field(64, ge=1, le=255)
    canny_high_threshold: int = Field(128, ge=1, le=255)
    refiner_swap_method: str = "joint"
    controlnet_softness: float = Field(0.25, ge=0.0, le=1.0)
    freeu_enabled: bool = False
    freeu_b1: float = 1.01
    freeu_b2: float = 1.02
    freeu_s1: float = 0.99
    freeu_s2: float = 0.95
    debugging_inpaint_preprocessor: bool = False
    inpaint_disable_initial_latent: bool = False
    inpaint_engine: str = "v2.6"
    inpaint_strength: float = Field(1.0, ge=0.0, le=1.0)
    inpaint_respective_field: float = Field(1.0, ge=0.0, le=1.0)
    invert_mask_checkbox: bool = False
    inpaint_erode_or_dilate: int = Field(0, ge=-64, le=64)
    black_out_nsfw: bool = False
    vae_name: str = "Default (model)"


class CommonRequest(_Model):
    prompt: str = ""
    negative_prompt: str = ""
    style_selections: list[str] = DEFAULT_STYLES
    performance_selection: PerformanceSelection = PerformanceSelection.speed
    aspect_ratios_selection: str = "1152*896"
    image_number: int = Field(1, ge=1, le=32)
    image_seed: int = -1
    sharpness: float = Field(2.0, ge=0.0, le=30.0)
    guidance_scale: float = Field(4.0, ge=1.0, le=30.0)
    base_model_name: str = DEFAULT_MODEL
    refiner_model_name: str = "None"
    refiner_switch: float = Field(0.5, ge=0.1, le=1.0)
    loras: list[Lora] = [Lora(enabled=True, model_name=DEFAULT_LORA, weight=0.1)]
    advanced_params: AdvancedParams = AdvancedParams()
    save_meta: bool = True
    meta_scheme: str = "fooocus"
    save_extension: str = "png"
    save_name: str = ""
    read_wildcards_in_order: bool = False
    require_base64: bool = False
    async_process: bool = False
    webhook_url: str | None = ""


class ImagePromptJson(_Model):
    cn_img: str | None = None
    cn_stop: float | None = Field(0, ge=0, le=1)
    cn_weight: float | None = Field(0, ge=0, le=2)
    cn_type: ControlNetType = ControlNetType.cn_ip


class EnhanceCtrlNets(_Model):
    enhance_enabled: bool = False
    enhance_mask_dino_prompt: str = "face"
    enhance_prompt: str = ""
    enhance_negative_prompt: str = ""
    enhance_mask_model: str = "sam"
    enhance_inpaint_engine: str = "v2.6"
    enhance_inpaint_strength: float = Field(1, ge=0, le=1)


_PROMPTS: Any = (list[ImagePromptJson], [])
_INPAINT: dict[str, Any] = {
    "input_image": (str, ""),
    "input_mask": (str | None, ""),
    "inpaint_additional_prompt": (str | None, ""),
    "outpaint_selections": (list[OutpaintExpansion], []),
    "outpaint_distance_left": (int | None, -1),
    "outpaint_distance_right": (int | None, -1),
    "outpaint_distance_top": (int | None, -1),
    "outpaint_distance_bottom": (int | None, -1),
    "image_prompts": _PROMPTS,
}
_UPSCALE: dict[str, Any] = {
    "uov_method": (UpscaleOrVaryMethod, UpscaleOrVaryMethod.upscale_2),
    "upscale_value": (float | None, Field(1.0, ge=1.0, le=5.0)),
    "input_image": (str, ...),
    "image_prompts": _PROMPTS,
}
_ENHANCE: dict[str, Any] = {
    "enhance_input_image": (str, ""),
    "enhance_checkbox": (bool, True),
    "enhance_uov_method": (UpscaleOrVaryMethod, UpscaleOrVaryMethod.strong_variation),
    "enhance_uov_processing_order": (str, "Before First Enhancement"),
    "enhance_uov_prompt_type": (str, "Original Prompts"),
    "save_final_enhanced_image_only": (bool, True),
    "enhance_ctrlnets": (list[EnhanceCtrlNets], ...),
}
_ADVANCED: dict[str, Any] = {
    "0.4": {"inpaint_mask_upload_checkbox": (bool, False)},
    "0.5": {
        "inpaint_advanced_masking_checkbox": (bool, True),
        "debugging_dino": (bool, False),
        "dino_erode_or_dilate": (int, Field(0, ge=-64, le=64)),
        "debugging_enhance_masks_checkbox": (bool, False),
    },
}


@cache
def requests_of(series: str) -> dict[str, type[CommonRequest]]:
    """The body of each generating route that takes JSON."""
    advanced = create_model("AdvancedParams", __base__=AdvancedParams, **_ADVANCED[series])
    fields: dict[str, Any] = {"advanced_params": (advanced, advanced())}
    common: type[CommonRequest] = create_model("CommonRequest", __base__=CommonRequest, **fields)

    def made(name: str, own: dict[str, Any]) -> type[CommonRequest]:
        return create_model(name, __base__=common, **own)

    found: dict[str, type[CommonRequest]] = {
        "/v1/generation/text-to-image": common,
        "/v2/generation/text-to-image-with-ip": made("Text2ImgRequestWithPrompt", {"image_prompts": _PROMPTS}),
        "/v2/generation/image-upscale-vary": made("ImgUpscaleOrVaryRequestJson", _UPSCALE),
        "/v2/generation/image-inpaint-outpaint": made("ImgInpaintOrOutpaintRequestJson", _INPAINT),
        "/v2/generation/image-prompt": made(
            "ImgPromptRequestJson",
            {**_INPAINT, "input_image": (str | None, None), "image_prompts": (list[ImagePromptJson], ...)},
        ),
    }
    if series == "0.5":
        found["/v2/generation/image-enhance"] = made("ImageEnhanceRequestJson", _ENHANCE)
    return found


@cache
def openapi(series: str, gets: tuple[str, ...]) -> dict[str, Any]:
    """The description as FastAPI gives it: no version of the server, but every field."""
    requests = requests_of(series)
    models = list(dict.fromkeys(requests.values()))
    _, schemas = models_json_schema([(m, "validation") for m in models], ref_template="#/components/schemas/{model}")
    deletes = [{"name": "job_id", "in": "query"}, {"name": "delete", "in": "query"}] if series == "0.5" else []
    paths: dict[str, Any] = {p: {"get": {"parameters": deletes if p.endswith("history") else []}} for p in gets}
    for path, model in requests.items():
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        paths[path] = {"post": {"requestBody": {"content": {"application/json": {"schema": schema}}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }
