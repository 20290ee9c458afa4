"""The samplers and schedulers that each server lists, and what it makes of a name."""

from __future__ import annotations

from typing import Any

from worker.simulators.dialects import Dialect
from worker.simulators.errors import HttpError

_PLAIN = (
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DDIM",
    "UniPC",
    "LCM",
)
_WITH_KARRAS = (
    "DPM++ 2M Karras",
    "DPM++ SDE Karras",
    "DPM++ 2M SDE Karras",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "LMS Karras",
    "DPM2 Karras",
    "DDIM",
    "PLMS",
    "UniPC",
)
_SDNEXT = (
    "Default",
    "UniPC",
    "DDIM",
    "Euler",
    "Euler a",
    "DPM++ 2M",
    "DPM++ 1S",
    "DPM SDE",
    "Heun",
    "LMSD",
    "KDPM2",
    "LCM",
)
_SCHEDULERS = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "beta": "Beta",
}


def sampler_names(dialect: Dialect) -> tuple[str, ...]:
    """The names in the server's order."""
    if dialect.sdnext:
        return _SDNEXT
    return _PLAIN if dialect.schedulers else _WITH_KARRAS


def sampler_items(dialect: Dialect) -> list[dict[str, Any]]:
    """The body of `/samplers`."""
    aliases: dict[str, Any] = {} if dialect.current else {"aliases": []}
    return [{"name": name, **aliases, "options": {}} for name in sampler_names(dialect)]


def scheduler_items() -> list[dict[str, Any]]:
    """The body of `/schedulers`."""
    return [
        {"name": n, "label": label, "aliases": None, "default_rho": 7.0 if n == "karras" else -1.0}
        | {"need_inner_model": n == "sgm_uniform"}
        for n, label in _SCHEDULERS.items()
    ]


def resolved_sampler(dialect: Dialect, request: dict[str, Any]) -> tuple[str, str]:
    """Sampler and scheduler label that really run. Raises `HttpError` 404 where an unknown name is refused."""
    names = sampler_names(dialect)
    asked = str(request["sampler_name"] or request["sampler_index"] or names[0])
    if dialect.current:
        found = next((n for n in names if n.lower() == asked.lower()), None)
    elif dialect.schedulers:
        return _split(asked, request["scheduler"], names)
    else:
        found = asked if asked in names else None
    if found is None:
        raise HttpError(404, "Sampler not found")
    return found, ""


def _split(asked: str, scheduler: str | None, names: tuple[str, ...]) -> tuple[str, str]:
    """Since 1.9 "DPM++ 2M Karras" means a sampler and a scheduler; an unknown sampler becomes the first."""
    labels = {key: label for n, label in _SCHEDULERS.items() for key in (n, label)}
    chosen = labels.get(scheduler or "", "Automatic")
    for label in _SCHEDULERS.values():
        if asked.endswith(f" {label}"):
            asked, chosen = asked.removesuffix(f" {label}"), label
    name = asked if asked in names else names[0]
    if chosen == "Automatic" and name.startswith("DPM++"):
        chosen = "Karras"
    return name, chosen
