"""The fields of a generation request with their types and defaults, as each server's schema has them.

An entry reads ``name:type=default`` with the default as JSON; a type with ``!`` does not take null.
"""

from __future__ import annotations

import json
from typing import Any

from worker.simulators.dialects import Dialect

SDNEXT = """
sd_model_checkpoint:str=null; prompt:str=""; negative_prompt:str=""; seed:int=-1; subseed:int=-1;
subseed_strength:float=0; seed_resize_from_h:int=-1; seed_resize_from_w:int=-1; batch_size:int=1; n_iter:int=1;
steps:int=20; clip_skip:int=1; width:int=1024; height:int=1024; sampler_index:int_or_str!=0;
sampler_name:str!="Default"; hr_sampler_name:str!="Same as primary"; eta:float=null; guidance_name:str="Default";
guidance_scale:float=6.0; guidance_rescale:float=0.0; guidance_start:float=0.0; guidance_stop:float=1.0;
cfg_scale:float=6.0; cfg_end:float=1; cfg_rescale:float=0.0; cfg_true:float=0.0; cfg_adaptive:float=0.5;
styles:strs=null; tiling:bool=false; vae_type:str="Full"; hidiffusion:bool=false;
do_not_reload_embeddings:bool=false; detailer_enabled:bool=false; detailer_prompt:str=""; detailer_negative:str="";
detailer_steps:int=10; detailer_strength:float=0.3; detailer_resolution:int=1024; detailer_segmentation:bool=null;
detailer_include_detections:bool=null; detailer_merge:bool=null; detailer_sort:bool=null; detailer_classes:str=null;
detailer_conf:float=null; detailer_iou:float=null; detailer_max:int=null; detailer_min_size:float=null;
detailer_max_size:float=null; detailer_blur:int=null; detailer_padding:int=null; detailer_sigma_adjust:float=null;
detailer_sigma_adjust_max:float=null; detailer_models:list=null; detailer_augment:bool=null;
img2img_color_correction:bool=null; color_correction_method:str=null; img2img_background_color:str=null;
img2img_fix_steps:bool=null; mask_apply_overlay:bool=null; include_mask:bool=null;
inpainting_mask_weight:float=null; samples_save:bool=null; samples_format:str=null;
save_images_before_highres_fix:bool=null; save_images_before_refiner:bool=null;
save_images_before_detailer:bool=null; save_images_before_color_correction:bool=null; grid_save:bool=null;
grid_format:str=null; return_grid:bool=null; keep_incomplete:bool=null; image_metadata:bool=null;
jpeg_quality:int=null; lora_fuse_native:bool=null; lora_fuse_diffusers:bool=null; lora_force_reload:bool=null;
extra_networks_default_multiplier:float=null; lora_apply_tags:int=null; hdr_mode:int=0; hdr_brightness:float=0;
hdr_color:float=0; hdr_sharpen:float=0; hdr_clamp:bool=false; hdr_boundary:float=4.0; hdr_threshold:float=0.95;
hdr_maximize:bool=false; hdr_max_center:float=0.6; hdr_max_boundary:float=1.0; hdr_color_picker:str="#000000";
hdr_tint_ratio:float=0; hdr_apply_hires:bool=true; grading_brightness:float=0.0; grading_contrast:float=0.0;
grading_saturation:float=0.0; grading_hue:float=0.0; grading_gamma:float=1.0; grading_sharpness:float=0.0;
grading_color_temp:float=6500; grading_shadows:float=0.0; grading_midtones:float=0.0; grading_highlights:float=0.0;
grading_clahe_clip:float=0.0; grading_clahe_grid:int=8; grading_shadows_tint:str="#000000";
grading_highlights_tint:str="#ffffff"; grading_split_tone_balance:float=0.5; grading_vignette:float=0.0;
grading_grain:float=0.0; grading_lut_file:str=""; grading_lut_strength:float=1.0; init_control:list=null;
cfg_image:float=null; initial_noise_multiplier:float=null; scale_by:float=1; selected_scale_tab:int=0;
resize_mode:int=0; resize_name:str="None"; resize_context:str="None"; width_before:int=0; width_after:int=0;
width_mask:int=0; height_before:int=0; height_after:int=0; height_mask:int=0; resize_name_before:str="None";
resize_name_after:str="None"; resize_name_mask:str="None"; resize_mode_before:int=0; resize_mode_after:int=0;
resize_mode_mask:int=0; resize_context_before:str="None"; resize_context_after:str="None";
resize_context_mask:str="None"; selected_scale_tab_before:int=0; selected_scale_tab_after:int=0;
selected_scale_tab_mask:int=0; scale_by_before:float=1; scale_by_after:float=1; scale_by_mask:float=1;
latent_mask:any=null; mask_for_overlay:any=null; mask_blur:int=4; paste_to:any=null; inpainting_fill:int=1;
inpaint_full_res:bool=false; inpaint_full_res_padding:int=0; inpainting_mask_invert:int=0; overlay_images:any=null;
enable_hr:bool=false; firstphase_width:int=0; firstphase_height:int=0; hr_scale:float=2.0; hr_force:bool=false;
hr_resize_mode:int=0; hr_resize_context:str="None"; hr_second_pass_steps:int=0; hr_resize_x:int=0;
hr_resize_y:int=0; hr_denoising_strength:float=0.0; refiner_steps:int=5; hr_upscaler:str=null;
refiner_start:float=0; refiner_prompt:str=""; refiner_negative:str=""; hr_refiner_start:float=0;
enhance_prompt:bool=false; do_not_save_samples:bool=false; do_not_save_grid:bool=false; xyz:bool=false;
script_args:list!=[]; schedulers_prediction_type:str=null; schedulers_beta_schedule:str=null;
schedulers_timesteps:str=null; schedulers_sigma:str=null; schedulers_use_thresholding:bool=null;
schedulers_use_loworder:bool=null; schedulers_solver_order:int=null; uni_pc_variant:str=null;
schedulers_beta_start:float=null; schedulers_beta_end:float=null; schedulers_shift:float=null;
schedulers_dynamic_shift:bool=null; schedulers_base_shift:float=null; schedulers_max_shift:float=null;
schedulers_rescale_betas:bool=null; schedulers_timestep_spacing:str=null; schedulers_timesteps_range:int=null;
schedulers_sigma_adjust:float=null; schedulers_sigma_adjust_min:float=null; schedulers_sigma_adjust_max:float=null;
scheduler_eta:float=null; eta_noise_seed_delta:int=null; enable_batch_seeds:bool=null;
diffusers_generator_device:str=null; nan_skip:bool=null; sequential_seed:bool=null; prompt_attention:str=null;
prompt_mean_norm:bool=null; diffusers_zeros_prompt_pad:bool=null; te_pooled_embeds:bool=null;
lora_apply_te:bool=null; te_complex_human_instruction:str=null; te_use_mask:bool=null; freeu_enabled:bool=null;
freeu_b1:float=null; freeu_b2:float=null; freeu_s1:float=null; freeu_s2:float=null;
hypertile_unet_enabled:bool=null; hypertile_hires_only:bool=null; hypertile_unet_tile:int=null;
hypertile_unet_min_tile:int=null; hypertile_unet_swap_size:int=null; hypertile_unet_depth:int=null;
hypertile_vae_enabled:bool=null; hypertile_vae_tile:int=null; hypertile_vae_swap_size:int=null;
teacache_enabled:bool=null; teacache_thresh:float=null; token_merging_method:str=null; tome_ratio:float=null;
todo_ratio:float=null; skip_processing:bool=false; override_settings_restore_afterwards:bool=true;
override_settings:dict=null; network_data:dict=null; script_name:str=""; send_images:bool!=true;
save_images:bool!=false; alwayson_scripts:dict!={}; ip_adapter:list=null; control_units:list=null; extra:dict={}
"""
SDNEXT_TEXT = "denoising_strength:float=0.3; init_images:list=null; mask:any=null; face:any=null"
SDNEXT_IMAGE = (
    "denoising_strength:float!=0.5; init_images:list!=null; mask:str=null; include_init_images:bool!=false; "
    "face_id:any=null"
)

