"""Samplers and schedulers: ComfyUI's names, which portable parameters use, as this server calls them. No I/O."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from worker.engines.sdapi.names import dicts, texts
from worker.errors import InvalidJob

SAMPLERS: Mapping[str, tuple[str, ...]] = {
    "euler": ("Euler",),
    "euler_ancestral": ("Euler a",),
    "heun": ("Heun",),
    "heunpp2": ("HeunPP2",),
    "dpm_2": ("DPM2", "KDPM2"),
    "dpm_2_ancestral": ("DPM2 a", "KDPM2 a"),
    "lms": ("LMS", "LMSD"),
    "dpm_fast": ("DPM fast",),
    "dpm_adaptive": ("DPM adaptive",),
    "dpmpp_2s_ancestral": ("DPM++ 2S a",),
    "dpmpp_sde": ("DPM++ SDE", "DPM SDE"),
    "dpmpp_2m": ("DPM++ 2M",),
    "dpmpp_2m_sde": ("DPM++ 2M SDE",),
    "dpmpp_2m_sde_heun": ("DPM++ 2M SDE Heun",),
    "dpmpp_3m_sde": ("DPM++ 3M SDE",),
    "ddim": ("DDIM",),
    "ddpm": ("DDPM",),
    "uni_pc": ("UniPC",),
    "ipndm": ("IPNDM",),
    "deis": ("DEIS",),
    "lcm": ("LCM",),
    "restart": ("Restart",),
}
"""ComfyUI's name to what the servers call the same algorithm; ``..._gpu`` differs only in where noise is drawn."""

_SCHEDULERS: Mapping[str, tuple[str, ...]] = {
    "normal": ("normal", "uniform"),
    "karras": ("karras",),
    "exponential": ("exponential",),
    "sgm_uniform": ("sgm_uniform",),
    "simple": ("simple",),
    "ddim_uniform": ("ddim",),
    "beta": ("beta",),
    "kl_optimal": ("kl_optimal",),
}
_SIGMAS = {"normal": "default", "karras": "karras", "exponential": "exponential", "beta": "betas"}
_SUFFIXES = {"karras": "Karras", "exponential": "Exponential"}


@dataclass(frozen=True, slots=True)
class Samplers:
    """What ``/samplers`` and ``/schedulers`` list: each known spelling to the name that the server must be sent."""

    names: tuple[str, ...] = ()
    spellings: Mapping[str, str] = field(default_factory=dict)
    schedulers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def listed(cls, samplers: Any, schedulers: Any) -> Samplers:
        names = texts(samplers, "name")
        spellings = {n.lower(): n for n in names}
        for item in dicts(samplers):
            aliases = item.get("aliases")
            for alias in aliases if isinstance(aliases, list) else ():
                if isinstance(alias, str) and isinstance(item.get("name"), str):
                    spellings.setdefault(alias.lower(), item["name"])
        return cls(names, spellings, _labels(schedulers))

    def canonical(self, name: str, *, field: str, also: Iterable[str] = ()) -> str:
        """The server's own spelling of a native sampler name.

        Servers that have schedulers also take "DPM++ 2M Karras", and split it. An unknown name is refused, since
        Automatic1111 from 1.9 on and Forge silently take another sampler.
        """
        if name in also or not self.names:
            return name
        found = name if name in self.names else self.spellings.get(name.lower())
        if found is not None:
            return found
        base, _, last = name.rpartition(" ")
        if last.lower() in self.schedulers and base.lower() in self.spellings:
            return name
        raise unknown("sampler", name, self.names, field=field)

    def scheduler(self, name: str, *, field: str) -> str:
        """A native scheduler, by name or label."""
        if not self.schedulers or name.lower() in self.schedulers:
            return name
        raise unknown("scheduler", name, self.schedulers.values(), field=field)

    def portable(self, sampler: str, *, field: str) -> str:
        """The server's name of one of ComfyUI's samplers; the server's own names are understood too."""
        if sampler in self.names:
            return sampler
        plain = sampler.removesuffix("_gpu")
        candidates = SAMPLERS.get(plain, (sampler,))
        for candidate in candidates:
            if candidate in self.names:
                return candidate
        if found := self.spellings.get(plain.lower()):
            return found
        known = [ours for ours, theirs in SAMPLERS.items() if any(t in self.names for t in theirs)]
        raise unknown("sampler", sampler, known, field=field)


def with_scheduler(
    body: dict[str, Any], samplers: Samplers, scheduler: str, *, fields: Iterable[str], options: Iterable[str]
) -> dict[str, Any]:
    """The body with one of ComfyUI's schedulers, in whichever way this server takes it.

    Automatic1111 from 1.9 on and Forge have the field ``scheduler``; before, it is part of the sampler's name; the
    current SD.Next has ``schedulers_sigma``; that of 2023 an option for Karras. Raises `InvalidJob` where the
    server has no such scheduler.
    """
    where = "params.scheduler"
    if samplers.schedulers:
        theirs = _SCHEDULERS.get(scheduler, (scheduler,))
        found = next((samplers.schedulers[t] for t in theirs if t in samplers.schedulers), None)
        if found is None:
            raise unknown("scheduler", scheduler, _known_schedulers(samplers), field=where)
        return {**body, "scheduler": found}
    if "schedulers_sigma" in fields:
        if scheduler not in _SIGMAS:
            raise unknown("scheduler", scheduler, _SIGMAS, field=where)
        return {**body, "schedulers_sigma": _SIGMAS[scheduler]}
    overrides = dict(body.get("override_settings") or {})
    if scheduler in ("normal", "karras") and "schedulers_use_karras" in options:
        return {**body, "override_settings": {**overrides, "schedulers_use_karras": scheduler == "karras"}}
    if scheduler == "normal":
        return body
    base = body.get("sampler_name", "Euler")
    combined = {ours: f"{base} {theirs}" for ours, theirs in _SUFFIXES.items() if f"{base} {theirs}" in samplers.names}
    if scheduler in combined:
        return {**body, "sampler_name": combined[scheduler]}
    raise unknown("scheduler", scheduler, ("normal", *combined), field=where)


def _labels(schedulers: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in dicts(schedulers):
        label = item.get("label") if isinstance(item.get("label"), str) else item.get("name")
        if isinstance(label, str):
            found[label.lower()] = label
            if isinstance(item.get("name"), str):
                found[item["name"].lower()] = label
    return found


def _known_schedulers(samplers: Samplers) -> list[str]:
    return [ours for ours, theirs in _SCHEDULERS.items() if any(t in samplers.schedulers for t in theirs)]


def unknown(what: str, name: str, known: Iterable[str], *, field: str) -> InvalidJob:
    """The refusal of a name, with those that are meant most likely."""
    names = sorted(set(known))
    lowered = {n.lower(): n for n in names}
    close = [lowered[c] for c in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    hint = f"; close: {', '.join(close)}" if close else f"; known: {', '.join(names[:12])}" if names else ""
    return InvalidJob(f"unknown {what} {name[:100]!r}{hint}", field=field)
