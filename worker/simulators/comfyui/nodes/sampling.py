"""Nodes that sample, and what they are composed of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from worker.simulators.comfyui.call import NodeCall
from worker.simulators.comfyui.nodes.spec import NodeSpec, choice, integer, link, number, seed
from worker.simulators.comfyui.state import Sampling
from worker.simulators.comfyui.values import Conditioning, Guider, Latent, Result, Sigmas, Weights, digest

SAMPLERS = (
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2"),
    *("dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    *("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm"),
    *("ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
)
SCHEDULERS = (
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
)


@dataclass(frozen=True)
class _Plan:
    """One sampling, whatever node asked for it. ``steps`` are the ones that run."""

    model: Weights
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float
    positive: Conditioning
    negative: Conditioning | None
    latent: Latent
    more: str = ""


def _key(plan: _Plan) -> str:
    negative = plan.negative.key if plan.negative else ""
    parts = [plan.model.key, plan.positive.key, negative, plan.latent.key, plan.sampler, plan.scheduler, plan.more]
    parts += [str(plan.seed), str(plan.steps), str(float(plan.cfg)), str(float(plan.denoise))]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _noted(call: NodeCall, plan: _Plan) -> Sampling:
    latent = plan.latent
    return Sampling(
        prompt_id=call.prompt_id,
        node=call.node_id,
        models=plan.model.names,
        seed=plan.seed,
        steps=plan.steps,
        cfg=plan.cfg,
        sampler=plan.sampler,
        scheduler=plan.scheduler,
        denoise=plan.denoise,
        positive=plan.positive.text,
        negative=plan.negative.text if plan.negative else "",
        width=latent.width,
        height=latent.height,
        batch=latent.count,
        masked=latent.mask is not None,
        inputs=digest(latent.images) if latent.images else "",
    )


async def _sampled(call: NodeCall, plan: _Plan) -> Latent:
    call.stats.samplings.append(_noted(call, plan))
    latent = plan.latent
    call.must_fit(latent.width * latent.height * latent.count)
    await call.sample(plan.steps, latent)
    strength = max(latent.strength, plan.denoise) if latent.images else 1.0
    return replace(latent, key=_key(plan), strength=strength)


async def _ksampler(call: NodeCall, inputs: dict[str, Any]) -> Result:
    plan = _Plan(
        inputs["model"],
        inputs["seed"],
        inputs["steps"],
        inputs["cfg"],
        inputs["sampler_name"],
        inputs["scheduler"],
        inputs["denoise"],
        inputs["positive"],
        inputs["negative"],
        inputs["latent_image"],
    )
    return Result((await _sampled(call, plan),))


async def _advanced(call: NodeCall, inputs: dict[str, Any]) -> Result:
    steps = inputs["steps"]
    first, last = min(inputs["start_at_step"], steps), min(inputs["end_at_step"], steps)
    plan = _Plan(
        inputs["model"],
        inputs["noise_seed"],
        max(last - first, 0),
        inputs["cfg"],
        inputs["sampler_name"],
        inputs["scheduler"],
        (steps - first) / steps,
        inputs["positive"],
        inputs["negative"],
        inputs["latent_image"],
        f"{inputs['add_noise']}:{first}-{last}/{steps}:{inputs['return_with_leftover_noise']}",
    )
    return Result((await _sampled(call, plan),))


async def _custom(call: NodeCall, inputs: dict[str, Any]) -> Result:
    guider: Guider = inputs["guider"]
    sigmas: Sigmas = inputs["sigmas"]
    plan = _Plan(
        guider.model,
        inputs["noise"],
        sigmas.steps,
        guider.cfg,
        inputs["sampler"],
        sigmas.scheduler,
        sigmas.denoise,
        guider.positive,
        guider.negative,
        inputs["latent_image"],
    )
    done = await _sampled(call, plan)
    return Result((done, done))


async def _basic_guider(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((Guider(inputs["model"], inputs["conditioning"]),))


async def _cfg_guider(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((Guider(inputs["model"], inputs["positive"], inputs["negative"], inputs["cfg"]),))


async def _noise(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((inputs["noise_seed"],))


async def _select(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((inputs["sampler_name"],))


async def _schedule(_: NodeCall, inputs: dict[str, Any]) -> Result:
    return Result((Sigmas(inputs["scheduler"], inputs["steps"], inputs["denoise"]),))


_CUSTOM = "comfy_extras.nodes_custom_sampler"

SAMPLING = (
    NodeSpec(
        "KSampler",
        _ksampler,
        {
            "model": link("MODEL", tooltip="The model that removes the noise."),
            "seed": seed(),
            "steps": integer(20, 1, 10000, None),
            "cfg": number(8.0, 0.0, 100.0, 0.1, round=0.01),
            "sampler_name": choice(*SAMPLERS, tooltip="The algorithm used when sampling."),
            "scheduler": choice(*SCHEDULERS, tooltip="How noise is gradually removed."),
            "positive": link("CONDITIONING", tooltip="What the picture should show."),
            "negative": link("CONDITIONING", tooltip="What the picture should not show."),
            "latent_image": link("LATENT", tooltip="The latent picture to begin with."),
            "denoise": number(1.0, 0.0, 1.0),
        },
        outputs=("LATENT",),
        category="sampling",
    ),
    NodeSpec(
        "KSamplerAdvanced",
        _advanced,
        {
            "model": link("MODEL"),
            "add_noise": choice("enable", "disable"),
            "noise_seed": seed(),
            "steps": integer(20, 1, 10000, None),
            "cfg": number(8.0, 0.0, 100.0, 0.1, round=0.01),
            "sampler_name": choice(*SAMPLERS),
            "scheduler": choice(*SCHEDULERS),
            "positive": link("CONDITIONING"),
            "negative": link("CONDITIONING"),
            "latent_image": link("LATENT"),
            "start_at_step": integer(0, 0, 10000, None),
            "end_at_step": integer(10000, 0, 10000, None),
            "return_with_leftover_noise": choice("disable", "enable"),
        },
        outputs=("LATENT",),
        category="sampling",
        title="KSampler (Advanced)",
    ),
    NodeSpec(
        "SamplerCustomAdvanced",
        _custom,
        {
            "noise": link("NOISE"),
            "guider": link("GUIDER"),
            "sampler": link("SAMPLER"),
            "sigmas": link("SIGMAS"),
            "latent_image": link("LATENT"),
        },
        outputs=("LATENT", "LATENT"),
        output_names=("output", "denoised_output"),
        category="sampling/custom_sampling",
        module=_CUSTOM,
    ),
    NodeSpec(
        "BasicGuider",
        _basic_guider,
        {"model": link("MODEL"), "conditioning": link("CONDITIONING")},
        outputs=("GUIDER",),
        category="sampling/custom_sampling/guiders",
        module=_CUSTOM,
    ),
    NodeSpec(
        "CFGGuider",
        _cfg_guider,
        {
            "model": link("MODEL"),
            "positive": link("CONDITIONING"),
            "negative": link("CONDITIONING"),
            "cfg": number(8.0, 0.0, 100.0, 0.1, round=0.01),
        },
        outputs=("GUIDER",),
        category="sampling/custom_sampling/guiders",
        module=_CUSTOM,
    ),
    NodeSpec(
        "RandomNoise",
        _noise,
        {"noise_seed": seed()},
        outputs=("NOISE",),
        category="sampling/custom_sampling/noise",
        module=_CUSTOM,
    ),
    NodeSpec(
        "KSamplerSelect",
        _select,
        {"sampler_name": choice(*SAMPLERS)},
        outputs=("SAMPLER",),
        category="sampling/custom_sampling/samplers",
        module=_CUSTOM,
    ),
    NodeSpec(
        "BasicScheduler",
        _schedule,
        {
            "model": link("MODEL"),
            "scheduler": choice(*SCHEDULERS),
            "steps": integer(20, 1, 10000, None),
            "denoise": number(1.0, 0.0, 1.0),
        },
        outputs=("SIGMAS",),
        category="sampling/custom_sampling/schedulers",
        module=_CUSTOM,
    ),
)
SAMPLER_CLASSES = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"})