BASE = """
prompt:str=""; negative_prompt:str=""; styles:strs=null; seed:int=-1; subseed:int=-1; subseed_strength:float=0;
seed_resize_from_h:int=-1; seed_resize_from_w:int=-1; sampler_name:str=null; batch_size:int=1; n_iter:int=1;
steps:int=50; cfg_scale:float=7.0; width:int=512; height:int=512; restore_faces:bool=null; tiling:bool=null;
do_not_save_samples:bool=false; do_not_save_grid:bool=false; eta:float=null; denoising_strength:float=null;
override_settings:dict=null; override_settings_restore_afterwards:bool=true
"""
HIRES = """
enable_hr:bool=false; firstphase_width:int=0; firstphase_height:int=0; hr_scale:float=2.0; hr_upscaler:str=null;
hr_second_pass_steps:int=0; hr_resize_x:int=0; hr_resize_y:int=0
"""
ENDING = """
sampler_index:str!="Euler"; script_name:str=null; script_args:list!=[]; send_images:bool!=true;
save_images:bool!=false; alwayson_scripts:dict!={}
"""
IMAGE = """
init_images:list=null; resize_mode:int=0; image_cfg_scale:float=null; mask:str=null; mask_blur:int=4;
inpainting_fill:int=0; inpaint_full_res:bool=true; inpaint_full_res_padding:int=0; inpainting_mask_invert:int=0;
initial_noise_multiplier:float=null; denoising_strength:float=0.75; include_init_images:bool!=false
"""

