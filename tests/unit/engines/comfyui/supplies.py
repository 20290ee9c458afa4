"""A small server for the graph builders: node classes as ComfyUI 0.3 declares them, and headers of model files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.engines.comfyui.architecture import Architecture, Contents, contents
from worker.engines.comfyui.inventory import Inventory, inventory
from worker.engines.comfyui.parts import key
from worker.job import Job, Limits, parse

Shape = tuple[int, ...]

SAMPLERS = ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde"]
SCHEDULERS = ["normal", "karras", "simple", "sgm_uniform"]
FOLDERS: dict[str, list[str]] = {
    "checkpoints": [
        "flux-dev.safetensors",
        "flux-fill.safetensors",
        "flux-schnell.safetensors",
        "old.ckpt",
        "refiner.safetensors",
        "sd15-inpaint.safetensors",
        "sd15.safetensors",
        "sd2.safetensors",
        "sd3-bare.safetensors",
        "sd35.safetensors",
        "sdxl.safetensors",
        "sub/other.safetensors",
        "video.safetensors",
    ],
    "diffusion_models": ["flux-dev-unet.safetensors", "sd15-unet.safetensors", "sdxl-unet.safetensors"],
    "text_encoders": ["clip_g.safetensors", "clip_l.safetensors", "t5xxl.safetensors"],
    "vae": ["ae.safetensors", "kl.safetensors", "old.pt"],
    "loras": ["detail.safetensors", "style.safetensors", "a/twin.safetensors", "b/twin.safetensors"],
    "embeddings": ["bad.pt"],
}

_CLASSES: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({"ckpt_name": "checkpoints"}, ("MODEL", "CLIP", "VAE")),
    "UNETLoader": ({"unet_name": "diffusion_models", "weight_dtype": ["default", "fp8_e4m3fn"]}, ("MODEL",)),
    "CLIPLoader": ({"clip_name": "text_encoders", "type": ["stable_diffusion", "sd3"]}, ("CLIP",)),
    "DualCLIPLoader": (
        {"clip_name1": "text_encoders", "clip_name2": "text_encoders", "type": ["sdxl", "sd3", "flux"]},
        ("CLIP",),
    ),
    "TripleCLIPLoader": ({f"clip_name{i}": "text_encoders" for i in (1, 2, 3)}, ("CLIP",)),
    "VAELoader": ({"vae_name": "vae"}, ("VAE",)),
    "LoraLoader": (
        {"model": "MODEL", "clip": "CLIP", "lora_name": "loras", "strength_model": "FLOAT", "strength_clip": "FLOAT"},
        ("MODEL", "CLIP"),
    ),
    "CLIPSetLastLayer": ({"clip": "CLIP", "stop_at_clip_layer": "INT"}, ("CLIP",)),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, ("CONDITIONING",)),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": "FLOAT"}, ("CONDITIONING",)),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "EmptySD3LatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "LoadImage": ({"image": "upload"}, ("IMAGE", "MASK")),
    "LoadImageMask": ({"image": "upload", "channel": ["alpha", "red", "green", "blue"]}, ("MASK",)),
    "ImageScale": (
        {
            "image": "IMAGE",
            "upscale_method": ["nearest-exact", "lanczos"],
            "width": "INT",
            "height": "INT",
            "crop": ["disabled", "center"],
        },
        ("IMAGE",),
    ),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SetLatentNoiseMask": ({"samples": "LATENT", "mask": "MASK"}, ("LATENT",)),
    "RepeatLatentBatch": ({"samples": "LATENT", "amount": "INT"}, ("LATENT",)),
    "RepeatImageBatch": ({"image": "IMAGE", "amount": "INT"}, ("IMAGE",)),
    "InpaintModelConditioning": (
        {
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "vae": "VAE",
            "pixels": "IMAGE",
            "mask": "MASK",
            "noise_mask": "BOOLEAN",
        },
        ("CONDITIONING", "CONDITIONING", "LATENT"),
    ),
    "ImageCompositeMasked": (
        {"destination": "IMAGE", "source": "IMAGE", "x": "INT", "y": "INT", "resize_source": "BOOLEAN", "mask": "MASK"},
        ("IMAGE",),
    ),
    "KSampler": (
        {
            "model": "MODEL",
            "seed": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "sampler_name": SAMPLERS,
            "scheduler": SCHEDULERS,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "denoise": "FLOAT",
        },
        ("LATENT",),
    ),
    "KSamplerAdvanced": (
        {
            "model": "MODEL",
            "add_noise": ["enable", "disable"],
            "noise_seed": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "sampler_name": SAMPLERS,
            "scheduler": SCHEDULERS,
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "start_at_step": "INT",
            "end_at_step": "INT",
            "return_with_leftover_noise": ["disable", "enable"],
        },
        ("LATENT",),
    ),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, ()),
}


def _declared(kind: Any) -> list[Any]:
    if kind == "upload":
        return [[], {"image_upload": True}]
    return [FOLDERS.get(kind, kind), {}] if isinstance(kind, str) else [kind, {}]


def server(
    *, without: tuple[str, ...] = (), folders: Mapping[str, list[str]] = FOLDERS, types: tuple[str, ...] | None = None
) -> Inventory:
    """What the server can do; ``without`` some classes, or with other ``types`` of pairs of text encoders."""
    info = {
        name: {
            "input": {"required": {key: _declared(kind) for key, kind in inputs.items()}},
            "output": list(outputs),
            "output_node": name == "SaveImage",
        }
        for name, (inputs, outputs) in _CLASSES.items()
        if name not in without
    }
    if types is not None:
        info["DualCLIPLoader"]["input"]["required"]["type"] = [list(types), {}]  # type: ignore[index]
    return inventory(info, folders, {"system": {"comfyui_version": "0.3.64"}})


def header(shapes: Mapping[str, Shape], prefix: str = "") -> dict[str, Any]:
    """A safetensors header with these tensors, none of which has any data."""
    tensors = {prefix + name: {"dtype": "F16", "shape": list(shape)} for name, shape in shapes.items()}
    return {"__metadata__": {"format": "pt"}, **tensors}


def unet(width: int, context: int, *, channels: int = 4, extra: int | None = None, linear: bool) -> dict[str, Shape]:
    """The tensors by which a UNet is told, below its prefix."""
    found: dict[str, Shape] = {
        "input_blocks.0.0.weight": (width, channels, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (width,),
        "input_blocks.4.1.proj_in.weight": (width, width) if linear else (width, width, 1, 1),
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (width, context),
        "out.0.weight": (width,),
        "out.2.weight": (4, width, 3, 3),
        "middle_block.0.in_layers.0.weight": (width,),
    }
    return found | ({} if extra is None else {"label_emb.0.0.weight": (1280, extra)})


SD15_UNET = unet(320, 768, linear=False)
SDXL_UNET = unet(320, 2048, extra=2816, linear=True)
MMDIT: dict[str, Shape] = {
    "joint_blocks.0.context_block.attn.qkv.weight": (4608, 1536),
    "x_embedder.proj.weight": (1536, 16, 2, 2),
    "y_embedder.mlp.0.weight": (1536, 2048),
    "context_embedder.weight": (1536, 4096),
    "pos_embed": (1, 36864, 1536),
    "final_layer.linear.weight": (64, 1536),
}
FLUX_UNET: dict[str, Shape] = {
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "img_in.weight": (3072, 64),
    "guidance_in.in_layer.weight": (3072, 256),
    "vector_in.in_layer.weight": (3072, 768),
    "single_blocks.0.linear1.weight": (21504, 3072),
    "single_blocks.0.linear2.weight": (3072, 15360),
    "final_layer.linear.weight": (64, 3072),
}
KL: dict[str, Shape] = {"decoder.conv_in.weight": (512, 4, 3, 3)}
AE: dict[str, Shape] = {"decoder.conv_in.weight": (512, 16, 3, 3)}
CLIP_L: dict[str, Shape] = {"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}
CLIP_G: dict[str, Shape] = {**CLIP_L, "text_model.encoder.layers.30.mlp.fc1.weight": (5120, 1280)}
T5: dict[str, Shape] = {"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": (10240, 4096)}

UNET = "model.diffusion_model."


def whole(tensors: Mapping[str, Shape], *names: str, vae: str | None = "first_stage_model.", channels: int = 4) -> Any:
    """A checkpoint: the diffusion model, tensors of these names as text encoders, and a VAE."""
    found = header(tensors, UNET) | header(dict.fromkeys(names, (1,)))
    return found | (header(KL if channels == 4 else AE, vae) if vae is not None else {})


XL_CLIPS = ("conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.x")
L_INSIDE, G_INSIDE = (f"text_encoders.clip_{c}.transformer.text_model.final_layer_norm.weight" for c in "lg")
T5_INSIDE = "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"
SCHNELL = {name: shape for name, shape in FLUX_UNET.items() if not name.startswith("guidance_in")}
SD15_FILE = whole(SD15_UNET, "cond_stage_model.transformer.text_model.x")

HEADERS: Mapping[str, Mapping[str, Any]] = {
    "checkpoints/sd15.safetensors": SD15_FILE,
    "checkpoints/sub/other.safetensors": SD15_FILE,
    "checkpoints/sd15-inpaint.safetensors": whole(
        unet(320, 768, channels=9, linear=False), "cond_stage_model.transformer.text_model.x"
    ),
    "checkpoints/sd2.safetensors": whole(unet(320, 1024, linear=True), "cond_stage_model.model.x"),
    "checkpoints/sdxl.safetensors": whole(SDXL_UNET, *XL_CLIPS),
    "checkpoints/refiner.safetensors": whole(
        unet(384, 1280, extra=2560, linear=True), "conditioner.embedders.0.model.x"
    ),
    "checkpoints/sd35.safetensors": whole(MMDIT, L_INSIDE, G_INSIDE, T5_INSIDE, channels=16),
    "checkpoints/sd3-bare.safetensors": whole(MMDIT, channels=16),
    "checkpoints/flux-dev.safetensors": whole(FLUX_UNET, L_INSIDE, T5_INSIDE, vae="vae.", channels=16),
    "checkpoints/flux-schnell.safetensors": whole(SCHNELL, L_INSIDE, T5_INSIDE, vae="vae.", channels=16),
    "checkpoints/flux-fill.safetensors": whole(
        FLUX_UNET | {"img_in.weight": (3072, 384)}, L_INSIDE, T5_INSIDE, vae="vae.", channels=16
    ),
    "checkpoints/video.safetensors": whole(unet(320, 1024, channels=8, extra=768, linear=True)),
    "diffusion_models/flux-dev-unet.safetensors": header(FLUX_UNET),
    "diffusion_models/sd15-unet.safetensors": header(SD15_UNET),
    "diffusion_models/sdxl-unet.safetensors": header(SDXL_UNET),
    "text_encoders/clip_l.safetensors": header(CLIP_L),
    "text_encoders/clip_g.safetensors": header(CLIP_G),
    "text_encoders/t5xxl.safetensors": header(T5),
    "vae/ae.safetensors": header(AE),
    "vae/kl.safetensors": header(KL),
}
CONTENTS: Mapping[str, Contents] = {name: contents(tensors) for name, tensors in HEADERS.items()}

CHECKPOINTS: Mapping[Architecture, str] = {
    Architecture.SD15: "sd15.safetensors",
    Architecture.SD2: "sd2.safetensors",
    Architecture.SDXL: "sdxl.safetensors",
    Architecture.SD35: "sd35.safetensors",
    Architecture.FLUX: "flux-dev.safetensors",
}


def seen(*files: tuple[str, str]) -> dict[str, Contents]:
    """What is known once these headers are read."""
    return {key(*file): CONTENTS[key(*file)] for file in files}


def job(
    checkpoint: str | None = "sd15.safetensors", *, models: list[dict[str, Any]] | None = None, **params: Any
) -> Job:
    """A portable job."""
    document: dict[str, Any] = {"id": "job-1", "params": {"prompt": "a lighthouse", **params}}
    if checkpoint is not None:
        document["checkpoint"] = checkpoint
    return parse(document | {"models": models or []}, fallback_id="job-1", limits=Limits())


def clips(*names: str) -> list[dict[str, Any]]:
    """Text encoders as a job lists them."""
    return [{"kind": "clip", "name": name} for name in names]
