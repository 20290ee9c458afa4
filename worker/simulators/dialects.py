"""The five servers told apart: every difference that a client can see, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["sdnext", "sdnext-2023", "a1111", "a1111-1.7", "forge"]


@dataclass(frozen=True)
class Dialect:
    """One server. SD.Next and Automatic1111 share routes, but hardly an answer."""

    name: Name
    version: str
    sdnext: bool
    """Belongs to SD.Next's family, where models have no extension in their names."""
    current: bool
    """SD.Next of 2026: 204 answers, `/status`, `/checkpoint`, the rate limiter."""
    errors: Literal["code", "plain", "forge"]
    """Error bodies with `code`, without it, or Forge's with `message`."""
    pydantic: Literal[1, 2]
    gzip_over: int
    process_time: bool
    keep_alive_seconds: float
    fair_lock: bool
    hashing: bool
    lazy_load: bool
    """The first job loads the model."""
    unknown_sampler_refused: bool
    schedulers: bool
    unknown_option_fails: bool
    swallows_errors: bool
    """A RuntimeError in the pipeline is answered with 200 and no picture."""
    checks_nan: bool
    user_interface: bool
    samples_format: str
    size: int
    steps: int
    cfg_scale: float


SDNEXT = Dialect(
    name="sdnext",
    version="058a7f0c",
    sdnext=True,
    current=True,
    errors="code",
    pydantic=2,
    gzip_over=2048,
    process_time=True,
    keep_alive_seconds=5,
    fair_lock=False,
    hashing=False,
    lazy_load=False,
    unknown_sampler_refused=True,
    schedulers=False,
    unknown_option_fails=False,
    swallows_errors=True,
    checks_nan=False,
    user_interface=True,
    samples_format="jpg",
    size=1024,
    steps=20,
    cfg_scale=6.0,
)

SDNEXT_2023 = Dialect(
    name="sdnext-2023",
    version="93f35ccf",
    sdnext=True,
    current=False,
    errors="plain",
    pydantic=1,
    gzip_over=2048,
    process_time=True,
    keep_alive_seconds=5,
    fair_lock=False,
    hashing=True,
    lazy_load=False,
    unknown_sampler_refused=True,
    schedulers=False,
    unknown_option_fails=True,
    swallows_errors=True,
    checks_nan=False,
    user_interface=True,
    samples_format="jpg",
    size=512,
    steps=50,
    cfg_scale=7.0,
)

A1111 = Dialect(
    name="a1111",
    version="v1.10.1",
    sdnext=False,
    current=False,
    errors="plain",
    pydantic=1,
    gzip_over=1000,
    process_time=False,
    keep_alive_seconds=5,
    fair_lock=True,
    hashing=True,
    lazy_load=False,
    unknown_sampler_refused=False,
    schedulers=True,
    unknown_option_fails=True,
    swallows_errors=False,
    checks_nan=True,
    user_interface=True,
    samples_format="png",
    size=512,
    steps=50,
    cfg_scale=7.0,
)

A1111_17 = Dialect(
    name="a1111-1.7",
    version="v1.7.0",
    sdnext=False,
    current=False,
    errors="plain",
    pydantic=1,
    gzip_over=1000,
    process_time=True,
    keep_alive_seconds=5,
    fair_lock=True,
    hashing=True,
    lazy_load=False,
    unknown_sampler_refused=True,
    schedulers=False,
    unknown_option_fails=True,
    swallows_errors=False,
    checks_nan=True,
    user_interface=True,
    samples_format="png",
    size=512,
    steps=50,
    cfg_scale=7.0,
)

FORGE = Dialect(
    name="forge",
    version="f2.0.1v1.10.1-previous-669-gdfdcbab6",
    sdnext=False,
    current=False,
    errors="forge",
    pydantic=2,
    gzip_over=1000,
    process_time=False,
    keep_alive_seconds=30,
    fair_lock=False,
    hashing=True,
    lazy_load=True,
    unknown_sampler_refused=False,
    schedulers=True,
    unknown_option_fails=True,
    swallows_errors=False,
    checks_nan=False,
    user_interface=False,
    samples_format="png",
    size=512,
    steps=50,
    cfg_scale=7.0,
)

DIALECTS: dict[str, Dialect] = {d.name: d for d in (SDNEXT, SDNEXT_2023, A1111, A1111_17, FORGE)}