A1111 = """
s_min_uncond:float=null; s_churn:float=null; s_tmax:float=null; s_tmin:float=null; s_noise:float=null;
refiner_checkpoint:str=null; refiner_switch_at:float=null; disable_extra_networks:bool=false; comments:dict=null
"""
A1111_HIRES = 'hr_checkpoint_name:str=null; hr_sampler_name:str=null; hr_prompt:str=""; hr_negative_prompt:str=""'
A1111_IMAGE = "mask_blur_x:int=4; mask_blur_y:int=4; mask_blur:int=null; mask_round:bool=true; latent_mask:str=null"
A1111_LATE = "scheduler:str=null; firstpass_image:str=null; force_task_id:str=null; infotext:str=null"
FORGE = "distilled_cfg_scale:float=3.5"
FORGE_HIRES = "hr_additional_modules:list=null; hr_cfg:float=1.0; hr_distilled_cfg:float=3.5"

SDNEXT_2023 = """
negative_prompt:str=null; restore_faces:bool=false; tiling:bool=false; latent_sampler:str=null;
image_cfg_scale:float=null; full_quality:bool=true; clip_skip:int=1; diffusers_guidance_rescale:float=0.7;
hdr_clamp:bool=false; hdr_boundary:float=4.0; hdr_threshold:float=0.95; hdr_center:bool=false;
hdr_channel_shift:float=0.8; hdr_full_shift:float=0.8; hdr_maximize:bool=false; hdr_max_center:float=0.6;
hdr_max_boundry:float=1.0; denoising_strength:float=0.75; hr_force:bool=false; refiner_steps:int=5;
refiner_start:float=0; refiner_prompt:str=""; refiner_negative:str=""
"""


def request_fields(dialect: Dialect, *, image: bool) -> dict[str, tuple[str, Any]]:
    """Name -> (type, default) of the request for txt2img, or with ``image`` for img2img."""
    blocks: list[str]
    if dialect.current:
        blocks = [SDNEXT, SDNEXT_IMAGE if image else SDNEXT_TEXT]
    elif dialect.sdnext:
        blocks = [BASE, HIRES, SDNEXT_2023, IMAGE if image else "", ENDING]
    else:
        late = A1111_LATE if dialect.schedulers else ""
        forge = dialect.errors == "forge"
        ours = IMAGE + ";" + A1111_IMAGE if image else HIRES + ";" + A1111_HIRES
        extra = (FORGE + ("" if image else ";" + FORGE_HIRES)) if forge else ""
        blocks = [BASE, A1111, ours, late, extra, ENDING]
    return {name: entry for block in blocks for name, entry in _parsed(block).items()}


def _parsed(block: str) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for entry in block.replace("\n", " ").split(";"):
        if entry.strip():
            name, _, rest = entry.strip().partition(":")
            kind, _, default = rest.partition("=")
            found[name] = (kind, json.loads(default))
    return found
